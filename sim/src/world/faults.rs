//! What happens to hosts, links and rates from outside.

use super::event::Event;
use super::observer::WorldEvent;
use super::{ContentNumber, DEAD_AFTER, LANES, Unevenness, World, port_of_host};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::HostIndex;
use shoal_swarm::io::{Input, Via};
use shoal_swarm::node::{Node, NodeConfig};

impl World {
    /// Starts a host with what is on its disk.
    pub fn start(&mut self, host: HostIndex) {
        if self.hosts[host.index()].node.is_none() {
            self.boot(host);
            self.restore(host);
            self.check_presence_later(host);
        }
    }

    /// Makes a new core for a host. The core knows nothing yet.
    pub(super) fn boot(&mut self, host: HostIndex) {
        let config = NodeConfig { me: host, lanes: LANES, tuning: self.tuning.clone() };
        let row = &mut self.hosts[host.index()];
        row.life += 1;
        row.tick_at = None;
        row.node = Some(Node::new(config, Box::new(self.planner.clone())));
        self.notify(&WorldEvent::Started { host });
    }

    /// Tells a new core the membership and what is on its host's disk, as the driver does at its start.
    pub(super) fn restore(&mut self, host: HostIndex) {
        let row = &self.hosts[host.index()];
        let disk: Vec<(ContentNumber, Bitmap)> =
            row.disk.iter().enumerate().filter_map(|(number, have)| Some((number, have.clone()?))).collect();
        self.input(host, Input::Membership(self.membership.clone()));
        for (number, _) in &disk {
            let announcement = self.pushes[*number].announcement.clone();
            self.input(host, Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline: true });
        }
        self.restore_orders(host);
        for (number, have) in disk {
            let found = self.found_on_disk(host, number, have);
            self.input(host, found);
        }
    }

    /// Kills a host. Its links break, and transfers under way are lost.
    pub fn kill(&mut self, host: HostIndex) {
        let row = &mut self.hosts[host.index()];
        if row.node.take().is_none() {
            return;
        }
        row.life += 1;
        self.notify(&WorldEvent::Killed { host });
        self.break_links(host);
        self.check_presence_later(host);
    }

    /// Breaks all links of a host.
    pub fn break_links(&mut self, host: HostIndex) {
        let others: Vec<HostIndex> = self.hosts[host.index()].links.keys().copied().collect();
        for other in others {
            self.break_link(host, other);
        }
    }

    pub(super) fn break_link(&mut self, a: HostIndex, b: HostIndex) {
        if self.hosts[a.index()].links.remove(&b).is_none() {
            return;
        }
        self.hosts[b.index()].links.remove(&a);
        let at = self.now + self.latency(a, b);
        self.notify(&WorldEvent::Unlinked { a, b });
        self.input_at(at, a, Input::LinkDown { host: b, reason: None });
        self.input_at(at, b, Input::LinkDown { host: a, reason: None });
    }

    /// Changes the rate of a host's network card, bytes/s each way.
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
            let dead = Event::LinksDead { rack: rack as u32, since: self.now };
            self.events_ahead.push(self.now + DEAD_AFTER.as_nanos() as u64, dead);
        }
    }

    /// Breaks the links through a rack's uplink, unless the uplink was repaired since `since`.
    pub(super) fn break_cut_links(&mut self, rack: u32, since: u64) {
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
            self.break_link(host, other);
        }
    }

    fn set_rate(&mut self, port: usize, rate: u64) {
        self.ports[port].rate = rate;
        self.rate_changed_at = self.now;
        // The transfer in service ends at once. Its size is small beside the effects of a changed rate.
        self.ports[port].free_at = self.ports[port].free_at.min(self.now);
        self.serve(port);
        for message in std::mem::take(&mut self.delayed) {
            if self.hosts[message.from.index()].links.get(&message.to) == Some(&message.link) {
                self.deliver(message.from, message.to, message.input);
            }
        }
    }

    /// Makes a host send corrupt shards, or stop doing so.
    pub fn set_corrupt(&mut self, host: HostIndex, corrupts: bool) {
        self.hosts[host.index()].corrupts = corrupts;
    }

    /// Makes links that meet at a port get weights between `least` and 1 instead of equal ones; `None` makes them
    /// equal.
    pub fn set_uneven(&mut self, least: Option<f64>, seed: u64) {
        self.unevenness = least.map(|least| Unevenness { least: least.clamp(0.01, 1.0), seed });
    }

    /// Puts pieces of a content on a host's disk, as if an earlier version had held them.
    pub fn put_on_disk(&mut self, host: HostIndex, number: ContentNumber, have: Bitmap) {
        *self.disk_mut(host, number) = Some(have);
    }

    /// Erases the disk of a host that does not run.
    pub fn wipe(&mut self, host: HostIndex) {
        self.hosts[host.index()].disk.clear();
        self.hosts[host.index()].shares.clear();
        self.hosts[host.index()].orders.clear();
        for pushed in &mut self.pushes {
            pushed.done.remove(&host);
        }
        self.notify(&WorldEvent::Wiped { host });
    }

    pub(super) fn disk_mut(&mut self, host: HostIndex, number: ContentNumber) -> &mut Option<Bitmap> {
        let disk = &mut self.hosts[host.index()].disk;
        if disk.len() <= number {
            disk.resize(number + 1, None);
        }
        &mut disk[number]
    }
}
