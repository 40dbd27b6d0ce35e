//! The child's side: which parent each lane comes from, and what becomes of the shards that arrive.
//!
//! Invariant: a lane that has missing pieces has a subscription with its parent, unless its link is down, it is paused,
//! or imports are delayed.

use super::cx::Cx;
use super::jobs::Jobs;
use super::links::Links;
use super::transfer::Transfer;
use crate::io::{Notice, Output};
use crate::plan::{PlanRequest, Shape};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{HostIndex, LaneIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::message::{LaneSet, Message};
use std::collections::{BTreeMap, BTreeSet};

impl Transfer {
    /// Computes the content's trees again and moves the lanes whose parent changed.
    pub fn replan(&mut self, cx: &mut Cx, links: &mut Links) {
        let (me, now) = (cx.me, cx.now);
        self.expire_bypasses(now);
        let mut avoid = links.avoidance.to_set();
        avoid.extend(self.bypass.useless_hosts());
        // A host that avoided itself would be in no tree and would have no children.
        avoid.remove(&me);
        let lanes = self.body.as_ref().map_or(cx.lanes, |body| body.geometry().lanes());
        let request =
            PlanRequest { targets: &self.targets, root: self.origin, avoid: &avoid, lanes, shape: Shape::NARROW };
        let plan = cx.plan(&request);
        cx.counters.replans += 1;
        self.plan = Some(plan.clone());
        let fetching = cx.agenda.active.contains(&self.id()) && self.promotion.is_none();
        let Some(body) = self.body.as_mut().filter(|body| !body.pieces.is_whole()) else { return };
        if self.origin == Some(me) || !fetching {
            return;
        }
        if self.abandoned_by_rack {
            avoid.insert(me);
        }
        let ours = if self.abandoned_by_rack { &plan.avoiding(&avoid) } else { &*plan };
        let mut left: BTreeMap<HostIndex, LaneSet> = BTreeMap::new();
        for (number, lane) in body.lanes.iter_mut() {
            let parent = match self.bypass.of_lane(number) {
                _ if lane.missing() == 0 => None,
                None => ours.parent(number, me),
                Some(bypassed) => {
                    let around: BTreeSet<HostIndex> = avoid.iter().copied().chain(bypassed).collect();
                    plan.avoiding(&around).parent(number, me)
                }
            };
            if let Some(former) = lane.move_to(parent, now) {
                left.entry(former).or_default().insert(number);
            }
        }
        for (host, lanes) in left {
            links.send(cx, host, Message::Unsubscribe { content: self.id(), lanes });
        }
        self.subscribe(cx, links);
    }

    /// Sends the subscriptions that are due, and dials parents without a link.
    pub fn subscribe(&mut self, cx: &mut Cx, links: &mut Links) {
        let (id, me) = (self.id(), cx.me);
        let plan = self.plan.clone();
        let near = |host: HostIndex| plan.as_ref().is_some_and(|plan| plan.same_rack(host, me));
        let Some(body) = self.body.as_mut().filter(|body| !body.pieces.is_whole()) else { return };
        let delayed = cx.now < body.lanes.imports_from();
        let mut due: BTreeMap<HostIndex, LaneSet> = BTreeMap::new();
        let mut dial: BTreeSet<HostIndex> = BTreeSet::new();
        for (number, lane) in body.lanes.iter_mut() {
            let Some(parent) = lane.unsubscribed_parent().filter(|parent| !delayed || near(*parent)) else { continue };
            if links.is_linked(parent) {
                lane.mark_subscribed();
                due.entry(parent).or_default().insert(number);
            } else {
                dial.insert(parent);
            }
        }
        let have = body.pieces.have().clone();
        let mut unneeded = have.clone();
        if self.late && due.keys().any(|host| !near(*host)) {
            // The rack has these pieces already: importing them again for us would waste its uplink.
            let rack_peers = body.children.iter().filter(|(host, _)| near(*host) && links.is_linked(*host));
            rack_peers.for_each(|(_, child)| unneeded.union(child.has()));
            body.available_in_rack = unneeded.clone();
        }
        body.wants.note_asked(due.keys().copied());
        for (host, lanes) in due {
            let have: Bitmap = if near(host) { have.clone() } else { unneeded.clone() };
            links.send(cx, host, Message::Subscribe { content: id, lanes, have });
        }
        for host in dial {
            links.connect(cx, host);
        }
    }

    /// A rack peer takes nothing from us any more.
    ///
    /// When no rack peer does, the rack holds us to be slow, and another host imports our lanes for it. Then we take
    /// our lanes from that host, because otherwise they would cross the uplink twice.
    pub fn follow_rack_peers(&mut self, cx: &mut Cx, links: &mut Links, from: HostIndex) {
        let me = cx.me;
        let (Some(plan), Some(body)) = (&self.plan, &self.body) else { return };
        let near = |host: HostIndex| plan.same_rack(host, me);
        let taken = body.children.iter().any(|(host, child)| near(host) && child.takes_lanes());
        let imports = body.lanes.awaited().any(|(_, parent, _)| !near(parent));
        if near(from) && !taken && imports && !self.abandoned_by_rack {
            self.abandoned_by_rack = true;
            self.turn_far_children_away(cx, links);
            self.replan(cx, links);
        }
    }

    /// Children in other racks see less of us than the rack does, and must not wait for what we import slowly. They
    /// find the rack peer that imports it now.
    fn turn_far_children_away(&mut self, cx: &mut Cx, links: &mut Links) {
        let (id, me) = (self.id(), cx.me);
        let (Some(plan), Some(body)) = (&self.plan, self.body.as_mut()) else { return };
        let takers = body.children.iter().filter(|(_, child)| child.takes_lanes()).map(|(host, _)| host);
        let far: Vec<HostIndex> = takers.filter(|host| !plan.same_rack(*host, me)).collect();
        for host in far {
            body.children.forget(host);
            links.send(cx, host, Message::NotServed { content: id });
        }
    }

    /// Late to a content: takes lanes that it would import from rack peers that have all of the lane's missing pieces.
    pub fn prefer_rack_peers(&mut self, cx: &mut Cx, links: &mut Links) {
        let me = cx.me;
        if !self.late || self.promotion.is_some() {
            return;
        }
        let (Some(plan), Some(body)) = (&self.plan, self.body.as_mut()) else { return };
        let (pieces, children) = (&body.pieces, &body.children);
        for (number, lane) in body.lanes.iter_mut() {
            let imports = lane.parent().is_none_or(|parent| !plan.same_rack(parent, me));
            if lane.missing() == 0 || lane.is_subscribed() || !imports {
                continue;
            }
            let has_lane = |host: &HostIndex| {
                links.is_linked(*host)
                    && children.get(*host).is_some_and(|child| {
                        let mut of_lane = pieces.geometry().pieces_of_lane(number);
                        of_lane.all(|piece| pieces.has(piece) || child.has().get(piece.0))
                    })
            };
            let holders: Vec<HostIndex> = plan.rack_peers(me).filter(has_lane).collect();
            if !holders.is_empty() {
                lane.prefer(holders[number.index() % holders.len()]);
            }
        }
        let open = body.lanes.iter().any(|(_, lane)| !lane.is_subscribed() && lane.missing() > 0);
        if cx.now >= body.lanes.imports_from() || open {
            self.subscribe(cx, links);
        }
    }

    /// A verified shard arrived.
    pub fn on_shard(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, shard: ShardIndex, from: HostIndex) {
        let now = cx.now;
        let Some(body) = self.body.as_mut() else { return };
        let Some((stripe, place)) = body.geometry().split(shard) else { return };
        if let Some(want) = body.wants.on_arrival(shard)
            && let Some(promotion) = self.promotion.as_mut().filter(|_| want.from == from)
        {
            promotion.note_answer(now.since(want.asked));
        }
        let piece = body.geometry().piece_of(shard);
        let needed = match piece {
            Some(piece) => {
                // The sender may be a child, too: it must not get its own piece back.
                if let Some(sender) = body.children.get_mut(from) {
                    sender.note_has(piece);
                }
                body.take(piece)
            }
            None => body.pieces.take_parity(stripe, body.pieces.parity_row(place)),
        };
        if !needed {
            cx.counters.shards_surplus += 1;
            let bytes = body.geometry().shard_len(shard).unwrap_or(0);
            cx.notice(Notice::Duplicate { content: self.id(), from, bytes });
            return;
        }
        cx.counters.shards_taken += 1;
        body.pieces.note_arrival(now);
        body.deliveries.note(from);
        body.receive_guard.count(1, false, now, &cx.tuning);
        match piece {
            Some(piece) => {
                body.lanes.note_progress(body.pieces.geometry(), piece, now);
                self.on_piece(cx, links, piece, Some(from));
            }
            None => self.rebuild_if_possible(cx, stripe),
        }
        self.on_promotion_progress(cx, links, jobs);
    }

    /// A piece is here: children that lack it get it, and its lane's parent hears of it if it came from elsewhere.
    fn on_piece(&mut self, cx: &mut Cx, links: &mut Links, piece: PieceIndex, from: Option<HostIndex>) {
        let (id, class) = (self.id(), self.facts.class);
        let Some(body) = self.body.as_mut() else { return };
        let number = body.geometry().lane_of_piece(piece);
        if body.lanes.get(number).subscribed_parent().is_some_and(|parent| Some(parent) != from) {
            body.received_elsewhere.push(piece);
            cx.agenda.report_received_by(cx.now + cx.tuning.received_every);
        }
        body.children.offer(number, piece, |host| links.mark_ready(host, class, id));
        let stripe = body.pieces.stripe_of(piece);
        if body.pieces.on_stripe_progress(stripe) {
            self.rebuild_if_possible(cx, stripe);
        }
        self.finish_if_whole(cx, links);
    }

    /// Has a stripe decoded once k of its shards are here and parity is among them.
    pub fn rebuild_if_possible(&mut self, cx: &mut Cx, stripe: StripeIndex) {
        let content = self.id();
        if self.body.as_mut().is_some_and(|body| body.pieces.begin_rebuild(stripe)) {
            cx.push(Output::Rebuild { content, stripe });
        }
    }

    /// The driver decoded these shards of a stripe, or none.
    pub fn on_rebuilt(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        stripe: StripeIndex,
        shards: &[ShardIndex],
    ) {
        if let Some(body) = self.body.as_mut().filter(|_| shards.is_empty()) {
            body.pieces.on_rebuild_failed(stripe);
        }
        for shard in shards {
            let Some(body) = self.body.as_mut() else { return };
            let Some(piece) = body.geometry().piece_of(*shard) else { continue };
            if body.take(piece) {
                body.pieces.note_arrival(cx.now);
                self.on_piece(cx, links, piece, None);
            }
        }
        self.on_promotion_progress(cx, links, jobs);
    }

    /// The disk lost a piece that was here.
    pub fn on_piece_lost(&mut self, cx: &mut Cx, links: &mut Links, shard: ShardIndex) {
        let Some(body) = self.body.as_mut() else { return };
        let Some(piece) = body.geometry().piece_of(shard) else { return };
        if body.lose(piece) && self.is_running() {
            cx.agenda.active.insert(self.id());
            self.replan(cx, links);
        }
    }

    /// With every piece here: asks the driver to complete the content, and tells the neighbours.
    pub fn finish_if_whole(&mut self, cx: &mut Cx, links: &mut Links) {
        let id = self.id();
        let Some(body) = self.body.as_mut().filter(|body| body.pieces.is_whole()) else { return };
        if !cx.agenda.active.remove(&id) {
            return;
        }
        (self.demotion, self.promotion) = (None, None);
        cx.agenda.promoting.remove(&id);
        body.pieces.drop_parity();
        body.received_elsewhere.clear();
        body.deliveries.forget_parents();
        let mut told: BTreeSet<HostIndex> = body.children.hosts().collect();
        told.extend(body.wants.finish());
        // Parents need no `Unsubscribe`: `Done` ends their subscriptions.
        let _ = body.lanes.leave_all();
        cx.push(Output::Complete { content: id });
        for host in told {
            links.send(cx, host, Message::Done { content: id });
        }
    }

    /// Tells parents which pieces they need not send.
    pub fn report_received(&mut self, cx: &mut Cx, links: &mut Links) {
        let id = self.id();
        let Some(body) = self.body.as_mut() else { return };
        let mut by_parent: BTreeMap<HostIndex, Bitmap> = BTreeMap::new();
        for piece in std::mem::take(&mut body.received_elsewhere) {
            let geometry = body.pieces.geometry();
            let lane: LaneIndex = geometry.lane_of_piece(piece);
            if let Some(parent) = body.lanes.get(lane).subscribed_parent() {
                by_parent.entry(parent).or_insert_with(|| geometry.no_pieces()).set(piece.0);
            }
        }
        for (host, pieces) in by_parent {
            links.send(cx, host, Message::Received { content: id, pieces });
        }
    }
}
