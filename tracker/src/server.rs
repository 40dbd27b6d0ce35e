//! Starting and stopping a tracker, and the tasks in between: requests, sweeping, pushing membership, telling the hub.

use crate::api;
use crate::config::TrackerConfig;
use crate::sessions::{State, StateError};
use shoal_net::admission::{Admission, system_clock};
use shoal_net::control::{ControlConfig, ControlEvent, ControlHandle, ControlPlane};
use shoal_net::identity::{Identity, load_key};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Role, Trust};
use shoal_service::http_client::{Client, ClientError};
use shoal_service::http_server::{Server, bind};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, Tasks};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// Changes within this go out together.
const COALESCE: Duration = Duration::from_millis(100);
/// First and longest wait before a flush is sent again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Longest request read from hosts, admitted or not.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Hosts' wishes for images that are being handed on to a seeder at once.
const WANTED_MAX: usize = 64;

/// Why a tracker cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] shoal_service::config::ConfigError),
    /// A file it names cannot.
    #[error("{what}: {why}")]
    File {
        /// The file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The state folder cannot be used.
    #[error("state in {dir}: {why}")]
    State {
        /// The folder.
        dir: String,
        /// What is wrong with it.
        why: String,
    },
    /// An address cannot be listened on.
    #[error("{0}")]
    Listen(String),
    /// Part of it failed while running.
    #[error("{0}")]
    Failed(String),
}

/// A running tracker.
#[derive(Debug)]
pub struct Started {
    /// Where hosts reach it, with the ports picked.
    pub control_addrs: Vec<SocketAddr>,
    /// Where its HTTP API is, with the port picked.
    pub http_addr: SocketAddr,
    /// Its key.
    pub node: NodeId,
    tasks: Tasks,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file(path: &Path) -> impl Fn(String) -> RunError + '_ {
    |why| RunError::File { what: path.display().to_string(), why }
}

/// Starts a tracker and comes back once it can be reached. It stops when `shutdown` is cancelled.
pub async fn start(config: TrackerConfig, shutdown: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    let read = |path: &Path| std::fs::read(path).map_err(|error| file(path)(error.to_string()));
    let keys = load_key(&config.key).map_err(|error| file(&config.key)(error.to_string()))?;
    let trust = Trust::open(&read(&config.trust)?, config.cluster);
    let trust = Arc::new(trust.map_err(|error| file(&config.trust)(error.to_string()))?);
    let credential_bytes = read(&config.credential)?;
    let credential = trust
        .admit(&credential_bytes, keys.node(), system_clock())
        .map_err(|error| file(&config.credential)(error.to_string()))?;
    if credential.role != Role::Tracker {
        return Err(file(&config.credential)(format!("is a {}'s, not a tracker's", credential.role)));
    }
    let state_fault = |why: String| RunError::State { dir: config.dir.display().to_string(), why };
    let db = crate::backup::open(&config.dir);
    let db = db.map_err(|error| state_fault(error.to_string()))?;
    let admission = Admission::new(trust, credential_bytes, system_clock);
    let state = State::open(config.clone(), admission, keys.clone(), credential.locality.region, &db);
    let state = Arc::new(Mutex::new(state.map_err(|error| state_fault(error.to_string()))?));

    let mut control_config = ControlConfig::new(Identity::new(&keys), config.listen.clone());
    control_config.connections_max = config.limits.connections;
    control_config.request_bytes_max = REQUEST_BYTES_MAX;
    let (control, events) =
        ControlPlane::start(control_config).await.map_err(|error| RunError::Listen(error.to_string()))?;
    let listener = bind(config.http).await.map_err(|error| RunError::Listen(error.to_string()))?;
    let http_addr = listener.local_addr().map_err(|error| RunError::Listen(error.to_string()))?;

    let mut tasks = Tasks::new(shutdown.child_token());
    let token = tasks.token().clone();
    let source: shoal_service::backup::Source = Arc::new(move |out, _| crate::backup::write(&db, out));
    tasks.spawn("backups", shoal_service::backup::serve(config.dir.clone(), "tracker", source, token.clone()));
    let metrics = measure(&state, &control);
    let server = Server::new("tracker", metrics, Arc::new(Vec::new), api::routes(state.clone()));
    tasks.spawn("http", server.serve(listener, token.clone()));
    let to_hub = Arc::new(Notify::new());
    if let Some(url) = &config.hub {
        let client = Client::new(url, None).map_err(|error| RunError::Listen(error.to_string()))?;
        tasks.spawn("hub", tell_hub(state.clone(), client, to_hub.clone(), token.clone()));
    }
    let control_addrs = control.local_addrs().to_vec();
    tasks.spawn("requests", serve(state.clone(), control.clone(), events, token.clone()));
    tasks.spawn("upkeep", keep_up(state, control, to_hub, config.limits.pushes, token));
    tracing::info!(control = ?control_addrs, http = %http_addr, "tracker started");
    Ok(Started { control_addrs, http_addr, node: keys.node(), tasks })
}

