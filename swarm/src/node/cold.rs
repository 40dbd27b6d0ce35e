//! Demotion: the hosts of a rack agree how a content's shards are dealt out among them, then each keeps its share only.
//!
//! A host first makes its share durable and says so (`Ready`), and lets the whole go once every other host of the placement has
//! said the same of the same placement. So at any moment the rack holds the content whole, or every share of one placement that all
//! its hosts promised to keep. A change of membership before that placements anew; what was promised under an earlier placement is
//! kept too. One host that has let go settles it for the others: it cannot have done so without their promise.
//! Invariant: `Shed` is wished only when all of a placement's hosts have said that they hold their shares of it, or one of them
//! has shed.

use super::content::Body;
use super::{Job, Node, bounds};
use crate::io::{Input, Output};
use crate::time::Instant;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, HostIndex, JobId, ShardIndex, StripeIndex};
use shoal_proto::message::{DemotionStage, Message};
use shoal_proto::rack_placement::RackPlacement;
use shoal_proto::trust::Role;
use std::collections::{BTreeMap, BTreeSet};

/// How far a host is with a demotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its share is being made.
    Making,
    /// Its share is durable; others' are awaited.
    Ready,
    /// The whole is being let go.
    Shedding,
    /// Only the share is here.
    Shed,
    /// It takes no part.
    Out,
}

/// A content's demotion.
#[derive(Debug)]
pub(super) struct Cold {
    pub(super) job: JobId,
    pub(super) stage: Stage,
    /// How the shards are dealt.
    pub(super) placement: RackPlacement,
    /// Deals whose shares are durable here.
    pub(super) held: Vec<RackPlacement>,
    /// Which placement each mate holds its share of.
    heard: BTreeMap<HostIndex, RackPlacement>,
    /// Mates that take no part.
    out: BTreeSet<HostIndex>,
    /// A mate has shed: nothing more is waited for.
    settled: bool,
    ask_at: Instant,
}

impl Cold {
    fn new(job: JobId, now: Instant) -> Self {
        Self {
            job,
            stage: Stage::Out,
            placement: RackPlacement::default(),
            held: Vec::new(),
            heard: BTreeMap::new(),
            out: BTreeSet::new(),
            settled: false,
            ask_at: now,
        }
    }

    /// Only shares are here, or will be in a moment.
    pub(super) fn is_shed(&self) -> bool {
        matches!(self.stage, Stage::Shedding | Stage::Shed)
    }

    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Making | Stage::Ready)
    }

    /// The stage as mates are told it.
    fn told(&self) -> Option<DemotionStage> {
        match self.stage {
            Stage::Making => None,
            Stage::Ready | Stage::Shedding => Some(DemotionStage::ShareReady),
            Stage::Shed => Some(DemotionStage::ShareOnly),
            Stage::Out => Some(DemotionStage::NotParticipating),
        }
    }

    /// The shards of all placements promised.
    fn shards(&self, geometry: &Geometry, me: HostIndex) -> BTreeSet<ShardIndex> {
        self.held.iter().flat_map(|placement| placement.share(geometry, me)).collect()
    }
}

