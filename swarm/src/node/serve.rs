//! The parent's side: which hosts take which lanes from us, and what goes on each link next.
//!
//! A child's queue is a bitmap of pieces, so a slow child costs no memory and delays no other child. Each link has its
//! own window. The most urgent class fills it first, contents of one class take turns, and wants go before lane pushes.
//! Invariant: a link with room in its window has no content marked ready that has something to send on it.

use super::bounds;
use super::cx::{Cx, ShardId};
use super::links::Links;
use super::transfer::Transfer;
use crate::io::Output;
use crate::time::Instant;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::{ContentId, HostIndex, ShardIndex};
use shoal_proto::message::{LaneSet, Message};

/// A subscription, as it came.
pub struct Subscription {
    pub from: HostIndex,
    pub lanes: LaneSet,
    /// Pieces that the child has.
    pub have: Bitmap,
}

/// Subscriptions to contents that are not ready here. Their announcement or manifest is likely on its way.
#[derive(Default)]
pub struct ParkedSubscriptions {
    parked: Vec<Parked>,
}

struct Parked {
    content: ContentId,
    subscription: Subscription,
    until: Instant,
}

impl ParkedSubscriptions {
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Parks a subscription. One that finds no room is answered with `NotServed` at once.
    pub fn park(&mut self, cx: &mut Cx, links: &mut Links, content: ContentId, subscription: Subscription) {
        if self.parked.len() >= bounds::PARKED_MAX {
            links.send(cx, subscription.from, Message::NotServed { content });
            return;
        }
        let until = cx.now + cx.tuning.parked_time;
        let same = |parked: &&mut Parked| parked.subscription.from == subscription.from && parked.content == content;
        match self.parked.iter_mut().find(same) {
            Some(parked) => {
                parked.subscription.lanes = LaneSet(parked.subscription.lanes.0 | subscription.lanes.0);
                parked.subscription.have = subscription.have;
            }
            None => self.parked.push(Parked { content, subscription, until }),
        }
    }

    /// Takes out the subscriptions to a content, in the order they came.
    pub fn take(&mut self, content: ContentId) -> Vec<Subscription> {
        let (of_content, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|parked| parked.content == content);
        self.parked = rest;
        of_content.into_iter().map(|parked| parked.subscription).collect()
    }

    /// Answers subscriptions that waited too long: their hosts must look elsewhere.
    pub fn expire(&mut self, cx: &mut Cx, links: &mut Links) {
        let (kept, late): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|parked| parked.until > cx.now);
        self.parked = kept;
        for parked in late {
            links.send(cx, parked.subscription.from, Message::NotServed { content: parked.content });
        }
    }

    pub fn remove_lanes(&mut self, from: HostIndex, content: ContentId, lanes: LaneSet) {
        self.parked.retain_mut(|parked| {
            let subscription = &mut parked.subscription;
            if subscription.from == from && parked.content == content {
                subscription.lanes = LaneSet(subscription.lanes.0 & !lanes.0);
            }
            !subscription.lanes.is_empty()
        });
    }

    pub fn remove(&mut self, from: HostIndex, content: ContentId) {
        self.parked.retain(|parked| parked.subscription.from != from || parked.content != content);
    }

    pub fn forget_host(&mut self, host: HostIndex) {
        self.parked.retain(|parked| parked.subscription.from != host);
    }

    pub fn check_invariants(&self) {
        assert!(self.parked.len() <= bounds::PARKED_MAX, "parked subscriptions are bounded");
    }
}

impl Transfer {
    /// Accepts a subscription. Returns it when the content is not ready here, so that it is parked.
    pub fn on_subscribe(&mut self, cx: &mut Cx, links: &mut Links, subscription: Subscription) -> Option<Subscription> {
        let (id, from) = (self.id(), subscription.from);
        if self.decline_child(cx, links, from) {
            return None;
        }
        if self.refused {
            links.send(cx, from, Message::NotServed { content: id });
            return None;
        }
        let near = self.same_rack(from, cx.me);
        // A rack peer that subscribes shows that the rack counts on us again.
        self.abandoned_by_rack &= !near;
        let Some(body) = self.body.as_ref() else { return Some(subscription) };
        if self.abandoned_by_rack {
            links.send(cx, from, Message::NotServed { content: id });
        } else if subscription.have.len() != body.geometry().piece_count() {
            cx.push(Output::Disconnect { host: from, reason: CloseReason::Protocol });
        } else if links.is_linked(from) {
            self.add_child(cx, links, subscription, near);
        }
        None
    }

