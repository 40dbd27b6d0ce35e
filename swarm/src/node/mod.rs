//! The core: the state machine that every peer and seeder runs.
//!
//! Owns: every decision about which host sends what to which host. [`Node`] only dispatches; each part owns its state:
//!
//! - [`cx`] is the context that all parts share: time, tuning, membership, outputs.
//! - [`links`] keeps links up and avoids hosts. [`jobs`] knows the announcements, spreads them, and compares lists.
//! - [`transfer`] is one content while it moves. [`receive`] is its child's side, [`serve`] its parent's side,
//!   [`repair`] requests single shards, and [`manifest_search`] finds the manifest.
//! - [`fairness`] keeps links and lanes together. [`stragglers`] finds slow hosts and paths around them.
//! - [`demote`] leaves a host its rack share, and [`promote`] makes the content whole again. [`feeds`] keeps to the
//!   newest versions.
//! - [`bounds`] are the caps, and [`tuning`] the windows, waits and thresholds.
//!
//! Invariant: [`Node::handle`] never fails. Whatever another host does wrong becomes state and outputs.

#![allow(unreachable_pub, reason = "parts are private modules: `pub` marks what a part offers to the other parts")]

pub mod bounds;
mod cx;
mod demote;
mod fairness;
mod feeds;
mod jobs;
mod links;
mod manifest_search;
mod planner;
mod promote;
mod receive;
mod repair;
mod serve;
mod stragglers;
mod transfer;
pub mod tuning;

pub use bounds::{BAN, LINK_WINDOW_BYTES, LINK_WINDOW_SHARDS};
pub use cx::Counters;
pub use planner::{CachingPlanner, Planner};
pub use tuning::{Rule, Tuning};

use crate::io::{AvoidReason, Input, Output};
use crate::membership::Membership;
use crate::plan::{PlanRequest, Shape};
use crate::time::Instant;
use cx::{Cx, ShardId};
use demote::{DemotionReport, FoundShare};
use feeds::Feeds;
use jobs::Jobs;
use jobs::anti_entropy::{self, AntiEntropy};
use jobs::spread::{Announced, Arrival, announce_lanes};
use links::Links;
use serve::Subscription;
use shoal_proto::announcement::Announcement;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, HostIndex, JobId, LaneIndex, ShardIndex};
use shoal_proto::message::Message;
use shoal_proto::trust::Role;
use std::collections::BTreeSet;
use std::sync::Arc;
use transfer::{Transfer, Transfers};

/// What the driver tells a node once.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This host's roster index.
    pub me: HostIndex,
    /// Lanes of announcements, and of contents whose manifest is not known.
    pub lanes: u8,
    /// Windows, waits and thresholds.
    pub tuning: Tuning,
}

/// How far a content is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Verified pieces that are here.
    pub have: u32,
    /// All pieces of the content; 0 while the manifest is not known.
    pub total: u32,
}

/// One lane of a content, for diagnosis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneView {
    /// The lane.
    pub lane: LaneIndex,
    /// The host it comes from.
    pub parent: Option<HostIndex>,
    /// Pieces of the lane that are not here.
    pub missing: u32,
}

/// The state machine. A driver uses it in three steps:
///
/// 1. It reports one fact and the time: [`Node::handle`].
/// 2. It carries out outputs until [`Node::poll_output`] returns `None`.
/// 3. It sleeps until something happens or [`Node::poll_timeout`] is reached, and then handles [`Input::Tick`].
///
/// The first input is [`Input::Membership`]. After a restart, the driver reports every job on disk by
/// [`Input::Announced`] without a sender, then every content by [`Input::ContentReady`] with the pieces that are there.
pub struct Node {
    cx: Cx,
    links: Links,
    jobs: Jobs,
    feeds: Feeds,
    transfers: Transfers,
    anti_entropy: AntiEntropy,
    /// When everything under way is checked; `None` while nothing is.
    check_at: Option<Instant>,
}

