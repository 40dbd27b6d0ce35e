//! Repair: single shards are requested where the lanes will not bring them.
//!
//! A piece is wanted in three cases. Its lane has no parent, nothing at all arrived for a while, or a rack peer has it
//! and the far parent must not send it. Rack peers are asked first. Then the lane's owner, and only the owner, asks
//! other racks, so that the rack imports the piece once. The origin is last.
//! Invariant: at most one want per missing piece is under way.

use super::bounds;
use super::cx::Cx;
use super::links::Links;
use super::transfer::{Transfer, Want};
use crate::io::Notice;
use shoal_proto::ids::{HostIndex, PieceIndex, ShardIndex};
use shoal_proto::limits::WANT_SHARDS_MAX;
use shoal_proto::message::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Rack peers asked for a piece before other racks are.
const RACK_PEERS_ASKED: usize = 4;
/// Owners in other racks that are asked for a piece.
const FAR_OWNERS_ASKED: usize = 16;
/// What a want waits longer after the first full round of candidates. Doubles with each round, 5 times.
const ROUND_WAIT: Duration = Duration::from_millis(200);
const ROUND_DOUBLINGS: u32 = 5;

type Requests = BTreeMap<HostIndex, Vec<ShardIndex>>;

impl Transfer {
    /// Requests single shards, at most every `bounds::CHECK_EVERY`.
    pub fn repair(&mut self, cx: &mut Cx, links: &mut Links) {
        let now = cx.now;
        if self.has_expired_bypass(now) {
            self.replan(cx, links);
        }
        let late_start = self.body.as_ref().is_some_and(|body| {
            let imports_from = body.lanes.imports_from();
            imports_from > body.wants.next_round() && now >= imports_from
        });
        if late_start {
            // Imports were delayed until now.
            self.subscribe(cx, links);
        }
        let Some(body) = self.body.as_mut().filter(|body| !body.pieces.is_whole()) else { return };
        for want in body.wants.take_late(&cx.tuning, now) {
            body.wants.note_failed(want.piece, &cx.tuning, now);
        }
        if now < body.wants.next_round() {
            return;
        }
        body.wants.set_next_round(now + bounds::CHECK_EVERY);
        let mut requests = Requests::new();
        for piece in self.pieces_to_want(cx) {
            self.want(cx, links, piece, &mut requests);
        }
        let id = self.id();
        for (host, shards) in requests {
            cx.counters.wants += shards.len() as u64;
            cx.notice(Notice::Repair { content: id, from: host, shards: shards.len() as u32 });
            for batch in shards.chunks(WANT_SHARDS_MAX) {
                links.send(cx, host, Message::Want { content: id, shards: batch.to_vec() });
            }
        }
    }

    /// Missing pieces that the lanes will not bring, as many as there is room for.
    fn pieces_to_want(&self, cx: &Cx) -> Vec<PieceIndex> {
        let Some(body) = &self.body else { return Vec::new() };
        let is_far = |host| self.plan.as_ref().is_some_and(|plan| !plan.same_rack(host, cx.me));
        let stalled = cx.now.since(body.pieces.last_arrival()) >= cx.tuning.stall;
        let room = body.wants.free();
        let mut due = Vec::new();
        let mut at = 0;
        while due.len() < room
            && let Some(piece) = body.pieces.have().next_unset(at)
        {
            at = piece + 1;
            let piece = PieceIndex(piece);
            let parent = body.lanes.get(body.geometry().lane_of_piece(piece)).parent();
            let spared = body.available_in_rack.get(piece.0) && parent.is_some_and(is_far);
            let wanted = body.wants.must_wait(piece, cx.now) || body.wants.is_wanted(piece);
            if (parent.is_none() || stalled || spared) && !wanted {
                due.push(piece);
            }
        }
        due
    }

