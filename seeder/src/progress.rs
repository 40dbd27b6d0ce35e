//! How far the hosts are with running jobs: asked of the tracker, often at first, less so the longer a job takes.

use crate::jobs::Jobs;
use crate::status::Phase;
use shoal_net::admission::system_clock;
use shoal_proto::codec::Document;
use shoal_proto::control::{JobRollup, Request, Response};
use shoal_proto::ids::{JobId, NodeId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks at which jobs are due.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest time between two questions about one job.
const ASK_MAX: Duration = Duration::from_secs(1);
/// The same for a job that is done but for hosts that are away: they may come back.
const ASK_AWAY: Duration = Duration::from_secs(30);
/// A tracker that refused a job is asked again this much later.
const REFUSED_FOR: Duration = Duration::from_secs(5);

impl Jobs {
    /// Follows running jobs until the token is cancelled.
    pub async fn poll(self: Arc<Self>, token: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut former = None;
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                _ = tick.tick() => {}
            }
            let tracker = self.tracker();
            if tracker != former {
                // Another tracker, or one that was restarted, may not know our jobs.
                self.rows().values_mut().for_each(|row| row.opened = false);
                former = tracker;
            }
            self.give_up_expired();
            let Some(tracker) = tracker else { continue };
            for job in self.due() {
                tokio::select! {
                    () = token.cancelled() => return,
                    () = self.ask(tracker, job) => {}
                }
            }
        }
    }

    /// Jobs to ask about now.
    fn due(&self) -> Vec<JobId> {
        let now = Instant::now();
        let clock = system_clock();
        let rows = self.rows();
        let due = rows.values().filter(|row| row.ask_at <= now && row.expires_at > clock && row.status.may_change());
        due.map(|row| row.status.job).collect()
    }

    async fn ask(&self, tracker: NodeId, job: JobId) {
        if !self.open_at(tracker, job).await {
            return;
        }
        let sent = self.node().sent(job).await;
        match self.control().request(tracker, Request::JobStatus { job }).await {
            Ok(Response::Rollup(rollup)) => self.fold(job, rollup, sent),
            Ok(other) => {
                // It does not know the job, whatever it said before.
                tracing::debug!(%job, ?other, "the tracker cannot say how a job goes");
                self.later(&job, ASK_MAX, false);
            }
            Err(error) => {
                tracing::debug!(%job, %error, "cannot ask the tracker how a job goes");
                self.later(&job, ASK_MAX, true);
            }
        }
    }

    fn later(&self, job: &JobId, wait: Duration, opened: bool) {
        if let Some(row) = self.rows().get_mut(job) {
            row.ask_at = Instant::now() + wait;
            row.opened &= opened;
        }
    }

    /// Tells the tracker of a job, unless it was told; gives whether it knows it now.
    pub(crate) async fn open_at(&self, tracker: NodeId, job: JobId) -> bool {
        let envelope = match self.rows().get(&job) {
            Some(row) if row.opened => return true,
            Some(row) => row.envelope.as_ref().map(Document::to_bytes),
            None => None,
        };
        let Some(envelope) = envelope else { return false };
        match self.control().request(tracker, Request::OpenJob { envelope }).await {
            Ok(Response::Done) => {
                if let Some(row) = self.rows().get_mut(&job) {
                    row.opened = true;
                    row.status.error.clear();
                }
                true
            }
            Ok(other) => {
                let why = match other {
                    Response::Refused { why } => format!("the tracker refuses the job: {why}"),
                    _ => "the tracker gave no proper answer".to_string(),
                };
                tracing::warn!(%job, %why, "cannot open the job");
                if let Some(row) = self.rows().get_mut(&job) {
                    row.status.error = why;
                }
                self.later(&job, REFUSED_FOR, true);
                self.changed.notify_waiters();
                false
            }
            Err(error) => {
                tracing::debug!(%job, %error, "cannot open the job at the tracker");
                self.later(&job, ASK_MAX, true);
                false
            }
        }
    }

    fn fold(&self, job: JobId, rollup: JobRollup, sent: u64) {
        let mut rows = self.rows();
        let Some(row) = rows.get_mut(&job) else { return };
        let before = row.status.clone();
        let elapsed = row.announced.elapsed();
        row.status.fold(rollup, sent, elapsed.as_secs_f64());
        // A job that takes a minute need not be looked at ten times a second; a host that was away for one, neither.
        let longest = if row.status.is_final() { ASK_AWAY } else { ASK_MAX };
        let wait = (elapsed / 20).clamp(LOOK_EVERY, longest);
        row.ask_at = Instant::now() + wait;
        let changed = row.status != before;
        let done = row.status.is_final() && !before.is_final();
        let ended = changed && row.status.is_final();
        drop(rows);
        if done {
            tracing::info!(%job, elapsed_s = elapsed.as_secs_f64(), "done");
        }
        if ended {
            self.keep(&job);
        }
        if changed {
            self.changed.notify_waiters();
        }
    }

    /// Jobs whose time is over before their hosts were.
    fn give_up_expired(&self) {
        let now = system_clock();
        let over: Vec<JobId> = self
            .rows()
            .values_mut()
            .filter(|row| row.status.phase == Phase::Distributing && row.expires_at <= now)
            .map(|row| {
                row.status.fail("the job's lifetime is over and not every host has answered");
                row.status.job
            })
            .collect();
        for job in &over {
            self.keep(job);
        }
        if !over.is_empty() {
            self.changed.notify_waiters();
        }
    }
}
