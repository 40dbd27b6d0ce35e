//! The state machine every peer and seeder runs.
//!
//! Owns: jobs, contents, links, and every decision about who sends what to whom. Split by meaning: [`announce`] spreads
//! jobs and finds manifests, [`feeds`] keeps to the latest versions, [`lanes`] subscribes as a child, [`push`] serves as a
//! parent, [`level`] and [`abreast`] keep children and lanes from running ahead while [`toll`] says that it costs nothing,
//! [`repair`] judges parents and asks for single shards, [`cold`] leaves a host its share of a content only,
//! [`warm`] brings it back and [`tardy`] says whom it does not wait for, [`entropy`] compares job lists, [`neighbours`] keeps links.
//! Invariant: `handle` never fails; whatever a peer does wrong becomes state and outputs.

mod abreast;
mod announce;
pub mod bounds;
mod cold;
mod content;
mod entropy;
mod feeds;
mod lanes;
mod level;
mod link;
mod neighbours;
mod planner;
mod push;
mod repair;
mod tardy;
mod toll;
pub mod tuning;
mod warm;

pub use bounds::{LINK_WINDOW_BYTES, LINK_WINDOW_SHARDS};
pub use planner::{CachingPlanner, Planner};
pub use tuning::{Rule, Tuning};

use crate::io::{Input, Notice, Output};
use crate::membership::Membership;
use crate::time::Instant;
use content::Content;
use link::Link;
use neighbours::Avoid;
use shoal_proto::announcement::Announcement;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, HostIndex, JobId};
use shoal_proto::message::{LaneSet, Message};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// What a node is told once.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Our place in the roster.
    pub me: HostIndex,
    /// Trees used for announcements and for contents whose manifest is not known yet.
    pub lanes: u8,
    /// Windows, waits and thresholds.
    pub tuning: Tuning,
}

/// How far a content is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pieces verified here.
    pub have: u32,
    /// Pieces in all; 0 while the manifest is not known.
    pub total: u32,
}

/// What happened so far, for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Inputs handled.
    pub inputs: u64,
    /// Shards sent on as lane pushes or repairs.
    pub shards_sent: u64,
    /// Shards that arrived and were needed.
    pub shards_taken: u64,
    /// Shards that arrived and were not needed.
    pub shards_surplus: u64,
    /// Shards that arrived broken.
    pub shards_corrupt: u64,
    /// Shards asked for outside their lanes.
    pub wants: u64,
    /// Stripes decoded.
    pub rebuilds: u64,
    /// Plans recomputed for a content.
    pub replans: u64,
}

/// A job as remembered.
#[derive(Debug)]
struct Job {
    announcement: Arc<Announcement>,
    /// It is for us (or from us).
    ours: bool,
}

/// A subscription that came before its content.
#[derive(Debug)]
struct Parked {
    from: HostIndex,
    content: ContentId,
    lanes: LaneSet,
    have: Bitmap,
    until: Instant,
}

/// The state machine. Use it so:
///
/// 1. Tell it a fact: [`Node::handle`], with the time. One fact is one mutation.
/// 2. Carry out its wishes: [`Node::poll_output`] until it gives `None`.
/// 3. Sleep until something happens or [`Node::poll_timeout`] is reached, then `handle(now, Input::Tick)`.
///
/// It starts with [`Input::Membership`]. At a restart, every job on disk is told by [`Input::Announced`] with no sender,
/// then every content by [`Input::ContentReady`] with the pieces that are there.
pub struct Node {
    config: NodeConfig,
    planner: Box<dyn Planner>,
    now: Instant,
    membership: Arc<Membership>,
    links: BTreeMap<HostIndex, Link>,
    jobs: BTreeMap<JobId, Job>,
    jobs_hash: u64,
    /// Feeds; their newest announcements are among the jobs.
    feeds: BTreeMap<JobId, feeds::Feed>,
    /// Small ones whose newest data is for us and not here.
    feeds_wanted: BTreeSet<JobId>,
    /// Boxed: they are large, and a map keeps room for eleven.
    contents: BTreeMap<ContentId, Box<Content>>,
    /// Contents that want something: a manifest or pieces.
    active: BTreeSet<ContentId>,
    /// Contents whose demotion is being agreed on.
    cooling: BTreeSet<ContentId>,
    /// Contents that come back from the rack's shares.
    warming: BTreeSet<ContentId>,
    parked: Vec<Parked>,
    avoid: BTreeMap<HostIndex, Avoid>,
    /// Links kept up even when there is nothing to do.
    warm: BTreeSet<HostIndex>,
    /// Hosts to dial again.
    retry: BTreeSet<HostIndex>,
    /// Contents of ours that some wait for because they are ahead of others.
    uneven: BTreeSet<ContentId>,
    /// Links that may have room or work.
    dirty: BTreeSet<HostIndex>,
    outputs: VecDeque<Output>,
    counters: Counters,
    check_at: Option<Instant>,
    got_at: Option<Instant>,
    entropy_at: Instant,
    entropy_turn: u64,
}

