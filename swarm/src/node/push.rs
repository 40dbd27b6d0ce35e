//! The parent's side: who takes which lanes from us, and what goes on each link next.
//!
//! A child's queue is a bitmap of pieces, so a slow child costs no memory and delays nobody: each link has its own
//! window, filled most urgent class first, contents of one class in turn, asked-for shards before lane pushes.

use super::content::Child;
use super::{Node, Parked, bounds};
use crate::io::Output;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::{ContentId, HostIndex, PieceIndex, ShardIndex};
use shoal_proto::message::{LaneSet, Message};
use std::ops::Range;

impl Node {
    pub(super) fn on_subscribe(&mut self, from: HostIndex, id: ContentId, lanes: LaneSet, have: Bitmap) {
        let me = self.config.me;
        if self.decline_child(from, id) {
            return;
        }
        let Some(content) = self.contents.get_mut(&id) else {
            self.park(from, id, lanes, have);
            return;
        };
        if content.refused {
            self.send(from, Message::NotServed { content: id });
            return;
        }
        let near = content.plan.as_ref().is_some_and(|plan| plan.same_rack(from, me));
        content.passed_over &= !near;
        let Some(body) = content.body.as_mut() else {
            self.park(from, id, lanes, have);
            return;
        };
        if content.passed_over {
            self.send(from, Message::NotServed { content: id });
            return;
        }
        if have.len() != body.geometry.piece_count() {
            self.push(Output::Disconnect { host: from, reason: CloseReason::Protocol });
            return;
        }
        let Some(link) = self.links.get_mut(&from).filter(|link| link.is_up()) else { return };
        let child = body.children.entry(from).or_insert_with(|| Child::new(body.geometry.piece_count(), self.now));
        child.took = self.now;
        child.has = have;
        for (of, shard, ..) in &link.outstanding {
            if let Some(piece) = shard.filter(|_| *of == id).and_then(|shard| body.geometry.piece_of(shard)) {
                child.has.set(piece.0);
            }
        }
        let known = child.has.clone();
        child.pending.subtract(&known);
        let lanes = LaneSet(lanes.0 & LaneSet::first(body.geometry.lanes()).0);
        if let Some(plan) = content.plan.as_ref().filter(|_| !near) {
            body.doubted.extend(lanes.iter().filter_map(|lane| plan.owner(lane, me)).filter(|owner| *owner != me));
        }
        let taken = LaneSet(child.lanes.0 | lanes.0);
        for lane in lanes.iter() {
            for piece in body.geometry.pieces_of_lane(lane) {
                if body.have.get(piece.0) {
                    child.add(piece);
                }
            }
        }
        body.set_lanes(from, taken);
        link.ready.insert((content.class, id));
        self.dirty.insert(from);
        // A rack peer that comes late learns what it need not import.
        let mut ahead = body.have.clone();
        ahead.subtract(&known);
        let told = (near && !ahead.none()).then(|| Message::Received { content: id, pieces: body.have.clone() });
        // Two hosts that hold different views may take a lane from each other. The lower index breaks the circle by
        // importing the lane itself.
        let plan = content.plan.clone();
        let mut broke = false;
        for lane in lanes.iter() {
            let ours = &mut body.lanes[lane.index()];
            if ours.missing > 0 && ours.parent == Some(from) && me < from && !ours.forced {
                let above = plan.as_ref().and_then(|plan| plan.import_parent(lane, me));
                ours.parent = above.filter(|above| *above != from && *above != me);
                ours.subscribed = false;
                ours.forced = true;
                broke = true;
            }
        }
        if let Some(told) = told {
            self.send(from, told);
        }
        if broke {
            self.subscribe(id);
        }
    }

