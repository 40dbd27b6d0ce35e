//! The events: hosts with the daemons' brain, what they send over shared links, and a tracker that sees who is up.
//!
//! A transfer passes up to seven ports: the sender's card, its rack's and site's uplinks, the receiver's, its card, its disk.
//! It flows through them as it comes, not shard by shard, so the slowest one sets its time; flows that meet at a port take
//! turns. It counts as sent when it has arrived, as a full TCP window would have it.
//! Invariant: events happen in the order of their times, those of one time in the order they were made.

mod cold;
mod transit;
mod trouble;

use crate::check::{Check, Seen};
use crate::layout::{Layout, SEEDER};
use crate::links::Port;
use shoal_proto::announcement::{Announcement, Class, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Epoch, Hash, HostIndex, JobId, NodeId, PieceIndex, ShardIndex};
use shoal_proto::locality::{Locality, Selector};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;
use shoal_swarm::io::{Input, Notice, Output, Via};
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node};
use shoal_swarm::time::Instant;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

/// How long the tracker takes to see that a host has gone or come, and to tell.
const SEEN_AFTER: Duration = Duration::from_millis(100);
/// When a dial that nobody answers is given up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// When a link that brings nothing is dead. Links that carried nothing of late live on for longer; here they do not.
const DEAD_AFTER: Duration = Duration::from_secs(5);
/// How long a host takes to reserve space for a content whose manifest it has.
const BEGINNING: Duration = Duration::from_millis(20);
/// Trees of every content.
const LANES: u8 = 64;
/// Data shards in a stripe.
const DATA: u8 = 16;
/// What a manifest is taken to weigh: a hash and a length for each piece.
const MANIFEST_BYTES_PER_PIECE: u64 = 36;
/// Largest content that travels within its announcement.
const INLINE_MAX: u64 = 64 * 1024;
/// Ports a transfer may pass.
const STAGES: u8 = 7;
/// Plans kept for all hosts together.
const PLANS: usize = 256;

#[derive(Debug)]
enum Event {
    Input(HostIndex, u32, Box<Input>),
    Tick(HostIndex, u32),
    /// A port is free.
    Wake(u32),
    Arrive(u32),
    /// The tracker looks at a host.
    Look(HostIndex),
    Publish,
    /// Links through a rack's uplink that has been cut since then are dead.
    Dead(u32, u64),
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

/// What a transfer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cargo {
    Shard(ShardIndex),
    Manifest,
    /// An announcement with everything in it, down this lane.
    Inline(Via),
}

#[derive(Clone, Copy, Debug)]
struct Transfer {
    from: HostIndex,
    to: HostIndex,
    /// The link it is on; it dies with it.
    link: u32,
    content: u16,
    cargo: Cargo,
    class: Class,
    bytes: u32,
    /// It is broken.
    corrupt: bool,
    /// Ports passed.
    stage: u8,
    /// Hosts it has passed since the seeder, this one included.
    depth: u8,
    /// When the last byte is through the ports passed.
    through: u64,
}

struct Host {
    node: Option<Node>,
    /// Grows at each start: events for an earlier life are dropped.
    life: u32,
    rack: Option<u32>,
    /// Links that are up: other end and serial number.
    links: BTreeMap<HostIndex, u32>,
    /// What is on its disk, by content.
    disk: Vec<Option<Bitmap>>,
    /// Shares of demoted contents on its disk, by content.
    shares: BTreeMap<usize, cold::Share>,
    /// Contents it keeps whole.
    pins: BTreeSet<usize>,
    /// Orders it has heard.
    orders: BTreeSet<usize>,
    /// How far from the seeder each piece came, by content.
    depths: Vec<Vec<u8>>,
    corrupts: bool,
    /// Hears no news of membership; true once it missed some.
    deaf: Option<bool>,
    tick_at: Option<u64>,
}

/// What was pushed.
pub struct Pushed {
    /// The announcement.
    pub announcement: Arc<Announcement>,
    /// Its shape.
    pub geometry: Geometry,
    /// When, nanoseconds.
    pub at: u64,
    /// Pieces that have reached a host from the seeder.
    pub out: Bitmap,
    /// When each host had it whole, nanoseconds.
    pub done: BTreeMap<HostIndex, u64>,
}

