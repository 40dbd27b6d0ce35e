//! Demotion: the hosts of a rack agree which host keeps which shards of a content, then each keeps its rack share only.
//!
//! A host first makes its rack share durable and says so (`ShareReady`). It drops the whole content once every other
//! host of the placement has said the same of the same placement. So at any moment the rack holds the content whole, or
//! every share of one placement that all its hosts promised to keep. A change of membership before that leads to a new
//! placement, and what was promised under an earlier one is kept too. One host that has dropped the whole settles the
//! placement for the others, because it cannot have done so without their promises.
//! Invariant: `DropWhole` goes out only when all hosts of a placement hold their rack shares of it, or one of them has
//! dropped the whole.

use super::bounds;
use super::cx::Cx;
use super::jobs::Jobs;
use super::links::Links;
use super::transfer::{Body, ParityRows, Transfer};
use crate::io::Output;
use crate::time::Instant;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{HostIndex, JobId, ShardIndex, StripeIndex};
use shoal_proto::limits::PLACEMENT_HOSTS_MAX;
use shoal_proto::message::{DemotionStage, LaneSet, Message};
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::trust::Role;
use std::collections::{BTreeMap, BTreeSet};

/// The job of a rack share that was found on the disk before its order was heard.
pub const UNKNOWN_JOB: JobId = JobId([0; 16]);

/// How far this host is with a demotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The driver makes the rack share.
    Making,
    /// The rack share is durable, and rack peers' shares are awaited.
    Ready,
    /// The driver drops the whole.
    Dropping,
    ShareOnly,
    NotParticipating,
}

/// A content's demotion.
#[derive(Debug)]
pub struct Demotion {
    job: JobId,
    stage: Stage,
    placement: RackPlacement,
    /// Placements whose rack shares are durable here.
    promised: Vec<RackPlacement>,
    /// The placement whose rack share each rack peer holds.
    heard: BTreeMap<HostIndex, RackPlacement>,
    /// Rack peers that take no part.
    not_participating: BTreeSet<HostIndex>,
    /// A rack peer has dropped the whole: nothing more is waited for.
    settled: bool,
    /// When rack peers are asked again.
    ask_at: Instant,
}

/// A rack share found on the disk at start.
pub struct FoundShare {
    pub geometry: Geometry,
    pub have: Bitmap,
    pub parity: ParityRows,
    /// The placements whose rack shares are here.
    pub placements: Vec<RackPlacement>,
}

/// A rack peer's word on a demotion.
pub struct DemotionReport {
    pub job: JobId,
    pub stage: DemotionStage,
    pub placement: RackPlacement,
    /// The rack peer wants to know how far we are.
    pub ask: bool,
}

impl Demotion {
    fn new(job: JobId, now: Instant) -> Self {
        Self {
            job,
            stage: Stage::NotParticipating,
            placement: RackPlacement::default(),
            promised: Vec::new(),
            heard: BTreeMap::new(),
            not_participating: BTreeSet::new(),
            settled: false,
            ask_at: now,
        }
    }

    /// Only rack shares are here, or will be in a moment.
    pub fn is_share_only(&self) -> bool {
        matches!(self.stage, Stage::Dropping | Stage::ShareOnly)
    }

    pub fn promised(&self) -> &[RackPlacement] {
        &self.promised
    }

    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Making | Stage::Ready)
    }

    /// The stage as rack peers hear it; `None` while there is nothing to say.
    fn reported_stage(&self) -> Option<DemotionStage> {
        match self.stage {
            Stage::Making => None,
            Stage::Ready | Stage::Dropping => Some(DemotionStage::ShareReady),
            Stage::ShareOnly => Some(DemotionStage::ShareOnly),
            Stage::NotParticipating => Some(DemotionStage::NotParticipating),
        }
    }

    /// The shards of all promised placements.
    fn shards(&self, geometry: &Geometry, me: HostIndex) -> BTreeSet<ShardIndex> {
        self.promised.iter().flat_map(|placement| placement.share(geometry, me)).collect()
    }

    /// Notes what a rack peer said.
    fn note_report(&mut self, from: HostIndex, report: &DemotionReport, me: HostIndex) {
        if report.stage == DemotionStage::NotParticipating {
            self.heard.remove(&from);
            self.not_participating.insert(from);
            return;
        }
        self.not_participating.remove(&from);
        self.heard.insert(from, report.placement.clone());
        let other_placement = report.placement != self.placement;
        if report.stage == DemotionStage::ShareOnly && self.is_open() && !self.settled && other_placement {
            if self.promised.contains(&report.placement) {
                // We promised our share of that placement, and the rack peer counted on it.
                (self.placement, self.stage, self.settled) = (report.placement.clone(), Stage::Ready, true);
            } else if !report.placement.contains(me) {
                // The rack can do without us. What we keep comes on top.
                self.settled = true;
            }
        }
    }
}