    /// Selects a host and a shard for a missing piece. Each failure moves on to the next candidate.
    fn want(&mut self, cx: &mut Cx, links: &mut Links, piece: PieceIndex, requests: &mut Requests) {
        let candidates = self.candidates(cx, links, piece);
        let Some(body) = self.body.as_mut() else { return };
        if candidates.is_empty() {
            body.wants.note_failed(piece, &cx.tuning, cx.now);
            return;
        }
        let tries = body.wants.failures(piece);
        let round = tries as usize / candidates.len();
        let host = candidates[tries as usize % candidates.len()];
        let geometry = body.geometry();
        let mut shard = geometry.shard_of(piece);
        // In a full round no candidate had the piece itself. Every second round asks for parity of its stripe instead.
        if round % 2 == 1 && geometry.parity() > 0 {
            let Some((stripe, _)) = geometry.split(shard) else { return };
            let row = tries % u32::from(geometry.parity());
            shard = geometry.shard_at(stripe, u32::from(geometry.data()) + row);
            let here = body.pieces.parity_rows(stripe) >> row & 1 == 1;
            if here || body.wants.contains(shard) {
                body.wants.note_failed(piece, &cx.tuning, cx.now);
                return;
            }
        }
        if !links.is_linked(host) {
            body.wants.note_failed(piece, &cx.tuning, cx.now);
            links.connect(cx, host);
            return;
        }
        let wait = cx.tuning.want_timeout + ROUND_WAIT * 2u32.pow((round as u32).min(ROUND_DOUBLINGS));
        body.wants.add(shard, Want { piece, from: host, asked: cx.now, until: cx.now + wait });
        requests.entry(host).or_default().push(shard);
    }

    /// The hosts to ask for a piece, best first.
    fn candidates(&self, cx: &Cx, links: &Links, piece: PieceIndex) -> Vec<HostIndex> {
        let me = cx.me;
        let (Some(body), Some(plan)) = (&self.body, &self.plan) else { return Vec::new() };
        let has_piece = |host: HostIndex| body.children.is_known_to_have(host, piece);
        let number = body.geometry().lane_of_piece(piece);
        let mut candidates: Vec<HostIndex> = plan.rack_peers(me).collect();
        if !candidates.is_empty() {
            // Different pieces begin at different rack peers, so that they share the load.
            let turn = piece.0 as usize % candidates.len();
            candidates.rotate_left(turn);
        }
        candidates.sort_by_key(|host| (!has_piece(*host), !links.is_linked(*host)));
        candidates.truncate(RACK_PEERS_ASKED);
        candidates.extend(body.lanes.get(number).parent());
        let owner = plan.owner(number, me);
        // While the owner lives, it asks other racks for all of us. Only long failure makes the others ask, too.
        let patience = match owner {
            Some(owner) if links.is_linked(owner) => cx.tuning.owner_tries,
            _ => 2 * RACK_PEERS_ASKED as u32,
        };
        if owner.is_none_or(|owner| owner == me) || body.wants.failures(piece) > patience {
            let far = plan.owners(number).filter(|host| !plan.same_rack(*host, me));
            let mut far: Vec<HostIndex> = far.take(FAR_OWNERS_ASKED).collect();
            far.sort_by_key(|host| !has_piece(*host));
            candidates.extend(far);
            candidates.extend(self.origin);
        }
        let mut seen = BTreeSet::new();
        candidates.retain(|host| {
            let usable = *host != me && cx.membership.get(*host).is_some() && !links.avoidance.contains(*host);
            usable && seen.insert(*host)
        });
        candidates
    }

    /// A bad shard came. If it was wanted from its sender, that want has failed.
    pub fn on_corrupt(&mut self, cx: &Cx, shard: ShardIndex, from: HostIndex) {
        let Some(body) = self.body.as_mut() else { return };
        let wanted = body.wants.take_from(shard, from).map(|want| want.piece);
        if let Some(piece) = wanted.or(body.geometry().piece_of(shard)) {
            body.wants.note_failed(piece, &cx.tuning, cx.now);
        }
    }

    /// A neighbour cannot send these wanted shards. Other hosts are asked at the next check.
    pub fn on_unavailable(&mut self, cx: &Cx, from: HostIndex, shards: &[ShardIndex]) {
        let Some(body) = self.body.as_mut() else { return };
        for shard in shards {
            let Some(want) = body.wants.take_from(*shard, from) else { continue };
            body.wants.note_failed(want.piece, &cx.tuning, cx.now);
            if let (Some(piece), Some(child)) = (body.geometry().piece_of(*shard), body.children.get_mut(from)) {
                child.note_lacks(piece);
            }
        }
        body.wants.set_next_round(cx.now);
        self.note_unavailable_shares(from, shards);
    }
}
