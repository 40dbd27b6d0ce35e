//! The tracker's view: which hosts run, and the memberships it publishes.

use super::event::Event;
use super::{TRACKER_DELAY, World};
use crate::layout::SEEDER;
use shoal_proto::ids::{Epoch, HostIndex};
use shoal_proto::membership::{MembershipUpdate, Presence};
use shoal_swarm::io::Input;
use std::sync::Arc;

impl World {
    /// Stops or starts the tracker. A tracker that starts checks all hosts.
    pub fn set_tracker(&mut self, up: bool) {
        self.tracker_up = up;
        if up {
            self.peers().chain([SEEDER]).for_each(|host| self.check_presence(host));
        }
    }

    /// Makes a host miss all memberships, or receive them again.
    pub fn set_deaf(&mut self, host: HostIndex, deaf: bool) {
        let row = &mut self.hosts[host.index()];
        let missed = if deaf { row.missed_membership.replace(false) } else { row.missed_membership.take() };
        if !deaf && missed == Some(true) {
            let at = self.now + self.layout.far.as_nanos() as u64;
            self.input_at(at, host, Input::Membership(self.membership.clone()));
        }
    }

    /// Lets the tracker check a host after the time that it needs to see a change.
    pub(super) fn check_presence_later(&mut self, host: HostIndex) {
        self.events_ahead.push(self.now + TRACKER_DELAY.as_nanos() as u64, Event::Check(host));
    }

    pub(super) fn check_presence(&mut self, host: HostIndex) {
        let presence = if self.is_running(host) { Presence::Up } else { Presence::Away };
        let Some(member) = self.members.get_mut(&host).filter(|_| self.tracker_up) else { return };
        if member.presence != presence {
            member.presence = presence;
            self.changed.insert(host);
            if !self.publishing {
                self.publishing = true;
                self.events_ahead.push(self.now + TRACKER_DELAY.as_nanos() as u64, Event::Publish);
            }
        }
    }

    pub(super) fn publish(&mut self) {
        self.publishing = false;
        let epoch = self.membership.epoch();
        let changed = std::mem::take(&mut self.changed);
        let update = MembershipUpdate {
            epoch: Epoch(epoch.0 + 1),
            base: Some(epoch),
            upserts: changed.iter().filter_map(|host| self.members.get(host).cloned()).collect(),
            removed: Vec::new(),
        };
        let mut membership = (*self.membership).clone();
        membership.apply(update).expect("a delta on its base applies");
        self.membership = Arc::new(membership);
        let at = self.now + self.layout.far.as_nanos() as u64;
        for index in 0..self.hosts.len() {
            match &mut self.hosts[index].missed_membership {
                Some(missed) => *missed = true,
                None => self.input_at(at, HostIndex(index as u32), Input::Membership(self.membership.clone())),
            }
        }
    }
}