/// Splits shards into pieces and parity.
fn split_shards(geometry: &Geometry, shards: impl Iterator<Item = ShardIndex>) -> (Bitmap, ParityRows) {
    let (mut pieces, mut parity) = (geometry.no_pieces(), BTreeMap::<StripeIndex, u32>::new());
    for shard in shards {
        match (geometry.piece_of(shard), geometry.split(shard)) {
            (Some(piece), _) => {
                pieces.set(piece.0);
            }
            (None, Some((stripe, place))) => {
                *parity.entry(stripe).or_default() |= 1 << (place - u32::from(geometry.data()));
            }
            (None, None) => {}
        }
    }
    (pieces, parity)
}

pub fn is_rack_peer(cx: &Cx, host: HostIndex) -> bool {
    let me = cx.membership.get(cx.me);
    let other = cx.membership.get(host).filter(|other| other.role == Role::Peer);
    me.zip(other).is_some_and(|(me, other)| me.locality.same_rack(&other.locality))
}

impl Transfer {
    /// Does what the newest order on the content asks for, as far as it is not done.
    pub fn follow_order(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let (id, order) = (self.id(), jobs.demotion_of(&self.jobs));
        let Some(body) = &self.body else {
            if order.is_some() {
                // Nothing is fetched for a demotion. The driver may still report what the disk has.
                self.refused = true;
                cx.agenda.active.remove(&id);
            } else {
                self.demotion = None;
            }
            return;
        };
        // A seeder is in no rack, so it has no rack share to keep.
        if cx.membership.get(cx.me).is_none_or(|me| me.role != Role::Peer) {
            return;
        }
        let whole = body.pieces.is_whole();
        match (order, &mut self.demotion) {
            (None, None) => {}
            (None, Some(demotion)) if demotion.is_share_only() => self.begin_promotion(cx, links, jobs),
            (None, Some(_)) => {
                self.demotion = None;
                cx.agenda.demoting.remove(&id);
                cx.push(Output::KeepWhole { content: id });
            }
            (Some(job), Some(demotion)) if demotion.is_share_only() || demotion.job == job => {
                demotion.job = job;
                if self.promotion.take().is_some() {
                    // What came for the promotion is dropped again.
                    demotion.stage = Stage::Dropping;
                    cx.agenda.promoting.remove(&id);
                    self.stop_fetching(cx, links);
                    cx.push(Output::DropWhole { content: id });
                }
            }
            (Some(job), former) if whole => {
                // What was promised under a former order stays promised.
                let promised = former.take().map_or_else(Vec::new, |former| former.promised);
                self.demotion = Some(Demotion { promised, ..Demotion::new(job, cx.now) });
                cx.agenda.demoting.insert(id);
                self.renew_placement(cx, links, jobs);
            }
            (Some(job), _) => {
                self.demotion = Some(Demotion::new(job, cx.now));
                self.refused = true;
                self.stop_fetching(cx, links);
                self.body = None;
                cx.push(Output::DropPartial { content: id, job });
                self.tell_rack_peers(cx, links, false);
            }
        }
    }

    /// Ends subscriptions and wants.
    fn stop_fetching(&mut self, cx: &mut Cx, links: &mut Links) {
        let id = self.id();
        cx.agenda.active.remove(&id);
        let Some(body) = self.body.as_mut() else { return };
        body.wants.clear();
        let lanes = LaneSet::first(body.geometry().lanes());
        for host in body.lanes.leave_all().into_keys() {
            links.send(cx, host, Message::Unsubscribe { content: id, lanes });
        }
    }

    /// The placement over this host and the rack peers that should take part.
    fn next_placement(&self, cx: &Cx, links: &Links, jobs: &Jobs) -> RackPlacement {
        let me = cx.me;
        let known = self.demotion.as_ref().and_then(|demotion| Some((demotion, jobs.get(&demotion.job)?)));
        let Some((demotion, job)) = known else { return RackPlacement::new([me]) };
        let targets = cx.membership.select(&job.announcement.selector);
        let takes_part = |host: &HostIndex| {
            targets.get(host.0)
                && cx.membership.is_up(*host)
                && !demotion.not_participating.contains(host)
                && !links.is_banned(cx, *host)
        };
        let rack_peers = cx.membership.rack_peers(me).into_iter().filter(takes_part);
        RackPlacement::new(rack_peers.take(PLACEMENT_HOSTS_MAX - 1).chain([me]))
    }

