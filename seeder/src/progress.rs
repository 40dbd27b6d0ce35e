//! How far hosts are with running jobs, asked of the tracker.
//!
//! Invariant: the time between two questions about a job grows with the time that the job has taken.

use crate::jobs::{ASK_MAX, Jobs};
use crate::tracker::Tracker;
use shoal_peer::handle::NodeHandle;
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::{JobId, NodeId};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two checks which jobs are due.
const DUE_EVERY: Duration = Duration::from_millis(100);

/// The task that follows running jobs.
pub(crate) struct Progress {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) node: NodeHandle,
    pub(crate) tracker: Tracker,
}

impl Progress {
    /// Follows running jobs until the token is cancelled.
    pub(crate) async fn run(self, token: CancellationToken) {
        let mut tick = tokio::time::interval(DUE_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut former = None;
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                _ = tick.tick() => {}
            }
            let tracker = self.tracker.current();
            if tracker != former {
                // Another tracker, or a restarted one, may not know the jobs.
                self.jobs.set_tracker_changed();
                former = tracker;
            }
            self.jobs.fail_expired();
            let Some(tracker) = tracker else { continue };
            for job in self.jobs.due() {
                tokio::select! {
                    () = token.cancelled() => return,
                    () = self.ask(tracker, job) => {}
                }
            }
        }
    }

    async fn ask(&self, tracker: NodeId, job: JobId) {
        if !self.tracker.open_job(tracker, job).await {
            return;
        }
        let sent = self.node.sent(job).await;
        match self.tracker.request(tracker, Request::JobStatus { job }).await {
            Ok(Response::Rollup(rollup)) => self.jobs.fold(job, rollup, sent),
            Ok(answer) => {
                tracing::debug!(%job, ?answer, "the tracker does not know the job's progress");
                self.jobs.set_unknown_to_tracker(&job);
            }
            Err(error) => {
                tracing::debug!(%job, %error, "cannot ask the tracker for the job's progress");
                self.jobs.ask_later(&job, ASK_MAX);
            }
        }
    }
}
