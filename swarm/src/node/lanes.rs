//! The child's side: which parent each lane comes from, and what becomes of the shards that arrive.

use super::{Node, bounds};
use crate::io::Output;
use crate::plan::{PlanRequest, Shape};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, HostIndex, LaneIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::message::{LaneSet, Message};
use std::collections::{BTreeMap, BTreeSet};

impl Node {
    /// Computes a content's trees anew and moves the lanes whose parent changed.
    pub(super) fn replan(&mut self, id: ContentId) {
        let me = self.config.me;
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else { return };
        content.try_again(now, &self.config.tuning);
        let mut avoid: BTreeSet<HostIndex> = self.avoid.keys().copied().collect();
        avoid.extend(content.useless.keys());
        avoid.remove(&me);
        let lanes = content.body.as_ref().map_or(self.config.lanes, |body| body.geometry.lanes());
        let request =
            PlanRequest { targets: &content.targets, root: content.origin, avoid: &avoid, lanes, shape: Shape::NARROW };
        let plan = self.planner.plan(&self.membership, &request);
        self.counters.replans += 1;
        content.plan = Some(plan.clone());
        let origin = content.origin;
        let Some(body) = content.body.as_mut().filter(|body| body.missing > 0) else { return };
        if origin == Some(me) || !self.active.contains(&id) || content.warm.is_some() {
            return;
        }
        let mut left: BTreeMap<HostIndex, LaneSet> = BTreeMap::new();
        if content.passed_over {
            avoid.insert(me);
        }
        let ours = if content.passed_over { &plan.avoiding(&avoid) } else { &*plan };
        for (index, lane) in body.lanes.iter_mut().enumerate() {
            let index = LaneIndex(index as u8);
            let parent = match content.detours.get(&index) {
                _ if lane.missing == 0 => None,
                None => ours.parent(index, me),
                Some(passed) => {
                    let around: BTreeSet<HostIndex> = avoid.iter().chain(passed.keys()).copied().collect();
                    plan.avoiding(&around).parent(index, me)
                }
            };
            lane.forced = false;
            if parent == lane.parent {
                continue;
            }
            if let Some(former) = lane.parent.filter(|_| lane.subscribed) {
                left.entry(former).or_default().insert(index);
            }
            lane.parent = parent;
            lane.subscribed = false;
            lane.since = now;
        }
        for (host, lanes) in left {
            self.send(host, Message::Unsubscribe { content: id, lanes });
        }
        self.subscribe(id);
    }

    /// Sends what subscriptions are due, dialling parents where needed.
    pub(super) fn subscribe(&mut self, id: ContentId) {
        let (links, me, now) = (&self.links, self.config.me, self.now);
        let Some(content) = self.contents.get_mut(&id) else { return };
        let plan = content.plan.clone();
        let Some(body) = content.body.as_mut().filter(|body| body.missing > 0) else { return };
        let waits = now < body.import_at;
        let near = |host: &HostIndex| plan.as_ref().is_some_and(|plan| plan.same_rack(*host, me));
        let mut due: BTreeMap<HostIndex, LaneSet> = BTreeMap::new();
        let mut dial: BTreeSet<HostIndex> = BTreeSet::new();
        for (index, lane) in body.lanes.iter_mut().enumerate() {
            let Some(parent) = lane.parent.filter(|_| lane.missing > 0 && !lane.subscribed && !lane.rests) else {
                continue;
            };
            if waits && !near(&parent) {
                continue;
            }
            if links.get(&parent).is_some_and(|link| link.is_up()) {
                lane.subscribed = true;
                due.entry(parent).or_default().insert(LaneIndex(index as u8));
            } else {
                dial.insert(parent);
            }
        }
        let have = body.have.clone();
        let mut unneeded = have.clone();
        if content.late && due.keys().any(|host| !near(host)) {
            // What a rack peer has need not be imported again for us.
            for (mate, child) in body.children.iter().filter(|(mate, _)| near(mate)) {
                if links.get(mate).is_some_and(|link| link.is_up()) {
                    unneeded.union(&child.has);
                }
            }
            body.spared = unneeded.clone();
        }
        body.asked.extend(due.keys());
        let due: Vec<_> = due.into_iter().map(|(host, lanes)| (host, lanes, near(&host))).collect();
        for (host, lanes, near) in due {
            let have = if near { have.clone() } else { unneeded.clone() };
            self.send(host, Message::Subscribe { content: id, lanes, have });
        }
        for host in dial {
            self.connect(host);
        }
    }

