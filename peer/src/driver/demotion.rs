//! Demotion on this host: makes rack shares, drops the whole content, and reserves space for its return.
//!
//! Invariant: a content that is active, pinned or needed by a rollout stays whole, whatever an order says.

use super::Context;
use super::blocking_pool::WorkKind;
use super::completions::Completion;
use super::contents::begin_failure;
use crate::activation::content_dir::ContentDir;
use crate::handle::Failure;
use shoal_proto::announcement::Class;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::report::{HostState, Reason};
use shoal_store::{BeginError, RackShareError, Store, StoredContent};
use shoal_swarm::io::Input;

impl Context {
    /// Reports a state on all demotions of a content.
    fn report_demotions(&mut self, content: &ContentId, state: HostState, detail: &str) {
        for announcement in self.jobs.of_content(content).filter(|announcement| announcement.demotes()) {
            self.reporter.reach(&announcement.job, state, detail);
        }
    }

    /// Tells the core about a stored rack share. Returns false if the content has none.
    pub fn tell_rack_share(&mut self, stored: &StoredContent) -> bool {
        let Some(found) = &stored.share else { return false };
        self.tell(Input::ShareFound {
            content: stored.content,
            geometry: stored.geometry.clone(),
            have: stored.have.clone(),
            parity: found.parity.clone(),
            placements: found.share.placements.clone(),
            share_only: found.share.whole_dropped,
        });
        true
    }

    /// After a restart: reports earlier demotions again, and removes versions that a stop left in the content folder.
    pub fn restore_demotion(&mut self, stored: &StoredContent) {
        if stored.share.as_ref().is_some_and(|found| found.share.whole_dropped) {
            self.report_demotions(&stored.content, HostState::Active, "");
            self.withdraw_versions(stored.content);
        }
    }

    /// Makes this host's rack share durable beside the whole content.
    ///
    /// `needed_by` names a rollout that may need the content.
    pub fn make_rack_share(&mut self, content: ContentId, placement: RackPlacement, needed_by: Option<&str>) {
        let Some(me) = self.region.me() else { return };
        if let Some(name) = needed_by {
            self.refuse_demotion(content, &needed_failure(name));
            return;
        }
        let (store, folder) = (self.store.clone(), self.content_dir.clone());
        self.pool.run(WorkKind::Store, Class::Bulk, move || {
            let made = check_unused(&store, folder.as_ref(), &content).and_then(|()| {
                store.finish(&content).map_err(|error| Failure::new(Reason::Disk, error))?;
                store.make_share(&content, me, &placement).map_err(share_failure)
            });
            Completion::RackShareMade { content, placement, made }
        });
    }

    pub fn on_rack_share_made(&mut self, content: ContentId, placement: RackPlacement, made: Result<(), Failure>) {
        match made {
            Ok(()) => self.tell(Input::ShareMade { content, placement }),
            Err(failure) => self.refuse_demotion(content, &failure),
        }
    }

    /// Drops everything of a content but this host's rack shares.
    pub fn drop_whole(&mut self, content: ContentId, needed_by: Option<&str>) {
        if let Some(name) = needed_by {
            self.refuse_demotion(content, &needed_failure(name));
            return;
        }
        let (store, folder) = (self.store.clone(), self.content_dir.clone());
        self.pool.run(WorkKind::Store, Class::Bulk, move || {
            let dropped = check_unused(&store, folder.as_ref(), &content);
            let kept_bytes = dropped.and_then(|()| store.drop_whole(&content).map_err(share_failure));
            Completion::WholeDropped { content, kept_bytes }
        });
    }

    pub fn on_whole_dropped(&mut self, content: ContentId, kept_bytes: Result<u64, Failure>) {
        match kept_bytes {
            Ok(bytes) => {
                tracing::info!(content = %content.short(), bytes, "demoted");
                self.withdraw_versions(content);
                self.report_demotions(&content, HostState::Active, &format!("keeps {bytes} bytes"));
                self.tell(Input::WholeDropped { content });
            }
            Err(failure) => self.refuse_demotion(content, &failure),
        }
    }

    /// Removes a demoted content's versions from the content folder.
    fn withdraw_versions(&mut self, content: ContentId) {
        let Some(folder) = self.content_dir.clone() else { return };
        self.pool.run(WorkKind::Store, Class::Bulk, move || {
            if let Err(error) = folder.withdraw(&content) {
                tracing::warn!(content = %content.short(), %error, "cannot remove a demoted version");
            }
            Completion::Nothing
        });
    }

    /// Keeps the content whole and says why.
    fn refuse_demotion(&mut self, content: ContentId, failure: &Failure) {
        let Failure { reason, detail } = failure;
        tracing::warn!(content = %content.short(), %reason, %detail, "not demoted");
        self.report_demotions(&content, HostState::Failed(*reason), detail);
        self.tell(Input::ShareRefused { content });
        self.keep_whole(content);
    }

    /// Deletes the rack shares of a content that stays whole.
    pub fn keep_whole(&mut self, content: ContentId) {
        let store = self.store.clone();
        self.pool.run(WorkKind::Store, Class::Bulk, move || {
            if let Err(error) = store.discard_share(&content) {
                tracing::error!(content = %content.short(), %error, "cannot save that a content stays whole");
            }
            Completion::Nothing
        });
    }

    /// Drops a demoted content that never became whole here.
    pub fn drop_partial(&mut self, content: ContentId, demotion: JobId) {
        let superseded = HostState::Failed(Reason::Superseded);
        self.report_pushes(&content, superseded, "demoted before it was complete here");
        self.reporter.reach(&demotion, HostState::Active, "it was not complete here");
        self.drop_content(content);
    }

    /// Reserves space for the rest of a promoted content.
    pub fn reserve_rest(&mut self, content: ContentId) {
        let (store, class) = (self.store.clone(), self.jobs.class_of(&content));
        self.pool.run(WorkKind::Store, class, move || {
            let evicted = store.reserve_rest(&content).map_err(begin_failure);
            Completion::RestReserved { content, evicted }
        });
    }
}

fn needed_failure(name: &str) -> Failure {
    Failure::new(Reason::InUse, format!("the rollout of `{name}` may need it; end the rollout first"))
}

/// Checks that a content is neither pinned nor active. Blocks.
fn check_unused(store: &Store, folder: Option<&ContentDir>, content: &ContentId) -> Result<(), Failure> {
    if store.is_pinned(content) {
        return Err(Failure::new(Reason::InUse, "it is pinned here"));
    }
    match folder.map(|folder| folder.current_of(content)).unwrap_or_default().first() {
        Some(name) => Err(Failure::new(Reason::InUse, format!("`{name}` is active here"))),
        None => Ok(()),
    }
}

fn share_failure(error: RackShareError) -> Failure {
    let reason = match &error {
        RackShareError::NoSpace(BeginError::WouldNotFit { .. }) => Reason::NoSpace,
        _ => Reason::Disk,
    };
    Failure::new(reason, error)
}
