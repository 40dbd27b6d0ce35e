//! The images that the driver wants prewarmed. The driver writes, the prewarm task reads.
//!
//! Requests are levels, not events: after a restart of the peer or of containerd, the task continues from the current
//! set.
//! Invariant: this module imports no other part of the peer.

use shoal_proto::ids::{ContentId, JobId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The set of wanted images, shared by the driver and the prewarm task.
#[derive(Debug, Default)]
pub struct PrewarmRequests {
    current: Mutex<Wanted>,
    changed: Notify,
}

/// A snapshot of the set.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// The complete images that jobs want prewarmed.
    pub images: BTreeMap<JobId, ContentId>,
    /// All jobs of this host. Pins of other jobs must go. `None` until the driver has loaded its jobs.
    pub jobs: Option<BTreeSet<JobId>>,
}

impl PrewarmRequests {
    fn current(&self) -> MutexGuard<'_, Wanted> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests the complete image of a job. A repeated call changes nothing.
    pub(crate) fn request(&self, job: JobId, content: ContentId) {
        if self.current().images.insert(job, content).is_none() {
            self.changed.notify_one();
        }
    }

    /// Sets all jobs of this host. Requests and pins of other jobs end.
    pub(crate) fn set_jobs(&self, jobs: BTreeSet<JobId>) {
        let mut current = self.current();
        if current.jobs.as_ref() != Some(&jobs) {
            current.images.retain(|job, _| jobs.contains(job));
            current.jobs = Some(jobs);
            self.changed.notify_one();
        }
    }

    pub(super) fn snapshot(&self) -> Wanted {
        self.current().clone()
    }

    /// Waits for a change after the last return of this function.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_of_a_finished_job_is_dropped() {
        let requests = PrewarmRequests::default();
        let (one, two) = (JobId([1; 16]), JobId([2; 16]));
        requests.request(one, ContentId([1; 32]));
        requests.request(two, ContentId([1; 32]));
        requests.set_jobs(BTreeSet::from([two]));
        assert_eq!(requests.snapshot().images.keys().collect::<Vec<_>>(), [&two]);
    }
}