    /// A mate takes nothing from us any more. When none does and we still import, they hold us to be slow and another
    /// imports our lanes: we take them from that one, or they would cross the uplink twice.
    pub(super) fn follow_mates(&mut self, id: ContentId, from: HostIndex) {
        let me = self.config.me;
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(plan), Some(body)) = (&content.plan, &content.body) else { return };
        let near = |host: &HostIndex| plan.same_rack(*host, me);
        let taken = body.children.iter().any(|(host, child)| near(host) && !child.lanes.is_empty());
        let imports = body.lanes.iter().any(|lane| lane.is_awaited() && !lane.parent.as_ref().is_some_and(near));
        if near(&from) && !taken && imports && !content.passed_over {
            content.passed_over = true;
            self.turn_away(id);
            self.replan(id);
        }
    }

    /// Our mates hold us to be slow, so other racks, who see less of us, must not wait for what we import: they ask those
    /// who import it now.
    fn turn_away(&mut self, id: ContentId) {
        let me = self.config.me;
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(plan), Some(body)) = (&content.plan, content.body.as_mut()) else { return };
        let takers = body.children.iter().filter(|(_, child)| !child.lanes.is_empty()).map(|(host, _)| *host);
        let far: Vec<HostIndex> = takers.filter(|host| !plan.same_rack(*host, me)).collect();
        far.iter().for_each(|host| body.forget_child(*host));
        for host in far {
            self.send(host, Message::NotServed { content: id });
        }
    }

    /// Late to a content: lanes we should import are taken from a rack peer that has told us it has what is missing.
    pub(super) fn prefer_mates(&mut self, id: ContentId) {
        let (links, me, now) = (&self.links, self.config.me, self.now);
        let wanted = |content: &&mut Box<super::Content>| content.late && content.warm.is_none();
        let Some(content) = self.contents.get_mut(&id).filter(wanted) else { return };
        let (Some(plan), Some(body)) = (&content.plan, content.body.as_mut()) else { return };
        for (number, lane) in body.lanes.iter_mut().enumerate() {
            let number = LaneIndex(number as u8);
            let imports = lane.parent.is_none_or(|parent| !plan.same_rack(parent, me));
            if lane.missing == 0 || lane.subscribed || !imports {
                continue;
            }
            let holds = |mate: &HostIndex| {
                links.get(mate).is_some_and(|link| link.is_up())
                    && body.children.get(mate).is_some_and(|child| {
                        let mut pieces = body.geometry.pieces_of_lane(number);
                        pieces.all(|piece| body.have.get(piece.0) || child.has.get(piece.0))
                    })
            };
            let holders: Vec<HostIndex> = plan.mates(me).filter(holds).collect();
            if !holders.is_empty() {
                lane.parent = Some(holders[number.index() % holders.len()]);
            }
        }
        if now >= body.import_at || body.lanes.iter().any(|lane| !lane.subscribed && lane.missing > 0) {
            self.subscribe(id);
        }
    }

    pub(super) fn on_shard(&mut self, id: ContentId, shard: ShardIndex, from: HostIndex) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else { return };
        let Some(body) = content.body.as_mut() else { return };
        let Some((stripe, place)) = body.geometry.split(shard) else { return };
        if let Some(want) = body.wants.remove(&shard) {
            body.wants_room = (body.wants_room + 1).min(bounds::WANTS_MAX);
            if let Some(warm) = content.warm.as_mut().filter(|_| want.from == from) {
                warm.tardy.answered(now.since(want.asked));
            }
        }
        let needed = match body.geometry.piece_of(shard) {
            Some(piece) => {
                if let Some(sender) = body.children.get_mut(&from) {
                    sender.has.set(piece.0);
                    sender.pending.unset(piece.0);
                }
                body.take(piece)
            }
            None => {
                let row = place - u32::from(body.geometry.data());
                let rows = body.parity.entry(stripe).or_default();
                let fresh = *rows >> row & 1 == 0;
                *rows |= 1 << row;
                fresh
            }
        };
        if !needed {
            self.counters.shards_surplus += 1;
            return;
        }
        self.counters.shards_taken += 1;
        body.last_arrival = now;
        body.delivered += 1;
        body.toll.count(1, false, now, &self.config.tuning);
        if let Some(piece) = body.geometry.piece_of(shard) {
            let lane = &mut body.lanes[body.geometry.lane_of_piece(piece).index()];
            lane.brought = now;
        }
        if let Some(trial) = body.trials.get_mut(&from) {
            trial.delivered += 1;
        }
        match body.geometry.piece_of(shard) {
            Some(piece) => self.piece_arrived(id, piece, Some(from)),
            None => self.rebuild_if_possible(id, stripe),
        }
        self.warm_arrived(id);
    }

    /// A piece is here: children that want it get it, its lane's parent is told if it came from elsewhere.
    fn piece_arrived(&mut self, id: ContentId, piece: PieceIndex, from: Option<HostIndex>) {
        let Some(content) = self.contents.get_mut(&id) else { return };
        let Some(body) = content.body.as_mut() else { return };
        let number = body.geometry.lane_of_piece(piece);
        let lane = body.lanes[number.index()];
        if lane.subscribed && lane.parent.is_some() && lane.parent != from {
            body.got.push(piece);
            let at = self.now + self.config.tuning.received_every;
            self.got_at = Some(self.got_at.map_or(at, |former| former.min(at)));
        }
        for host in &body.takers[number.index()] {
            if let Some(child) = body.children.get_mut(host).filter(|child| !child.has.get(piece.0)) {
                child.add(piece);
                if let Some(link) = self.links.get_mut(host) {
                    link.ready.insert((content.class, id));
                    self.dirty.insert(*host);
                }
            }
        }
        let stripe = StripeIndex(piece.0 / u32::from(body.geometry.data()));
        if body.parity.contains_key(&stripe) {
            if body.stripe_whole(stripe) {
                body.parity.remove(&stripe);
                body.rebuilding.remove(&stripe);
            } else {
                self.rebuild_if_possible(id, stripe);
            }
        }
        self.finish_if_whole(id);
    }

    /// Wishes a rebuild once k shards of the stripe are here and parity is among them.
    pub(super) fn rebuild_if_possible(&mut self, id: ContentId, stripe: StripeIndex) {
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        if body.stripe_whole(stripe) {
            body.parity.remove(&stripe);
            return;
        }
        let rows = body.parity.get(&stripe).map_or(0, |rows| rows.count_ones());
        if rows > 0
            && body.stripe_have(stripe) + rows >= body.geometry.stripe_data(stripe)
            && body.rebuilding.insert(stripe)
        {
            self.push(Output::Rebuild { content: id, stripe });
        }
    }

    pub(super) fn on_rebuilt(&mut self, id: ContentId, stripe: StripeIndex, shards: &[ShardIndex]) {
        self.counters.rebuilds += 1;
        if let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut())
            && shards.is_empty()
            && body.rebuilding.remove(&stripe)
        {
            // Parity that came is kept in memory for a while only: what is on the disk counts, the rest is asked for again.
            let (rows, kept) = (body.parity.remove(&stripe), body.kept.get(&stripe).copied());
            if rows == kept {
                // Or it cannot be read any more.
                body.kept.remove(&stripe);
            } else if let Some(kept) = kept {
                body.parity.insert(stripe, kept);
            }
        }
        for shard in shards {
            let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
            let Some(piece) = body.geometry.piece_of(*shard) else { continue };
            if body.take(piece) {
                body.last_arrival = self.now;
                self.piece_arrived(id, piece, None);
            }
        }
        self.warm_arrived(id);
    }

    pub(super) fn on_piece_lost(&mut self, id: ContentId, shard: ShardIndex) {
        let Some(content) = self.contents.get_mut(&id) else { return };
        let Some(body) = content.body.as_mut() else { return };
        let Some(piece) = body.geometry.piece_of(shard) else { return };
        if body.lose(piece) && content.is_running() {
            self.active.insert(id);
            self.replan(id);
        }
    }

    /// With every piece here: wish completion, tell the neighbours.
    pub(super) fn finish_if_whole(&mut self, id: ContentId) {
        let Some(content) = self.contents.get_mut(&id) else { return };
        let Some(body) = content.body.as_mut().filter(|body| body.missing == 0) else { return };
        if !self.active.remove(&id) {
            return;
        }
        (content.cold, content.warm) = (None, None);
        self.warming.remove(&id);
        body.parity.clear();
        body.kept.clear();
        body.rebuilding.clear();
        body.wants.clear();
        body.tries.clear();
        body.got.clear();
        body.trials.clear();
        let mut told: BTreeSet<HostIndex> = body.children.keys().copied().collect();
        told.extend(std::mem::take(&mut body.asked));
        for lane in &mut body.lanes {
            lane.parent = None;
            lane.subscribed = false;
        }
        self.push(Output::Complete { content: id });
        for host in told {
            self.send(host, Message::Done { content: id });
        }
    }

    /// Tells parents which pieces they need not send.
    pub(super) fn flush_got(&mut self) {
        let active: Vec<ContentId> = self.active.iter().copied().collect();
        for id in active {
            let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { continue };
            let mut by_parent: BTreeMap<HostIndex, Bitmap> = BTreeMap::new();
            for piece in std::mem::take(&mut body.got) {
                let lane = body.lanes[body.geometry.lane_of_piece(piece).index()];
                if let Some(parent) = lane.parent.filter(|_| lane.subscribed) {
                    let pieces = by_parent.entry(parent).or_insert_with(|| body.geometry.no_pieces());
                    pieces.set(piece.0);
                }
            }
            for (host, pieces) in by_parent {
                self.send(host, Message::Received { content: id, pieces });
            }
        }
    }
}
