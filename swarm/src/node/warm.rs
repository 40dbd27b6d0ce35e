//! Promotion: a content of which each host of the rack holds a share becomes whole again from the rack alone.
//!
//! A host knows from the placements who holds which shard, and asks for just as many of each stripe as it lacks, pieces before
//! parity, each host beginning at another stripe. Nothing is asked of other racks as long as mates can still give
//! something; where they cannot make a stripe any more, the content goes on as for any host that comes late: down its
//! lanes.
//! Invariant: while a content is warming it has no parents, so nothing crosses the uplink for it.

use super::content::{Body, Want};
use super::tardy::Tardy;
use super::{Node, bounds};
use crate::io::{Notice, Output};
use crate::time::Instant;
use shoal_proto::ids::{ContentId, HostIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::message::{DemotionStage, Message};
use shoal_proto::rack_placement::RackPlacement;
use std::collections::{BTreeMap, BTreeSet};

/// A content on its way back.
#[derive(Debug, Default)]
pub(super) struct Warm {
    /// When something last moved: a mate answered, a shard came.
    since: Instant,
    /// Which placement each mate holds its share of.
    placements: BTreeMap<HostIndex, RackPlacement>,
    /// Mates that did not answer are not asked before.
    late: BTreeMap<HostIndex, Instant>,
    /// Mates that answer later than others.
    pub(super) tardy: Tardy,
    /// Shards that a mate should hold and does not.
    lacking: BTreeSet<(ShardIndex, HostIndex)>,
    ask_at: Instant,
}

impl Node {
    /// Begins to fetch what is missing from mates.
    pub(super) fn begin_warming(&mut self, id: ContentId) {
        let (now, me) = (self.now, self.config.me);
        let Some(content) = self.contents.get_mut(&id) else { return };
        let Some(body) = content.body.as_mut().filter(|body| body.missing > 0) else { return };
        if content.warm.is_some() {
            return;
        }
        let mut warm = Warm { since: now, ask_at: now, ..Warm::default() };
        for placement in content.cold.iter().flat_map(|cold| &cold.held) {
            for host in placement.hosts().iter().filter(|host| **host != me) {
                warm.placements.insert(*host, placement.clone());
            }
        }
        body.parity.extend(body.kept.iter().map(|(stripe, rows)| (*stripe, *rows)));
        content.warm = Some(warm);
        self.active.insert(id);
        self.warming.insert(id);
        self.leave_parents(id);
        self.push(Output::ReserveRest { content: id });
        self.warm_up(id);
    }

    /// Lanes bring nothing from now on.
    fn leave_parents(&mut self, id: ContentId) {
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        let mut left: BTreeMap<HostIndex, shoal_proto::message::LaneSet> = BTreeMap::new();
        for (number, lane) in body.lanes.iter_mut().enumerate() {
            if let Some(parent) = lane.parent.take().filter(|_| lane.subscribed) {
                left.entry(parent).or_default().insert(shoal_proto::ids::LaneIndex(number as u8));
            }
            lane.subscribed = false;
        }
        for (host, lanes) in left {
            self.send(host, Message::Unsubscribe { content: id, lanes });
        }
    }

    /// A mate holds its share of a placement: something to ask it for, also where we did not know that the rack is cold.
    pub(super) fn on_mate_holds(&mut self, id: ContentId, from: HostIndex, placement: RackPlacement) {
        let now = self.now;
        if self.is_demoted(id) {
            return;
        }
        let Some(content) = self.contents.get_mut(&id) else { return };
        if content.body.as_ref().is_none_or(|body| body.missing == 0) || placement.hosts().is_empty() {
            return;
        }
        if content.warm.is_none() {
            // Its rack could not make it whole: that was tried.
            if content.gave_up {
                return;
            }
            self.begin_warming(id);
        }
        let me = self.config.me;
        let Some(warm) = self.contents.get_mut(&id).and_then(|content| content.warm.as_mut()) else { return };
        if warm.placements.get(&from) != Some(&placement) {
            // The others of the placement hold theirs too, or the one could not have let go.
            for host in placement.hosts().iter().filter(|host| **host != me) {
                warm.placements.entry(*host).or_insert_with(|| placement.clone());
            }
            warm.placements.insert(from, placement);
            warm.since = now;
        }
        warm.late.remove(&from);
        self.warm_up(id);
    }

    /// A mate holds no share.
    pub(super) fn warm_lost(&mut self, id: ContentId, from: HostIndex) {
        if let Some(warm) = self.contents.get_mut(&id).and_then(|content| content.warm.as_mut()) {
            warm.placements.remove(&from);
        }
    }

    pub(super) fn warm_lacks(&mut self, id: ContentId, from: HostIndex, shards: &[ShardIndex]) {
        if let Some(warm) = self.contents.get_mut(&id).and_then(|content| content.warm.as_mut())
            && warm.lacking.len() < bounds::UNAVAILABLE_MAX
        {
            warm.lacking.extend(shards.iter().map(|shard| (*shard, from)));
        }
    }

    /// Something of a warming content came; asks for more once half of what was asked for is here.
    pub(super) fn warm_arrived(&mut self, id: ContentId) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(warm), Some(body)) = (&mut content.warm, &content.body) else { return };
        warm.since = now;
        if warm.tardy.awaited(&body.wants, None) * 2 <= body.wants_room {
            self.warm_up(id);
        }
    }

    /// Asks mates for what is missing, as far as there is room.
    pub(super) fn warm_up(&mut self, id: ContentId) {
        let (now, me) = (self.now, self.config.me);
        self.expire_asked(id);
        let mates = self.usable_mates();
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(warm), Some(body)) = (&mut content.warm, content.body.as_mut()) else { return };
        if body.missing == 0 {
            return;
        }
        warm.tardy.look(&body.wants, now, &self.config.tuning);
        let ask_all = warm.ask_at <= now;
        if ask_all {
            warm.ask_at = now + self.config.tuning.demotion_ask_every;
        }
        let mut holders: Vec<Holder<'_>> = Vec::new();
        for (mate, linked) in &mates {
            let whole = body.children.get(mate).is_some_and(|child| child.has.is_full());
            let placement = warm.placements.get(mate);
            let answers = *linked && !warm.late.contains_key(mate) && !warm.tardy.is(*mate);
            if answers && (whole || placement.is_some()) {
                let awaited = warm.tardy.awaited(&body.wants, Some(*mate));
                holders.push(Holder { host: *mate, whole, placement, awaited });
            }
        }
        let Chosen { asks, whole_with_parity } = choose(body, &holders, warm, me);
        let dial: Vec<HostIndex> = mates.iter().filter(|(_, linked)| !linked).map(|(mate, _)| *mate).collect();
        let idle =
            asks.is_empty() && whole_with_parity.is_empty() && body.wants.is_empty() && body.rebuilding.is_empty();
        let over = idle && now.since(warm.since) >= self.config.tuning.promote_patience;
        for (host, shards) in &asks {
            for (shard, piece) in shards {
                let until = now + self.config.tuning.want_timeout;
                body.wants.insert(*shard, Want { piece: *piece, from: *host, asked: now, until });
            }
            body.asked.insert(*host);
        }
        for (host, shards) in asks {
            self.counters.wants += shards.len() as u64;
            let shards: Vec<ShardIndex> = shards.into_iter().map(|(shard, _)| shard).collect();
            for batch in shards.chunks(shoal_proto::limits::WANT_SHARDS_MAX) {
                self.send(host, Message::Want { content: id, shards: batch.to_vec() });
            }
        }
        for stripe in whole_with_parity {
            self.rebuild_if_possible(id, stripe);
        }
        if over {
            self.give_up_rack(id);
        } else if ask_all {
            dial.into_iter().for_each(|host| self.connect(host));
            self.ask_mates(id);
        }
    }

    /// Asks mates whose placement is not known what they hold.
    fn ask_mates(&mut self, id: ContentId) {
        let Some((_, job)) = self.newest_job(id) else { return };
        let known: BTreeSet<HostIndex> = match self.contents.get(&id).and_then(|content| content.warm.as_ref()) {
            Some(warm) => warm.placements.keys().copied().collect(),
            None => return,
        };
        for (mate, linked) in self.usable_mates() {
            if linked && !known.contains(&mate) {
                let (stage, placement) = (DemotionStage::NotParticipating, RackPlacement::default());
                self.send(mate, Message::Demotion { content: id, job, stage, placement, ask: true });
            }
        }
    }

    /// Mates that may be asked, and whether there is a link.
    fn usable_mates(&self) -> Vec<(HostIndex, bool)> {
        let mates = self.membership.rack_mates(self.config.me).into_iter();
        let usable = mates.filter(|mate| self.is_linked(*mate) || self.membership.is_up(*mate));
        usable.map(|mate| (mate, self.is_linked(mate))).collect()
    }

    /// Forgets what was asked for in vain.
    fn expire_asked(&mut self, id: ContentId) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(warm), Some(body)) = (&mut content.warm, content.body.as_mut()) else { return };
        warm.late.retain(|_, until| *until > now);
        let late: Vec<(ShardIndex, HostIndex)> =
            body.wants.iter().filter(|(_, want)| want.until <= now).map(|(shard, want)| (*shard, want.from)).collect();
        if !late.is_empty() {
            body.wants_room = (body.wants_room / 2).max(self.config.tuning.wants_first);
        }
        for (shard, host) in late {
            body.wants.remove(&shard);
            warm.late.insert(host, now + self.config.tuning.avoid_useless);
        }
    }

    /// The rack cannot make the content whole.
    fn give_up_rack(&mut self, id: ContentId) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else { return };
        (content.warm, content.cold, content.gave_up) = (None, None, true);
        let missing = content.body.as_mut().map_or(0, |body| {
            (body.import_at, body.last_arrival, body.next_repair) = (now, now, now);
            body.missing
        });
        self.warming.remove(&id);
        self.notice(Notice::RackLost { content: id, missing });
        self.replan(id);
    }
}

