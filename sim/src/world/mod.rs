//! The region: hosts with the daemons' core, links with rates, and a tracker that sees which hosts run.
//!
//! A transfer passes up to seven ports: the sender's card, the uplinks of its rack and site, the uplinks of the
//! receiver's site and rack, the receiver's card, and the receiver's disk. Each shard flows through them as it arrives,
//! so the slowest port sets its time. Flows that meet at a port take turns. A shard counts as sent when it has arrived,
//! as behind a full TCP window.
//! Invariant: time never goes back, and only the events in [`event`] change the region.

mod demotion;
mod event;
mod faults;
pub mod observer;
mod outputs;
mod push;
mod tracker;
mod transit;

use crate::layout::{Layout, MBIT};
use crate::ports::Port;
use event::{Event, EventQueue};
use observer::{Observer, WorldEvent};
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, Epoch, Hash, HostIndex, NodeId, ShardIndex};
use shoal_proto::locality::Locality;
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;
use shoal_swarm::io::{Input, Notice, Via};
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node, Tuning};
use shoal_swarm::time::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub use demotion::RackShare;
pub use push::{Push, Pushed};

/// How long the tracker takes to see that a host has come or gone, and how long it collects changes before it
/// publishes.
const TRACKER_DELAY: Duration = Duration::from_millis(100);
/// When a dial without an answer fails.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// When a link that delivers nothing ends. The daemons keep idle links longer; the simulator does not.
const DEAD_AFTER: Duration = Duration::from_secs(5);
/// How long a host takes to reserve space for a content whose manifest it has.
const RESERVING: Duration = Duration::from_millis(20);
/// Lanes of every content.
const LANES: u8 = 64;
/// The size of a manifest without its pieces.
const MANIFEST_BYTES: u64 = 1000;
/// What each piece adds to a manifest: a hash and a length.
const MANIFEST_BYTES_PER_PIECE: u64 = 36;
/// Largest content that travels within its announcement.
const INLINE_MAX: u64 = 64 * 1024;
/// Plans kept for all hosts together.
const PLANS: usize = 256;

/// What crossed which link so far. The digest of a run includes this struct's debug text, so its names stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes into each rack.
    pub imported: Vec<u64>,
    /// Payload bytes that the seeder sent.
    pub seeder: u64,
    /// Parity bytes that entered racks.
    pub parity: u64,
    /// Payload bytes that all hosts sent.
    pub all: u64,
}

/// The number of a content among all pushes.
pub type ContentNumber = usize;

/// Links that share ports unevenly.
#[derive(Clone, Copy, Debug)]
struct Unevenness {
    /// The least weight of a link; the greatest is 1.
    least: f64,
    /// Decides the weight of each link.
    seed: u64,
}

/// A seeder or a peer.
struct Host {
    /// The core, while the host runs.
    node: Option<Node>,
    /// Grows at each start and kill. Events of an earlier life are dropped.
    life: u32,
    /// The rack; the seeder has none.
    rack: Option<u32>,
    /// Links that are up: other end and serial number.
    links: BTreeMap<HostIndex, u32>,
    /// Pieces on its disk, by content.
    disk: Vec<Option<Bitmap>>,
    /// Rack shares on its disk, by content.
    shares: BTreeMap<ContentNumber, RackShare>,
    /// Contents that it keeps whole whatever is ordered.
    pins: BTreeSet<ContentNumber>,
    /// Orders that it has received, by their number.
    orders: BTreeSet<usize>,
    /// How many links each piece crossed from the seeder to this host, by content.
    depths: Vec<Vec<u8>>,
    /// It sends corrupt shards.
    corrupts: bool,
    /// `Some` while the host receives no memberships; true once it missed one.
    missed_membership: Option<bool>,
    /// When its next tick is due, nanoseconds.
    tick_at: Option<u64>,
}

impl Host {
    fn new(rack: Option<u32>) -> Self {
        Self {
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
            missed_membership: None,
            tick_at: None,
        }
    }
}

/// What a transfer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cargo {
    Shard(ShardIndex),
    Manifest,
    /// An announcement with manifest and data.
    Inline(Via),
}

/// Payload on its way over one link.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    from: HostIndex,
    to: HostIndex,
    /// The serial number of the link. The transfer is lost when the link breaks.
    link: u32,
    content: u16,
    cargo: Cargo,
    class: Class,
    bytes: u32,
    corrupt: bool,
    /// Ports passed.
    stage: u8,
    /// Links crossed since the seeder, this one included.
    depth: u8,
    /// When the last byte is through the ports passed, nanoseconds.
    through: u64,
}

/// A message that a cut delays.
struct Message {
    from: HostIndex,
    to: HostIndex,
    /// The serial number of the link. The message is lost when the link breaks.
    link: u32,
    input: Input,
}