impl Node {
    /// A node that knows nobody yet.
    pub fn new(config: NodeConfig, planner: Box<dyn Planner>) -> Self {
        // Hosts of a rack compare lists at different times.
        let stagger = std::time::Duration::from_millis(u64::from(config.me.0) % 64 * 75);
        let anti_entropy_every = config.tuning.anti_entropy_every;
        Self {
            config,
            planner,
            now: Instant::ZERO,
            membership: Arc::default(),
            links: BTreeMap::new(),
            jobs: BTreeMap::new(),
            jobs_hash: entropy::hash_of(std::iter::empty()),
            feeds: BTreeMap::new(),
            feeds_wanted: BTreeSet::new(),
            contents: BTreeMap::new(),
            active: BTreeSet::new(),
            cooling: BTreeSet::new(),
            warming: BTreeSet::new(),
            parked: Vec::new(),
            avoid: BTreeMap::new(),
            warm: BTreeSet::new(),
            retry: BTreeSet::new(),
            uneven: BTreeSet::new(),
            dirty: BTreeSet::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            check_at: None,
            got_at: None,
            entropy_at: Instant::ZERO + anti_entropy_every + stagger,
            entropy_turn: 0,
        }
    }

    /// Takes in one fact. `now` never goes back.
    pub fn handle(&mut self, now: Instant, input: Input) {
        debug_assert!(now >= self.now, "time goes forwards");
        self.now = self.now.max(now);
        self.counters.inputs += 1;
        match input {
            Input::Tick => {}
            Input::Membership(membership) => self.on_membership(membership),
            Input::LinkUp { host } => self.on_link_up(host),
            Input::LinkDown { host, .. } => self.on_link_down(host),
            Input::DialFailed { host } => self.on_dial_failed(host),
            Input::Message { from, message } => self.on_message(from, message),
            Input::Announced { from, lane, announcement, inline } => {
                self.on_announced(from, lane, announcement, inline);
            }
            Input::ContentReady { content, geometry, have } => self.on_content_ready(content, geometry, have),
            Input::ContentRefused { content } => self.on_content_refused(content),
            Input::ManifestVerified { content } => self.on_manifest_verified(content),
            Input::ManifestCorrupt { content, from } => {
                self.on_bad_shard(from);
                self.manifest_source_failed(content, from);
            }
            Input::ShardVerified { content, shard, from } => self.on_shard(content, shard, from),
            Input::ShardCorrupt { content, shard, from } => self.on_corrupt(content, shard, from),
            Input::Rebuilt { content, stripe, shards } => self.on_rebuilt(content, stripe, &shards),
            Input::Sent { to, content, shard } => {
                if let Some(link) = self.links.get_mut(&to)
                    && let Some(len) = link.sent(content, shard)
                {
                    link.last_used = now;
                    self.dirty.insert(to);
                    self.count_sent(content, to, len);
                }
            }
            Input::PieceLost { content, shard } => self.on_piece_lost(content, shard),
            Input::ShareFound { .. } => self.on_share_found(input),
            Input::ShareMade { content, placement } => self.on_share_made(content, placement),
            Input::ShareRefused { content } => self.on_share_refused(content),
            Input::WholeDropped { content } => self.on_shed(content),
            Input::Removed { content } => self.remove_content(content),
            Input::Forgotten { job } => self.forget_job(job),
        }
        self.run_timers();
        self.pump_dirty();
    }

