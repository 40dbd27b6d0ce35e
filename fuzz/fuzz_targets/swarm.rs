//! A node among hostile members: any sequence of messages, announcements, shards, lost links and pauses.
//!
//! The target plays the driver, and keeps to what a driver guarantees: announcements come from a publisher, shards and
//! manifests were checked, and each request is answered once. Everything else is up to the other hosts.
//!
//! Invariant of the node: no panic, its own invariants, valid messages to linked hosts only, no more outputs or memory
//! than the region explains, nothing kept or sent that was not announced, and timers that lie ahead.

#![no_main]

use arbitrary::Arbitrary;
use shoal_fuzz::heap;
use shoal_proto::announcement::{Announcement, Kind, Order};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::decode_exact;
use shoal_proto::feed::{FeedMark, FeedRow, feed_id};
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Epoch, HostIndex, JobId, NodeId, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::locality::{Locality, Selector};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::message::{DemotionStage, LaneSet, Message};
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::trust::Role;
use shoal_swarm::io::{Input, Output, Via};
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node, NodeConfig, Tuning};
use shoal_swarm::time::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A seeder and three racks of three.
const HOSTS: u32 = 10;
const ME: HostIndex = HostIndex(4);
/// Contents that a publisher announced. Messages may name further ones.
const CONTENTS: u8 = 4;
const PIECES: u32 = 20;
const STEPS_MAX: usize = 300;
/// Outputs of one input. Each of the ten hosts has a window for each content and class, and a few messages.
const OUTPUTS_MAX: usize = 4096;
/// Memory of a node in this region.
const HEAP_MAX: usize = 24 << 20;

#[derive(Arbitrary, Debug)]
enum Hostile<'a> {
    Subscribe { content: u8, lanes: u64, len: u8, have: u64 },
    Unsubscribe { content: u8, lanes: u64 },
    Received { content: u8, len: u8, pieces: u64 },
    Done { content: u8 },
    Want { content: u8, shards: Vec<u32> },
    Unavailable { content: u8, shards: Vec<u32> },
    WantManifest { content: u8 },
    NotServed { content: u8 },
    Digest { hash: u64, jobs: Option<Vec<u8>> },
    Demotion { content: u8, job: u8, stage: u8, hosts: u16, ask: bool },
    WantAnnounce { jobs: Vec<u8> },
    Feeds { rows: Vec<(u8, u64)> },
    Bytes(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Message {
        from: u8,
        message: Hostile<'a>,
    },
    Announce {
        from: u8,
        via: u8,
        content: u8,
        order: u8,
        sequence: u8,
        inline: bool,
    },
    Link {
        host: u8,
        up: bool,
    },
    DialFailed {
        host: u8,
    },
    Pass {
        ms: u16,
    },
    Manifest {
        content: u8,
        from: u8,
        outcome: u8,
    },
    Shard {
        content: u8,
        shard: u8,
        from: u8,
        corrupt: bool,
    },
    /// Answers the oldest open request, well or badly.
    Answer {
        well: bool,
    },
    Lose {
        content: u8,
        piece: u8,
    },
    Remove {
        content: u8,
    },
    Forget {
        content: u8,
        order: u8,
    },
    Presence {
        host: u8,
        up: bool,
    },
}

#[derive(Arbitrary, Debug)]
struct Script<'a> {
    seeder: bool,
    steps: Vec<Step<'a>>,
}

fn content(number: u8) -> ContentId {
    ContentId([number % (CONTENTS + 2) + 1; 32])
}

fn host(number: u8) -> HostIndex {
    HostIndex(u32::from(number) % HOSTS)
}

fn map(len: u8, bits: u64) -> Bitmap {
    // Mostly the right length.
    let len = if len < 200 { PIECES } else { u32::from(len) };
    let mut map = Bitmap::new(len);
    (0..64).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| {
        map.set(bit);
    });
    map
}

fn shards(numbers: &[u32]) -> Vec<ShardIndex> {
    // Mostly shards that exist.
    numbers.iter().map(|number| ShardIndex(if number % 8 == 0 { *number } else { number % 48 })).collect()
}