fn measure(state: &Arc<Mutex<State>>, control: &ControlHandle) -> Metrics {
    let metrics = Metrics::with_process();
    let gauge = |name: &str, help: &str| metrics.gauge(name, help);
    let (up, away) = (gauge("shoal_tracker_hosts_up", "Hosts up"), gauge("shoal_tracker_hosts_away", "Hosts away"));
    let bytes_in = gauge("shoal_tracker_bytes_in_total", "Bytes received on the control plane");
    let bytes_out = gauge("shoal_tracker_bytes_out_total", "Bytes sent on the control plane");
    let beats = gauge("shoal_tracker_beats_total", "Beats heard");
    let flushes = gauge("shoal_tracker_flushes_total", "Flushes written for the hub");
    let spool = gauge("shoal_tracker_spool", "Flushes that wait for the hub");
    let (state, control) = (state.clone(), control.clone());
    metrics.refresh(move || {
        let state = lock(&state);
        let members = state.roster.members();
        let present = members.iter().filter(|member| members.is_up(member.index)).count();
        up.set(present as i64);
        away.set((members.len() - present) as i64);
        bytes_in.set(control.bytes_in() as i64);
        bytes_out.set(control.bytes_out() as i64);
        beats.set(state.beats as i64);
        flushes.set(state.flushes as i64);
        spool.set(state.spool.len() as i64);
    });
    metrics
}

fn refused(why: &str) -> Response {
    Response::Refused { why: why.into() }
}

/// Answers hosts.
async fn serve(
    state: Arc<Mutex<State>>,
    control: ControlHandle,
    mut events: mpsc::Receiver<ControlEvent>,
    token: CancellationToken,
) {
    let mut wanted = JoinSet::new();
    loop {
        let event = tokio::select! {
            () = token.cancelled() => break,
            Some(_) = wanted.join_next(), if !wanted.is_empty() => continue,
            event = events.recv() => event,
        };
        match event {
            None => break,
            Some(ControlEvent::Request { from, request: Request::WantImage { reference, .. }, reply, .. }) => {
                let asked = lock(&state).image_wanted(&from);
                match asked {
                    Ok(_) if wanted.len() >= WANTED_MAX => reply.send(refused("too many images are wanted at once")),
                    Ok((seeder, host)) => {
                        let control = control.clone();
                        wanted.spawn(async move {
                            let want = Request::WantImage { reference, host: Some(host) };
                            let answer = control.request(seeder, want).await;
                            reply.send(answer.unwrap_or_else(|_| refused("the seeder does not answer")));
                        });
                    }
                    Err(why) => reply.send(refused(why)),
                }
            }
            Some(ControlEvent::Connected { node, remote }) => {
                tracing::debug!(node = %node.short(), %remote, "connected")
            }
            Some(ControlEvent::Disconnected { node }) => {
                if let Err(error) = lock(&state).gone(&node) {
                    tracing::error!(%error, "cannot keep who is away");
                }
            }
            Some(ControlEvent::Request { from, remote, request, reply }) => {
                let joins = matches!(request, Request::Join(_));
                let answer = lock(&state).answer(from, remote, request);
                let refused = matches!(answer, Response::Refused { .. });
                reply.send(answer);
                if joins && refused {
                    tracing::debug!(node = %from.short(), "not admitted");
                }
            }
        }
    }
    control.shutdown(Duration::from_secs(3)).await;
}

