//! Activation of images: containerd unpacks them, and no `current` changes.
//!
//! A prewarmed image changes nothing that runs, so a rollback leaves it in place.
//! Invariant: without a containerd a host reports an image as stored, never as active.

use super::Activations;
use crate::activation::record::{InstalledVersion, SwitchRecord, SwitchStep};
use crate::driver::Context;
use crate::handle::{Failure, Prewarmed};
use shoal_proto::announcement::Announcement;
use shoal_proto::desired::{Desired, Target};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::membership::Member;
use shoal_proto::report::{HostState, Reason};

/// Detail of a host's report on an image without a containerd.
const NO_RUNTIME: &str = "no containerd is configured here; the image is stored and the mirror serves it";

/// The id of an attempt's prewarm request, also towards containerd. It differs from every job's id and every attempt's.
fn prewarm_id(rollout: &JobId, attempt: u16) -> JobId {
    let mut id = *rollout;
    for (byte, part) in id.0.iter_mut().rev().zip(attempt.to_le_bytes()) {
        *byte ^= part;
    }
    id
}

/// Whether a stored content is an image.
pub(super) fn is_image(cx: &Context, content: &ContentId) -> bool {
    cx.store.manifest(content).is_some_and(|manifest| manifest.image.is_some())
}

/// Keeps an image's sequence. Of several images with one name the mirror serves the newest.
pub(super) fn save_sequence(cx: &Context, content: &ContentId, sequence: u64) {
    if let Err(error) = cx.store.set_sequence(content, sequence) {
        tracing::error!(%error, "cannot save which version of an image is the newest");
    }
}

impl Activations {
    /// Requests the prewarm of a pushed image.
    pub(super) fn prewarm_push(&self, cx: &Context, announcement: &Announcement) {
        match &self.prewarm {
            Some(prewarm) => prewarm.request(announcement.job, announcement.content),
            None => cx.reporter.reach(&announcement.job, HostState::Stored, NO_RUNTIME),
        }
    }

    /// Follows a desired state whose target is an image.
    pub(super) fn evaluate_image(
        &mut self,
        cx: &mut Context,
        name: &str,
        desired: &Desired,
        me: &Member,
        target: &Target,
    ) {
        if !desired.may_switch(me) || !cx.store.is_complete(&target.content) {
            return;
        }
        if desired.back {
            self.end_prewarm(cx, name, HostState::Failed(Reason::RolledBack), "a prewarmed image stays in place");
            return;
        }
        let id = prewarm_id(&desired.rollout, desired.attempt);
        let managed = self.names.entry(name.to_string()).or_default();
        if managed.prewarm.replace(id) == Some(id) {
            return;
        }
        save_sequence(cx, &target.content, target.sequence);
        self.update_known_jobs(cx);
        match &self.prewarm {
            Some(prewarm) => prewarm.request(id, target.content),
            None => self.end_prewarm(cx, name, HostState::Stored, NO_RUNTIME),
        }
    }

    /// Handles the result of a prewarm request of a push or of a rollout.
    pub fn on_prewarmed(&mut self, cx: &mut Context, id: JobId, outcome: Result<Prewarmed, Failure>) {
        let (state, detail) = match outcome {
            Ok(Prewarmed::Unpacked) => (HostState::Active, String::new()),
            Ok(Prewarmed::Kept { why }) => (HostState::Stored, why),
            Err(failure) => (HostState::Failed(failure.reason), failure.detail),
        };
        match self.prewarming(&id) {
            Some(name) => self.end_prewarm(cx, &name, state, &detail),
            None => cx.reporter.reach(&id, state, &detail),
        }
    }

    /// The name whose present attempt made a prewarm request.
    fn prewarming(&self, id: &JobId) -> Option<String> {
        let mut names = self.names.iter();
        let found = names.find(|(_, managed)| {
            let present = managed.desired.as_ref().map(|desired| prewarm_id(&desired.rollout, desired.attempt));
            managed.prewarm == Some(*id) && present == Some(*id)
        });
        found.map(|(name, _)| name.clone())
    }

    /// The requests whose images containerd must keep: those of the present attempts and of the last results.
    pub(super) fn prewarm_ids(&self) -> impl Iterator<Item = JobId> {
        self.names.values().flat_map(|managed| {
            let present = managed.desired.as_ref().map(|desired| prewarm_id(&desired.rollout, desired.attempt));
            let last = managed.record.as_ref().map(|record| prewarm_id(&record.rollout, record.attempt));
            [present, last].into_iter().flatten()
        })
    }

    /// Records the result of the attempt that the desired state asks for.
    fn end_prewarm(&mut self, cx: &mut Context, name: &str, state: HostState, detail: &str) {
        let managed = self.names.entry(name.to_string()).or_default();
        managed.prewarm = None;
        let Some(me) = cx.region.own_row() else { return };
        let Some(desired) = managed.desired.clone() else { return };
        let Some(target) = desired.target(me) else { return };
        let to =
            InstalledVersion { version: target.version.clone(), content: target.content, sequence: target.sequence };
        let mut record = SwitchRecord {
            rollout: desired.rollout,
            attempt: desired.attempt,
            step: SwitchStep::Done,
            from: None,
            to: Some(to),
            before: None,
            back: desired.back,
            state,
            detail: String::new(),
        };
        record.end(state, detail);
        self.conclude(cx, name, record);
    }
}
