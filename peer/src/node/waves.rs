//! Images under desired states: they are warmed when a host's turn has come, instead of being switched in.
//!
//! A warm image changes nothing that runs, so there is nothing to go back to.

use super::Driver;
use super::warming::NO_RUNTIME;
use crate::activation::record::{InstalledVersion, SwitchRecord, SwitchStep};
use crate::prewarm::PrewarmFault;
use shoal_proto::desired::{Desired, Target};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::membership::Member;
use shoal_proto::report::{HostState, Reason};

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
    pub(super) fn on_wish(&mut self, wish: JobId, result: &Result<(), PrewarmFault>) -> bool {
        let Some(name) = self.rollouts.wishing(&wish) else { return false };
        match result {
            Ok(()) => self.end_wish(&name, HostState::Active, ""),
            Err(fault) => self.end_wish(&name, HostState::Failed(fault.reason()), &fault.to_string()),
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
}
