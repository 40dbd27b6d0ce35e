//! Images: instead of being switched in, they are warmed.
//!
//! Without a containerd to warm, a job's image stays at `has`: it is whole here and the mirror serves it, and nobody here
//! says it can be run.

use super::Driver;
use crate::prewarm::PrewarmFault;
use shoal_proto::announcement::Announcement;
use shoal_proto::ids::JobId;
use shoal_proto::report::HostState;
use std::collections::BTreeSet;

/// What a host without containerd says of an image.
pub(super) const NO_RUNTIME: &str = "no containerd is configured here; the image is whole and the mirror serves it";

impl Driver {
    /// Whether a job's content is an image.
    pub(super) fn is_image(&self, announcement: &Announcement) -> bool {
        self.holds_image(&announcement.content)
    }

    /// An image is whole. Of several under one name the mirror serves the newest.
    pub(super) fn order_image(&mut self, announcement: &Announcement) {
        if let Err(error) = self.store.set_sequence(&announcement.content, announcement.sequence) {
            tracing::error!(%error, "cannot keep which version of an image is newest");
        }
    }

    /// A job's image is whole, and is to be run.
    pub(super) fn warm(&mut self, announcement: &Announcement) {
        match &self.warming {
            Some(board) => board.want(announcement.job, announcement.content),
            None => self.reach(&announcement.job, HostState::Stored, NO_RUNTIME),
        }
    }

    /// Images of other jobs need not be kept in containerd.
    pub(super) fn tell_known_jobs(&self) {
        if let Some(board) = &self.warming {
            let known: BTreeSet<JobId> = self.envelopes.keys().copied().chain(self.rollouts.wishes()).collect();
            board.known(known);
        }
    }

    pub(super) fn on_warmed(&mut self, job: JobId, result: Result<(), PrewarmFault>) {
        if self.on_wish(job, &result) {
            return;
        }
        match result {
            Ok(()) => self.reach(&job, HostState::Active, ""),
            Err(fault) => self.reach(&job, HostState::Failed(fault.reason()), &fault.to_string()),
        }
    }
}
