//! What befalls hosts, links and rates from outside, and what the tracker makes of it.

use super::{ContentNumber, DEAD_AFTER, Event, LANES, SEEN_AFTER, World, port_of_host};
use crate::check::Seen;
use crate::layout::SEEDER;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{Epoch, HostIndex};
use shoal_proto::membership::{MembershipUpdate, Presence};
use shoal_swarm::io::{Input, Via};
use shoal_swarm::node::{Node, NodeConfig, Tuning};
use std::sync::Arc;

impl World {
    /// Starts a host with what is on its disk.
    pub fn start(&mut self, host: HostIndex) {
        if self.hosts[host.index()].node.is_none() {
            self.boot(host);
            self.wake(host);
            self.look_later(host);
        }
    }

    pub(super) fn boot(&mut self, host: HostIndex) {
        let row = &mut self.hosts[host.index()];
        row.life += 1;
        row.tick_at = None;
        row.node = Some(Node::new(
            NodeConfig { me: host, lanes: LANES, tuning: Tuning::default() },
            Box::new(self.planner.clone()),
        ));
        self.tell_checks(&Seen::Started { host });
    }

    /// Tells a booted host what it starts with.
    pub(super) fn wake(&mut self, host: HostIndex) {
        let row = &self.hosts[host.index()];
        let disk: Vec<(usize, Bitmap)> =
            row.disk.iter().enumerate().filter_map(|(number, have)| Some((number, have.clone()?))).collect();
        self.input(host, Input::Membership(self.membership.clone()));
        for (number, _) in &disk {
            let announcement = self.pushes[*number].announcement.clone();
            self.input(host, Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline: true });
        }
        self.recall_orders(host);
        for (number, have) in disk {
            let found = self.found(host, number, have);
            self.input(host, found);
        }
    }

    /// Kills a host: its links break, what is under way is lost.
    pub fn kill(&mut self, host: HostIndex) {
        let row = &mut self.hosts[host.index()];
        if row.node.take().is_none() {
            return;
        }
        row.life += 1;
        self.tell_checks(&Seen::Killed { host });
        self.break_links(host);
        self.look_later(host);
    }

    /// Breaks all links of a host.
    pub fn break_links(&mut self, host: HostIndex) {
        let others: Vec<HostIndex> = self.hosts[host.index()].links.keys().copied().collect();
        for other in others {
            self.cut(host, other);
        }
    }

    pub(super) fn cut(&mut self, a: HostIndex, b: HostIndex) {
        if self.hosts[a.index()].links.remove(&b).is_none() {
            return;
        }
        self.hosts[b.index()].links.remove(&a);
        let at = self.now + self.latency(a, b);
        self.tell_checks(&Seen::Unlinked { a, b });
        self.later(at, a, Input::LinkDown { host: b, reason: None });
        self.later(at, b, Input::LinkDown { host: a, reason: None });
    }

    /// Changes the rate of a host's card, bytes/s each way.
    pub fn set_nic(&mut self, host: HostIndex, rate: u64) {
        self.set_rate(port_of_host(host, 0), rate);
        self.set_rate(port_of_host(host, 1), rate);
    }

    /// Changes the rate of a rack's uplink, bytes/s each way; 0 cuts it.
    pub fn set_uplink(&mut self, rack: usize, rate: u64) {
        let first = self.hosts.len() * 3 + rack * 2;
        self.set_rate(first, rate);
        self.set_rate(first + 1, rate);
        self.cut_at.remove(&rack);
        if rate == 0 {
            self.cut_at.insert(rack, self.now);
            self.enqueue(self.now + DEAD_AFTER.as_nanos() as u64, Event::Dead(rack as u32, self.now));
        }
    }

    /// Ends the links through a rack's uplink, unless it is whole or was meanwhile.
    pub(super) fn lose_links(&mut self, rack: u32, since: u64) {
        if self.cut_at.get(&(rack as usize)) != Some(&since) {
            return;
        }
        let pairs: Vec<(HostIndex, HostIndex)> = self
            .peers()
            .filter(|host| self.hosts[host.index()].rack == Some(rack))
            .flat_map(|host| self.hosts[host.index()].links.keys().map(move |other| (host, *other)))
            .filter(|(host, other)| !self.is_reachable(*host, *other))
            .collect();
        for (host, other) in pairs {
            self.cut(host, other);
        }
    }

    fn set_rate(&mut self, port: usize, rate: u64) {
        self.ports[port].rate = rate;
        self.mended_at = self.now;
        self.ports[port].free_at = self.ports[port].free_at.min(self.now);
        self.serve(port);
        for (from, to, link, input) in std::mem::take(&mut self.held) {
            if self.hosts[from.index()].links.get(&to) == Some(&link) {
                self.say(from, to, input);
            }
        }
    }

    /// Has a host send broken shards, or stop doing so.
    pub fn set_corrupt(&mut self, host: HostIndex, corrupts: bool) {
        self.hosts[host.index()].corrupts = corrupts;
    }

    /// Has a host miss news of membership, or hear again.
    pub fn set_deaf(&mut self, host: HostIndex, deaf: bool) {
        let row = &mut self.hosts[host.index()];
        let missed = if deaf { row.deaf.replace(false) } else { row.deaf.take() };
        if !deaf && missed == Some(true) {
            let at = self.now + self.layout.far.as_nanos() as u64;
            self.later(at, host, Input::Membership(self.membership.clone()));
        }
    }

    /// Has links that meet get shares between `least` and 1 rather than equal ones; `None` makes them equal.
    pub fn set_uneven(&mut self, least: Option<f64>, seed: u64) {
        self.uneven = least.map(|least| (least.clamp(0.01, 1.0), seed));
    }

    /// Stops or starts the tracker's news.
    pub fn set_tracker(&mut self, up: bool) {
        self.tracker_up = up;
        if up {
            self.peers().chain([SEEDER]).for_each(|host| self.look(host));
        }
    }

    /// Gives a host pieces of a content, as if from an earlier version.
    pub fn give(&mut self, host: HostIndex, number: ContentNumber, have: Bitmap) {
        *self.disk_mut(host, number) = Some(have);
    }

    /// Takes everything off the disk of a host that does not run.
    pub fn wipe(&mut self, host: HostIndex) {
        self.hosts[host.index()].disk.clear();
        self.hosts[host.index()].shares.clear();
        self.hosts[host.index()].orders.clear();
        for pushed in &mut self.pushes {
            pushed.done.remove(&host);
        }
        self.tell_checks(&Seen::Wiped { host });
    }

    pub(super) fn disk_mut(&mut self, host: HostIndex, number: usize) -> &mut Option<Bitmap> {
        let disk = &mut self.hosts[host.index()].disk;
        if disk.len() <= number {
            disk.resize(number + 1, None);
        }
        &mut disk[number]
    }

    pub(super) fn look_later(&mut self, host: HostIndex) {
        self.enqueue(self.now + SEEN_AFTER.as_nanos() as u64, Event::Look(host));
    }

    pub(super) fn look(&mut self, host: HostIndex) {
        let presence = if self.is_running(host) { Presence::Up } else { Presence::Away };
        let Some(member) = self.members.get_mut(&host).filter(|_| self.tracker_up) else { return };
        if member.presence != presence {
            member.presence = presence;
            self.changed.insert(host);
            if !self.publishing {
                self.publishing = true;
                self.enqueue(self.now + SEEN_AFTER.as_nanos() as u64, Event::Publish);
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
            match &mut self.hosts[index].deaf {
                Some(missed) => *missed = true,
                None => self.later(at, HostIndex(index as u32), Input::Membership(self.membership.clone())),
            }
        }
    }
}
