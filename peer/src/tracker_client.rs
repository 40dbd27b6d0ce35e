//! The host's side of the control plane: join, beat, hear of membership, fail over.
//!
//! Invariant: one tracker at a time; whatever it did not hear before a failure is said to the next.

use crate::reports::Reports;
use shoal_net::control::{ControlEvent, ControlHandle, ReplySlot};
use shoal_proto::control::{Join, Request, Response};
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::limits;
use shoal_proto::membership::MembershipUpdate;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// First and longest wait between two attempts to reach a tracker.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// States are told this soon, together.
const PROMPT: Duration = Duration::from_millis(50);
/// Progress is told at most this often while something is under way.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// What the tracker tells the driver.
#[derive(Debug)]
pub enum TrackerEvent {
    /// We are in.
    Joined {
        /// Our place in the roster.
        index: HostIndex,
    },
    /// Membership changed.
    Update(MembershipUpdate),
}

/// What the client shares with the driver.
#[derive(Debug, Default)]
pub struct SharedReports {
    reports: Mutex<Reports>,
    /// Woken when a state was reached.
    urgent: Notify,
    /// The membership epoch held.
    known: Mutex<Option<Epoch>>,
}

impl SharedReports {
    /// The reports.
    pub fn reports(&self) -> std::sync::MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Have the reports told soon.
    pub fn tell_soon(&self) {
        self.urgent.notify_one();
    }

    /// The driver holds this epoch now.
    pub fn set_known(&self, epoch: Option<Epoch>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = epoch;
    }

    fn known(&self) -> Option<Epoch> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client, before it runs.
pub struct TrackerClient {
    /// The control plane.
    pub control: ControlHandle,
    /// Its events.
    pub events: mpsc::Receiver<ControlEvent>,
    /// Trackers, `host:port`.
    pub trackers: Vec<String>,
    /// What to join with; `known` is filled in.
    pub join: Join,
    /// SharedReports with the driver.
    pub shared: Arc<SharedReports>,
    /// To the driver.
    pub sink: mpsc::Sender<TrackerEvent>,
    /// The tracker in use, for others' requests.
    pub current: watch::Sender<Option<NodeId>>,
    /// Where hosts' wishes for images go; seeders only.
    pub wanted: Option<mpsc::Sender<FetchThroughRequest>>,
}

/// A host was asked for an image that it has not.
#[derive(Debug)]
pub struct FetchThroughRequest {
    /// The image's name, in full.
    pub reference: String,
    /// The host.
    pub host: HostIndex,
    /// `Done` when the image may come, else `Refused`.
    pub reply: ReplySlot,
}

impl TrackerClient {
    /// Runs until the token is cancelled, then leaves.
    pub async fn run(mut self, token: CancellationToken) {
        let mut wait = RETRY.0;
        let mut turn = 0usize;
        while !token.is_cancelled() {
            let name = self.trackers[turn % self.trackers.len()].clone();
            turn += 1;
            let session = tokio::select! {
                () = token.cancelled() => break,
                session = self.enter(&name) => session,
            };
            match session {
                Ok((tracker, beat)) => {
                    tracing::info!(tracker = %name, "joined");
                    wait = RETRY.0;
                    self.current.send_replace(Some(tracker));
                    let why = self.stay(tracker, beat, &token).await;
                    self.current.send_replace(None);
                    if token.is_cancelled() {
                        let leave = self.control.request(tracker, Request::Leave);
                        let _ = tokio::time::timeout(Duration::from_secs(1), leave).await;
                        break;
                    }
                    tracing::warn!(tracker = %name, %why, "lost the tracker");
                    self.control.disconnect(tracker);
                }
                Err(why) => tracing::debug!(tracker = %name, %why, "cannot join"),
            }
            tokio::select! {
                () = token.cancelled() => break,
                () = self.idle(jittered(wait)) => {}
            }
            wait = (wait * 2).min(RETRY.1);
        }
        self.control.shutdown(Duration::from_secs(2)).await;
    }

    /// Waits, answering what no longer matters.
    async fn idle(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        while let Ok(Some(event)) = tokio::time::timeout_at(until, self.events.recv()).await {
            drop(event);
        }
    }