    fn add_child(&mut self, cx: &mut Cx, links: &mut Links, subscription: Subscription, near: bool) {
        let (id, me) = (self.id(), cx.me);
        let Subscription { from, lanes, have } = subscription;
        let (Some(body), Some(link)) = (self.body.as_mut(), links.up_mut(from)) else { return };
        let (pieces, geometry) = (&body.pieces, body.pieces.geometry());
        let child = body.children.get_or_add(from, geometry.piece_count());
        // What the link carries already is not sent again: a child may subscribe again while pieces are under way to
        // it.
        let under_way = link.under_way(id).filter_map(|shard| geometry.piece_of(shard));
        child.start(have, under_way);
        let lanes = LaneSet(lanes.0 & LaneSet::first(geometry.lanes()).0);
        if let Some(plan) = self.plan.as_ref().filter(|_| !near) {
            // In our plan a rack peer owns these lanes. The child, in another rack, found that rack peer silent.
            let owners = lanes.iter().filter_map(|lane| plan.owner(lane, me)).filter(|owner| *owner != me);
            body.deliveries.suspect(owners);
        }
        for piece in lanes.iter().flat_map(|lane| geometry.pieces_of_lane(lane)) {
            if pieces.has(piece) {
                child.add(piece);
            }
        }
        // A rack peer that comes late learns what it need not import.
        let mut ahead = pieces.have().clone();
        ahead.subtract(child.has());
        let tell = near && !ahead.none();
        body.children.add_lanes(from, lanes);
        links.mark_ready(from, self.facts.class, id);
        let mut broke_circle = false;
        // Two hosts with different views may take a lane from each other. The lower index breaks the circle by
        // importing the lane itself. One of the two must: both or neither would import it twice or never.
        for number in lanes.iter().filter(|_| me < from) {
            let lane = body.lanes.get_mut(number);
            if lane.is_circle_with(from) {
                let above = self.plan.as_ref().and_then(|plan| plan.import_parent(number, me));
                lane.break_circle(above.filter(|above| *above != from && *above != me));
                broke_circle = true;
            }
        }
        if tell {
            let pieces = body.pieces.have().clone();
            links.send(cx, from, Message::Received { content: id, pieces });
        }
        if broke_circle {
            self.subscribe(cx, links);
        }
    }

    pub fn on_unsubscribe(&mut self, cx: &mut Cx, links: &mut Links, from: HostIndex, lanes: LaneSet) {
        let Some(body) = self.body.as_mut() else { return };
        if body.children.remove_lanes(from, lanes, body.pieces.geometry()) {
            self.follow_rack_peers(cx, links, from);
        }
    }

    /// A neighbour got these pieces from other hosts.
    pub fn on_received(&mut self, cx: &mut Cx, links: &mut Links, from: HostIndex, pieces: &Bitmap) {
        let Some(body) = self.body.as_mut() else { return };
        let count = body.geometry().piece_count();
        body.children.get_or_add(from, count).note_received(pieces);
        self.prefer_rack_peers(cx, links);
    }

    /// A neighbour has everything.
    pub fn on_done(&mut self, cx: &mut Cx, links: &mut Links, from: HostIndex) {
        let Some(body) = self.body.as_mut() else { return };
        let count = body.geometry().piece_count();
        body.children.get_or_add(from, count).note_whole(count);
        body.children.leave_lanes(from);
        self.prefer_rack_peers(cx, links);
    }

    /// Queues wanted shards for a neighbour. Returns the shards that cannot be sent from here.
    pub fn on_want(&mut self, links: &mut Links, from: HostIndex, shards: Vec<ShardIndex>) -> Vec<ShardIndex> {
        let id = self.id();
        let (Some(body), Some(link)) = (self.body.as_mut(), links.get(from)) else { return shards };
        let count = body.geometry().piece_count();
        let mut unavailable = Vec::new();
        for shard in shards {
            let full = body.children.get(from).is_some_and(|child| child.want_count() >= bounds::CHILD_WANTS_MAX);
            if full || !body.pieces.can_serve(shard) {
                unavailable.push(shard);
                continue;
            }
            let child = body.children.get_or_add(from, count);
            // It may have crossed the want on its way.
            if !link.is_under_way(id, shard) {
                child.want(shard);
            }
        }
        links.mark_ready(from, self.facts.class, id);
        unavailable
    }

