//! A region of nodes in virtual time, for tests and the simulator.
//!
//! Owns the clock, the links and the bytes the nodes only wish for: every output of a node becomes events at others, after
//! the time it would take. A transfer passes four queues, first in first out: the sender, its rack's uplink out, the
//! receiver's rack's uplink in, the receiver. It counts as sent when it has arrived, as a full TCP window would have it.
//! Invariant: same scenario, same events.

use crate::io::{Input, Output};
use crate::membership::Membership;
use crate::node::{CachingPlanner, Node, NodeConfig};
use crate::time::Instant;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Epoch, Hash, HostIndex, JobId, NodeId, ShardIndex};
use shoal_proto::locality::{Locality, Selector};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

/// Shape and rates of a region.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Racks.
    pub racks: u32,
    /// Hosts in each.
    pub hosts: u32,
    /// Rate of a rack's uplink, each way, bytes/s.
    pub uplink: u64,
    /// Rate of the seeder, bytes/s.
    pub seeder: u64,
    /// Rate of a host, each way, bytes/s.
    pub nic: u64,
    /// One-way latency.
    pub latency: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        let mbit = 125_000;
        Self {
            racks: 4,
            hosts: 4,
            uplink: 200 * mbit,
            seeder: 400 * mbit,
            nic: 10_000 * mbit,
            latency: Duration::from_micros(200),
        }
    }
}

/// The seeder's place in the roster.
pub const SEEDER: HostIndex = HostIndex(0);

#[derive(Clone, Debug)]
enum Event {
    Input(HostIndex, u32, Box<Input>),
    Tick(HostIndex, u32),
    /// A transfer reaches its next queue.
    Hop(Transfer),
}

/// Payload on its way.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    from: HostIndex,
    to: HostIndex,
    content: ContentId,
    shard: Option<ShardIndex>,
    bytes: u64,
    /// Queues passed: sender, uplink out, uplink in, receiver.
    passed: u8,
    /// Lives of both ends when it began: a transfer dies with either.
    lives: (u32, u32),
}

#[derive(Debug)]
struct Timed {
    at: u64,
    turn: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.turn) == (other.at, other.turn)
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.turn).cmp(&(self.at, self.turn))
    }
}

struct Host {
    node: Option<Node>,
    /// Grows at each start: events for an earlier life are dropped.
    life: u32,
    rack: Option<u32>,
    rate: u64,
    out_free: u64,
    in_free: u64,
    /// What is on its disk.
    disk: BTreeMap<ContentId, Bitmap>,
    corrupts: bool,
    tick_at: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Uplink {
    out_free: u64,
    in_free: u64,
}

/// What was pushed.
struct Pushed {
    announcement: Arc<Announcement>,
    geometry: Geometry,
}

/// The region.
pub struct Mesh {
    shape: Shape,
    now: u64,
    turn: u64,
    queue: BinaryHeap<Timed>,
    hosts: Vec<Host>,
    uplinks: Vec<Uplink>,
    members: BTreeMap<HostIndex, Member>,
    epoch: u64,
    membership: Arc<Membership>,
    linked: BTreeSet<(HostIndex, HostIndex)>,
    pushed: BTreeMap<ContentId, Pushed>,
    /// When each host had each content whole, nanoseconds.
    pub done: BTreeMap<(HostIndex, ContentId), u64>,
    /// Payload bytes into each rack, and out of the seeder.
    pub imported: Vec<u64>,
    /// Payload bytes the seeder sent.
    pub seeder_sent: u64,
    /// Hosts banned, by whom.
    pub notices: Vec<(HostIndex, crate::io::Notice)>,
    /// Events handled.
    pub events: u64,
}

impl Mesh {
    /// A region with a seeder and peers, all up.
    pub fn new(shape: Shape) -> Self {
        let mut members = BTreeMap::new();
        let mut hosts = Vec::new();
        let mut add = |index: u32, role: Role, rack: Option<u32>, locality: Locality, rate: u64| {
            let node = NodeId(Hash::of(&index.to_be_bytes()).0);
            let member = Member {
                index: HostIndex(index),
                node,
                role,
                locality,
                labels: BTreeMap::new(),
                addrs: Vec::new(),
                weight: 100,
                uplink_mbit: 0,
                presence: Presence::Up,
            };
            members.insert(HostIndex(index), member);
            hosts.push(Host {
                node: None,
                life: 0,
                rack,
                rate,
                out_free: 0,
                in_free: 0,
                disk: BTreeMap::new(),
                corrupts: false,
                tick_at: None,
            });
        };
        let place = |rack: &str, host: String| Locality::new("r", "s", rack, &host).expect("names are checked");
        add(0, Role::Seeder, None, place("core", "seeder".into()), shape.seeder);
        for rack in 0..shape.racks {
            for host in 0..shape.hosts {
                let at = place(&format!("rack{rack}"), format!("h{rack}-{host}"));
                add(1 + rack * shape.hosts + host, Role::Peer, Some(rack), at, shape.nic);
            }
        }
        let mut mesh = Self {
            uplinks: vec![Uplink::default(); shape.racks as usize],
            imported: vec![0; shape.racks as usize],
            shape,
            now: 0,
            turn: 0,
            queue: BinaryHeap::new(),
            hosts,
            members,
            epoch: 0,
            membership: Arc::default(),
            linked: BTreeSet::new(),
            pushed: BTreeMap::new(),
            done: BTreeMap::new(),
            seeder_sent: 0,
            notices: Vec::new(),
            events: 0,
        };
        mesh.publish_membership();
        for index in 0..mesh.hosts.len() {
            mesh.start(HostIndex(index as u32));
        }
        mesh
    }

