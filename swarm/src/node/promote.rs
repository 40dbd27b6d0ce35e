//! Promotion: a content becomes whole again from the rack shares of one rack alone.
//!
//! Placements tell a host which rack peer holds which shard. The host requests as many shards of each stripe as it
//! lacks, pieces before parity. Each host begins at another stripe. No other rack is asked while rack peers can still
//! give something. When they cannot complete a stripe any more, the content comes down its lanes, as for any late host.
//! Invariant: a content that is promoted has no parents, so nothing crosses the uplink for it.

use super::bounds;
use super::cx::Cx;
use super::jobs::Jobs;
use super::links::Links;
use super::stragglers::SlowHolders;
use super::transfer::{Body, Transfer, Want};
use crate::io::{Notice, Output};
use crate::time::Instant;
use shoal_proto::ids::{HostIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::limits::WANT_SHARDS_MAX;
use shoal_proto::message::{DemotionStage, Message};
use shoal_proto::rack_placement::RackPlacement;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A content on its way back.
#[derive(Debug)]
pub struct Promotion {
    /// When a rack peer last answered or a shard last came.
    last_progress: Instant,
    /// The placement whose rack share each rack peer holds.
    placements: BTreeMap<HostIndex, RackPlacement>,
    /// Rack peers that did not answer are not asked before this.
    silent: BTreeMap<HostIndex, Instant>,
    slow_holders: SlowHolders,
    /// Shards that a rack peer should hold and does not.
    unavailable: BTreeSet<(ShardIndex, HostIndex)>,
    /// When rack peers are asked again what they hold.
    ask_at: Instant,
}

impl Promotion {
    pub fn note_answer(&mut self, took: Duration) {
        self.slow_holders.note_answer(took);
    }
}

/// A rack peer that may be asked for shards.
struct Holder<'a> {
    host: HostIndex,
    /// It has the whole content.
    whole: bool,
    placement: Option<&'a RackPlacement>,
    /// Shards that are to come from it.
    awaited: usize,
}

/// A shard to request, with the piece it brings.
struct Request {
    shard: ShardIndex,
    piece: PieceIndex,
}

#[derive(Default)]
struct Selection {
    requests: BTreeMap<HostIndex, Vec<Request>>,
    /// Stripes of which k shards are here already.
    decodable: Vec<StripeIndex>,
}

/// A rack peer, and whether there is a link to it.
struct RackPeer {
    host: HostIndex,
    linked: bool,
}

/// Rack peers that may be asked.
fn usable_rack_peers(cx: &Cx, links: &Links) -> Vec<RackPeer> {
    let peers = cx.membership.rack_peers(cx.me).into_iter();
    let peers = peers.map(|host| RackPeer { host, linked: links.is_linked(host) });
    peers.filter(|peer| peer.linked || cx.membership.is_up(peer.host)).collect()
}

impl Transfer {
    /// Begins to fetch what is missing from rack peers.
    pub fn begin_promotion(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let id = self.id();
        let Some(body) = self.body.as_mut().filter(|body| !body.pieces.is_whole()) else { return };
        if self.promotion.is_some() {
            return;
        }
        let mut placements = BTreeMap::new();
        for placement in self.demotion.iter().flat_map(|demotion| demotion.promised()) {
            for host in placement.hosts().iter().filter(|host| **host != cx.me) {
                placements.insert(*host, placement.clone());
            }
        }
        body.pieces.use_stored_parity();
        self.promotion = Some(Promotion {
            last_progress: cx.now,
            placements,
            silent: BTreeMap::new(),
            slow_holders: SlowHolders::default(),
            unavailable: BTreeSet::new(),
            ask_at: cx.now,
        });
        cx.agenda.active.insert(id);
        cx.agenda.promoting.insert(id);
        for (host, lanes) in body.lanes.leave_all() {
            links.send(cx, host, Message::Unsubscribe { content: id, lanes });
        }
        cx.push(Output::ReserveRest { content: id });
        self.promote(cx, links, jobs);
    }

    /// A rack peer holds its rack share of a placement. It can be asked for shards, also where this host did not know
    /// that the rack has demoted the content.
    pub fn on_share_held(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        from: HostIndex,
        placement: RackPlacement,
    ) {
        let incomplete = self.body.as_ref().is_some_and(|body| !body.pieces.is_whole());
        if jobs.demotion_of(&self.jobs).is_some() || !incomplete || placement.hosts().is_empty() {
            return;
        }
        if self.promotion.is_none() {
            if self.rack_gave_up {
                return;
            }
            self.begin_promotion(cx, links, jobs);
        }
        let Some(promotion) = self.promotion.as_mut() else { return };
        if promotion.placements.get(&from) != Some(&placement) {
            // The other hosts of the placement hold their shares too, or this one could not have dropped the whole.
            for host in placement.hosts().iter().filter(|host| **host != cx.me) {
                promotion.placements.entry(*host).or_insert_with(|| placement.clone());
            }
            promotion.placements.insert(from, placement);
            promotion.last_progress = cx.now;
        }
        promotion.silent.remove(&from);
        self.promote(cx, links, jobs);
    }