    async fn enter(&mut self, name: &str) -> Result<(NodeId, Duration), String> {
        let addrs = tokio::net::lookup_host(name).await.map_err(|error| error.to_string())?;
        let mut why = "no address".to_string();
        for addr in addrs {
            match self.control.connect(addr, None).await {
                Ok(tracker) => return self.join(tracker).await,
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }

    async fn join(&mut self, tracker: NodeId) -> Result<(NodeId, Duration), String> {
        let join = Join { known: self.shared.known(), ..self.join.clone() };
        let answer = self.control.request(tracker, Request::Join(join)).await;
        match answer.map_err(|error| error.to_string())? {
            Response::Joined { index, update, beat_ms } => {
                self.shared.reports().unheard();
                let _ = self.sink.send(TrackerEvent::Joined { index }).await;
                if let Some(update) = update {
                    let _ = self.sink.send(TrackerEvent::Update(update)).await;
                }
                Ok((tracker, Duration::from_millis(u64::from(beat_ms).clamp(50, 60_000))))
            }
            Response::Refused { why } => {
                tracing::warn!(%why, "the tracker refuses us");
                Err(why)
            }
            other => Err(format!("unexpected answer {other:?}")),
        }
    }

    /// Beats until the tracker is lost or we stop; gives why.
    async fn stay(&mut self, tracker: NodeId, beat: Duration, token: &CancellationToken) -> String {
        let mut next = Instant::now();
        let mut last = next;
        loop {
            tokio::select! {
                biased;
                () = token.cancelled() => {
                    let _ = self.beat(tracker).await;
                    return "stopping".into();
                }
                event = self.events.recv() => match event {
                    None => return "the control plane stopped".into(),
                    Some(ControlEvent::Disconnected { node }) if node == tracker => return "disconnected".into(),
                    Some(ControlEvent::Request { from, request: Request::Membership(update), reply, .. })
                        if from == tracker =>
                    {
                        let _ = self.sink.send(TrackerEvent::Update(update)).await;
                        reply.send(Response::Done);
                    }
                    Some(ControlEvent::Request { from, request: Request::WantImage { reference, host: Some(host) }, reply, .. })
                        if from == tracker && self.wanted.is_some() =>
                    {
                        let full = self.wanted.as_ref().map(|wanted| wanted.try_send(FetchThroughRequest { reference, host, reply }));
                        if let Some(Err(mpsc::error::TrySendError::Full(wish))) = full {
                            wish.reply.send(Response::Refused { why: "too many images are wanted at once".into() });
                        }
                    }
                    Some(ControlEvent::Request { reply, .. }) => {
                        reply.send(Response::Refused { why: "only our tracker may ask, and only of membership".into() });
                    }
                    Some(_) => {}
                },
                () = self.shared.urgent.notified() => {
                    let urgent = self.shared.reports().is_urgent();
                    let soonest = if urgent { PROMPT } else { PROGRESS_EVERY };
                    next = next.min((last + soonest).max(Instant::now() + PROMPT));
                }
                () = tokio::time::sleep_until(next) => {
                    let more = match self.beat(tracker).await {
                        Ok(more) => more,
                        Err(why) => return why,
                    };
                    last = Instant::now();
                    next = last + if more { PROMPT } else { beat };
                }
            }
        }
    }

    /// Tells what the tracker has not heard; gives whether there is more than one beat takes.
    async fn beat(&mut self, tracker: NodeId) -> Result<bool, String> {
        let batch = self.shared.reports().batch();
        let known = self.shared.known().unwrap_or_default();
        let (reports, versions) = (batch.reports.clone(), batch.versions.clone());
        let request = Request::Beat { known, reports, versions };
        match self.control.request(tracker, request).await.map_err(|error| error.to_string())? {
            Response::Heard { update } => {
                self.shared.reports().heard(&batch);
                if let Some(update) = update {
                    let _ = self.sink.send(TrackerEvent::Update(update)).await;
                }
                Ok(batch.reports.len().max(batch.versions.len()) == limits::BEAT_ROWS_MAX)
            }
            Response::Refused { why } => Err(why),
            other => Err(format!("unexpected answer {other:?}")),
        }
    }
}

/// Somewhere between half of `wait` and all of it: a region's hosts that lost their tracker together do not all come back
/// in the same moment.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0u8; 4];
    // Without randomness all wait the longest: late, but right.
    let part = getrandom::fill(&mut random).map_or(u32::MAX, |()| u32::from_le_bytes(random));
    wait.mul_f64(0.5 + 0.5 * f64::from(part) / f64::from(u32::MAX))
}