impl Node {
    /// Creates a node that knows no other host yet.
    pub fn new(config: NodeConfig, planner: Box<dyn Planner>) -> Self {
        let cx = Cx::new(config, planner);
        Self {
            anti_entropy: AntiEntropy::new(&cx),
            cx,
            links: Links::default(),
            jobs: Jobs::new(),
            feeds: Feeds::default(),
            transfers: Transfers::default(),
            check_at: None,
        }
    }

    /// Handles one input. `now` must not be earlier than at the call before.
    pub fn handle(&mut self, now: Instant, input: Input) {
        self.cx.advance(now);
        self.cx.counters.inputs += 1;
        let arrived = match &input {
            Input::ShardVerified { content, shard, .. } => Some(ShardId { content: *content, shard: *shard }),
            Input::Rebuilt { content, shards, .. } => {
                shards.first().map(|shard| ShardId { content: *content, shard: *shard })
            }
            _ => None,
        };
        self.dispatch(input);
        self.run_timers();
        self.transfers.serve(&mut self.cx, &mut self.links);
        self.release_shards(arrived);
    }

    fn dispatch(&mut self, input: Input) {
        let Self { cx, links, jobs, feeds, transfers, .. } = self;
        match input {
            Input::Tick => {}
            Input::Membership(membership) => self.on_membership(membership),
            Input::LinkUp { host } => self.on_link_up(host),
            Input::LinkDown { host, .. } => {
                if links.on_down(cx, host) {
                    transfers.parked.forget_host(host);
                    self.on_lost(host);
                }
            }
            Input::DialFailed { host } => self.on_dial_failed(host),
            Input::Message { from, message } => self.on_message(from, message),
            Input::Announced { from, via, announcement, inline } => {
                let is_feed = announcement.feed.is_some();
                let announced = Announced { arrival: Arrival { from, via }, announcement, inline };
                if is_feed {
                    feeds.on_announced(cx, links, jobs, transfers, announced);
                } else {
                    transfers.on_announced(cx, links, jobs, announced);
                }
            }
            Input::ContentReady { content, geometry, have } => {
                transfers.on_content_ready(cx, links, jobs, content, geometry, have);
            }
            Input::ContentRefused { content } => transfers.on_content_refused(cx, links, content),
            Input::ManifestVerified { content } => {
                if let Some(transfer) = transfers.get_mut(&content) {
                    transfer.on_manifest_verified(links);
                }
            }
            Input::AnnouncementCorrupt { from } => self.on_bad_sender(from),
            Input::ManifestCorrupt { content, from } => {
                self.on_bad_sender(from);
                self.with(&content, |transfer, cx, links, _| transfer.on_manifest_source_failed(cx, links, from));
            }
            Input::ShardVerified { content, shard, from } => {
                self.with(&content, |transfer, cx, links, jobs| transfer.on_shard(cx, links, jobs, shard, from));
            }
            Input::ShardCorrupt { content, shard, from } => {
                self.with(&content, |transfer, cx, _, _| transfer.on_corrupt(cx, shard, from));
                self.on_bad_sender(from);
            }
            Input::Rebuilt { content, stripe, shards } => {
                cx.counters.rebuilds += 1;
                self.with(&content, |transfer, cx, links, jobs| {
                    transfer.on_rebuilt(cx, links, jobs, stripe, &shards);
                });
            }
            Input::Sent { to, content, shard } => self.on_sent(to, content, shard),
            Input::PieceLost { content, shard } => {
                self.with(&content, |transfer, cx, links, _| transfer.on_piece_lost(cx, links, shard));
            }
            Input::ShareFound { content, geometry, have, parity, placements, share_only } => {
                let found = FoundShare { geometry, have, parity, placements };
                transfers.on_share_found(cx, links, jobs, content, found, share_only);
            }
            Input::ShareMade { content, placement } => {
                self.with(&content, |transfer, cx, links, _| transfer.on_share_made(cx, links, placement));
            }
            Input::ShareRefused { content } => {
                self.with(&content, |transfer, cx, links, jobs| transfer.on_share_refused(cx, links, jobs));
            }
            Input::WholeDropped { content } => {
                self.with(&content, |transfer, cx, links, jobs| transfer.on_whole_dropped(cx, links, jobs));
            }
            Input::Removed { content } => transfers.remove(cx, links, content),
            Input::Forgotten { job } => {
                if let Some(known) = jobs.remove(&job) {
                    feeds.remove(&job);
                    transfers.forget_job(&known);
                }
            }
        }
    }

