//! Links between hosts, and payload on its way through ports.

use super::event::Event;
use super::{Cargo, ContentNumber, DIAL_TIMEOUT, Message, RESERVING, Transfer, World, port_of_host};
use crate::Rng;
use crate::layout::SEEDER;
use crate::ports::Flow;
use shoal_proto::announcement::Class;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{HostIndex, ShardIndex};
use shoal_swarm::io::Input;

/// Ports that a transfer may pass.
const STAGES: u8 = 7;

impl World {
    pub(super) fn connect(&mut self, host: HostIndex, other: HostIndex) {
        // A round trip for TCP and half of one for the handshake's first answer.
        let at = self.now + 3 * self.latency(host, other);
        if !self.is_reachable(host, other) {
            self.input_at(self.now + DIAL_TIMEOUT.as_nanos() as u64, host, Input::DialFailed { host: other });
        } else if self.hosts[other.index()].node.is_none() {
            self.input_at(at, host, Input::DialFailed { host: other });
        } else if !self.is_linked(host, other) {
            self.link_count += 1;
            self.hosts[host.index()].links.insert(other, self.link_count);
            self.hosts[other.index()].links.insert(host, self.link_count);
            self.input_at(at, host, Input::LinkUp { host: other });
            self.input_at(at, other, Input::LinkUp { host });
        }
    }

    /// Delivers a message after the latency of the way. If the way is cut, the message waits, as in a socket.
    pub(super) fn deliver(&mut self, from: HostIndex, to: HostIndex, input: Input) {
        let Some(link) = self.hosts[from.index()].links.get(&to).copied() else { return };
        if self.is_reachable(from, to) {
            self.input_at(self.now + self.latency(from, to), to, input);
        } else {
            self.delayed.push(Message { from, to, link, input });
        }
    }

    /// Whether a link between two hosts is up.
    pub fn is_linked(&self, a: HostIndex, b: HostIndex) -> bool {
        self.hosts[a.index()].links.contains_key(&b)
    }

    /// The port that a transfer passes at a stage, if there is one and it has a rate.
    pub(super) fn port(&self, stage: u8, from: HostIndex, to: HostIndex) -> Option<usize> {
        let (out, into) = (self.hosts[from.index()].rack, self.hosts[to.index()].rack);
        let racks = self.hosts.len() * 3;
        let sites = racks + self.layout.racks.len() * 2;
        let site = |rack: Option<u32>| rack.map(|rack| self.sites[rack as usize]);
        let rack_port =
            |rack: Option<u32>, way: usize| rack.filter(|_| out != into).map(|rack| racks + rack as usize * 2 + way);
        let site_port = |rack: Option<u32>, way: usize| {
            site(rack).filter(|_| site(out) != site(into)).map(|site| sites + site as usize * 2 + way)
        };
        let port = match stage {
            0 => Some(port_of_host(from, 0)),
            1 => rack_port(out, 0),
            2 => site_port(out, 0),
            3 => site_port(into, 1),
            4 => rack_port(into, 1),
            5 => Some(port_of_host(to, 1)),
            _ => Some(port_of_host(to, 2)),
        };
        port.filter(|port| !self.ports[*port].is_unlimited())
    }

    /// Whether no cut lies between two hosts.
    pub fn is_reachable(&self, a: HostIndex, b: HostIndex) -> bool {
        (0..STAGES).filter_map(|stage| self.port(stage, a, b)).all(|port| self.ports[port].rate > 0)
    }