    /// The next wish, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call `handle` with [`Input::Tick`] if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.check_at, self.got_at, self.feeds_at(), Some(self.entropy_at)].into_iter().flatten().min()
    }

    /// How far a content is; `None` when it is not known.
    pub fn progress(&self, content: &ContentId) -> Option<Progress> {
        let content = self.contents.get(content)?;
        Some(content.body.as_ref().map_or_else(Progress::default, |body| Progress {
            have: body.have.count(),
            total: body.geometry.piece_count(),
        }))
    }

    /// The pieces of a content that are here.
    pub fn pieces(&self, content: &ContentId) -> Option<&Bitmap> {
        Some(&self.contents.get(content)?.body.as_ref()?.have)
    }

    /// Known contents, in order of id.
    pub fn contents(&self) -> impl Iterator<Item = &ContentId> {
        self.contents.keys()
    }

    /// Known jobs, in order of id.
    pub fn jobs(&self) -> impl Iterator<Item = (&JobId, &Arc<Announcement>)> {
        self.jobs.iter().map(|(id, job)| (id, &job.announcement))
    }

    /// Hosts with a link up, in order of index.
    pub fn linked(&self) -> impl Iterator<Item = HostIndex> {
        self.links.iter().filter(|(_, link)| link.is_up()).map(|(host, _)| *host)
    }

    /// Where a content's lanes come from and what is missing on each, for diagnosis: (lane, parent, missing pieces).
    pub fn lanes(&self, content: &ContentId) -> Vec<(u8, Option<HostIndex>, u32)> {
        let body = self.contents.get(content).and_then(|content| content.body.as_ref());
        let lanes = body.map_or(&[][..], |body| &body.lanes[..]);
        lanes.iter().enumerate().map(|(lane, state)| (lane as u8, state.parent, state.missing)).collect()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Walks the whole state and panics where it contradicts itself. For tests and the simulator.
    pub fn check_invariants(&self) {
        assert!(self.links.len() <= bounds::LINKS_MAX, "links are bounded");
        assert!(self.jobs.len() <= bounds::JOBS_MAX, "jobs are bounded");
        assert!(self.feeds.len() <= shoal_proto::limits::FEEDS_MAX, "feeds are bounded");
        assert!(self.feeds.keys().all(|id| self.jobs.contains_key(id)), "a feed has its announcement");
        assert!(self.parked.len() <= bounds::PARKED_MAX, "parked subscriptions are bounded");
        for link in self.links.values() {
            assert!(link.keeps_window(), "the window holds");
        }
        for content in self.contents.values() {
            if let Some(body) = &content.body {
                body.check();
            }
            let wants = content.is_running() || (content.body.is_none() && !content.refused);
            assert!(!wants || self.active.contains(&content.id), "a content that wants something is active");
        }
    }

    fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    fn send(&mut self, to: HostIndex, message: Message) {
        if let Some(link) = self.links.get_mut(&to)
            && link.is_up()
        {
            link.last_used = self.now;
            self.outputs.push_back(Output::Send { to, message });
        }
    }

    fn notice(&mut self, notice: Notice) {
        self.push(Output::Notice(notice));
    }

    fn on_message(&mut self, from: HostIndex, message: Message) {
        let Some(link) = self.links.get_mut(&from) else { return };
        link.last_used = self.now;
        match message {
            Message::Subscribe { content, lanes, have } => self.on_subscribe(from, content, lanes, have),
            Message::Unsubscribe { content, lanes } => self.on_unsubscribe(from, content, lanes),
            Message::Received { content, pieces } => self.on_got(from, content, &pieces),
            Message::Done { content } => self.on_done(from, content),
            Message::Want { content, shards } => self.on_want(from, content, shards),
            Message::Unavailable { content, shards } => self.on_lack(from, content, &shards),
            Message::WantManifest { content } => self.on_want_manifest(from, content),
            Message::NotServed { content } => self.on_unknown(from, content),
            hold @ Message::Demotion { .. } => self.on_hold(from, hold),
            // The shell's: where these matter there is no brain yet.
            Message::WantRackPeers | Message::RackPeers { .. } => {}
            Message::Digest { hash, jobs } => self.on_digest(from, hash, jobs),
            Message::WantAnnounce { jobs } => self.on_want_announce(from, &jobs),
            Message::Feeds { rows } => self.on_feeds(from, &rows),
        }
    }

    fn on_membership(&mut self, membership: Arc<Membership>) {
        if membership.epoch() < self.membership.epoch() {
            return;
        }
        let former = std::mem::replace(&mut self.membership, membership);
        // A host that the tracker sees again is worth another try.
        let back: Vec<HostIndex> =
            self.avoid.keys().copied().filter(|host| !former.is_up(*host) && self.membership.is_up(*host)).collect();
        self.forgive_unreachable(back);
        self.reconsider_jobs();
        self.renew_placements();
        self.rewarm();
        let active: Vec<ContentId> = self.active.iter().copied().collect();
        for content in active {
            self.retarget(content);
            self.replan(content);
        }
    }

    fn run_timers(&mut self) {
        if self.got_at.is_some_and(|at| self.now >= at) {
            self.got_at = None;
            self.flush_got();
        }
        if self.now >= self.entropy_at {
            self.entropy_at = self.now + self.config.tuning.anti_entropy_every;
            self.compare_with_next();
            self.close_idle();
        }
        self.check_feeds();
        if self.check_at.is_some_and(|at| self.now >= at) {
            self.check_at = None;
            self.check();
        }
        let busy = !self.active.is_empty()
            || !self.cooling.is_empty()
            || !self.parked.is_empty()
            || !self.uneven.is_empty()
            || !self.retry.is_empty()
            || !self.avoid.is_empty();
        if busy && self.check_at.is_none() {
            self.check_at = Some(self.now + self.config.tuning.check_every);
        }
    }

    fn check(&mut self) {
        self.expire_avoided();
        self.expire_parked();
        self.dial_again();
        self.keep_cooling();
        let active: Vec<ContentId> = self.active.iter().copied().collect();
        for content in active {
            if self.warming.contains(&content) {
                self.warm_up(content);
                continue;
            }
            self.hunt_manifest(content);
            self.judge(content);
            self.go_around(content);
            self.repair(content);
            self.keep_abreast(content);
        }
    }
}