/// The job of an announcement: one for each content and order.
fn job(content: u8, order: u8) -> JobId {
    match content % (CONTENTS + 2) {
        3 => feed_id("gslb/main"),
        content => JobId([content * 4 + order % 3 + 1; 16]),
    }
}

impl Hostile<'_> {
    fn message(&self) -> Option<Message> {
        Some(match self {
            Self::Subscribe { content: id, lanes, len, have } => {
                Message::Subscribe { content: content(*id), lanes: LaneSet(*lanes), have: map(*len, *have) }
            }
            Self::Unsubscribe { content: id, lanes } => {
                Message::Unsubscribe { content: content(*id), lanes: LaneSet(*lanes) }
            }
            Self::Received { content: id, len, pieces } => {
                Message::Received { content: content(*id), pieces: map(*len, *pieces) }
            }
            Self::Done { content: id } => Message::Done { content: content(*id) },
            Self::Want { content: id, shards: list } => Message::Want { content: content(*id), shards: shards(list) },
            Self::Unavailable { content: id, shards: list } => {
                Message::Unavailable { content: content(*id), shards: shards(list) }
            }
            Self::WantManifest { content: id } => Message::WantManifest { content: content(*id) },
            Self::NotServed { content: id } => Message::NotServed { content: content(*id) },
            Self::Digest { hash, jobs } => Message::Digest {
                hash: *hash,
                jobs: jobs.as_ref().map(|jobs| jobs.iter().map(|number| job(*number, number / 8)).collect()),
            },
            Self::Demotion { content: id, job: order, stage, hosts, ask } => Message::Demotion {
                content: content(*id),
                job: job(*id, *order),
                stage: match stage % 3 {
                    0 => DemotionStage::ShareReady,
                    1 => DemotionStage::ShareOnly,
                    _ => DemotionStage::NotParticipating,
                },
                placement: RackPlacement::new((0..16).filter(|bit| hosts >> bit & 1 == 1).map(HostIndex)),
                ask: *ask,
            },
            Self::WantAnnounce { jobs } => {
                Message::WantAnnounce { jobs: jobs.iter().map(|number| job(*number, number / 8)).collect() }
            }
            Self::Feeds { rows } => Message::Feeds {
                rows: rows
                    .iter()
                    .map(|(feed, sequence)| FeedRow { feed: job(*feed, 0), sequence: *sequence })
                    .collect(),
            },
            Self::Bytes(bytes) => decode_exact(bytes).ok()?,
        })
    }
}

fn announcement(number: u8, order: u8, sequence: u8) -> Announcement {
    let is_feed = number == 3;
    let order = if is_feed { None } else { [None, Some(Order::Demote), Some(Order::Promote)][usize::from(order % 3)] };
    Announcement {
        job: job(
            number,
            [None, Some(Order::Demote), Some(Order::Promote)].iter().position(|o| *o == order).unwrap_or(0) as u8,
        ),
        // Each version of the feed is a content of its own, but all have one shape here.
        content: if is_feed { ContentId([100 + sequence % 3; 32]) } else { content(number) },
        kind: [Kind::Blob, Kind::Config, Kind::Image, Kind::Gslb][usize::from(number % 4)],
        name: if is_feed { "gslb/main".into() } else { format!("edge/c{number}") },
        version: format!("v{sequence}"),
        sequence: if is_feed { u64::from(sequence) } else { u64::from(order.map_or(1, |order| order as u64 + 2)) },
        selector: if number == 2 { Selector::parse(&["rack=k0"]).expect("it parses") } else { Selector::all() },
        origin: NodeId([1; 32]),
        manifest_bytes: 1000,
        size: u64::from(PIECES) * 1000,
        created_at: 1,
        expires_at: u64::MAX,
        feed: is_feed.then_some(FeedMark { published_at_ms: u64::from(sequence) }),
        staged: false,
        order,
    }
}

fn geometry(content: &ContentId) -> Geometry {
    let lens: Arc<[u32]> = vec![1000; PIECES as usize].into();
    Geometry::new(3, 2, 8, content, lens).expect("the shape is valid")
}