    /// Applies `act` to a content, if it is known.
    fn with(&mut self, id: &ContentId, act: impl FnOnce(&mut Transfer, &mut Cx, &mut Links, &Jobs)) {
        if let Some(transfer) = self.transfers.get_mut(id) {
            act(transfer, &mut self.cx, &mut self.links, &self.jobs);
        }
    }

    fn on_message(&mut self, from: HostIndex, message: Message) {
        let Some(link) = self.links.get_mut(from) else { return };
        link.touch(self.cx.now);
        let Self { cx, links, jobs, feeds, transfers, .. } = self;
        match message {
            Message::Subscribe { content, lanes, have } => {
                transfers.on_subscribe(cx, links, content, Subscription { from, lanes, have });
            }
            Message::Unsubscribe { content, lanes } => {
                transfers.parked.remove_lanes(from, content, lanes);
                self.with(&content, |transfer, cx, links, _| transfer.on_unsubscribe(cx, links, from, lanes));
            }
            Message::Received { content, pieces } => {
                self.with(&content, |transfer, cx, links, _| transfer.on_received(cx, links, from, &pieces));
            }
            Message::Done { content } => {
                transfers.parked.remove(from, content);
                self.with(&content, |transfer, cx, links, jobs| {
                    transfer.on_done(cx, links, from);
                    transfer.on_promotion_progress(cx, links, jobs);
                });
            }
            Message::Want { content, shards } => transfers.on_want(cx, links, from, content, shards),
            Message::Unavailable { content, shards } => {
                self.with(&content, |transfer, cx, _, _| transfer.on_unavailable(cx, from, &shards));
            }
            Message::WantManifest { content } => match transfers.get_mut(&content) {
                Some(transfer) => transfer.on_want_manifest(cx, links, from),
                None => links.send(cx, from, Message::NotServed { content }),
            },
            Message::NotServed { content } => transfers.on_not_served(cx, links, from, content),
            Message::Demotion { content, job, stage, placement, ask } => {
                let report = DemotionReport { job, stage, placement, ask };
                transfers.on_demotion(cx, links, jobs, from, content, report);
            }
            // The driver answers these: a host that needs them has no core yet.
            Message::WantRackPeers | Message::RackPeers { .. } => {}
            Message::Digest { hash, jobs: theirs } => {
                anti_entropy::on_digest(cx, links, jobs, feeds, from, hash, theirs);
            }
            Message::WantAnnounce { jobs: wanted } => {
                anti_entropy::on_want_announce(cx, links, jobs, feeds, from, &wanted);
            }
            Message::Feeds { rows } => feeds.on_versions(cx, links, jobs, from, &rows),
        }
    }

    fn on_membership(&mut self, membership: Arc<Membership>) {
        let Self { cx, links, jobs, feeds, transfers, .. } = self;
        if membership.epoch() < cx.membership.epoch() {
            return;
        }
        let former = std::mem::replace(&mut cx.membership, membership);
        // A host that the tracker sees again is worth another try.
        let back: Vec<HostIndex> =
            links.avoidance.hosts().filter(|host| !former.is_up(*host) && cx.membership.is_up(*host)).collect();
        if links.forgive_unreachable(cx, back) {
            transfers.replan_active(cx, links);
        }
        for job in jobs.newly_ours(cx) {
            if feeds.contains(&job) {
                feeds.on_newly_ours(cx, links, jobs, transfers, job);
            } else {
                transfers.take_job(cx, links, jobs, job, Arrival::BY_ANTI_ENTROPY, false);
            }
        }
        transfers.renew_placements(cx, links, jobs);
        self.keep_parents_open();
        let Self { cx, links, jobs, transfers, .. } = self;
        transfers.for_active(cx, |transfer, cx| {
            transfer.retarget(cx, jobs);
            transfer.replan(cx, links);
        });
    }