    /// Assigns the shards to the rack peers there are now, if that changes anything.
    pub fn renew_placement(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let placement = self.next_placement(cx, links, jobs);
        let content = self.id();
        let Some(demotion) = self.demotion.as_mut() else { return };
        if demotion.is_share_only() || demotion.settled || demotion.placement == placement {
            return;
        }
        if demotion.promised.len() >= bounds::PLACEMENTS_MAX {
            self.keep_whole(cx, links);
            return;
        }
        demotion.placement = placement.clone();
        if demotion.promised.contains(&placement) {
            self.on_share_ready(cx, links);
        } else {
            demotion.stage = Stage::Making;
            cx.push(Output::MakeShare { content, placement });
        }
    }

    fn on_share_ready(&mut self, cx: &mut Cx, links: &mut Links) {
        if let Some(demotion) = self.demotion.as_mut() {
            demotion.stage = Stage::Ready;
            self.tell_rack_peers(cx, links, true);
            self.drop_whole_if_agreed(cx);
        }
    }

    /// Takes no part in the demotion: the content stays whole here.
    fn keep_whole(&mut self, cx: &mut Cx, links: &mut Links) {
        let Some(demotion) = self.demotion.as_mut() else { return };
        demotion.stage = Stage::NotParticipating;
        cx.agenda.demoting.remove(&self.id());
        self.tell_rack_peers(cx, links, false);
    }

    /// The driver made our rack share of the placement durable.
    pub fn on_share_made(&mut self, cx: &mut Cx, links: &mut Links, placement: RackPlacement) {
        let Some(demotion) = self.demotion.as_mut() else { return };
        if !demotion.promised.contains(&placement) {
            demotion.promised.push(placement.clone());
        }
        if demotion.stage == Stage::Making && demotion.placement == placement {
            self.on_share_ready(cx, links);
        }
    }

    /// The driver could not make the rack share, or needs the whole content.
    pub fn on_share_refused(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        if self.demotion.as_ref().is_some_and(|demotion| demotion.stage != Stage::ShareOnly) {
            self.keep_whole(cx, links);
            if jobs.demotion_of(&self.jobs).is_none() {
                self.follow_order(cx, links, jobs);
            }
        }
    }

    fn drop_whole_if_agreed(&mut self, cx: &mut Cx) {
        let (content, me) = (self.id(), cx.me);
        let Some(demotion) = self.demotion.as_mut() else { return };
        let agreed = |host: &HostIndex| *host == me || demotion.heard.get(host) == Some(&demotion.placement);
        if demotion.stage == Stage::Ready && (demotion.settled || demotion.placement.hosts().iter().all(agreed)) {
            demotion.stage = Stage::Dropping;
            cx.agenda.demoting.remove(&content);
            cx.push(Output::DropWhole { content });
        }
    }

    /// The driver dropped the whole: only rack shares are here.
    pub fn on_whole_dropped(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let (Some(body), Some(demotion)) = (&mut self.body, &mut self.demotion) else { return };
        let shards = demotion.shards(body.geometry(), cx.me);
        demotion.stage = Stage::ShareOnly;
        let (have, parity) = split_shards(body.geometry(), shards.into_iter());
        let mut fresh = Body::new(body.geometry().clone(), have, &cx.tuning, cx.now);
        fresh.pieces.set_stored_parity(parity);
        // Children stay: they may still get what the rack share has.
        std::mem::swap(&mut fresh.children, &mut body.children);
        fresh.children.keep_only(fresh.pieces.have());
        *body = fresh;
        self.tell_rack_peers(cx, links, false);
        self.follow_order(cx, links, jobs);
    }

