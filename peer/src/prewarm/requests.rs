//! The images that the driver wants unpacked in containerd, and why one could not be.
//!
//! The driver writes, the prewarm task reads.
//! Invariant: this module imports no other part of the peer.

use shoal_containerd::RuntimeError;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What the driver wishes for, as of now.
#[derive(Debug, Default)]
pub struct PrewarmRequests {
    state: Mutex<Wishes>,
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Images that are whole here, by job.
    pub(super) wanted: BTreeMap<JobId, ContentId>,
    /// All jobs, once the driver has told them; pins of others are to go.
    pub(super) known: Option<BTreeSet<JobId>>,
}

impl PrewarmRequests {
    pub(super) fn state(&self) -> MutexGuard<'_, Wishes> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job's image is whole. Saying it again changes nothing.
    pub(crate) fn want(&self, job: JobId, content: ContentId) {
        if self.state().wanted.insert(job, content).is_none() {
            self.changed.notify_one();
        }
    }

    /// These jobs there are; whatever is done or pinned for others is to end.
    pub(crate) fn known(&self, jobs: BTreeSet<JobId>) {
        let mut state = self.state();
        if state.known.as_ref() != Some(&jobs) {
            state.wanted.retain(|job, _| jobs.contains(job));
            state.known = Some(jobs);
            self.changed.notify_one();
        }
    }
}

/// Why an image is not warm.
#[derive(Debug, thiserror::Error)]
pub enum PrewarmFault {
    /// It would not fit where containerd keeps images.
    #[error("{0}")]
    NoSpace(String),
    /// containerd did not answer for as long as we wait.
    #[error("{0}")]
    Away(String),
    /// What arrived is not what was named.
    #[error("{0}")]
    Mismatch(String),
    /// It took too long.
    #[error("{0}")]
    Late(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
    /// Its content went away, or its job.
    #[error("stopped")]
    Stopped,
}

impl PrewarmFault {
    /// In the words of reports.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoSpace(_) => Reason::NoSpace,
            Self::Away(_) => Reason::RuntimeAway,
            Self::Mismatch(_) => Reason::DigestMismatch,
            Self::Late(_) => Reason::Timeout,
            Self::Failed(_) => Reason::PullFailed,
            Self::Stopped => Reason::Cancelled,
        }
    }

    pub(super) fn from_runtime(error: &RuntimeError) -> Self {
        let text = error.to_string();
        match error {
            RuntimeError::Away { .. } => Self::Away(text),
            RuntimeError::NoSpace { .. } => Self::NoSpace(text),
            RuntimeError::Mismatch { .. } => Self::Mismatch(text),
            RuntimeError::Late { .. } => Self::Late(text),
            RuntimeError::Missing { .. } | RuntimeError::Refused { .. } | RuntimeError::Malformed(_) => {
                Self::Failed(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_is_over_is_wished_for_no_more() {
        let board = PrewarmRequests::default();
        let (one, two) = (JobId([1; 16]), JobId([2; 16]));
        board.want(one, ContentId([1; 32]));
        board.want(two, ContentId([1; 32]));
        board.known(BTreeSet::from([two]));
        assert_eq!(board.state().wanted.keys().collect::<Vec<_>>(), [&two]);
    }
}