    /// Keeps the links open to our parents on the announcement lanes of a plan for all hosts, and of the feeds. So
    /// announcements need no dialling, and there are neighbours to compare lists with.
    fn keep_parents_open(&mut self) {
        let Self { cx, links, jobs, feeds, .. } = self;
        let (me, lanes, membership) = (cx.me, cx.lanes, cx.membership.clone());
        let avoid = BTreeSet::new();
        let request =
            PlanRequest { targets: membership.everyone(), root: None, avoid: &avoid, lanes, shape: Shape::NARROW };
        let plan = cx.plan(&request);
        let mut members = membership.iter();
        let seeder = members.find(|member| member.role == Role::Seeder && membership.is_up(member.index));
        let seeder = seeder.map(|member| member.index);
        let parents = announce_lanes(0, lanes).filter_map(|lane| plan.parent(lane.tree, me).or(seeder));
        let parents = parents.filter(|host| *host != me && plan.targets(me)).collect();
        links.keep_open_only(cx, parents);
        feeds.keep_all_parents_open(cx, links, jobs);
    }

    fn on_link_up(&mut self, host: HostIndex) {
        let Self { cx, links, jobs, feeds, transfers, .. } = self;
        let Some(accepted) = links.on_up(cx, host) else { return };
        anti_entropy::send_digest(cx, links, jobs, feeds, host);
        transfers.greet_rack_peer(cx, links, host);
        let back = accepted.lost_at.map_or(BTreeSet::new(), |at| links.lost_together(cx, at));
        if !back.is_empty() {
            transfers.forget_failures(cx);
        }
        if links.forgive_unreachable(cx, back.into_iter().chain([host])) {
            transfers.replan_active(cx, links);
        } else {
            transfers.for_active(cx, |transfer, cx| transfer.subscribe(cx, links));
        }
        transfers.for_active(cx, |transfer, cx| transfer.search_manifest(cx, links));
    }

    fn on_dial_failed(&mut self, host: HostIndex) {
        if !self.links.on_dial_failed(&self.cx, host) {
            return;
        }
        self.on_lost(host);
        let active = self.cx.agenda.active();
        if self.transfers.need(&active, &self.links, host) {
            self.links.redial(host);
        }
    }

    /// There is no link to `host`: what depended on it is looked for elsewhere.
    fn on_lost(&mut self, host: HostIndex) {
        let Self { cx, links, transfers, .. } = self;
        let was_parent = transfers.on_link_lost(cx, links, host);
        if was_parent || links.is_kept_open(host) {
            links.redial(host);
            self.avoid(host, AvoidReason::Unreachable);
        }
    }

    fn avoid(&mut self, host: HostIndex, why: AvoidReason) {
        if self.links.avoid(&mut self.cx, host, why) {
            self.transfers.replan_active(&mut self.cx, &mut self.links);
        }
    }

    /// A host sent a bad shard or manifest.
    fn on_bad_sender(&mut self, host: HostIndex) {
        if self.links.count_bad_shard(&mut self.cx, host) {
            self.transfers.replan_active(&mut self.cx, &mut self.links);
        }
    }

    fn on_sent(&mut self, to: HostIndex, content: ContentId, shard: Option<ShardIndex>) {
        let now = self.cx.now;
        if let Some(bytes) = self.links.get_mut(to).and_then(|link| link.on_sent(content, shard, now)) {
            self.links.mark_dirty(to);
            self.with(&content, |transfer, cx, _, _| transfer.on_sent(cx, bytes));
        }
    }

    fn run_timers(&mut self) {
        let Self { cx, links, jobs, feeds, transfers, .. } = self;
        let now = cx.now;
        if cx.agenda.received_at.is_some_and(|at| now >= at) {
            cx.agenda.received_at = None;
            transfers.for_active(cx, |transfer, cx| transfer.report_received(cx, links));
        }
        if self.anti_entropy.run_if_due(cx, links, jobs, feeds) {
            let active = cx.agenda.active();
            links.close_idle(cx, |links, host| transfers.need(&active, links, host));
        }
        feeds.request_due(cx, links, jobs);
        if self.check_at.is_some_and(|at| now >= at) {
            self.check_at = None;
            self.check();
        }
        if self.check_at.is_none() && self.is_busy() {
            self.check_at = Some(now + bounds::CHECK_EVERY);
        }
    }

