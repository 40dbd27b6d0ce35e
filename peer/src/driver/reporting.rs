//! What this host reports about its jobs.
//!
//! Reports are not on disk. After a restart they follow from the jobs and contents in the store, and from one mark for
//! each job whose version was active here.
//! Invariant: a host reports only on jobs that select it.

use crate::reports::JobProgress;
use crate::tracker_client::SharedReports;
use shoal_proto::ids::{ContentId, Epoch, JobId};
use shoal_proto::report::{HostState, TierBytes};
use shoal_store::Store;
use shoal_swarm::node::Progress;
use shoal_swarm::time::Instant;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Delay between a content's progress and its reports. Shards arrive by the thousand, and the tracker's client sends
/// progress every two seconds.
const PROGRESS_DELAY: Duration = Duration::from_millis(100);

/// Key of the mark that a job's version was active here.
fn active_key(job: &JobId) -> String {
    format!("active-job/{job}")
}

/// Writes this host's reports. The tracker's client sends them.
pub struct Reporter {
    shared: Arc<SharedReports>,
    store: Store,
    /// Contents with progress that is in no report yet.
    progressed: BTreeSet<ContentId>,
    progress_due: Option<Instant>,
}

impl Reporter {
    pub fn new(shared: Arc<SharedReports>, store: Store) -> Self {
        Self { shared, store, progressed: BTreeSet::new(), progress_due: None }
    }

    /// Begins to report on a job.
    pub fn open(&self, job: JobId) {
        self.shared.reports().open(job);
        // The version was active before the restart. The report says so even if a newer version is active by now.
        if self.store.get_state(&active_key(&job)).is_ok_and(|mark| mark.is_some()) {
            self.shared.reports().reach(job, HostState::Active, "");
        }
        self.shared.send_soon();
    }

    /// The reported state. `None` for a job that does not select this host.
    pub fn state(&self, job: &JobId) -> Option<HostState> {
        self.shared.reports().state(job)
    }

    /// Reports a job's new state, if this host reports on the job.
    pub fn reach(&self, job: &JobId, state: HostState, detail: &str) {
        if self.state(job).is_none() {
            return;
        }
        self.shared.reports().reach(*job, state, detail);
        self.shared.send_soon();
        if state == HostState::Active
            && let Err(error) = self.store.put_state(&active_key(job), Some(Vec::new()))
        {
            tracing::error!(%job, %error, "cannot save that a job is active");
        }
    }

    /// Reports the result of a rollout's attempt.
    pub fn reach_attempt(&self, rollout: JobId, attempt: u16, state: HostState, detail: &str) {
        self.shared.reports().reach_in(rollout, attempt, state, detail);
        self.shared.send_soon();
    }

    /// Begins to report on a rollout.
    pub fn open_rollout(&self, rollout: JobId) {
        self.shared.reports().open(rollout);
        self.shared.send_soon();
    }

    pub fn forget_rollout(&self, rollout: &JobId) {
        self.shared.reports().forget(rollout);
    }

    /// Reports a name's current version. An empty `version` means that the name has none.
    pub fn set_current(&self, name: &str, version: &str) {
        self.shared.reports().set_current(name, version);
    }

    /// Puts pieces and payload counts into a job's report. Returns false if this host does not report on the job.
    pub fn progress(&self, job: JobId, progress: Progress, received: TierBytes, sent: u64) -> bool {
        let mut reports = self.shared.reports();
        let is_open = reports.state(&job).is_some();
        if is_open {
            let (pieces_have, pieces_total) = (progress.have, progress.total);
            reports.set_progress(job, JobProgress { pieces_have, pieces_total, tiers: received, sent });
        }
        is_open
    }

    pub fn send_soon(&self) {
        self.shared.send_soon();
    }

    /// Stops to report on a job and deletes its mark.
    pub fn forget(&self, job: &JobId) {
        self.shared.reports().forget(job);
        if let Err(error) = self.store.put_state(&active_key(job), None) {
            tracing::warn!(%job, %error, "cannot delete the mark of a job");
        }
    }

    /// Tells the tracker's client which membership this host has. With `None` the tracker sends a whole one.
    pub fn set_epoch(&self, epoch: Option<Epoch>) {
        self.shared.set_epoch(epoch);
    }

    /// Notes a content's progress. [`Reporter::take_progressed`] returns the content after [`PROGRESS_DELAY`].
    pub fn note_progress(&mut self, content: ContentId, now: Instant) {
        self.progressed.insert(content);
        self.progress_due.get_or_insert(now + PROGRESS_DELAY);
    }

    pub fn progress_due(&self) -> Option<Instant> {
        self.progress_due
    }

    /// Takes the contents with progress, once their reports are due.
    pub fn take_progressed(&mut self, now: Instant) -> BTreeSet<ContentId> {
        if self.progress_due.is_none_or(|due| due > now) {
            return BTreeSet::new();
        }
        self.progress_due = None;
        std::mem::take(&mut self.progressed)
    }
}