fn member(index: u32, presence: Presence) -> Member {
    let (role, rack) = match index.checked_sub(1) {
        None => (Role::Seeder, "core".to_string()),
        Some(place) => (Role::Peer, format!("k{}", place / 3)),
    };
    Member {
        index: HostIndex(index),
        node: NodeId([index as u8 + 1; 32]),
        role,
        locality: Locality::new("r", "s", &rack, &format!("h{index}")).expect("the names are valid"),
        labels: Default::default(),
        addrs: Vec::new(),
        weight: 100,
        uplink_mbit: 0,
        presence,
        credential: Default::default(),
    }
}

/// A request of the node that the driver has not answered.
enum Open {
    Sent { to: HostIndex, content: ContentId, shard: Option<ShardIndex> },
    Rebuild { content: ContentId, stripe: StripeIndex },
    Share { content: ContentId, placement: RackPlacement },
    Drop { content: ContentId },
}

struct Run {
    me: HostIndex,
    now: Instant,
    node: Node,
    membership: Membership,
    linked: BTreeSet<HostIndex>,
    announced: BTreeSet<JobId>,
    /// Announced contents, and whether their manifest is here.
    contents: BTreeMap<ContentId, bool>,
    open: Vec<Open>,
}

impl Run {
    fn new(seeder: bool) -> Self {
        let me = if seeder { HostIndex(0) } else { ME };
        let config = NodeConfig { me, lanes: 8, tuning: Tuning::default() };
        let mut run = Self {
            me,
            now: Instant::ZERO,
            node: Node::new(config, Box::new(CachingPlanner::default())),
            membership: Membership::default(),
            linked: BTreeSet::new(),
            announced: BTreeSet::new(),
            contents: BTreeMap::new(),
            open: Vec::new(),
        };
        run.update((0..HOSTS).map(|index| member(index, Presence::Up)).collect());
        for other in (0..HOSTS).map(HostIndex).filter(|other| *other != me) {
            run.link_up(other);
        }
        run
    }

    fn update(&mut self, upserts: Vec<Member>) {
        let epoch = self.membership.epoch();
        let base = (epoch.0 > 0).then_some(epoch);
        let update = MembershipUpdate { epoch: Epoch(epoch.0 + 1), base, upserts, removed: Vec::new() };
        self.membership.apply(update).expect("the update is valid");
        self.tell(Input::Membership(Arc::new(self.membership.clone())));
    }

    fn link_up(&mut self, host: HostIndex) {
        if host != self.me && self.linked.insert(host) {
            self.tell(Input::LinkUp { host });
        }
    }

    fn link_down(&mut self, host: HostIndex) {
        if self.linked.remove(&host) {
            self.open.retain(|open| !matches!(open, Open::Sent { to, .. } if *to == host));
            self.tell(Input::LinkDown { host, reason: None });
        }
    }

    fn tell(&mut self, input: Input) {
        self.node.handle(self.now, input);
        let mut count = 0;
        let mut closed = Vec::new();
        while let Some(output) = self.node.poll_output() {
            count += 1;
            assert!(count <= OUTPUTS_MAX, "one input leads to more than {OUTPUTS_MAX} outputs");
            self.check(&output);
            match output {
                Output::Disconnect { host, .. } => closed.push(host),
                Output::SendShard { to, content, shard, .. } => {
                    self.open.push(Open::Sent { to, content, shard: Some(shard) });
                }
                Output::SendManifest { to, content, .. } => self.open.push(Open::Sent { to, content, shard: None }),
                Output::Rebuild { content, stripe } => self.open.push(Open::Rebuild { content, stripe }),
                Output::MakeShare { content, placement } => self.open.push(Open::Share { content, placement }),
                Output::DropWhole { content } => self.open.push(Open::Drop { content }),
                _ => {}
            }
        }
        self.node.check_invariants();
        closed.into_iter().for_each(|host| self.link_down(host));
    }