    /// Whether a shard that is here is still to be sent, or may be needed to decode its stripe.
    pub fn is_due(&self, shard: ShardIndex) -> bool {
        let Some(body) = self.body.as_ref() else { return false };
        let Some((stripe, _)) = body.geometry().split(shard) else { return false };
        let piece = body.geometry().piece_of(shard);
        let decodes = self.promotion.is_some() && !body.pieces.stripe_is_whole(stripe);
        decodes || body.children.iter().any(|(_, child)| child.needs(piece, shard))
    }

    /// The shards that may not be due any more once `shard` is here: itself, and its whole stripe if that is complete.
    pub fn settled_by(&self, shard: ShardIndex) -> Vec<ShardIndex> {
        let Some(body) = self.body.as_ref() else { return vec![shard] };
        let geometry = body.geometry();
        match geometry.split(shard) {
            Some((stripe, _)) if body.pieces.stripe_is_whole(stripe) => {
                (0..geometry.stripe_data(stripe)).map(|place| geometry.shard_at(stripe, place)).collect()
            }
            _ => vec![shard],
        }
    }

    /// Hands the next shard for `host` to the driver. Returns whether the link may have room for more of this content.
    fn send_next(&mut self, cx: &mut Cx, links: &mut Links, host: HostIndex) -> Next {
        let (id, class) = (self.id(), self.facts.class);
        if self.pause_if_ahead(cx, links, host) {
            return Next::NothingToSend;
        }
        let (Some(body), Some(link)) = (self.body.as_mut(), links.get_mut(host)) else { return Next::NothingToSend };
        let geometry = body.pieces.geometry();
        let next = body.children.get_mut(host).and_then(|child| Some((child.peek_len(geometry)?, child)));
        let Some((len, child)) = next else { return Next::NothingToSend };
        if !link.has_room(class, len) {
            return Next::NoRoom;
        }
        if let Some(shard) = child.next(geometry) {
            link.hand_over(id, shard, len, class, cx.now);
            cx.counters.shards_sent += 1;
            cx.push(Output::SendShard { to: host, content: id, shard, class });
            cx.touched.push(ShardId { content: id, shard });
        }
        Next::Sent
    }
}

enum Next {
    Sent,
    NothingToSend,
    NoRoom,
}

impl super::transfer::Transfers {
    /// Fills the windows of links that have room or work, until none has.
    pub fn serve(&mut self, cx: &mut Cx, links: &mut Links) {
        loop {
            while let Some(host) = links.pop_dirty() {
                self.serve_link(cx, links, host);
            }
            // What was sent may let paused children go on, and then their links are dirty again.
            self.resume_children(cx, links);
            if !links.has_dirty() {
                return;
            }
        }
    }

    fn serve_link(&mut self, cx: &mut Cx, links: &mut Links, host: HostIndex) {
        let Some(link) = links.up_mut(host) else { return };
        let mut waiting = None;
        while let Some(next) = link.next_manifest(|id| self.get(id).map(|transfer| transfer.facts.class)) {
            let Some(content) = link.hand_over_manifest(next) else {
                waiting = Some(next.class);
                break;
            };
            cx.push(Output::SendManifest { to: host, content, class: next.class });
        }
        while let Some((class, id)) = links.get(host).and_then(|link| link.next_ready()) {
            // A manifest that has no room yet goes before anything less urgent.
            if waiting.is_some_and(|waiting| waiting < class) {
                return;
            }
            let next = self.get_mut(&id).map_or(Next::NothingToSend, |transfer| transfer.send_next(cx, links, host));
            match next {
                Next::Sent => {}
                Next::NothingToSend => {
                    if let Some(link) = links.get_mut(host) {
                        link.unmark_ready(class, id);
                    }
                }
                Next::NoRoom => return,
            }
        }
    }
}