/// A mate that may be asked.
struct Holder<'a> {
    host: HostIndex,
    whole: bool,
    placement: Option<&'a RackPlacement>,
    /// Shards that are to come from it.
    awaited: usize,
}

/// What to ask of whom, as far as there is room.
type Asks = BTreeMap<HostIndex, Vec<(ShardIndex, PieceIndex)>>;

#[derive(Default)]
struct Chosen {
    asks: Asks,
    /// Stripes of which k shards are here already.
    whole_with_parity: Vec<StripeIndex>,
}

fn choose(body: &Body, holders: &[Holder<'_>], warm: &Warm, me: HostIndex) -> Chosen {
    let mut chosen = Chosen::default();
    let room = body.wants_room.saturating_sub(warm.tardy.awaited(&body.wants, None));
    let mut room = room.min(bounds::WANTS_MAX.saturating_sub(body.wants.len()));
    let geometry = &body.geometry;
    let (stripes, data) = (geometry.stripe_count(), u32::from(geometry.data()));
    // Each host begins elsewhere, so that they do not all ask the same one at a time.
    let ranked = holders.iter().filter(|holder| holder.host < me).count() as u32;
    let first = (u64::from(ranked) * u64::from(stripes) / (holders.len() as u64 + 1)) as u32;
    for (begin, end) in [(first, stripes), (0, first)] {
        let mut at = begin * data;
        while room > 0
            && let Some(piece) = body.have.next_unset(at)
        {
            let stripe = StripeIndex(piece / data);
            if stripe.0 >= end {
                break;
            }
            at = (stripe.0 + 1) * data;
            let rows = body.parity.get(&stripe).map_or(0, |rows| rows.count_ones());
            if body.rebuilding.contains(&stripe) {
                continue;
            }
            if body.stripe_have(stripe) + rows < geometry.stripe_data(stripe) {
                room -= choose_of_stripe(body, stripe, holders, warm, room, &mut chosen.asks);
            } else if body.rebuilding.len() + chosen.whole_with_parity.len() < bounds::REBUILDS_MAX {
                chosen.whole_with_parity.push(stripe);
            }
        }
    }
    chosen
}

/// Asks for what a stripe lacks; gives how many shards that is.
fn choose_of_stripe(
    body: &Body,
    stripe: StripeIndex,
    holders: &[Holder<'_>],
    warm: &Warm,
    room: usize,
    asks: &mut Asks,
) -> usize {
    let geometry = &body.geometry;
    let rows = body.parity.get(&stripe).copied().unwrap_or(0);
    let range = geometry.shard_at(stripe, 0)..geometry.shard_at(stripe, geometry.width());
    let is_awaited = |want: &Want| !warm.tardy.is(want.from);
    let asked = body.wants.range(range).filter(|(_, want)| is_awaited(want)).count() as u32;
    let have = body.stripe_have(stripe) + rows.count_ones() + asked;
    let mut need = geometry.stripe_data(stripe).saturating_sub(have) as usize;
    need = need.min(room);
    let mut missing = geometry.stripe_pieces(stripe).filter(|piece| !body.have.get(*piece)).map(PieceIndex).cycle();
    let mut chosen = 0;
    for shard in geometry.stripe_shards(stripe) {
        if chosen == need {
            break;
        }
        let here = match geometry.piece_of(shard) {
            Some(piece) => body.have.get(piece.0),
            None => rows >> (shard.0 % geometry.width() - u32::from(geometry.data())) & 1 == 1,
        };
        if here || body.wants.get(&shard).is_some_and(is_awaited) {
            continue;
        }
        let can = |holder: &&Holder<'_>| {
            let dealt = holder.placement.is_some_and(|placement| placement.holds(geometry, holder.host, shard));
            (holder.whole || dealt) && !warm.lacking.contains(&(shard, holder.host))
        };
        // Whoever has the least to send.
        let load = |holder: &&Holder<'_>| holder.awaited + asks.get(&holder.host).map_or(0, Vec::len);
        let least = holders.iter().filter(can).min_by_key(load);
        let Some(holder) = least else { continue };
        let piece = geometry.piece_of(shard).or_else(|| missing.next()).unwrap_or(PieceIndex(0));
        asks.entry(holder.host).or_default().push((shard, piece));
        chosen += 1;
    }
    chosen
}