    /// What holds for every output.
    fn check(&self, output: &Output) {
        match output {
            Output::Connect { host } => assert!(*host != self.me && self.membership.get(*host).is_some()),
            Output::Send { to, message } => {
                assert!(self.linked.contains(to), "a message to {to}, which is not linked");
                message.validate().unwrap_or_else(|error| panic!("an invalid message leaves: {error}: {message:?}"));
            }
            Output::SendAnnounce { to, job, .. } => {
                assert!(self.linked.contains(to) && self.announced.contains(job), "an announcement to {to}");
            }
            Output::SendShard { to, content, shard, .. } => {
                assert!(self.linked.contains(to), "a shard to {to}, which is not linked");
                let geometry = geometry(content);
                assert!(geometry.shard_len(*shard).is_some(), "a shard that does not exist");
                let here = self.node.pieces(content).expect("a shard of a known content");
                if let Some(piece) = geometry.piece_of(*shard) {
                    assert!(here.get(piece.0), "a piece that is not here is sent");
                }
            }
            Output::SendManifest { to, content, .. } => {
                assert!(self.linked.contains(to) && self.contents.contains_key(content));
            }
            Output::Complete { content } => {
                let here = self.node.pieces(content).expect("a complete content is known");
                assert!(here.is_full(), "a content is complete without all pieces");
            }
            Output::MakeShare { content, .. } | Output::ReserveRest { content } | Output::Rebuild { content, .. } => {
                assert!(self.contents.contains_key(content), "storage for a content that nobody announced");
            }
            _ => {}
        }
    }

    fn step(&mut self, step: &Step<'_>) {
        match step {
            Step::Message { from, message } => {
                let (from, message) = (host(*from), message.message());
                let valid = message.filter(|message| self.linked.contains(&from) && message.validate().is_ok());
                valid.into_iter().for_each(|message| self.tell(Input::Message { from, message }));
            }
            Step::Announce { from, via, content, order, sequence, inline } => {
                let from = Some(host(*from)).filter(|from| self.linked.contains(from));
                self.announce(from, *via, announcement(content % CONTENTS, *order, *sequence), *inline);
            }
            Step::Link { host: number, up: true } => self.link_up(host(*number)),
            Step::Link { host: number, up: false } => self.link_down(host(*number)),
            Step::DialFailed { host: number } => {
                let host = host(*number);
                if host != self.me && !self.linked.contains(&host) {
                    self.tell(Input::DialFailed { host });
                }
            }
            Step::Pass { ms } => self.pass(Duration::from_millis(u64::from(*ms))),
            Step::Manifest { content: number, from, outcome } => self.manifest(*number, host(*from), *outcome),
            Step::Shard { content: number, shard, from, corrupt } => {
                let (content, from) = (self.known(*number), host(*from));
                let shard = ShardIndex(u32::from(*shard) % 48);
                let ready = self.contents.get(&content) == Some(&true) && self.linked.contains(&from);
                if ready && geometry(&content).shard_len(shard).is_some() {
                    self.tell(match corrupt {
                        false => Input::ShardVerified { content, shard, from },
                        true => Input::ShardCorrupt { content, shard, from },
                    });
                }
            }
            Step::Answer { well } => self.answer(*well),
            Step::Lose { content: number, piece } => {
                let content = self.known(*number);
                let piece = u32::from(*piece) % PIECES;
                if self.node.pieces(&content).is_some_and(|here| here.get(piece)) {
                    let shard = geometry(&content).shard_of(PieceIndex(piece));
                    self.tell(Input::PieceLost { content, shard });
                }
            }
            Step::Remove { content: number } => self.remove(self.known(*number)),
            Step::Forget { content, order } => {
                let job = announcement(content % CONTENTS, *order, 0).job;
                if self.announced.remove(&job) {
                    self.tell(Input::Forgotten { job });
                }
            }
            Step::Presence { host: number, up } => {
                let presence = if *up { Presence::Up } else { Presence::Away };
                self.update(vec![member(host(*number).0, presence)]);
            }
        }
    }