/// The region.
pub struct World {
    layout: Layout,
    tuning: Tuning,
    now: u64,
    events_ahead: EventQueue,
    hosts: Vec<Host>,
    ports: Vec<Port>,
    /// The site of each rack.
    sites: Vec<u32>,
    transfers: Vec<Transfer>,
    /// Entries of `transfers` that are unused.
    free: Vec<u32>,
    link_count: u32,
    planner: CachingPlanner,
    members: BTreeMap<HostIndex, Member>,
    membership: Arc<Membership>,
    /// Messages that wait until a cut is repaired.
    delayed: Vec<Message>,
    /// When a rate last changed, nanoseconds.
    pub rate_changed_at: u64,
    /// Racks whose uplinks are cut, and since when.
    cut_at: BTreeMap<usize, u64>,
    tracker_up: bool,
    unevenness: Option<Unevenness>,
    /// A publication of the tracker is due.
    publishing: bool,
    /// Hosts whose presence changed since the last publication.
    changed: BTreeSet<HostIndex>,
    pushes: Vec<Pushed>,
    /// Demotions and promotions, with the contents they concern.
    orders: Vec<(ContentNumber, Arc<Announcement>)>,
    numbers: BTreeMap<ContentId, ContentNumber>,
    /// What crossed which link.
    pub traffic: Traffic,
    /// Notices of all cores, in order.
    pub notices: Vec<(HostIndex, Notice)>,
    /// Events handled.
    pub events: u64,
    /// The greatest number of links that any piece crossed from the seeder.
    pub depth: u8,
    /// Peers that finished a content since this was last emptied.
    pub finished: Vec<(HostIndex, ContentNumber)>,
    observers: Vec<Box<dyn Observer>>,
}

fn port_of_host(host: HostIndex, which: usize) -> usize {
    host.index() * 3 + which
}

impl World {
    /// A region with all hosts running, and the rules that must hold in it.
    pub fn new(layout: Layout, observers: Vec<Box<dyn Observer>>) -> Self {
        Self::with_tuning(layout, observers, Tuning::default())
    }

    /// The same, with other tuning constants in all cores.
    pub fn with_tuning(layout: Layout, observers: Vec<Box<dyn Observer>>, tuning: Tuning) -> Self {
        let mut world = Self::empty(layout, observers, tuning);
        world.add_hosts_and_ports();
        let update = MembershipUpdate {
            epoch: Epoch(1),
            base: None,
            upserts: world.members.values().cloned().collect(),
            removed: Vec::new(),
        };
        let mut membership = Membership::default();
        membership.apply(update).expect("a full update applies");
        world.membership = Arc::new(membership);
        // All hosts run before the first one dials.
        let all = (0..world.hosts.len() as u32).map(HostIndex);
        all.clone().for_each(|host| world.boot(host));
        all.for_each(|host| world.restore(host));
        world
    }

    fn empty(layout: Layout, observers: Vec<Box<dyn Observer>>, tuning: Tuning) -> Self {
        let sites: Vec<String> =
            layout.racks.iter().map(|rack| rack.site.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        let site_of = |name: &String| sites.binary_search(name).unwrap_or(0) as u32;
        Self {
            now: 0,
            events_ahead: EventQueue::default(),
            hosts: Vec::new(),
            ports: Vec::new(),
            sites: layout.racks.iter().map(|rack| site_of(&rack.site)).collect(),
            transfers: Vec::new(),
            free: Vec::new(),
            link_count: 0,
            planner: CachingPlanner::new(PLANS),
            members: BTreeMap::new(),
            membership: Arc::default(),
            delayed: Vec::new(),
            rate_changed_at: 0,
            cut_at: BTreeMap::new(),
            tracker_up: true,
            unevenness: None,
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
            observers,
            layout,
            tuning,
        }
    }

    /// Three ports for each host, then two for each rack, then two for each site. [`World::port`] relies on this order.
    fn add_hosts_and_ports(&mut self) {
        let place = |site: &str, rack: &str, host: &str| Locality::new("r", site, rack, host).expect("names are valid");
        let mbit = |rate: u64| u32::try_from(rate / MBIT).unwrap_or(0);
        let layout = self.layout.clone();
        let declared = |rate: u64| if layout.declared { mbit(rate) } else { 0 };
        self.add(Role::Seeder, None, place("core", "core", "seeder"), declared(layout.seeder));
        self.ports.extend([Port::new(layout.seeder), Port::new(layout.seeder), Port::new(u64::MAX)]);
        for (number, rack) in layout.racks.iter().enumerate() {
            for host in 0..rack.hosts {
                let at = place(&rack.site, &format!("rack{number}"), &format!("h{number}-{host}"));
                self.add(Role::Peer, Some(number as u32), at, declared(rack.uplink));
                self.ports.extend([Port::new(rack.nic), Port::new(rack.nic), Port::new(rack.disk)]);
            }
        }
        for rack in &layout.racks {
            self.ports.extend([Port::new(rack.uplink), Port::new(rack.uplink)]);
        }
        let sites: BTreeSet<u32> = self.sites.iter().copied().collect();
        for _ in &sites {
            self.ports.extend([Port::new(layout.site_uplink), Port::new(layout.site_uplink)]);
        }
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
            credential: Default::default(),
        };
        self.members.insert(index, member);
        self.hosts.push(Host::new(rack));
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        Instant(self.now)
    }

