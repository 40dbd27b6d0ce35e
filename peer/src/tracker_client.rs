//! The host's side of the control plane: joins a tracker, sends beats, receives the membership, and changes the tracker
//! after a failure.
//!
//! Invariant: the host uses one tracker at a time. Whatever that tracker did not acknowledge is sent to the next one.

use crate::error_chain::ErrorChain;
use crate::reports::Reports;
use crate::row_check::RowCheck;
use shoal_net::admission::Admission;
use shoal_net::control::{ConnectError, ControlEvent, ControlHandle, ReplySlot, RequestError};
use shoal_net::own_credential::{OwnCredential, RenewError};
use shoal_proto::control::{Join, Request, Response};
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::limits;
use shoal_proto::membership::MembershipUpdate;
use shoal_proto::trust::{Admitted, Role, Trust, TrustError};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// First wait between two attempts to reach a tracker.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest wait between two attempts to reach a tracker.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How long a host waits for the trust document of a tracker that it cannot admit.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Delay of a beat after a change of state, so that several changes share one beat.
const STATE_DELAY: Duration = Duration::from_millis(50);
/// Shortest time between two beats that only carry progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// How long a stopping host tries to leave its tracker.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds of the beat interval that a tracker can set.
const BEAT_MIN_MS: u64 = 50;
const BEAT_MAX_MS: u64 = 60_000;

/// What the client tells the driver.
#[derive(Debug)]
pub enum TrackerEvent {
    /// A tracker accepted this host.
    Joined {
        /// Our permanent position in the roster.
        index: HostIndex,
    },
    /// The membership changed.
    Update(MembershipUpdate),
}

/// The reports and the membership epoch, shared by the driver and the client.
#[derive(Debug, Default)]
pub struct SharedReports {
    reports: Mutex<Reports>,
    changed: Notify,
    epoch: Mutex<Option<Epoch>>,
}

impl SharedReports {
    /// Locks the reports.
    pub fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the client send changed reports soon.
    pub fn send_soon(&self) {
        self.changed.notify_one();
    }

    /// Sets the membership epoch of the driver. `None` makes the tracker send the whole membership.
    pub fn set_epoch(&self, epoch: Option<Epoch>) {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = epoch;
    }