    /// A rack peer holds no rack share.
    pub fn on_share_lost(&mut self, from: HostIndex) {
        if let Some(promotion) = self.promotion.as_mut() {
            promotion.placements.remove(&from);
        }
    }

    /// A rack peer lacks shards that its placement says it holds.
    pub fn note_unavailable_shares(&mut self, from: HostIndex, shards: &[ShardIndex]) {
        if let Some(promotion) = self.promotion.as_mut()
            && promotion.unavailable.len() < bounds::UNAVAILABLE_MAX
        {
            promotion.unavailable.extend(shards.iter().map(|shard| (*shard, from)));
        }
    }

    /// Something came. Requests more once half of what was requested is here.
    pub fn on_promotion_progress(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let (Some(promotion), Some(body)) = (&mut self.promotion, &self.body) else { return };
        promotion.last_progress = cx.now;
        if promotion.slow_holders.awaited(&body.wants) * 2 <= body.wants.room() {
            self.promote(cx, links, jobs);
        }
    }

    /// Requests what is missing from rack peers, as far as there is room.
    pub fn promote(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        self.expire_share_wants(cx);
        let peers = usable_rack_peers(cx, links);
        let id = self.id();
        let (Some(promotion), Some(body)) = (&mut self.promotion, self.body.as_mut()) else { return };
        if body.pieces.is_whole() {
            return;
        }
        promotion.slow_holders.update(&body.wants, &cx.tuning, cx.now);
        let ask_all = promotion.ask_at <= cx.now;
        if ask_all {
            promotion.ask_at = cx.now + bounds::DEMOTION_ASK_EVERY;
        }
        let Selection { requests, decodable } = select(body, promotion, &peers, cx.me);
        let nothing_to_do = requests.is_empty() && decodable.is_empty();
        let nothing_under_way = body.wants.is_empty() && body.pieces.rebuild_count() == 0;
        let waited = cx.now.since(promotion.last_progress) >= cx.tuning.promote_patience;
        let until = cx.now + cx.tuning.want_timeout;
        for (host, requests) in requests {
            cx.counters.wants += requests.len() as u64;
            for Request { shard, piece } in &requests {
                body.wants.add(*shard, Want { piece: *piece, from: host, asked: cx.now, until });
            }
            for batch in requests.chunks(WANT_SHARDS_MAX) {
                let shards = batch.iter().map(|request| request.shard).collect();
                links.send(cx, host, Message::Want { content: id, shards });
            }
        }
        for stripe in decodable {
            self.rebuild_if_possible(cx, stripe);
        }
        if nothing_to_do && nothing_under_way && waited {
            self.give_up_rack(cx, links);
        } else if ask_all {
            peers.iter().filter(|peer| !peer.linked).for_each(|peer| links.connect(cx, peer.host));
            self.ask_for_placements(cx, links, jobs);
        }
    }

    /// Asks rack peers whose placement is not known what they hold.
    fn ask_for_placements(&self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let (Some(job), Some(promotion)) = (jobs.newest_of(&self.jobs), &self.promotion) else { return };
        let job = job.id();
        for peer in usable_rack_peers(cx, links) {
            if peer.linked && !promotion.placements.contains_key(&peer.host) {
                let (stage, placement) = (DemotionStage::NotParticipating, RackPlacement::default());
                let message = Message::Demotion { content: self.id(), job, stage, placement, ask: true };
                links.send(cx, peer.host, message);
            }
        }
    }

    /// Takes back wants that were not answered. Their hosts are not asked for a while.
    fn expire_share_wants(&mut self, cx: &Cx) {
        let (Some(promotion), Some(body)) = (&mut self.promotion, self.body.as_mut()) else { return };
        promotion.silent.retain(|_, until| *until > cx.now);
        for want in body.wants.take_late(&cx.tuning, cx.now) {
            promotion.silent.insert(want.from, cx.now + cx.tuning.avoid);
        }
    }

    /// The rack shares cannot make the content whole: its lanes bring the rest.
    fn give_up_rack(&mut self, cx: &mut Cx, links: &mut Links) {
        (self.promotion, self.demotion, self.rack_gave_up) = (None, None, true);
        let mut missing = 0;
        if let Some(body) = self.body.as_mut() {
            // Imports and repair begin at once, not after the usual patience.
            body.lanes.delay_imports(cx.now);
            body.pieces.note_arrival(cx.now);
            body.wants.set_next_round(cx.now);
            missing = body.pieces.missing();
        }
        cx.agenda.promoting.remove(&self.id());
        cx.notice(Notice::RackLost { content: self.id(), missing });
        self.replan(cx, links);
    }
}