    /// The time.
    pub fn now(&self) -> Instant {
        Instant(self.now)
    }

    /// A peer by rack and place.
    pub fn host(&self, rack: u32, host: u32) -> HostIndex {
        HostIndex(1 + rack * self.shape.hosts + host)
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = HostIndex> + use<> {
        (1..self.hosts.len() as u32).map(HostIndex)
    }

    /// A running host's brain.
    pub fn node(&self, host: HostIndex) -> Option<&Node> {
        self.hosts[host.index()].node.as_ref()
    }

    fn publish_membership(&mut self) {
        self.epoch += 1;
        let update = MembershipUpdate {
            epoch: Epoch(self.epoch),
            base: None,
            upserts: self.members.values().cloned().collect(),
            removed: Vec::new(),
        };
        let mut membership = Membership::default();
        membership.apply(update).expect("a full update fits");
        self.membership = Arc::new(membership);
        for index in 0..self.hosts.len() {
            let host = HostIndex(index as u32);
            self.later(self.now, host, Input::Membership(self.membership.clone()));
        }
    }

    /// Has the tracker see a host as up or away.
    pub fn set_presence(&mut self, host: HostIndex, presence: Presence) {
        if let Some(member) = self.members.get_mut(&host) {
            member.presence = presence;
        }
        self.publish_membership();
    }

    fn later(&mut self, at: u64, host: HostIndex, input: Input) {
        let life = self.hosts[host.index()].life;
        self.enqueue(at, Event::Input(host, life, Box::new(input)));
    }

    fn enqueue(&mut self, at: u64, event: Event) {
        self.turn += 1;
        self.queue.push(Timed { at, turn: self.turn, event });
    }

    /// Starts a host with what is on its disk.
    pub fn start(&mut self, host: HostIndex) {
        let row = &mut self.hosts[host.index()];
        row.life += 1;
        row.tick_at = None;
        row.node = Some(Node::new(NodeConfig { me: host, lanes: 64 }, Box::new(CachingPlanner::default())));
        let disk: Vec<(ContentId, Bitmap)> = row.disk.iter().map(|(id, have)| (*id, have.clone())).collect();
        self.input(host, Input::Membership(self.membership.clone()));
        for (content, have) in disk {
            let pushed = &self.pushed[&content];
            let (announcement, geometry) = (pushed.announcement.clone(), pushed.geometry.clone());
            let lane = crate::node::limits::ENTROPY_LANE;
            self.input(host, Input::Announced { from: None, lane, announcement, inline: true });
            self.input(host, Input::ContentReady { content, geometry, have });
        }
    }

    /// Kills a host: its links break, what is under way is lost.
    pub fn kill(&mut self, host: HostIndex) {
        let row = &mut self.hosts[host.index()];
        row.node = None;
        row.life += 1;
        let broken: Vec<(HostIndex, HostIndex)> =
            self.linked.iter().copied().filter(|(a, b)| *a == host || *b == host).collect();
        for pair in broken {
            self.cut(pair);
        }
    }

    fn cut(&mut self, pair: (HostIndex, HostIndex)) {
        if self.linked.remove(&pair) {
            let at = self.now + self.latency();
            self.later(at, pair.0, Input::LinkDown { host: pair.1, reason: None });
            self.later(at, pair.1, Input::LinkDown { host: pair.0, reason: None });
        }
    }

    /// Changes a host's rate, bytes/s.
    pub fn set_rate(&mut self, host: HostIndex, rate: u64) {
        self.hosts[host.index()].rate = rate;
    }

    /// Has a host send broken shards.
    pub fn corrupt(&mut self, host: HostIndex) {
        self.hosts[host.index()].corrupts = true;
    }

    /// Pushes a content of `pieces` pieces from the seeder to the hosts selected.
    pub fn push(&mut self, number: u8, kind: Kind, pieces: u32, piece_bytes: u32, selector: Selector) -> ContentId {
        let content = ContentId(Hash::of(&[number]).0);
        let lens: Arc<[u32]> = vec![piece_bytes; pieces as usize].into();
        let geometry = Geometry::new(16, 4, 64, &content, lens).expect("a sensible geometry");
        let announcement = Arc::new(Announcement {
            job: JobId([number; 16]),
            content,
            kind,
            name: format!("content-{kind}"),
            version: number.to_string(),
            sequence: u64::from(number),
            selector,
            origin: self.members[&SEEDER].node,
            manifest_bytes: 1000,
            size: geometry.bytes(),
            created_at: u64::from(number),
            expires_at: u64::MAX,
        });
        let have = Bitmap::full(geometry.piece_count());
        self.hosts[SEEDER.index()].disk.insert(content, have.clone());
        self.pushed.insert(content, Pushed { announcement: announcement.clone(), geometry: geometry.clone() });
        self.input(SEEDER, Input::Announced { from: None, lane: 0, announcement, inline: false });
        self.input(SEEDER, Input::ContentReady { content, geometry, have });
        content
    }

    /// Gives a host pieces of a content, as if from an earlier version.
    pub fn give(&mut self, host: HostIndex, content: ContentId, have: Bitmap) {
        self.hosts[host.index()].disk.insert(content, have);
    }

    fn latency(&self) -> u64 {
        self.shape.latency.as_nanos() as u64
    }

    /// Runs until nothing happens before `until`.
    pub fn run_until(&mut self, until: Instant) {
        while let Some(next) = self.queue.peek()
            && next.at <= until.0
        {
            let Some(timed) = self.queue.pop() else { return };
            self.now = timed.at;
            self.events += 1;
            match timed.event {
                Event::Input(host, life, input) if self.hosts[host.index()].life == life => self.input(host, *input),
                Event::Tick(host, life) if self.hosts[host.index()].life == life => {
                    self.hosts[host.index()].tick_at = None;
                    self.input(host, Input::Tick);
                }
                Event::Hop(transfer) => self.hop(transfer),
                _ => {}
            }
        }
        self.now = self.now.max(until.0);
    }

    /// Runs for a while.
    pub fn run_for(&mut self, span: Duration) {
        let until = self.now() + span;
        self.run_until(until);
    }

    /// Runs until the given hosts have the content, or the time is over; gives the last one's time.
    pub fn run_to_done(&mut self, content: ContentId, hosts: &[HostIndex], limit: Duration) -> Option<Duration> {
        let until = self.now() + limit;
        loop {
            if hosts.iter().all(|host| self.done.contains_key(&(*host, content))) {
                let last = hosts.iter().map(|host| self.done[&(*host, content)]).max().unwrap_or(0);
                return Some(Duration::from_nanos(last));
            }
            let next = self.queue.peek().map(|timed| Instant(timed.at)).filter(|at| *at <= until)?;
            self.run_until(next);
        }
    }

    fn input(&mut self, host: HostIndex, input: Input) {
        let now = self.now();
        if let Input::ShardVerified { content, shard, .. } = &input {
            let geometry = &self.pushed[content].geometry;
            if let Some(piece) = geometry.piece_of(*shard) {
                let none = || geometry.no_pieces();
                self.hosts[host.index()].disk.entry(*content).or_insert_with(none).set(piece.0);
            }
        }
        let Some(node) = self.hosts[host.index()].node.as_mut() else { return };
        node.handle(now, input);
        if cfg!(debug_assertions) && self.events.is_multiple_of(64) {
            node.check_invariants();
        }
        while let Some(output) = self.hosts[host.index()].node.as_mut().and_then(Node::poll_output) {
            self.effect(host, output);
        }
        self.schedule(host);
    }

    fn schedule(&mut self, host: HostIndex) {
        let row = &mut self.hosts[host.index()];
        let Some(at) = row.node.as_ref().and_then(Node::poll_timeout) else { return };
        let at = at.0.max(self.now + 1);
        if row.tick_at.is_none_or(|former| at < former) {
            row.tick_at = Some(at);
            let life = row.life;
            self.enqueue(at, Event::Tick(host, life));
        }
    }

    fn effect(&mut self, host: HostIndex, output: Output) {
        let at = self.now + self.latency();
        match output {
            Output::Connect { host: other } => {
                let pair = (host.min(other), host.max(other));
                if self.hosts[other.index()].node.is_none() {
                    self.later(at, host, Input::DialFailed { host: other });
                } else if self.linked.insert(pair) {
                    self.later(at, host, Input::LinkUp { host: other });
                    self.later(at, other, Input::LinkUp { host });
                }
            }
            Output::Disconnect { host: other, .. } => self.cut((host.min(other), host.max(other))),
            Output::Send { to, message } if self.is_linked(host, to) => {
                self.later(at, to, Input::Message { from: host, message });
            }
            Output::SendAnnounce { to, job, lane, .. } if self.is_linked(host, to) => {
                let found = self.pushed.values().find(|pushed| pushed.announcement.job == job);
                if let Some(announcement) = found.map(|pushed| pushed.announcement.clone()) {
                    self.later(at, to, Input::Announced { from: Some(host), lane, announcement, inline: false });
                }
            }
            Output::SendShard { to, content, shard, .. } if self.is_linked(host, to) => {
                self.transfer(host, to, content, Some(shard));
            }
            Output::SendManifest { to, content, .. } if self.is_linked(host, to) => {
                self.transfer(host, to, content, None);
            }
            Output::Rebuild { content, stripe } => {
                let geometry = &self.pushed[&content].geometry;
                let have = self.node(host).and_then(|node| node.pieces(&content)).cloned().unwrap_or_default();
                let pieces = geometry.stripe_pieces(stripe).filter(|piece| !have.get(*piece));
                let shards: Vec<ShardIndex> =
                    pieces.map(|piece| geometry.shard_of(shoal_proto::ids::PieceIndex(piece))).collect();
                self.later(self.now, host, Input::Rebuilt { content, shards });
            }
            Output::Complete { content } => {
                self.done.entry((host, content)).or_insert(self.now);
            }
            Output::Notice(notice) => self.notices.push((host, notice)),
            _ => {}
        }
    }

    fn is_linked(&self, a: HostIndex, b: HostIndex) -> bool {
        self.linked.contains(&(a.min(b), a.max(b)))
    }

    fn transfer(&mut self, from: HostIndex, to: HostIndex, content: ContentId, shard: Option<ShardIndex>) {
        let geometry = &self.pushed[&content].geometry;
        let bytes = shard.map_or(1000, |shard| u64::from(geometry.shard_len(shard).unwrap_or(0)));
        let lives = (self.hosts[from.index()].life, self.hosts[to.index()].life);
        if from == SEEDER {
            self.seeder_sent += bytes;
        }
        self.hop(Transfer { from, to, content, shard, bytes, passed: 0, lives });
    }

    /// Puts a transfer into its next queue; each queue serves what reaches it first.
    fn hop(&mut self, mut transfer: Transfer) {
        let Transfer { from, to, bytes, .. } = transfer;
        if transfer.lives != (self.hosts[from.index()].life, self.hosts[to.index()].life) {
            return;
        }
        let (rack_out, rack_in) = (self.hosts[from.index()].rack, self.hosts[to.index()].rack);
        let crosses = rack_out != rack_in;
        let uplink = self.shape.uplink;
        loop {
            transfer.passed += 1;
            let queue = match transfer.passed {
                1 => {
                    let sender = &mut self.hosts[from.index()];
                    Some((&mut sender.out_free, sender.rate))
                }
                2 => rack_out.filter(|_| crosses).map(|rack| (&mut self.uplinks[rack as usize].out_free, uplink)),
                3 => rack_in.filter(|_| crosses).map(|rack| (&mut self.uplinks[rack as usize].in_free, uplink)),
                4 => {
                    let receiver = &mut self.hosts[to.index()];
                    Some((&mut receiver.in_free, receiver.rate))
                }
                _ => return self.arrive(transfer),
            };
            if let Some((free, rate)) = queue {
                *free = (*free).max(self.now) + bytes * 1_000_000_000 / rate.max(1);
                let at = *free;
                if transfer.passed == 3
                    && let Some(rack) = rack_in
                {
                    self.imported[rack as usize] += bytes;
                }
                self.enqueue(at, Event::Hop(transfer));
                return;
            }
        }
    }

    fn arrive(&mut self, transfer: Transfer) {
        let Transfer { from, to, content, shard, .. } = transfer;
        let geometry = self.pushed[&content].geometry.clone();
        let arrival = self.now + self.latency();
        let corrupts = self.hosts[from.index()].corrupts;
        match shard {
            Some(shard) if corrupts => self.later(arrival, to, Input::ShardCorrupt { content, shard, from }),
            Some(shard) => self.later(arrival, to, Input::ShardVerified { content, shard, from }),
            None => {
                let none = || geometry.no_pieces();
                let have = self.hosts[to.index()].disk.entry(content).or_insert_with(none).clone();
                self.later(arrival, to, Input::ContentReady { content, geometry, have });
            }
        }
        self.later(self.now, from, Input::Sent { to, content, shard });
    }
}