/// Splits shards into pieces and, by stripe, rows of parity.
fn sorted(geometry: &Geometry, shards: impl Iterator<Item = ShardIndex>) -> (Bitmap, BTreeMap<StripeIndex, u32>) {
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

impl Node {
    /// The newest word on a content.
    pub(super) fn newest_job(&self, id: ContentId) -> Option<(&Job, JobId)> {
        let jobs = self.contents.get(&id)?.jobs.iter();
        let rows = jobs.filter_map(|job| Some((self.jobs.get(job)?, *job)));
        rows.max_by_key(|(row, job)| (row.announcement.sequence, *job))
    }

    /// The job that demotes a content, if that is the newest word on it.
    fn demotion_of(&self, id: ContentId) -> Option<JobId> {
        self.newest_job(id).filter(|(row, _)| row.announcement.demotes()).map(|(_, job)| job)
    }

    /// Whether a content should not be fetched: the newest word is that it is demoted.
    pub(super) fn is_demoted(&self, id: ContentId) -> bool {
        self.demotion_of(id).is_some()
    }

    /// Does what the newest word on a content asks for, as far as it is not done.
    pub(super) fn follow_order(&mut self, id: ContentId) {
        let (order, now) = (self.demotion_of(id), self.now);
        // A seeder is in no rack.
        if self.membership.get(self.config.me).is_none_or(|me| me.role != Role::Peer) {
            return;
        }
        let Some(content) = self.contents.get_mut(&id) else { return };
        let Some(body) = &mut content.body else {
            // What the disk has may still be told. Nothing is fetched for a demotion.
            if order.is_some() {
                content.refused = true;
                self.active.remove(&id);
            } else {
                content.cold = None;
            }
            return;
        };
        match (order, &mut content.cold) {
            (None, None) => {}
            (None, Some(cold)) if cold.is_shed() => self.begin_warming(id),
            (None, Some(_)) => {
                content.cold = None;
                self.cooling.remove(&id);
                self.push(Output::KeepWhole { content: id });
            }
            (Some(job), Some(cold)) if cold.is_shed() || cold.job == job => {
                cold.job = job;
                if content.warm.take().is_some() {
                    // What came since goes again.
                    cold.stage = Stage::Shedding;
                    self.warming.remove(&id);
                    self.stop_fetching(id);
                    self.push(Output::DropWhole { content: id });
                }
            }
            (Some(job), former) if body.missing == 0 => {
                // What was promised under a former order stays promised.
                let held = former.take().map_or_else(Vec::new, |former| former.held);
                content.cold = Some(Cold { held, ..Cold::new(job, now) });
                self.cooling.insert(id);
                self.deal_out(id);
            }
            (Some(job), _) => {
                content.cold = Some(Cold::new(job, now));
                content.refused = true;
                self.stop_fetching(id);
                if let Some(content) = self.contents.get_mut(&id) {
                    content.body = None;
                }
                self.push(Output::DropPartial { content: id, job });
                self.tell_mates(id, false);
            }
        }
    }

    /// Ends subscriptions and wants: nothing more is to come.
    fn stop_fetching(&mut self, id: ContentId) {
        self.active.remove(&id);
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        let parents: BTreeSet<HostIndex> =
            body.lanes.iter_mut().filter(|lane| lane.subscribed).filter_map(|lane| lane.parent.take()).collect();
        body.lanes.iter_mut().for_each(|lane| (lane.parent, lane.subscribed) = (None, false));
        body.wants.clear();
        let lanes = shoal_proto::message::LaneSet::first(body.geometry.lanes());
        for host in parents {
            self.send(host, Message::Unsubscribe { content: id, lanes });
        }
    }

    /// Mates that should take part, and us.
    fn participants(&self, id: ContentId) -> RackPlacement {
        let me = self.config.me;
        let cold = self.contents.get(&id).and_then(|content| content.cold.as_ref());
        let row = cold.and_then(|cold| Some((cold, self.jobs.get(&cold.job)?)));
        let Some((cold, job)) = row else { return RackPlacement::new([me]) };
        let targets = self.membership.select(&job.announcement.selector);
        let takes_part = |mate: &HostIndex| {
            targets.get(mate.0) && self.membership.is_up(*mate) && !cold.out.contains(mate) && !self.is_banned(*mate)
        };
        let mates = self.membership.rack_mates(me).into_iter().filter(takes_part);
        RackPlacement::new(mates.take(shoal_proto::limits::PLACEMENT_HOSTS_MAX - 1).chain([me]))
    }

    /// Deals the shards among the mates there are now, unless that is done.
    pub(super) fn deal_out(&mut self, id: ContentId) {
        let placement = self.participants(id);
        let Some(cold) = self.contents.get_mut(&id).and_then(|content| content.cold.as_mut()) else { return };
        if cold.is_shed() || cold.settled || cold.placement == placement {
            return;
        }
        if cold.held.len() >= bounds::PLACEMENTS_MAX {
            self.opt_out(id);
            return;
        }
        cold.placement = placement.clone();
        if cold.held.contains(&placement) {
            cold.stage = Stage::Ready;
            self.tell_mates(id, true);
            self.shed_if_agreed(id);
        } else {
            cold.stage = Stage::Making;
            self.push(Output::MakeShare { content: id, placement });
        }
    }

    /// Keeps the content whole.
    fn opt_out(&mut self, id: ContentId) {
        let Some(cold) = self.contents.get_mut(&id).and_then(|content| content.cold.as_mut()) else { return };
        cold.stage = Stage::Out;
        self.cooling.remove(&id);
        self.tell_mates(id, false);
    }

    pub(super) fn on_share_made(&mut self, id: ContentId, placement: RackPlacement) {
        let Some(cold) = self.contents.get_mut(&id).and_then(|content| content.cold.as_mut()) else { return };
        if !cold.held.contains(&placement) {
            cold.held.push(placement.clone());
        }
        if cold.stage == Stage::Making && cold.placement == placement {
            cold.stage = Stage::Ready;
            self.tell_mates(id, true);
            self.shed_if_agreed(id);
        }
    }

    /// The share could not be made, or the whole is needed here.
    pub(super) fn on_share_refused(&mut self, id: ContentId) {
        let cold = self.contents.get(&id).and_then(|content| content.cold.as_ref());
        if cold.is_some_and(|cold| cold.stage != Stage::Shed) {
            self.opt_out(id);
            if self.demotion_of(id).is_none() {
                self.follow_order(id);
            }
        }
    }

    fn shed_if_agreed(&mut self, id: ContentId) {
        let me = self.config.me;
        let Some(cold) = self.contents.get_mut(&id).and_then(|content| content.cold.as_mut()) else { return };
        let agreed = |host: &HostIndex| *host == me || cold.heard.get(host) == Some(&cold.placement);
        if cold.stage == Stage::Ready && (cold.settled || cold.placement.hosts().iter().all(agreed)) {
            cold.stage = Stage::Shedding;
            self.cooling.remove(&id);
            self.push(Output::DropWhole { content: id });
        }
    }

    /// Only the share is here now.
    pub(super) fn on_shed(&mut self, id: ContentId) {
        let (me, now) = (self.config.me, self.now);
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(body), Some(cold)) = (&mut content.body, &mut content.cold) else { return };
        let shards = cold.shards(&body.geometry, me);
        cold.stage = Stage::Shed;
        let (have, kept) = sorted(&body.geometry, shards.into_iter());
        let mut fresh = Body::new(body.geometry.clone(), have, now, &self.config.tuning);
        fresh.keep(kept);
        fresh.children = std::mem::take(&mut body.children);
        fresh.takers = std::mem::take(&mut body.takers);
        for child in fresh.children.values_mut() {
            child.keep_only(&fresh.have);
        }
        *body = fresh;
        self.tell_mates(id, false);
        self.follow_order(id);
    }

    /// A content was found on the disk of which only a share is here, or whose share is promised.
    pub(super) fn on_share_found(&mut self, input: Input) {
        let Input::ShareFound { content: id, geometry, have, parity, placements, shed } = input else { return };
        let now = self.now;
        let order = self.demotion_of(id);
        if shed {
            if !self.contents.contains_key(&id) {
                return;
            }
            let mut body = Body::new(geometry, have, now, &self.config.tuning);
            body.keep(parity);
            let mut cold = Cold::new(order.unwrap_or(JobId([0; 16])), now);
            (cold.stage, cold.held) = (Stage::Shed, placements);
            cold.placement = cold.held.last().cloned().unwrap_or_default();
            let Some(content) = self.contents.get_mut(&id).filter(|content| content.body.is_none()) else { return };
            (content.body, content.cold, content.refused) = (Some(body), Some(cold), false);
            if order.is_some() {
                self.active.remove(&id);
            }
            self.follow_order(id);
            self.tell_mates(id, false);
            return;
        }
        self.on_content_ready(id, geometry, have);
        if let Some(cold) = self.contents.get_mut(&id).and_then(|content| content.cold.as_mut()) {
            cold.held = placements;
            // What is held already need not be made.
            let made = cold.held.contains(&cold.placement).then(|| cold.placement.clone());
            if let Some(placement) = made {
                self.on_share_made(id, placement);
            }
        }
    }

    fn hold_message(&self, id: ContentId, ask: bool) -> Option<Message> {
        let content = self.contents.get(&id)?;
        let cold = content.cold.as_ref()?;
        let stage = cold.told()?;
        Some(Message::Demotion { content: id, job: cold.job, stage, placement: cold.placement.clone(), ask })
    }

    /// Says to the mates how far we are; asks them if `ask`.
    fn tell_mates(&mut self, id: ContentId, ask: bool) {
        let now = self.now;
        let Some(message) = self.hold_message(id, ask) else { return };
        if let Some(cold) = self.contents.get_mut(&id).and_then(|content| content.cold.as_mut()) {
            cold.ask_at = now + self.config.tuning.demotion_ask_every;
        }
        for mate in self.membership.rack_mates(self.config.me) {
            if self.is_linked(mate) {
                self.send(mate, message.clone());
            } else if ask && self.membership.is_up(mate) {
                self.connect(mate);
            }
        }
    }

    /// Says to one host how far we are with what it may wait for.
    pub(super) fn greet_mate(&mut self, host: HostIndex) {
        if !self.is_mate(host) {
            return;
        }
        let ids: Vec<ContentId> = self.cooling.iter().chain(&self.warming).copied().collect();
        for id in ids {
            if let Some(message) = self.hold_message(id, true) {
                self.send(host, message);
            }
        }
    }

    fn is_mate(&self, host: HostIndex) -> bool {
        let me = self.membership.get(self.config.me);
        let other = self.membership.get(host).filter(|other| other.role == Role::Peer);
        me.zip(other).is_some_and(|(me, other)| me.locality.same_rack(&other.locality))
    }

    /// Asks those again that have not answered, and placements anew where mates came or went.
    pub(super) fn keep_cooling(&mut self) {
        let cooling: Vec<ContentId> = self.cooling.iter().copied().collect();
        for id in cooling {
            let cold = self.contents.get(&id).and_then(|content| content.cold.as_ref());
            let Some(cold) = cold.filter(|cold| cold.is_open()) else {
                self.cooling.remove(&id);
                continue;
            };
            if cold.stage == Stage::Ready && cold.ask_at <= self.now {
                self.tell_mates(id, true);
            }
        }
    }

    pub(super) fn renew_placements(&mut self) {
        let cooling: Vec<ContentId> = self.cooling.iter().copied().collect();
        for id in cooling {
            self.deal_out(id);
        }
    }

    pub(super) fn on_hold(&mut self, from: HostIndex, message: Message) {
        let Message::Demotion { content: id, job, stage, placement, ask } = message else { return };
        if !self.is_mate(from) {
            return;
        }
        if !self.jobs.contains_key(&job) && job != JobId([0; 16]) {
            self.send(from, Message::WantAnnounce { jobs: vec![job] });
        }
        let me = self.config.me;
        let cold = self.contents.get_mut(&id).and_then(|content| content.cold.as_mut());
        let is_cold = cold.is_some();
        if let Some(cold) = cold {
            match stage {
                DemotionStage::NotParticipating => {
                    cold.heard.remove(&from);
                    cold.out.insert(from);
                }
                DemotionStage::ShareReady | DemotionStage::ShareOnly => {
                    cold.out.remove(&from);
                    cold.heard.insert(from, placement.clone());
                }
            }
            if stage == DemotionStage::ShareOnly && cold.is_open() && !cold.settled && placement != cold.placement {
                if cold.held.contains(&placement) {
                    // We promised, it counted on it.
                    (cold.placement, cold.stage, cold.settled) = (placement.clone(), Stage::Ready, true);
                } else if !placement.contains(me) {
                    // The rack can do without us; what we hold is on top.
                    cold.settled = true;
                }
            }
        }
        match stage {
            DemotionStage::NotParticipating => {
                self.renew_placements();
                self.warm_lost(id, from);
            }
            DemotionStage::ShareReady | DemotionStage::ShareOnly => {
                self.shed_if_agreed(id);
                self.on_mate_holds(id, from, placement);
            }
        }
        if ask {
            // Who has it whole holds every share.
            let body = self.contents.get(&id).and_then(|content| content.body.as_ref());
            if body.is_some_and(|body| body.missing == 0) {
                self.send(from, Message::Done { content: id });
            }
            match self.hold_message(id, false) {
                Some(answer) => self.send(from, answer),
                // We follow no such order: whole, or nothing of it is here.
                None if !is_cold && self.jobs.contains_key(&job) => {
                    let (stage, placement) = (DemotionStage::NotParticipating, RackPlacement::default());
                    self.send(from, Message::Demotion { content: id, job, stage, placement, ask: false });
                }
                None => {}
            }
        }
    }

    /// A host that has its share only is nobody's parent. True when that was said.
    pub(super) fn decline_child(&mut self, from: HostIndex, id: ContentId) -> bool {
        let content = self.contents.get(&id);
        let shed = content.is_some_and(|row| row.cold.as_ref().is_some_and(Cold::is_shed));
        if !shed {
            return false;
        }
        let warming = content.is_some_and(|row| row.warm.is_some());
        if self.is_mate(from) {
            if let Some(message) = self.hold_message(id, false) {
                self.send(from, message);
            }
            return !warming;
        }
        if !warming {
            self.send(from, Message::NotServed { content: id });
        }
        !warming
    }
}