/// Selects what to request from which rack peer, as far as there is room.
fn select(body: &Body, promotion: &Promotion, peers: &[RackPeer], me: HostIndex) -> Selection {
    let slow = &promotion.slow_holders;
    let mut holders: Vec<Holder<'_>> = Vec::new();
    for host in peers.iter().filter(|peer| peer.linked).map(|peer| peer.host) {
        let whole = body.children.get(host).is_some_and(|child| child.has().is_full());
        let placement = promotion.placements.get(&host);
        if !promotion.silent.contains_key(&host) && !slow.is_slow(host) && (whole || placement.is_some()) {
            holders.push(Holder { host, whole, placement, awaited: slow.awaited_from(&body.wants, host) });
        }
    }
    let mut selection = Selection::default();
    // Slow holders take no room, or they would keep the others idle.
    let room = body.wants.room().saturating_sub(slow.awaited(&body.wants));
    let mut room = room.min(bounds::WANTS_MAX.saturating_sub(body.wants.len()));
    let geometry = body.geometry();
    let (stripes, data) = (geometry.stripe_count(), u32::from(geometry.data()));
    // Each host begins at another stripe, so that they do not all ask one holder at the same time.
    let ranked = holders.iter().filter(|holder| holder.host < me).count() as u32;
    let first = (u64::from(ranked) * u64::from(stripes) / (holders.len() as u64 + 1)) as u32;
    for (begin, end) in [(first, stripes), (0, first)] {
        let mut at = begin * data;
        while room > 0
            && let Some(piece) = body.pieces.have().next_unset(at)
        {
            let stripe = StripeIndex(piece / data);
            if stripe.0 >= end {
                break;
            }
            at = (stripe.0 + 1) * data;
            let rows = body.pieces.parity_rows(stripe).count_ones();
            if body.pieces.is_rebuilding(stripe) {
                continue;
            }
            if body.pieces.stripe_have(stripe) + rows < geometry.stripe_data(stripe) {
                room -= select_of_stripe(body, promotion, stripe, &holders, room, &mut selection);
            } else if body.pieces.rebuild_count() + selection.decodable.len() < bounds::REBUILDS_MAX {
                selection.decodable.push(stripe);
            }
        }
    }
    selection
}

/// Selects requests for what one stripe lacks. Returns how many.
fn select_of_stripe(
    body: &Body,
    promotion: &Promotion,
    stripe: StripeIndex,
    holders: &[Holder<'_>],
    room: usize,
    selection: &mut Selection,
) -> usize {
    let geometry = body.geometry();
    let rows = body.pieces.parity_rows(stripe);
    let is_awaited = |want: &Want| !promotion.slow_holders.is_slow(want.from);
    let shards = geometry.shard_at(stripe, 0)..geometry.shard_at(stripe, geometry.width());
    let awaited = body.wants.in_range(shards).filter(|want| is_awaited(want)).count() as u32;
    let have = body.pieces.stripe_have(stripe) + rows.count_ones() + awaited;
    let need = (geometry.stripe_data(stripe).saturating_sub(have) as usize).min(room);
    // Parity can bring any missing piece: it is noted for one after the other.
    let missing = geometry.stripe_pieces(stripe).filter(|piece| !body.pieces.have().get(*piece));
    let mut missing = missing.map(PieceIndex).cycle();
    let mut selected = 0;
    for shard in geometry.stripe_shards(stripe) {
        if selected == need {
            break;
        }
        let here = match geometry.piece_of(shard) {
            Some(piece) => body.pieces.has(piece),
            None => rows >> body.pieces.parity_row(shard.0 % geometry.width()) & 1 == 1,
        };
        if here || body.wants.get(shard).is_some_and(is_awaited) {
            continue;
        }
        let can_send = |holder: &&Holder<'_>| {
            let placed = holder.placement.is_some_and(|placement| placement.holds(geometry, holder.host, shard));
            (holder.whole || placed) && !promotion.unavailable.contains(&(shard, holder.host))
        };
        let load = |holder: &&Holder<'_>| holder.awaited + selection.requests.get(&holder.host).map_or(0, Vec::len);
        let Some(holder) = holders.iter().filter(can_send).min_by_key(load) else { continue };
        let piece = geometry.piece_of(shard).or_else(|| missing.next()).unwrap_or(PieceIndex(0));
        selection.requests.entry(holder.host).or_default().push(Request { shard, piece });
        selected += 1;
    }
    selected
}