/// Looks after who is away, tells hosts of changes, writes flushes.
async fn keep_up(
    state: Arc<Mutex<State>>,
    control: ControlHandle,
    to_hub: Arc<Notify>,
    pushes_max: usize,
    token: CancellationToken,
) {
    let mut tick = tokio::time::interval(COALESCE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut pushes: JoinSet<(NodeId, Option<shoal_proto::ids::Epoch>)> = JoinSet::new();
    loop {
        tokio::select! {
            () = token.cancelled() => break,
            Some(ended) = pushes.join_next(), if !pushes.is_empty() => {
                if let Ok((node, told)) = ended
                    && let Some(session) = lock(&state).sessions.get_mut(&node)
                {
                    session.pushing = false;
                    // A push that failed is made good by the next beat.
                    session.known = told.map_or(session.known, |epoch| session.known.max(epoch));
                }
                continue;
            }
            _ = tick.tick() => {}
        }
        let result = upkeep(&mut lock(&state));
        match result {
            Ok(true) => to_hub.notify_one(),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cannot keep the tracker's records"),
        }
        let behind = lock(&state).behind(pushes_max.saturating_sub(pushes.len()));
        for (node, known) in behind {
            let Some(update) = lock(&state).roster.log().update_since(Some(known)) else { continue };
            let (control, epoch) = (control.clone(), update.epoch);
            pushes.spawn(async move {
                let told = control.request(node, Request::Membership(update)).await;
                (node, matches!(told, Ok(Response::Done)).then_some(epoch))
            });
        }
    }
    pushes.shutdown().await;
    // What was heard last is written, to be sent after the restart if not now.
    if let Err(error) = lock(&state).flush() {
        tracing::error!(%error, "cannot write the last flush");
    }
}

fn upkeep(state: &mut State) -> Result<bool, StateError> {
    state.sweep()?;
    state.flush()
}

/// Sends flushes, oldest first, until the hub has them.
async fn tell_hub(state: Arc<Mutex<State>>, client: Client, ready: Arc<Notify>, token: CancellationToken) {
    let mut wait = RETRY.0;
    loop {
        let next = {
            let state = lock(&state);
            state.spool.first().map(|next| next.map(|(sequence, spooled)| (sequence, state.submission(&spooled))))
        };
        let (sequence, body) = match next {
            Ok(Some(next)) => next,
            Ok(None) => {
                tokio::select! {
                    () = token.cancelled() => return,
                    () = ready.notified() => continue,
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the spool");
                return;
            }
        };
        let sent = tokio::select! {
            () = token.cancelled() => return,
            sent = client.post_bytes::<serde_json::Value>("/v1/reports", body) => sent,
        };
        match sent {
            Ok(_) => {
                wait = RETRY.0;
                if let Err(error) = lock(&state).spool.done(sequence) {
                    tracing::error!(%error, "cannot take a flush off the spool");
                    return;
                }
            }
            Err(ClientError::Refused(error)) if matches!(error.status, 400 | 413 | 422) => {
                tracing::error!(%error, sequence, "the hub cannot use a flush; what it said is said anew");
                if let Err(error) = lock(&state).give_up(sequence) {
                    tracing::error!(%error, "cannot take a flush off the spool");
                    return;
                }
                tokio::select! {
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(RETRY.1) => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, sequence, "the hub was not told; trying again");
                tokio::select! {
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

impl Started {
    /// Waits until the tracker has stopped, because it was told to or because part of it failed.
    pub async fn wait(mut self) -> Result<(), RunError> {
        let ended = self.tasks.run().await;
        self.tasks.stop(STOP_DEADLINE).await;
        ended.map_err(RunError::Failed)
    }
}

/// Runs a tracker until `shutdown` is cancelled.
pub async fn run(config: TrackerConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    start(config, shutdown).await?.wait().await
}