/// What crossed which link so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes into each rack.
    pub imported: Vec<u64>,
    /// Payload bytes the seeder sent.
    pub seeder: u64,
    /// Parity bytes that entered racks.
    pub parity: u64,
    /// Payload bytes sent in all.
    pub all: u64,
}

/// A content's order among the pushes.
pub type ContentNumber = usize;

/// The region.
pub struct World {
    layout: Layout,
    now: u64,
    turn: u64,
    queue: BinaryHeap<Timed>,
    hosts: Vec<Host>,
    ports: Vec<Port>,
    sites: Vec<u32>,
    transfers: Vec<Transfer>,
    free: Vec<u32>,
    link_count: u32,
    planner: CachingPlanner,
    members: BTreeMap<HostIndex, Member>,
    membership: Arc<Membership>,
    /// Words that wait for a cut to mend: from, to, link.
    held: Vec<(HostIndex, HostIndex, u32, Input)>,
    /// When a rate last changed.
    pub mended_at: u64,
    /// Racks whose uplinks are cut, and since when.
    cut_at: BTreeMap<usize, u64>,
    tracker_up: bool,
    /// The least share a link gets where another gets 1, and what decides who gets what.
    uneven: Option<(f64, u64)>,
    publishing: bool,
    changed: BTreeSet<HostIndex>,
    pushes: Vec<Pushed>,
    /// Demotions and promotions, with what they are of.
    orders: Vec<(ContentNumber, Arc<Announcement>)>,
    numbers: BTreeMap<ContentId, usize>,
    /// What crossed which link.
    pub traffic: Traffic,
    /// What hosts said, when they said something of note.
    pub notices: Vec<(HostIndex, Notice)>,
    /// Events handled.
    pub events: u64,
    /// Longest way of a piece from the seeder, in hosts.
    pub depth: u8,
    /// Peers that finished since this was last emptied.
    pub finished: Vec<(HostIndex, ContentNumber)>,
    checks: Vec<Box<dyn Check>>,
}

fn port_of_host(host: HostIndex, which: usize) -> usize {
    host.index() * 3 + which
}