    pub(super) fn send(
        &mut self,
        from: HostIndex,
        to: HostIndex,
        number: ContentNumber,
        cargo: Cargo,
        bytes: u64,
        class: Class,
    ) {
        let Some(link) = self.hosts[from.index()].links.get(&to).copied() else { return };
        let depth = self.depth_of(from, number, cargo);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let transfer = Transfer {
            from,
            to,
            link,
            content: number as u16,
            cargo,
            class,
            bytes,
            corrupt: self.hosts[from.index()].corrupts,
            stage: 0,
            depth,
            through: self.now,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.transfers[id as usize] = transfer;
                id
            }
            None => {
                self.transfers.push(transfer);
                self.transfers.len() as u32 - 1
            }
        };
        self.move_on(id);
    }

    /// How many links a shard will have crossed when it arrives.
    fn depth_of(&self, from: HostIndex, number: ContentNumber, cargo: Cargo) -> u8 {
        let Cargo::Shard(shard) = cargo else { return 1 };
        let depths = self.hosts[from.index()].depths.get(number);
        let piece = self.pushes[number].geometry.piece_of(shard);
        let before = piece.and_then(|piece| depths?.get(piece.0 as usize).copied()).unwrap_or(0);
        before.saturating_add(1)
    }

    /// Counts a transfer that is through a stage: at the sender's card and at the receiver's uplink.
    fn pass_stage(&mut self, id: u32) {
        let transfer = &mut self.transfers[id as usize];
        let stage = transfer.stage;
        transfer.stage += 1;
        let Transfer { from, to, content, cargo, bytes, .. } = *transfer;
        let (Cargo::Shard(shard), bytes) = (cargo, u64::from(bytes)) else { return };
        match stage {
            0 => {
                self.traffic.all += bytes;
                if from == SEEDER {
                    self.traffic.seeder += bytes;
                }
            }
            4 => {
                let (out, into) = (self.hosts[from.index()].rack, self.hosts[to.index()].rack);
                if let Some(rack) = into.filter(|_| out != into) {
                    self.traffic.imported[rack as usize] += bytes;
                    if self.pushes[usize::from(content)].geometry.piece_of(shard).is_none() {
                        self.traffic.parity += bytes;
                    }
                }
            }
            _ => {}
        }
    }

    /// Moves a transfer through all idle ports, up to the first port where it must wait.
    fn move_on(&mut self, id: u32) {
        loop {
            let Transfer { from, to, bytes, stage, class, .. } = self.transfers[id as usize];
            if stage == STAGES {
                let at = self.transfers[id as usize].through.max(self.now) + self.latency(from, to);
                self.events_ahead.push(at, Event::Arrive(id));
                return;
            }
            if let Some(number) = self.port(stage, from, to) {
                let now = self.now;
                let weight = self.weight(from, to);
                let port = &mut self.ports[number];
                if !port.is_idle(now) {
                    let flow: Flow = u128::from(from.0) << 64 | u128::from(to.0) << 32 | class as u128;
                    port.wait(flow, id, u64::from(bytes), weight);
                    self.await_port(number);
                    return;
                }
                let span = port.span(u64::from(bytes));
                port.free_at = now + span;
                let transfer = &mut self.transfers[id as usize];
                transfer.through = transfer.through.max(now + span);
            }
            self.pass_stage(id);
        }
    }

    /// The weight of a link where it meets others.
    fn weight(&self, from: HostIndex, to: HostIndex) -> f64 {
        let Some(unevenness) = self.unevenness else { return 1.0 };
        const STEPS: u64 = 1 << 16;
        let mut rng = Rng::new(unevenness.seed ^ u64::from(from.0) << 32 ^ u64::from(to.0));
        unevenness.least + (1.0 - unevenness.least) * rng.below(STEPS + 1) as f64 / STEPS as f64
    }

    fn await_port(&mut self, number: ContentNumber) {
        let port = &mut self.ports[number];
        if !port.awaited && port.rate > 0 {
            port.awaited = true;
            let at = port.free_at.max(self.now);
            self.events_ahead.push(at, Event::PortFree(number as u32));
        }
    }

    /// Serves the next transfers at a port that has become free.
    pub(super) fn serve(&mut self, number: ContentNumber) {
        let now = self.now;
        while self.ports[number].rate > 0 && self.ports[number].free_at <= now {
            let Some(id) = self.ports[number].next() else { return };
            if !self.is_alive(id) {
                self.free.push(id);
                continue;
            }
            let span = self.ports[number].span(u64::from(self.transfers[id as usize].bytes));
            self.ports[number].free_at = now + span;
            let transfer = &mut self.transfers[id as usize];
            transfer.through = transfer.through.max(now + span);
            self.pass_stage(id);
            self.move_on(id);
        }
        if self.ports[number].has_waiting() {
            self.await_port(number);
        }
    }

    /// Whether the link of a transfer still exists. A new link between the same hosts has another serial number.
    fn is_alive(&self, id: u32) -> bool {
        let transfer = &self.transfers[id as usize];
        self.hosts[transfer.from.index()].links.get(&transfer.to) == Some(&transfer.link)
    }

    /// Hands what arrives to the receiver's core, and tells the sender's core that it was sent.
    pub(super) fn arrive(&mut self, id: u32) {
        let alive = self.is_alive(id);
        let Transfer { from, to, content: number, cargo, depth, corrupt, .. } = self.transfers[id as usize];
        self.free.push(id);
        if !alive {
            return;
        }
        let number = usize::from(number);
        let pushed = &self.pushes[number];
        let (content, geometry) = (pushed.announcement.content, pushed.geometry.clone());
        match cargo {
            Cargo::Shard(shard) => {
                if let Some(piece) = geometry.piece_of(shard).filter(|_| from == SEEDER) {
                    self.pushes[number].out.set(piece.0);
                }
                if corrupt {
                    self.input(to, Input::ShardCorrupt { content, shard, from });
                } else {
                    self.note_depth(to, number, shard, depth);
                    self.input(to, Input::ShardVerified { content, shard, from });
                }
                self.input(from, Input::Sent { to, content, shard: Some(shard) });
            }
            Cargo::Manifest => {
                let none = geometry.no_pieces();
                let have = self.disk_mut(to, number).get_or_insert(none).clone();
                self.input(to, Input::ManifestVerified { content });
                let at = self.now + RESERVING.as_nanos() as u64;
                self.input_at(at, to, Input::ContentReady { content, geometry, have });
                self.input(from, Input::Sent { to, content, shard: None });
            }
            Cargo::Inline(via) => {
                let announcement = pushed.announcement.clone();
                self.input(to, Input::Announced { from: Some(from), via, announcement, inline: true });
                let have = Bitmap::full(geometry.piece_count());
                *self.disk_mut(to, number) = Some(have.clone());
                self.input(to, Input::ContentReady { content, geometry, have });
            }
        }
    }

    fn note_depth(&mut self, host: HostIndex, number: ContentNumber, shard: ShardIndex, depth: u8) {
        let geometry = &self.pushes[number].geometry;
        let Some(piece) = geometry.piece_of(shard) else { return };
        let pieces = geometry.piece_count() as usize;
        let depths = &mut self.hosts[host.index()].depths;
        if depths.len() <= number {
            depths.resize(number + 1, Vec::new());
        }
        if depths[number].is_empty() {
            depths[number] = vec![0; pieces];
        }
        depths[number][piece.0 as usize] = depth;
        self.depth = self.depth.max(depth);
    }
}