    fn epoch(&self) -> Option<Epoch> {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a tracker cannot be used, or not any longer.
#[derive(Debug, thiserror::Error)]
enum TrackerError {
    #[error("cannot look up the tracker's name")]
    Resolve(#[from] io::Error),
    #[error("the tracker's name has no address")]
    NoAddress,
    #[error("cannot connect to the tracker")]
    Connect(#[from] ConnectError),
    #[error("the request to the tracker failed")]
    Request(#[from] RequestError),
    #[error("the tracker refused: {0}")]
    Refused(String),
    #[error("the tracker sent an unexpected answer: {0:?}")]
    Unexpected(Box<Response>),
    #[error("the node at the tracker's address is no tracker of this cluster: check `trackers`")]
    NoTracker(#[source] TrustError),
    #[error("the tracker serves region {found}, and this host is in region {own}: check `trackers`")]
    OtherRegion { own: String, found: String },
    #[error("the new credential cannot be used")]
    Renew(#[from] RenewError),
    #[error("the connection ended")]
    Disconnected,
    #[error("the control plane stopped")]
    ControlStopped,
    #[error("this host stops")]
    Stopping,
}

/// A tracker that accepted this host.
struct Session {
    tracker: NodeId,
    credential: Admitted,
    beat_interval: Duration,
}

/// Whether one beat carried all changed reports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backlog {
    Empty,
    Left,
}

/// The client before it runs.
pub struct TrackerClient {
    /// The control plane.
    pub control: ControlHandle,
    /// The events of `control`.
    pub events: mpsc::Receiver<ControlEvent>,
    /// Control addresses of trackers, `host:port`.
    pub trackers: Vec<String>,
    /// This host's credential, which the client renews.
    pub own: OwnCredential,
    /// The join request. The client sets `known` and the credential.
    pub join: Join,
    /// The trust document, which this host and its tracker exchange.
    pub admission: Admission,
    /// The reports and the epoch.
    pub shared: Arc<SharedReports>,
    /// Receives events for the driver.
    pub sink: mpsc::Sender<TrackerEvent>,
    /// The tracker in use, for requests of other tasks.
    pub current: watch::Sender<Option<NodeId>>,
    /// The check of what the tracker says of other hosts.
    pub(crate) rows: Arc<Mutex<RowCheck>>,
    /// Receives fetch-through requests of hosts. Only seeders have it.
    pub wanted: Option<mpsc::Sender<FetchThroughRequest>>,
}

/// A client on a host pulled an image that the host lacks.
#[derive(Debug)]
pub struct FetchThroughRequest {
    /// The full name of the image.
    pub reference: String,
    /// The host with the client.
    pub host: HostIndex,
    /// Gets `Done` if the image may arrive, else `Refused`.
    pub reply: ReplySlot,
}

impl TrackerClient {
    /// Runs until the token is cancelled, then leaves the tracker.
    pub async fn run(mut self, token: CancellationToken) {
        let mut wait = RETRY_FIRST;
        let mut attempt = 0usize;
        while !token.is_cancelled() {
            let name = self.trackers[attempt % self.trackers.len()].clone();
            attempt += 1;
            let session = tokio::select! {
                () = token.cancelled() => break,
                session = self.connect(&name) => session,
            };
            match session {
                Ok(session) => {
                    let tracker = session.tracker;
                    tracing::info!(tracker = %name, "joined a tracker");
                    wait = RETRY_FIRST;
                    self.current.send_replace(Some(tracker));
                    let end = self.serve(&session, &token).await;
                    self.current.send_replace(None);
                    if token.is_cancelled() {
                        let leave = self.control.request(tracker, Request::Leave);
                        let _ = tokio::time::timeout(LEAVE_TIMEOUT, leave).await; // the tracker would miss our beats
                        break;
                    }
                    tracing::warn!(tracker = %name, error = %ErrorChain(&end), "lost the tracker");
                    self.control.disconnect(tracker);
                }
                Err(error) => tracing::debug!(tracker = %name, error = %ErrorChain(&error), "cannot join a tracker"),
            }
            tokio::select! {
                () = token.cancelled() => break,
                () = self.drop_events_for(jittered(wait)) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
        self.control.shutdown(Duration::from_secs(2)).await;
    }

    /// Waits without a tracker. Events of former trackers are dropped, so that their queue never fills.
    async fn drop_events_for(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        while let Ok(Some(event)) = tokio::time::timeout_at(until, self.events.recv()).await {
            drop(event);
        }
    }

    /// Connects to the first address that answers, and joins.
    async fn connect(&mut self, name: &str) -> Result<Session, TrackerError> {
        let mut last = TrackerError::NoAddress;
        for addr in tokio::net::lookup_host(name).await? {
            match self.control.connect(addr, None).await {
                Ok(tracker) => {
                    let joined = self.join(tracker).await;
                    if joined.is_err() {
                        // The tracker would take the next connection for a second host with this key.
                        self.control.disconnect(tracker);
                    }
                    return joined;
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    async fn join(&mut self, tracker: NodeId) -> Result<Session, TrackerError> {
        let credential = self.own.bytes().to_vec();
        let join = Join { known: self.shared.epoch(), credential, ..self.join.clone() };
        match self.control.request(tracker, Request::Join(join)).await? {
            Response::Joined { index, update, beat_ms, tracker: shown } => {
                let mut admitted = self.admit_tracker(tracker, &shown);
                if matches!(admitted, Err(TrackerError::NoTracker(_))) {
                    self.catch_up(tracker).await;
                    admitted = self.admit_tracker(tracker, &shown);
                }
                let credential = admitted.inspect_err(|error| {
                    tracing::warn!(error = %ErrorChain(error), "this host does not believe the node at the tracker's address");
                })?;
                self.shared.reports().on_new_tracker();
                self.send(TrackerEvent::Joined { index }).await;
                self.send_update(update).await;
                let beat_ms = u64::from(beat_ms).clamp(BEAT_MIN_MS, BEAT_MAX_MS);
                Ok(Session { tracker, credential, beat_interval: Duration::from_millis(beat_ms) })
            }
            Response::Refused { why } => {
                tracing::warn!(%why, "the tracker refuses this host");
                Err(TrackerError::Refused(why))
            }
            other => Err(TrackerError::Unexpected(Box::new(other))),
        }
    }

    /// Lets a node that claims to be a tracker send its trust document. The tracker may have a credential that only a
    /// later document than this host's admits. Nothing but the signatures of the document decides whether it counts.
    async fn catch_up(&mut self, tracker: NodeId) {
        let trust = self.admission.trust().version();
        let beat = Request::Beat { known: Epoch(u64::MAX), reports: Vec::new(), versions: Vec::new(), trust };
        let until = Instant::now() + CATCH_UP;
        let control = self.control.clone();
        let heard = control.request(tracker, beat);
        tokio::pin!(heard);
        let mut is_heard = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                answer = &mut heard, if !is_heard => {
                    is_heard = true;
                    // The answer names the version. Without a later one, no document comes.
                    let Ok(Response::Heard { trust: theirs, .. }) = answer else { return };
                    if theirs <= trust {
                        return;
                    }
                }
                event = self.events.recv() => match event {
                    Some(ControlEvent::Request { from, request: Request::Trust { document }, reply, .. })
                        if from == tracker =>
                    {
                        reply.send(self.take_trust(document).await);
                        return;
                    }
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }

    /// Checks that the node with a proven key is a tracker of this host's region.
    fn admit_tracker(&self, tracker: NodeId, shown: &[u8]) -> Result<Admitted, TrackerError> {
        let admitted = self.admission.admit(shown, tracker).map_err(TrackerError::NoTracker)?;
        if admitted.role != Role::Tracker {
            return Err(TrackerError::NoTracker(TrustError::WrongRole(admitted.role)));
        }
        let own = self.own.region();
        if admitted.locality.region != own {
            return Err(TrackerError::OtherRegion { own: own.to_string(), found: admitted.locality.region.clone() });
        }
        Ok(admitted)
    }

    async fn send(&self, event: TrackerEvent) {
        let _ = self.sink.send(event).await; // fails only while the node stops
    }

    /// Checks the rows of an update, on a thread that may block, and hands the others to the driver. The first whole
    /// membership of a large region takes seconds.
    async fn send_update(&self, update: Option<MembershipUpdate>) {
        let Some(mut update) = update else { return };
        let rows = self.rows.clone();
        let checked = tokio::task::spawn_blocking(move || {
            rows.lock().unwrap_or_else(PoisonError::into_inner).filter_update(&mut update);
            update
        });
        let update = checked.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        self.send(TrackerEvent::Update(update)).await;
    }

    /// Returns the membership epoch for the tracker. The first epoch makes it send the whole membership.
    fn known_epoch(&self) -> Epoch {
        let needs_whole = self.rows.lock().unwrap_or_else(PoisonError::into_inner).needs_whole();
        if needs_whole { Epoch::default() } else { self.shared.epoch().unwrap_or_default() }
    }

    /// Sends beats and answers requests until the session ends. Returns why it ended.
    async fn serve(&mut self, session: &Session, token: &CancellationToken) -> TrackerError {
        let tracker = session.tracker;
        let mut next = Instant::now();
        let mut last = next;
        let mut trust = self.admission.changes();
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => {
                    let _ = self.beat(tracker).await; // the last reports, if the tracker still answers
                    return TrackerError::Stopping;
                }
                event = self.events.recv() => match event {
                    None => return TrackerError::ControlStopped,
                    Some(ControlEvent::Disconnected { node, last: true, .. }) if node == tracker => return TrackerError::Disconnected,
                    Some(event) => self.on_event(event, tracker).await,
                },
                // The tracker tells it to the hosts to which this one has no link.
                Ok(()) = trust.changed() => next = Instant::now(),
                () = self.shared.changed.notified() => {
                    let urgent = self.shared.reports().is_urgent();
                    let shortest = if urgent { STATE_DELAY } else { PROGRESS_EVERY };
                    next = next.min((last + shortest).max(Instant::now() + STATE_DELAY));
                }
                () = tokio::time::sleep_until(next) => {
                    if let Err(error) = self.admission.check_again(&session.credential) {
                        return TrackerError::NoTracker(error);
                    }
                    let backlog = match self.beat(tracker).await {
                        Ok(backlog) => backlog,
                        Err(error) => return error,
                    };
                    self.renew_if_due(tracker).await;
                    last = Instant::now();
                    next = last + if backlog == Backlog::Left { STATE_DELAY } else { session.beat_interval };
                }
            }
        }
    }

    /// Asks for a new credential when this host's own one ends soon. A failure is logged and tried again later.
    async fn renew_if_due(&mut self, tracker: NodeId) {
        if !self.own.should_renew() {
            return;
        }
        let left_s = self.own.seconds_left();
        match self.renew(tracker).await {
            Ok(true) => tracing::info!(left_s = self.own.seconds_left(), "renewed this host's credential"),
            Ok(false) => tracing::debug!(left_s, "the tracker's issuer cannot extend this host's credential yet"),
            Err(error) => tracing::warn!(
                left_s,
                error = %ErrorChain(&error),
                "cannot renew this host's credential, which ends soon: set `issuer_key` at a tracker, or run \
                 `shoal cluster renew`, copy node.cred and restart"
            ),
        }
    }

    /// Returns whether this host has a new credential.
    async fn renew(&mut self, tracker: NodeId) -> Result<bool, TrackerError> {
        match self.control.request(tracker, Request::Renew).await? {
            Response::Renewed { credential } => {
                self.own.replace(credential).await?;
                Ok(true)
            }
            Response::Done => Ok(false),
            Response::Refused { why } => Err(TrackerError::Refused(why)),
            other => Err(TrackerError::Unexpected(Box::new(other))),
        }
    }

    /// Answers a request of the tracker in use, and refuses every other request.
    async fn on_event(&mut self, event: ControlEvent, tracker: NodeId) {
        let ControlEvent::Request { from, request, reply, .. } = event else { return };
        match (request, &self.wanted) {
            (Request::Membership(update), _) if from == tracker => {
                self.send_update(Some(update)).await;
                reply.send(Response::Done);
            }
            (Request::Trust { document }, _) if from == tracker => {
                let answer = self.take_trust(document).await;
                reply.send(answer);
            }
            (Request::WantImage { reference, host: Some(host) }, Some(wanted)) if from == tracker => {
                let request = FetchThroughRequest { reference, host, reply };
                if let Err(mpsc::error::TrySendError::Full(request)) = wanted.try_send(request) {
                    let why = "the seeder has too many requests for images; try again".into();
                    request.reply.send(Response::Refused { why });
                }
            }
            _ => reply.send(Response::Refused { why: "only this host's tracker can send this request".into() }),
        }
    }

    async fn send_trust(&self, tracker: NodeId, trust: &Trust) -> Result<(), TrackerError> {
        let request = Request::Trust { document: trust.bytes().to_vec() };
        if let Response::Refused { why } = self.control.request(tracker, request).await? {
            tracing::warn!(%why, version = trust.version(), "the tracker refuses the trust document");
        }
        Ok(())
    }

    /// Puts the tracker's trust document in force, if it is newer.
    async fn take_trust(&self, document: Vec<u8>) -> Response {
        match self.admission.offer_received(document).await {
            Ok(_) => Response::Done,
            Err(error) => {
                tracing::warn!(%error, "refused the tracker's trust document");
                Response::Refused { why: error.to_string() }
            }
        }
    }

    /// Sends unacknowledged reports.
    async fn beat(&mut self, tracker: NodeId) -> Result<Backlog, TrackerError> {
        let batch = self.shared.reports().next_batch();
        let known = self.known_epoch();
        let (reports, versions) = (batch.reports.clone(), batch.versions.clone());
        let ours = self.admission.trust();
        let beat = Request::Beat { known, reports, versions, trust: ours.version() };
        match self.control.request(tracker, beat).await? {
            Response::Heard { update, trust } => {
                if trust < ours.version() {
                    self.send_trust(tracker, &ours).await?;
                }
                self.shared.reports().on_acknowledged(&batch);
                self.send_update(update).await;
                let full = batch.reports.len().max(batch.versions.len()) == limits::BEAT_ROWS_MAX;
                Ok(if full { Backlog::Left } else { Backlog::Empty })
            }
            Response::Refused { why } => Err(TrackerError::Refused(why)),
            other => Err(TrackerError::Unexpected(Box::new(other))),
        }
    }
}

/// Returns a random duration between half of `wait` and `wait`, so that the hosts of a lost tracker return one by one.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0u8; 4];
    // Without random numbers the wait is the longest one, which is still valid.
    let part = getrandom::fill(&mut random).map_or(u32::MAX, |()| u32::from_le_bytes(random));
    wait.mul_f64(0.5 + 0.5 * f64::from(part) / f64::from(u32::MAX))
}