impl World {
    /// A region with a seeder and peers, all up, and what must hold of it.
    pub fn new(layout: Layout, checks: Vec<Box<dyn Check>>) -> Self {
        let sites: Vec<String> =
            layout.racks.iter().map(|rack| rack.site.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        let site_of = |name: &String| sites.binary_search(name).unwrap_or(0) as u32;
        let mut world = Self {
            now: 0,
            turn: 0,
            queue: BinaryHeap::new(),
            hosts: Vec::new(),
            ports: Vec::new(),
            sites: layout.racks.iter().map(|rack| site_of(&rack.site)).collect(),
            transfers: Vec::new(),
            free: Vec::new(),
            link_count: 0,
            planner: CachingPlanner::new(PLANS),
            members: BTreeMap::new(),
            membership: Arc::default(),
            held: Vec::new(),
            mended_at: 0,
            cut_at: BTreeMap::new(),
            tracker_up: true,
            uneven: None,
            publishing: false,
            changed: BTreeSet::new(),
            pushes: Vec::new(),
            orders: Vec::new(),
            numbers: BTreeMap::new(),
            traffic: Traffic { imported: vec![0; layout.racks.len()], ..Traffic::default() },
            notices: Vec::new(),
            events: 0,
            depth: 0,
            finished: Vec::new(),
            checks,
            layout,
        };
        let place = |site: &str, rack: &str, host: &str| Locality::new("r", site, rack, host).expect("names are valid");
        let mbit = |rate: u64| u32::try_from(rate / crate::layout::MBIT).unwrap_or(0);
        let layout = world.layout.clone();
        let declared = |rate: u64| if layout.declared { mbit(rate) } else { 0 };
        world.add(Role::Seeder, None, place("core", "core", "seeder"), declared(layout.seeder));
        world.ports.extend([Port::new(layout.seeder), Port::new(layout.seeder), Port::new(u64::MAX)]);
        for (number, rack) in layout.racks.iter().enumerate() {
            for host in 0..rack.hosts {
                let at = place(&rack.site, &format!("rack{number}"), &format!("h{number}-{host}"));
                world.add(Role::Peer, Some(number as u32), at, declared(rack.uplink));
                world.ports.extend([Port::new(rack.nic), Port::new(rack.nic), Port::new(rack.disk)]);
            }
        }
        for rack in &layout.racks {
            world.ports.extend([Port::new(rack.uplink), Port::new(rack.uplink)]);
        }
        for _ in &sites {
            world.ports.extend([Port::new(layout.site_uplink), Port::new(layout.site_uplink)]);
        }
        let update = MembershipUpdate {
            epoch: Epoch(1),
            base: None,
            upserts: world.members.values().cloned().collect(),
            removed: Vec::new(),
        };
        let mut membership = Membership::default();
        membership.apply(update).expect("a full update applies");
        world.membership = Arc::new(membership);
        // All are there before the first one dials.
        let all = (0..world.hosts.len() as u32).map(HostIndex);
        all.clone().for_each(|host| world.boot(host));
        all.for_each(|host| world.wake(host));
        world
    }

    fn add(&mut self, role: Role, rack: Option<u32>, locality: Locality, uplink_mbit: u32) {
        let index = HostIndex(self.hosts.len() as u32);
        let member = Member {
            index,
            node: NodeId(Hash::of(&index.0.to_be_bytes()).0),
            role,
            locality,
            labels: BTreeMap::new(),
            addrs: Vec::new(),
            weight: 100,
            uplink_mbit,
            presence: Presence::Up,
        };
        self.members.insert(index, member);
        self.hosts.push(Host {
            node: None,
            life: 0,
            rack,
            links: BTreeMap::new(),
            disk: Vec::new(),
            shares: BTreeMap::new(),
            pins: BTreeSet::new(),
            orders: BTreeSet::new(),
            depths: Vec::new(),
            corrupts: false,
            deaf: None,
            tick_at: None,
        });
    }

    /// The time.
    pub fn now(&self) -> Instant {
        Instant(self.now)
    }

    /// Where everybody is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A peer by rack and place.
    pub fn host(&self, rack: usize, place: u32) -> HostIndex {
        HostIndex(self.layout.hosts_of(rack).start + place)
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = HostIndex> + use<> {
        (1..self.hosts.len() as u32).map(HostIndex)
    }

    /// The rack a host is in; the seeder is in none.
    pub fn rack_of(&self, host: HostIndex) -> Option<u32> {
        self.hosts[host.index()].rack
    }

    /// Whether a host sends broken shards.
    pub fn corrupts(&self, host: HostIndex) -> bool {
        self.hosts[host.index()].corrupts
    }

    /// Whether a host runs.
    pub fn is_running(&self, host: HostIndex) -> bool {
        self.hosts[host.index()].node.is_some()
    }

    /// A running host's brain.
    pub fn node(&self, host: HostIndex) -> Option<&Node> {
        self.hosts[host.index()].node.as_ref()
    }

    /// A push.
    pub fn pushed(&self, number: ContentNumber) -> &Pushed {
        &self.pushes[number]
    }

    /// The push of a content.
    pub fn number_of(&self, content: &ContentId) -> Option<ContentNumber> {
        self.numbers.get(content).copied()
    }

    /// What a host's disk holds of a content.
    pub fn disk(&self, host: HostIndex, number: ContentNumber) -> Option<&Bitmap> {
        self.hosts[host.index()].disk.get(number)?.as_ref()
    }

    fn enqueue(&mut self, at: u64, event: Event) {
        self.turn += 1;
        self.queue.push(Timed { at, turn: self.turn, event });
    }

    fn later(&mut self, at: u64, host: HostIndex, input: Input) {
        let life = self.hosts[host.index()].life;
        self.enqueue(at, Event::Input(host, life, Box::new(input)));
    }

    fn latency(&self, a: HostIndex, b: HostIndex) -> u64 {
        let (a, b) = (self.hosts[a.index()].rack, self.hosts[b.index()].rack);
        let span = if a == b { self.layout.near } else { self.layout.far };
        span.as_nanos() as u64
    }

    /// Pushes a content of `pieces` equal pieces from the seeder to the hosts selected.
    pub fn push(&mut self, push: &Push) -> ContentNumber {
        let number = self.pushes.len();
        let content = ContentId(Hash::of(&(number as u64).to_be_bytes()).0);
        let lens: Arc<[u32]> = vec![push.piece_bytes; push.pieces as usize].into();
        let geometry = Geometry::new(push.data, push.parity, LANES, &content, lens).expect("a sensible geometry");
        let mut job = [0; 16];
        job[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let announcement = Arc::new(Announcement {
            job: JobId(job),
            content,
            kind: push.kind,
            name: push.name.clone(),
            version: number.to_string(),
            sequence: number as u64 + 1,
            selector: push.to.clone(),
            origin: self.members[&SEEDER].node,
            manifest_bytes: 1000,
            size: geometry.bytes(),
            created_at: number as u64 + 1,
            expires_at: u64::MAX,
            order: None,
            staged: false,
            feed: None,
        });
        let inline = geometry.bytes() <= INLINE_MAX;
        let have = Bitmap::full(geometry.piece_count());
        *self.disk_mut(SEEDER, number) = Some(have.clone());
        self.pushes.push(Pushed {
            announcement: announcement.clone(),
            out: geometry.no_pieces(),
            geometry: geometry.clone(),
            at: self.now,
            done: BTreeMap::new(),
        });
        self.numbers.insert(content, number);
        self.input(SEEDER, Input::Announced { from: None, via: Via::Lane(0), announcement, inline });
        self.input(SEEDER, Input::ContentReady { content, geometry, have });
        number
    }

    /// When the next event is.
    pub fn next_at(&self) -> Option<Instant> {
        self.queue.peek().map(|timed| Instant(timed.at))
    }

    /// Handles the next event.
    pub fn step(&mut self) {
        let Some(timed) = self.queue.pop() else { return };
        self.now = self.now.max(timed.at);
        self.events += 1;
        match timed.event {
            Event::Input(host, life, input) if self.hosts[host.index()].life == life => self.input(host, *input),
            Event::Tick(host, life) if self.hosts[host.index()].life == life => {
                self.hosts[host.index()].tick_at = None;
                self.input(host, Input::Tick);
            }
            Event::Wake(port) => {
                self.ports[port as usize].awaited = false;
                self.serve(port as usize);
            }
            Event::Arrive(transfer) => self.arrive(transfer),
            Event::Look(host) => self.look(host),
            Event::Publish => self.publish(),
            Event::Dead(rack, since) => self.lose_links(rack, since),
            Event::Input(..) | Event::Tick(..) => {}
        }
    }

    /// Runs until nothing happens before `until`.
    pub fn run_until(&mut self, until: Instant) {
        while self.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = self.now.max(until.0);
    }

    /// Runs for a while.
    pub fn run_for(&mut self, span: Duration) {
        self.run_until(self.now() + span);
    }

    /// Runs until the given hosts have a content, or the time is over; gives how long after the push the last one had it.
    pub fn run_to_done(&mut self, number: ContentNumber, hosts: &[HostIndex], limit: Duration) -> Option<Duration> {
        let until = self.now() + limit;
        while !hosts.iter().all(|host| self.pushes[number].done.contains_key(host)) {
            self.next_at().filter(|at| *at <= until)?;
            self.step();
        }
        let pushed = &self.pushes[number];
        let last = hosts.iter().map(|host| pushed.done[host]).max().unwrap_or(pushed.at);
        Some(Duration::from_nanos(last - pushed.at))
    }

    /// Looks over everything once more at the end of a run.
    pub fn check_end(&mut self) {
        self.tell_checks(&Seen::End);
    }

    fn tell_checks(&mut self, seen: &Seen<'_>) {
        let mut checks = std::mem::take(&mut self.checks);
        for check in &mut checks {
            if let Err(why) = check.sees(self, seen) {
                panic!("{} does not hold at {} ns, event {}: {why}", check.name(), self.now, self.events);
            }
        }
        self.checks = checks;
    }

    fn input(&mut self, host: HostIndex, input: Input) {
        if self.hosts[host.index()].node.is_none() {
            return;
        }
        if let Input::ShardVerified { content, shard, .. } = &input {
            self.keep(host, content, *shard);
        }
        if let Input::Rebuilt { content, shards, .. } = &input {
            shards.iter().for_each(|shard| self.keep(host, content, *shard));
        }
        if let Input::Announced { announcement, .. } = &input {
            self.hear_order(host, announcement.job);
        }
        if let Input::WholeDropped { content } = &input {
            self.let_go(host, content);
        }
        let now = self.now();
        let Some(node) = self.hosts[host.index()].node.as_mut() else { return };
        node.handle(now, input);
        if !self.checks.is_empty() {
            self.tell_checks(&Seen::Handled { host });
        }
        while let Some(output) = self.hosts[host.index()].node.as_mut().and_then(Node::poll_output) {
            if !self.checks.is_empty() {
                self.tell_checks(&Seen::Wished { host, output: &output });
            }
            self.effect(host, output);
        }
        self.schedule(host);
    }

    /// A piece reached a host's disk.
    fn keep(&mut self, host: HostIndex, content: &ContentId, shard: ShardIndex) {
        let Some(number) = self.number_of(content) else { return };
        let geometry = &self.pushes[number].geometry;
        if let Some(piece) = geometry.piece_of(shard) {
            let none = geometry.no_pieces();
            self.disk_mut(host, number).get_or_insert(none).set(piece.0);
        }
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
        match output {
            Output::Connect { host: other } => self.connect(host, other),
            Output::Disconnect { host: other, .. } => self.cut(host, other),
            Output::Send { to, message } if self.is_linked(host, to) => {
                self.say(host, to, Input::Message { from: host, message });
            }
            Output::SendAnnounce { to, job, via, inline } if self.is_linked(host, to) => {
                let Some(number) = self.pushes.iter().position(|pushed| pushed.announcement.job == job) else {
                    self.pass_order(host, to, via, job);
                    return;
                };
                if inline {
                    let bytes = self.pushes[number].geometry.bytes();
                    let class = Class::from(self.pushes[number].announcement.kind);
                    self.send(host, to, number, Cargo::Inline(via), bytes, class);
                } else {
                    let announcement = self.pushes[number].announcement.clone();
                    self.say(host, to, Input::Announced { from: Some(host), via, announcement, inline: false });
                }
            }
            Output::SendShard { to, content, shard, class } if self.is_linked(host, to) => {
                let Some(number) = self.number_of(&content) else { return };
                let bytes = self.pushes[number].geometry.shard_len(shard).unwrap_or(0);
                self.send(host, to, number, Cargo::Shard(shard), u64::from(bytes), class);
            }
            Output::SendManifest { to, content, class } if self.is_linked(host, to) => {
                let Some(number) = self.number_of(&content) else { return };
                let bytes = 1000 + MANIFEST_BYTES_PER_PIECE * u64::from(self.pushes[number].geometry.piece_count());
                self.send(host, to, number, Cargo::Manifest, bytes, class);
            }
            Output::Rebuild { content, stripe } => {
                let Some(number) = self.number_of(&content) else { return };
                let geometry = self.pushes[number].geometry.clone();
                let have = self.node(host).and_then(|node| node.pieces(&content)).cloned().unwrap_or_default();
                let pieces = geometry.stripe_pieces(stripe).filter(|piece| !have.get(*piece));
                let shards = pieces.map(|piece| geometry.shard_of(PieceIndex(piece))).collect();
                self.later(self.now, host, Input::Rebuilt { content, stripe, shards });
            }
            Output::Complete { content } => {
                let Some(number) = self.number_of(&content) else { return };
                let now = self.now;
                self.hosts[host.index()].shares.remove(&number);
                if let std::collections::btree_map::Entry::Vacant(entry) = self.pushes[number].done.entry(host) {
                    entry.insert(now);
                    if host != SEEDER {
                        self.finished.push((host, number));
                    }
                }
            }
            Output::MakeShare { content, placement } => self.make_share(host, content, placement),
            Output::DropWhole { content } => self.later(self.now, host, Input::WholeDropped { content }),
            Output::DropPartial { content, .. } => self.forgo(host, content),
            Output::Notice(notice) => self.notices.push((host, notice)),
            _ => {}
        }
    }
}

/// What to push.
#[derive(Clone, Debug)]
pub struct Push {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Pieces.
    pub pieces: u32,
    /// Length of each, bytes.
    pub piece_bytes: u32,
    /// Data shards in a stripe.
    pub data: u8,
    /// Parity shards in a stripe.
    pub parity: u8,
    /// For whom.
    pub to: Selector,
}

impl Push {
    /// A blob for everybody, with four parity shards a stripe.
    pub fn blob(pieces: u32, piece_bytes: u32) -> Self {
        Self { name: "blob".into(), kind: Kind::Blob, pieces, piece_bytes, data: DATA, parity: 4, to: Selector::all() }
    }
}