    /// The layout of the region.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A peer by its rack and its place in the rack.
    pub fn host(&self, rack: usize, place: u32) -> HostIndex {
        HostIndex(self.layout.hosts_of(rack).start + place)
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = HostIndex> + use<> {
        (1..self.hosts.len() as u32).map(HostIndex)
    }

    /// The rack of a host; `None` for the seeder.
    pub fn rack_of(&self, host: HostIndex) -> Option<u32> {
        self.hosts[host.index()].rack
    }

    /// Whether a host sends corrupt shards.
    pub fn corrupts(&self, host: HostIndex) -> bool {
        self.hosts[host.index()].corrupts
    }

    /// Whether a host runs.
    pub fn is_running(&self, host: HostIndex) -> bool {
        self.hosts[host.index()].node.is_some()
    }

    /// The core of a running host.
    pub fn node(&self, host: HostIndex) -> Option<&Node> {
        self.hosts[host.index()].node.as_ref()
    }

    /// A content that was pushed.
    pub fn pushed(&self, number: ContentNumber) -> &Pushed {
        &self.pushes[number]
    }

    /// The number of a content.
    pub fn number_of(&self, content: &ContentId) -> Option<ContentNumber> {
        self.numbers.get(content).copied()
    }

    /// The pieces of a content on a host's disk.
    pub fn disk(&self, host: HostIndex, number: ContentNumber) -> Option<&Bitmap> {
        self.hosts[host.index()].disk.get(number)?.as_ref()
    }

    /// Hands an input to a host's core at a time, unless the host restarts before.
    fn input_at(&mut self, at: u64, host: HostIndex, input: Input) {
        let life = self.hosts[host.index()].life;
        self.events_ahead.push(at, Event::Input { host, life, input: Box::new(input) });
    }

    fn latency(&self, a: HostIndex, b: HostIndex) -> u64 {
        let (a, b) = (self.hosts[a.index()].rack, self.hosts[b.index()].rack);
        let span = if a == b { self.layout.near } else { self.layout.far };
        span.as_nanos() as u64
    }

    /// The time of the next event.
    pub fn next_at(&self) -> Option<Instant> {
        self.events_ahead.next_at().map(Instant)
    }

    /// Handles the next event.
    pub fn step(&mut self) {
        let Some((at, event)) = self.events_ahead.pop() else { return };
        self.now = self.now.max(at);
        self.events += 1;
        match event {
            Event::Input { host, life, input } if self.hosts[host.index()].life == life => self.input(host, *input),
            Event::Tick { host, life } if self.hosts[host.index()].life == life => {
                self.hosts[host.index()].tick_at = None;
                self.input(host, Input::Tick);
            }
            Event::PortFree(port) => {
                self.ports[port as usize].awaited = false;
                self.serve(port as usize);
            }
            Event::Arrive(transfer) => self.arrive(transfer),
            Event::Check(host) => self.check_presence(host),
            Event::Publish => self.publish(),
            Event::LinksDead { rack, since } => self.break_cut_links(rack, since),
            Event::Input { .. } | Event::Tick { .. } => {}
        }
    }

    /// Handles all events up to `until`, and moves the time there.
    pub fn run_until(&mut self, until: Instant) {
        while self.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = self.now.max(until.0);
    }

    /// The same for a span.
    pub fn run_for(&mut self, span: Duration) {
        self.run_until(self.now() + span);
    }

    /// Runs until the given hosts have a content. Returns how long after the push the last one had it, or `None` when
    /// that takes longer than `limit`.
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

    /// Tells all observers that the run is over.
    pub fn check_end(&mut self) {
        self.notify(&WorldEvent::End);
    }

    fn notify(&mut self, event: &WorldEvent<'_>) {
        // Taken out, because an observer reads the world that owns it.
        let mut observers = std::mem::take(&mut self.observers);
        for observer in &mut observers {
            if let Err(violation) = observer.on_event(self, event) {
                let (rule, at, number) = (observer.name(), self.now, self.events);
                panic!("broken rule `{rule}` at {at} ns, event {number}: {violation}");
            }
        }
        self.observers = observers;
    }
}