    /// A content that somebody announced, mostly.
    fn known(&self, number: u8) -> ContentId {
        let ids: Vec<ContentId> = self.contents.keys().copied().collect();
        if ids.is_empty() { content(number) } else { ids[usize::from(number) % ids.len()] }
    }

    fn announce(&mut self, from: Option<HostIndex>, via: u8, announcement: Announcement, inline: bool) {
        let content = announcement.content;
        self.announced.insert(announcement.job);
        self.contents.entry(content).or_insert(false);
        let inline = inline && announcement.order.is_none() && announcement.is_small();
        let via = Via::from_wire(if via < 3 { via } else { u8::MAX });
        self.tell(Input::Announced { from, via, announcement: Arc::new(announcement), inline });
        if inline && self.contents.get(&content) == Some(&false) {
            self.ready(content, Bitmap::full(PIECES));
        }
    }

    fn ready(&mut self, content: ContentId, have: Bitmap) {
        self.contents.insert(content, true);
        self.tell(Input::ContentReady { content, geometry: geometry(&content), have });
    }

    fn manifest(&mut self, number: u8, from: HostIndex, outcome: u8) {
        let content = self.known(number);
        if self.contents.get(&content) != Some(&false) {
            return;
        }
        match outcome % 4 {
            0 if self.linked.contains(&from) && outcome >= 128 => self.tell(Input::AnnouncementCorrupt { from }),
            0 if self.linked.contains(&from) => self.tell(Input::ManifestCorrupt { content, from }),
            1 => self.tell(Input::ContentRefused { content }),
            2 => self.ready(content, map(0, u64::from(outcome) * 0x0102_0408)),
            _ => {
                self.tell(Input::ManifestVerified { content });
                self.ready(content, Bitmap::new(PIECES));
            }
        }
    }

    fn remove(&mut self, content: ContentId) {
        if self.contents.get(&content).is_some_and(|ready| *ready) {
            self.contents.insert(content, false);
            self.open.retain(|open| match open {
                Open::Rebuild { content: of, .. } | Open::Share { content: of, .. } | Open::Drop { content: of } => {
                    *of != content
                }
                Open::Sent { .. } => true,
            });
            self.tell(Input::Removed { content });
        }
    }

    fn answer(&mut self, well: bool) {
        if self.open.is_empty() {
            return;
        }
        match self.open.remove(0) {
            Open::Sent { to, content, shard } => self.tell(Input::Sent { to, content, shard }),
            Open::Rebuild { content, stripe } => {
                let geometry = geometry(&content);
                let here = self.node.pieces(&content).cloned().unwrap_or_default();
                let missing = geometry.stripe_pieces(stripe).filter(|piece| well && !here.get(*piece));
                let shards = missing.map(|piece| geometry.shard_of(PieceIndex(piece))).collect();
                self.tell(Input::Rebuilt { content, stripe, shards });
            }
            Open::Share { content, placement } if well => self.tell(Input::ShareMade { content, placement }),
            Open::Drop { content } if well => self.tell(Input::WholeDropped { content }),
            Open::Share { content, .. } | Open::Drop { content } => self.tell(Input::ShareRefused { content }),
        }
    }

    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        // A timer that does not move on would keep a driver busy for ever.
        for _ in 0..64 {
            match self.node.poll_timeout() {
                Some(due) if due <= until => {
                    self.now = due.max(self.now);
                    self.tell(Input::Tick);
                    let next = self.node.poll_timeout();
                    assert!(next.is_none_or(|next| next > self.now), "a timer is due again at once");
                }
                _ => break,
            }
        }
        self.now = until.max(self.now);
    }
}

libfuzzer_sys::fuzz_target!(|script: Script<'_>| {
    heap::bounded(HEAP_MAX, || {
        let mut run = Run::new(script.seeder);
        for step in script.steps.iter().take(STEPS_MAX) {
            run.step(step);
        }
        assert!(run.node.jobs().all(|(job, _)| run.announced.contains(job)), "a job that nobody announced");
        assert!(run.node.contents().all(|id| run.contents.contains_key(id)), "a content that nobody announced");
    });
});