    /// Keeps a subscription to a content that is not ready here: its announcement or manifest is likely on its way.
    fn park(&mut self, from: HostIndex, content: ContentId, lanes: LaneSet, have: Bitmap) {
        if self.parked.len() >= bounds::PARKED_MAX {
            self.send(from, Message::NotServed { content });
            return;
        }
        let until = self.now + self.config.tuning.parked_time;
        match self.parked.iter_mut().find(|parked| parked.from == from && parked.content == content) {
            Some(parked) => {
                parked.lanes = LaneSet(parked.lanes.0 | lanes.0);
                parked.have = have;
            }
            None => self.parked.push(Parked { from, content, lanes, have, until }),
        }
    }

    pub(super) fn expire_parked(&mut self) {
        let now = self.now;
        let (kept, late): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|parked| parked.until > now);
        self.parked = kept;
        for parked in late {
            self.send(parked.from, Message::NotServed { content: parked.content });
        }
    }

    pub(super) fn on_unsubscribe(&mut self, from: HostIndex, id: ContentId, lanes: LaneSet) {
        self.parked.retain_mut(|parked| {
            if parked.from == from && parked.content == id {
                parked.lanes = LaneSet(parked.lanes.0 & !lanes.0);
            }
            !parked.lanes.is_empty()
        });
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        let Some(child) = body.children.get_mut(&from) else { return };
        let kept = LaneSet(child.lanes.0 & !lanes.0);
        for lane in lanes.iter().filter(|lane| lane.0 < body.geometry.lanes()) {
            for piece in body.geometry.pieces_of_lane(lane) {
                child.pending.unset(piece.0);
            }
        }
        body.set_lanes(from, kept);
        self.follow_mates(id, from);
    }

    pub(super) fn on_got(&mut self, from: HostIndex, id: ContentId, pieces: &Bitmap) {
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        let count = body.geometry.piece_count();
        let child = body.children.entry(from).or_insert_with(|| Child::new(count, self.now));
        child.has.union(pieces);
        child.pending.subtract(pieces);
        self.prefer_mates(id);
    }

    pub(super) fn on_done(&mut self, from: HostIndex, id: ContentId) {
        self.parked.retain(|parked| parked.from != from || parked.content != id);
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        let pieces = body.geometry.piece_count();
        let child = body.children.entry(from).or_insert_with(|| Child::new(pieces, self.now));
        child.has = Bitmap::full(pieces);
        child.pending = Bitmap::new(pieces);
        child.wants.clear();
        body.set_lanes(from, LaneSet::NONE);
        self.prefer_mates(id);
        self.warm_arrived(id);
    }

    /// Whether a shard that is here is still to be sent to somebody, or another of its stripe may have to be made of it.
    pub fn is_due(&self, id: &ContentId, shard: ShardIndex) -> bool {
        let Some(content) = self.contents.get(id) else { return false };
        let Some(body) = content.body.as_ref() else { return false };
        let makes = |stripe| content.warm.is_some() && !body.stripe_whole(stripe);
        let piece = body.geometry.piece_of(shard);
        let mut children = body.children.values();
        body.geometry.split(shard).is_some_and(|(stripe, _)| makes(stripe))
            || children
                .any(|child| piece.is_some_and(|piece| child.pending.get(piece.0)) || child.wants.contains(&shard))
    }

    /// What may be due no more now that a shard is here: the shard, and all of its stripe where nothing is left to be made.
    pub fn settled(&self, id: &ContentId, shard: ShardIndex) -> Range<u32> {
        let alone = shard.0..shard.0 + 1;
        let Some(body) = self.contents.get(id).and_then(|content| content.body.as_ref()) else { return alone };
        match body.geometry.split(shard) {
            Some((stripe, _)) if body.stripe_whole(stripe) => {
                let first = body.geometry.shard_at(stripe, 0).0;
                first..first + body.geometry.stripe_data(stripe)
            }
            _ => alone,
        }
    }

    pub(super) fn on_want(&mut self, from: HostIndex, id: ContentId, shards: Vec<ShardIndex>) {
        let body = self.contents.get_mut(&id).and_then(|content| content.body.as_mut());
        let (Some(body), Some(link)) = (body, self.links.get_mut(&from)) else {
            self.send(from, Message::Unavailable { content: id, shards });
            return;
        };
        let pieces = body.geometry.piece_count();
        let mut lacking = Vec::new();
        for shard in shards {
            let child = match body.children.get(&from) {
                Some(child) => child.wants.len(),
                None => 0,
            };
            if !body.can_serve(shard) || child >= bounds::CHILD_WANTS_MAX {
                lacking.push(shard);
                continue;
            }
            let under_way = link.outstanding.iter().any(|(of, sent, ..)| *of == id && *sent == Some(shard));
            let child = body.children.entry(from).or_insert_with(|| Child::new(pieces, self.now));
            if !under_way && !child.wants.contains(&shard) {
                child.wants.push_back(shard);
            }
        }
        if let Some(class) = self.contents.get(&id).map(|content| content.class)
            && let Some(link) = self.links.get_mut(&from)
        {
            link.ready.insert((class, id));
            self.dirty.insert(from);
        }
        if !lacking.is_empty() {
            self.send(from, Message::Unavailable { content: id, shards: lacking });
        }
    }

    /// Fills the windows of links that have room or work.
    pub(super) fn pump_dirty(&mut self) {
        loop {
            while let Some(host) = self.dirty.pop_first() {
                self.pump(host);
            }
            self.level();
            if self.dirty.is_empty() {
                return;
            }
        }
    }

    fn pump(&mut self, host: HostIndex) {
        let Some(link) = self.links.get_mut(&host).filter(|link| link.is_up()) else { return };
        // A manifest's length is not known here; it counts as one large piece.
        const MANIFEST_LEN: u32 = 256 * 1024;
        link.manifests.retain(|id| self.contents.contains_key(id));
        let mut waits = None;
        loop {
            let contents = &self.contents;
            let next = link.manifests.iter().enumerate().min_by_key(|(place, id)| (contents[id].class, *place));
            let Some((place, class)) = next.map(|(place, id)| (place, contents[id].class)) else { break };
            if !link.has_room(class, MANIFEST_LEN) {
                waits = Some(class);
                break;
            }
            let Some(id) = link.manifests.remove(place) else { break };
            link.hand_over(id, None, MANIFEST_LEN, class);
            self.outputs.push_back(Output::SendManifest { to: host, content: id, class });
        }
        while let Some(link) = self.links.get_mut(&host)
            && let Some((class, id)) = link.next_ready()
        {
            // A manifest that has no room yet goes before what is less urgent.
            if waits.is_some_and(|waits| waits < class) {
                break;
            }
            if self.holds_back(id, host) {
                let Some(link) = self.links.get_mut(&host) else { return };
                link.ready.remove(&(class, id));
                continue;
            }
            let Some(link) = self.links.get_mut(&host) else { return };
            let body = self.contents.get_mut(&id).and_then(|content| content.body.as_mut());
            let next = body.and_then(|body| {
                let child = body.children.get_mut(&host)?;
                let len = child.peek_len(&body.geometry)?;
                Some((body.geometry.clone(), child, len))
            });
            let Some((geometry, child, len)) = next else {
                link.ready.remove(&(class, id));
                continue;
            };
            if !link.has_room(class, len) {
                break;
            }
            let Some(shard) = child.next(&geometry) else { continue };
            link.hand_over(id, Some(shard), len, class);
            link.last_served.insert(class, id);
            link.last_used = self.now;
            self.counters.shards_sent += 1;
            self.outputs.push_back(Output::SendShard { to: host, content: id, shard, class });
        }
    }

    /// Whether a neighbour told us that it has this piece.
    pub(super) fn is_known_to_have(&self, host: HostIndex, id: &ContentId, piece: PieceIndex) -> bool {
        self.contents
            .get(id)
            .and_then(|content| content.body.as_ref())
            .and_then(|body| body.children.get(&host))
            .is_some_and(|child| child.has.get(piece.0))
    }
}