    /// At start, only a rack share of the content is on the disk.
    pub fn on_share_only_found(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, found: FoundShare) {
        if self.body.is_some() {
            return;
        }
        let order = jobs.demotion_of(&self.jobs);
        let mut body = Body::new(found.geometry, found.have, &cx.tuning, cx.now);
        body.pieces.set_stored_parity(found.parity);
        let mut demotion = Demotion::new(order.unwrap_or(UNKNOWN_JOB), cx.now);
        (demotion.stage, demotion.promised) = (Stage::ShareOnly, found.placements);
        demotion.placement = demotion.promised.last().cloned().unwrap_or_default();
        (self.body, self.demotion, self.refused) = (Some(body), Some(demotion), false);
        if order.is_some() {
            cx.agenda.active.remove(&self.id());
        }
        self.follow_order(cx, links, jobs);
        self.tell_rack_peers(cx, links, false);
    }

    /// At start, rack shares are on the disk beside the whole content: they need not be made again.
    pub fn on_share_beside_whole_found(&mut self, cx: &mut Cx, links: &mut Links, placements: Vec<RackPlacement>) {
        let Some(demotion) = self.demotion.as_mut() else { return };
        demotion.promised = placements;
        if demotion.promised.contains(&demotion.placement) {
            let placement = demotion.placement.clone();
            self.on_share_made(cx, links, placement);
        }
    }

    fn demotion_message(&self, ask: bool) -> Option<Message> {
        let demotion = self.demotion.as_ref()?;
        let stage = demotion.reported_stage()?;
        let placement = demotion.placement.clone();
        Some(Message::Demotion { content: self.id(), job: demotion.job, stage, placement, ask })
    }

    /// Tells the rack peers how far we are, and asks how far they are if `ask`.
    fn tell_rack_peers(&mut self, cx: &mut Cx, links: &mut Links, ask: bool) {
        let Some(message) = self.demotion_message(ask) else { return };
        if let Some(demotion) = self.demotion.as_mut() {
            demotion.ask_at = cx.now + bounds::DEMOTION_ASK_EVERY;
        }
        for host in cx.membership.rack_peers(cx.me) {
            if links.is_linked(host) {
                links.send(cx, host, message.clone());
            } else if ask && cx.membership.is_up(host) {
                links.connect(cx, host);
            }
        }
    }

    /// Tells one rack peer, whose link came up, what it may wait for.
    pub fn greet_rack_peer(&self, cx: &mut Cx, links: &mut Links, host: HostIndex) {
        if let Some(message) = self.demotion_message(true) {
            links.send(cx, host, message);
        }
    }

    /// Asks rack peers again that have not answered. Takes the content off the agenda once it is decided.
    pub fn check_demotion(&mut self, cx: &mut Cx, links: &mut Links) {
        match self.demotion.as_ref().filter(|demotion| demotion.is_open()) {
            Some(demotion) if demotion.stage == Stage::Ready && demotion.ask_at <= cx.now => {
                self.tell_rack_peers(cx, links, true);
            }
            Some(_) => {}
            None => {
                cx.agenda.demoting.remove(&self.id());
            }
        }
    }

    /// Notes what a rack peer said of a demotion.
    pub fn note_demotion_report(&mut self, cx: &Cx, from: HostIndex, report: &DemotionReport) {
        if let Some(demotion) = self.demotion.as_mut() {
            demotion.note_report(from, report, cx.me);
        }
    }

    /// A rack peer holds its rack share: that may complete the agreement, and it can be asked for shards.
    pub fn on_rack_peer_ready(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        from: HostIndex,
        placement: RackPlacement,
    ) {
        self.drop_whole_if_agreed(cx);
        self.on_share_held(cx, links, jobs, from, placement);
    }

    /// Answers a rack peer that asked how far we are. Returns false if there is no stage to report.
    pub fn answer_rack_peer(&self, cx: &mut Cx, links: &mut Links, from: HostIndex) -> bool {
        if self.is_whole() {
            // A host that has the whole content holds every share.
            links.send(cx, from, Message::Done { content: self.id() });
        }
        let answer = self.demotion_message(false);
        let answered = answer.is_some();
        if let Some(answer) = answer {
            links.send(cx, from, answer);
        }
        answered
    }

    /// Refuses a child while only a rack share is here. Returns whether it was refused.
    pub fn decline_child(&self, cx: &mut Cx, links: &mut Links, from: HostIndex) -> bool {
        if !self.demotion.as_ref().is_some_and(Demotion::is_share_only) {
            return false;
        }
        let promoted = self.promotion.is_some();
        if is_rack_peer(cx, from) {
            // The rack peer asks us for the shards of our share instead.
            if let Some(message) = self.demotion_message(false) {
                links.send(cx, from, message);
            }
        } else if !promoted {
            links.send(cx, from, Message::NotServed { content: self.id() });
        }
        !promoted
    }
}
