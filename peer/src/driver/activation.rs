//! Having versions switched in: one at a time for each name, newer ones never followed by older ones.

use super::blocking_pool::Sort;
use super::contents::Done;
use super::{Driver, Input};
use shoal_proto::announcement::{Announcement, Class, Kind};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::ContentId;
use shoal_proto::report::{HostState, Reason};
use std::sync::Arc;

impl Driver {
    fn newest(&self, announcement: &Announcement) -> u64 {
        self.activated.get(&(announcement.kind, announcement.name.clone())).copied().unwrap_or(0)
    }

    /// Whether a newer version of the name is switched in here.
    pub(super) fn is_stale(&self, announcement: &Announcement) -> bool {
        announcement.sequence < self.newest(announcement)
    }

    /// An older version than what is switched in is not wanted, unless a newer job names the same content.
    pub(super) fn refuse_stale(&mut self, announcement: &Announcement) {
        let content = announcement.content;
        self.reach(&announcement.job, HostState::Failed(Reason::Stale), "a newer version is active here");
        let wanted = self.jobs_of(&content).iter().any(|job| !self.is_stale(job));
        // Nor is anything fetched for a share, which the rack may need: a promotion would find it gone.
        let held = self.store.is_complete(&content) || self.store.rack_share(&content).is_some();
        if !wanted && !held {
            self.tell(Input::ContentRefused { content });
        }
    }

    /// Switches a complete content in for all its jobs.
    pub(super) fn switch_all(&mut self, content: &ContentId) {
        for announcement in self.jobs_of(content) {
            self.switch(announcement);
        }
    }

    fn switch(&mut self, announcement: Arc<Announcement>) {
        let is_image = self.is_image(&announcement);
        if is_image {
            self.order_image(&announcement);
        }
        if announcement.staged {
            return;
        }
        let Some(state) = self.reported(&announcement.job) else { return };
        if is_image {
            self.warm(&announcement);
            return;
        }
        let Some(folder) = self.content_dir.clone() else { return };
        if self.is_stale(&announcement) {
            // `Active` stays what it is: it was, before the newer one.
            self.reach(&announcement.job, HostState::Failed(Reason::Stale), "a newer version is active here");
            return;
        }
        if state == HostState::Active && self.switching.contains(&announcement.name) {
            return;
        }
        if !self.switching.insert(announcement.name.clone()) {
            if !self.to_switch.iter().any(|waiting| waiting.job == announcement.job) {
                self.to_switch.push_back(announcement);
            }
            return;
        }
        let store = self.store.clone();
        self.done.run(Sort::Activate, Class::from(announcement.kind) as u8, move || {
            let result = folder.activate(&store, &announcement.content, &announcement.name, &announcement.version);
            Done::Activated { announcement, result: result.map_err(|error| error.to_string()) }
        });
    }

    pub(super) fn on_activated(&mut self, announcement: &Announcement, result: Result<(), String>) {
        let (name, version) = (&announcement.name, &announcement.version);
        match result {
            Ok(()) => {
                self.save_activated(announcement.kind, name, announcement.sequence);
                self.shared.reports().current(name, version);
                tracing::info!(name, version, "active");
                self.reach(&announcement.job, HostState::Active, "");
            }
            Err(why) => {
                tracing::error!(name, version, %why, "cannot activate");
                self.reach(&announcement.job, HostState::Failed(Reason::Activation), &why);
            }
        }
        self.turn_over(name);
        self.judge(name);
    }

    /// A name is no longer being switched: what waits for it goes on.
    pub(super) fn turn_over(&mut self, name: &str) {
        self.switching.remove(name);
        let waiting = std::mem::take(&mut self.to_switch);
        let (mut next, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|waiting| waiting.name == name);
        self.to_switch = rest.into();
        // Oldest first: the first takes the name's turn, the others queue up again behind it.
        next.sort_by_key(|waiting| waiting.sequence);
        for waiting in next {
            self.switch(waiting);
        }
    }

    pub(super) fn save_activated(&mut self, kind: Kind, name: &str, sequence: u64) {
        let newest = self.activated.entry((kind, name.to_string())).or_default();
        *newest = sequence.max(*newest);
        let newest = *newest;
        let key = format!("active/{kind}/{name}");
        if let Err(error) = self.store.put_state(&key, Some(encode(&newest))) {
            tracing::error!(%error, "cannot keep what is active");
        }
    }

    pub(super) fn load_activated(&mut self) {
        for (key, value) in self.store.scan_state("active/").unwrap_or_default() {
            let Some((kind, name)) = key["active/".len()..].split_once('/') else { continue };
            if let (Ok(kind), Ok(sequence)) = (kind.parse::<Kind>(), decode_exact::<u64>(&value)) {
                self.activated.insert((kind, name.to_string()), sequence);
                let current = self.content_dir.as_ref().and_then(|folder| folder.current(name));
                self.shared.reports().current(name, current.as_deref().unwrap_or_default());
            }
        }
    }
}
