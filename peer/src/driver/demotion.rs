//! Demoted contents: shares made, the whole let go, and brought back.
//!
//! Invariant: what is switched in or pinned here stays whole, whatever is ordered.

use super::blocking_pool::Sort;
use super::contents::Done;
use super::{Driver, Input};
use crate::activation::content_dir::ContentDir;
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::report::{HostState, Reason};
use shoal_store::{BeginError, RackShareError, Store, StoredContent};
use std::sync::Arc;

/// Why a content stays whole.
pub(super) type Refusal = (Reason, String);

impl Driver {
    /// Demotions of a content.
    fn demotions_of(&self, content: &ContentId) -> Vec<Arc<Announcement>> {
        let rows = self.envelopes.values().map(|(row, _)| row);
        rows.filter(|row| row.content == *content && row.demotes()).cloned().collect()
    }

    fn reach_demotions(&mut self, content: &ContentId, state: HostState, detail: &str) {
        for order in self.demotions_of(content) {
            self.reach(&order.job, state, detail);
        }
    }

    /// A demotion for us came. Where nothing of the content is here, that is all there is to it.
    pub(super) fn demotion_came(&mut self, announcement: &Announcement) {
        let content = announcement.content;
        if self.store.manifest(&content).is_none() && !self.beginning.contains_key(&content) {
            self.reach(&announcement.job, HostState::Active, "nothing of it is here");
        }
    }

    /// What the brain hears of a content found on the disk with a share. True if there is one.
    pub(super) fn tell_share(&mut self, record: &StoredContent) -> bool {
        let Some(found) = &record.share else { return false };
        self.tell(Input::ShareFound {
            content: record.content,
            geometry: record.geometry.clone(),
            have: record.have.clone(),
            parity: found.parity.clone(),
            placements: found.share.placements.clone(),
            share_only: found.share.whole_dropped,
        });
        true
    }

    /// At start: says so of what was demoted before, and removes what a stop left of its versions.
    pub(super) fn recall_demotion(&mut self, record: &StoredContent) {
        if record.share.as_ref().is_some_and(|found| found.share.whole_dropped) {
            self.reach_demotions(&record.content, HostState::Active, "");
            self.withdraw(record.content);
        }
    }

    /// Whether a desired state stands in the way; then the content stays whole.
    fn needed_by_rollout(&mut self, content: ContentId) -> bool {
        let Some(name) = self.rollouts.needs(&content).map(str::to_string) else { return false };
        self.stay_whole(content, &(Reason::InUse, format!("the rollout of {name} may need it")));
        true
    }

    pub(super) fn make_share(&mut self, content: ContentId, placement: RackPlacement) {
        let Some(me) = self.me else { return };
        if self.needed_by_rollout(content) {
            return;
        }
        let (store, folder) = (self.store.clone(), self.content_dir.clone());
        self.done.run(Sort::Store, Class::Bulk as u8, move || {
            let made = free_to_go(&store, folder.as_ref(), &content).and_then(|()| {
                store.finish(&content).map_err(|error| (Reason::Disk, error.to_string()))?;
                store.make_share(&content, me, &placement).map_err(fault)
            });
            Done::ShareMade { content, placement, made }
        });
    }

    pub(super) fn on_share_made(&mut self, content: ContentId, placement: RackPlacement, made: Result<(), Refusal>) {
        match made {
            Ok(()) => self.tell(Input::ShareMade { content, placement }),
            Err(refusal) => self.stay_whole(content, &refusal),
        }
    }

    pub(super) fn shed(&mut self, content: ContentId) {
        if self.needed_by_rollout(content) {
            return;
        }
        let (store, folder) = (self.store.clone(), self.content_dir.clone());
        self.done.run(Sort::Store, Class::Bulk as u8, move || {
            let left =
                free_to_go(&store, folder.as_ref(), &content).and_then(|()| store.drop_whole(&content).map_err(fault));
            Done::Shed { content, left }
        });
    }

    pub(super) fn on_shed(&mut self, content: ContentId, left: Result<u64, Refusal>) {
        match left {
            Ok(left) => {
                tracing::info!(content = %content.short(), bytes = left, "demoted");
                self.inlined.forget(&content);
                self.withdraw(content);
                self.reach_demotions(&content, HostState::Active, &format!("keeps {left} bytes"));
                self.tell(Input::WholeDropped { content });
            }
            Err(refusal) => self.stay_whole(content, &refusal),
        }
    }

    /// Removes the versions made of a content that is not whole any more.
    fn withdraw(&mut self, content: ContentId) {
        let Some(folder) = self.content_dir.clone() else { return };
        self.done.run(Sort::Store, Class::Bulk as u8, move || {
            if let Err(error) = folder.withdraw(&content) {
                tracing::warn!(content = %content.short(), %error, "cannot remove a demoted version");
            }
            Done::Nothing
        });
    }

    fn stay_whole(&mut self, content: ContentId, (reason, why): &Refusal) {
        tracing::warn!(content = %content.short(), %reason, %why, "not demoted");
        self.reach_demotions(&content, HostState::Failed(*reason), why);
        self.tell(Input::ShareRefused { content });
        self.keep_whole(content);
    }

    pub(super) fn keep_whole(&mut self, content: ContentId) {
        let store = self.store.clone();
        self.done.run(Sort::Store, Class::Bulk as u8, move || {
            if let Err(error) = store.discard_share(&content) {
                tracing::error!(content = %content.short(), %error, "cannot keep what a content's state is");
            }
            Done::Nothing
        });
    }

    /// The content is not whole here and need not become it.
    pub(super) fn forgo(&mut self, content: ContentId, job: JobId) {
        self.reach_all(&content, HostState::Failed(Reason::Superseded), "demoted before it was whole here");
        self.reach(&job, HostState::Active, "it was not whole here");
        self.drop_content(content);
    }

    pub(super) fn regrow(&mut self, content: ContentId) {
        let store = self.store.clone();
        self.done.run(Sort::Store, self.class_of(&content) as u8, move || {
            let evicted = store.reserve_rest(&content).map_err(super::contents::refusal);
            Done::Regrown { content, evicted }
        });
    }

    pub(super) fn on_regrown(&mut self, content: ContentId, evicted: Result<Vec<ContentId>, Refusal>) {
        match evicted {
            Ok(evicted) => self.forget_evicted(evicted),
            Err((reason, why)) => self.refuse(content, reason, &why),
        }
    }
}

/// Whether a content may be let go here.
fn free_to_go(store: &Store, folder: Option<&ContentDir>, content: &ContentId) -> Result<(), Refusal> {
    if store.is_pinned(content) {
        return Err((Reason::InUse, "it is pinned here".into()));
    }
    match folder.map(|folder| folder.current_of(content)).unwrap_or_default().first() {
        Some(name) => Err((Reason::InUse, format!("{name} is switched in here"))),
        None => Ok(()),
    }
}

fn fault(error: RackShareError) -> Refusal {
    let reason = match &error {
        RackShareError::NoSpace(BeginError::WouldNotFit { .. }) => Reason::NoSpace,
        _ => Reason::Disk,
    };
    (reason, error.to_string())
}