    /// Whether anything needs the check timer.
    fn is_busy(&self) -> bool {
        let agenda = &self.cx.agenda;
        !agenda.active.is_empty()
            || !agenda.demoting.is_empty()
            || !agenda.uneven.is_empty()
            || !self.transfers.parked.is_empty()
            || self.links.need_check()
    }

    fn check(&mut self) {
        let Self { cx, links, jobs, transfers, .. } = self;
        if links.avoidance.expire(cx.now) {
            transfers.replan_active(cx, links);
        }
        transfers.parked.expire(cx, links);
        let active = cx.agenda.active();
        links.redial_due(cx, |links, host| transfers.need(&active, links, host));
        transfers.check_demotions(cx, links);
        transfers.check(cx, links, jobs);
    }

    /// Releases shards from memory that were sent to the last child, or that decoded the last piece of their stripe.
    fn release_shards(&mut self, arrived: Option<ShardId>) {
        if let Some(ShardId { content, shard }) = arrived {
            let transfer = self.transfers.get(&content);
            let settled = transfer.map_or_else(|| vec![shard], |transfer| transfer.settled_by(shard));
            self.cx.touched.extend(settled.into_iter().map(|shard| ShardId { content, shard }));
        }
        for ShardId { content, shard } in std::mem::take(&mut self.cx.touched) {
            if !self.is_due(&content, shard) {
                self.cx.push(Output::ReleaseShard { content, shard });
            }
        }
    }

    /// Returns the next output, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.cx.pop_output()
    }

    /// Returns when to handle [`Input::Tick`] if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let received_at = self.cx.agenda.received_at;
        let timers = [self.check_at, received_at, self.feeds.next_at(), Some(self.anti_entropy.next_at())];
        timers.into_iter().flatten().min()
    }

    /// Returns how far a content is; `None` when it is not known.
    pub fn progress(&self, content: &ContentId) -> Option<Progress> {
        let transfer = self.transfers.get(content)?;
        Some(transfer.body.as_ref().map_or_else(Progress::default, |body| Progress {
            have: body.pieces.have().count(),
            total: body.geometry().piece_count(),
        }))
    }

    /// Returns the pieces of a content that are here.
    pub fn pieces(&self, content: &ContentId) -> Option<&Bitmap> {
        Some(self.transfers.get(content)?.body.as_ref()?.pieces.have())
    }

    /// Returns the known contents, in order of id.
    pub fn contents(&self) -> impl Iterator<Item = &ContentId> {
        self.transfers.ids()
    }

    /// Returns the known jobs, in order of id.
    pub fn jobs(&self) -> impl Iterator<Item = (&JobId, &Arc<Announcement>)> {
        self.jobs.iter()
    }

    /// Returns the hosts with a link up, in order of index.
    pub fn linked(&self) -> impl Iterator<Item = HostIndex> {
        self.links.linked()
    }

    /// Returns where a content's lanes come from and what is missing on each, for diagnosis.
    pub fn lanes(&self, content: &ContentId) -> Vec<LaneView> {
        let body = self.transfers.get(content).and_then(|transfer| transfer.body.as_ref());
        let lanes = body.into_iter().flat_map(|body| body.lanes.iter());
        lanes.map(|(lane, state)| LaneView { lane, parent: state.parent(), missing: state.missing() }).collect()
    }

    /// Whether a shard that is here is still to be sent, or may be needed to decode its stripe.
    pub fn is_due(&self, content: &ContentId, shard: ShardIndex) -> bool {
        self.transfers.get(content).is_some_and(|transfer| transfer.is_due(shard))
    }

    /// Returns the totals since the node started.
    pub fn counters(&self) -> Counters {
        self.cx.counters
    }

    /// Walks the whole state and panics where it contradicts itself. For tests and the simulator.
    pub fn check_invariants(&self) {
        assert!(self.jobs.len() <= bounds::JOBS_MAX, "jobs are bounded");
        self.links.check_invariants();
        self.feeds.check_invariants(&self.jobs);
        self.transfers.check_invariants(&self.cx);
    }
}
