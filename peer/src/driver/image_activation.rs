//! Activation of images: containerd unpacks them instead of a switch of `current`.
//!
//! A prewarmed image changes nothing that runs, so a rollback leaves it in place.
//! Invariant: without a containerd a host reports an image as stored, never as active.

use super::Driver;
use crate::activation::record::{InstalledVersion, SwitchRecord, SwitchStep};
use crate::handle::Failure;
use shoal_proto::announcement::Announcement;
use shoal_proto::desired::{Desired, Target};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::membership::Member;
use shoal_proto::report::{HostState, Reason};
use std::collections::BTreeSet;

/// What a host without containerd says of an image.
const NO_RUNTIME: &str = "no containerd is configured here; the image is whole and the mirror serves it";

/// What an attempt's wish for a warm image is called, towards containerd too: no job's id, and another one each attempt.
pub(super) fn wish_of(rollout: &JobId, attempt: u16) -> JobId {
    let mut id = *rollout;
    for (byte, part) in id.0.iter_mut().rev().zip(attempt.to_le_bytes()) {
        *byte ^= part;
    }
    id
}

impl Driver {
    /// Whether a content that is here is an image.
    pub(super) fn holds_image(&self, content: &ContentId) -> bool {
        self.store.manifest(content).is_some_and(|manifest| manifest.image.is_some())
    }

    /// Does what a desired state asks of this host, where that is an image that is whole here.
    pub(super) fn judge_image(&mut self, name: &str, desired: &Desired, me: &Member, target: &Target) {
        if !desired.may_switch(me) || !self.store.is_complete(&target.content) {
            return;
        }
        if desired.back {
            self.end_wish(name, HostState::Failed(Reason::RolledBack), "a warm image stays where it is");
            return;
        }
        let wish = wish_of(&desired.rollout, desired.attempt);
        if self.rollouts.wish(name) == Some(wish) {
            return;
        }
        if let Err(error) = self.store.set_sequence(&target.content, target.sequence) {
            tracing::error!(%error, "cannot keep which version of an image is newest");
        }
        self.rollouts.set_wish(name, Some(wish));
        self.tell_known_jobs();
        match &self.warming {
            Some(board) => board.want(wish, target.content),
            None => self.end_wish(name, HostState::Stored, NO_RUNTIME),
        }
    }

    /// A wish was fulfilled, or could not be; false when it is none of a rollout's.
    pub(super) fn on_wish(&mut self, wish: JobId, result: &Result<(), Failure>) -> bool {
        let Some(name) = self.rollouts.wishing(&wish) else { return false };
        match result {
            Ok(()) => self.end_wish(&name, HostState::Active, ""),
            Err(failure) => self.end_wish(&name, HostState::Failed(failure.reason), &failure.detail),
        }
        true
    }

    /// What came of the attempt that the desired state asks for.
    fn end_wish(&mut self, name: &str, state: HostState, detail: &str) {
        self.rollouts.set_wish(name, None);
        let Some(me) = self.me.and_then(|me| self.membership.get(me)) else { return };
        let Some(desired) = self.rollouts.desired(name) else { return };
        let Some(target) = desired.target(me) else { return };
        let (version, content) = (target.version.clone(), target.content);
        let mut record = SwitchRecord {
            rollout: desired.rollout,
            attempt: desired.attempt,
            step: SwitchStep::Done,
            from: None,
            to: Some(InstalledVersion { version, content, sequence: target.sequence }),
            before: None,
            back: desired.back,
            state,
            detail: String::new(),
        };
        record.end(state, detail);
        self.conclude(name, record);
    }

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

    pub(super) fn on_prewarmed(&mut self, job: JobId, result: Result<(), Failure>) {
        if self.on_wish(job, &result) {
            return;
        }
        match result {
            Ok(()) => self.reach(&job, HostState::Active, ""),
            Err(failure) => self.reach(&job, HostState::Failed(failure.reason), &failure.detail),
        }
    }
}
