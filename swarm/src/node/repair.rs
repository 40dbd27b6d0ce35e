//! When the lanes do not deliver: parents judged by what they deliver, single shards asked for elsewhere.
//!
//! A parent is slow only in comparison with the content's other parents, so a slow uplink, which slows all alike, blames
//! nobody. Rack peers, from whom many lanes come, are judged by what they deliver, and by how far their lanes lag; a lane that is imported and silent takes
//! a way around its parent, or around the parent's rack when all that comes from there is silent. Only importers do that:
//! their rack peers, who see the same silence, wait for them, or the rack would import the lane twice. Shards are asked for one by one only where nothing else will bring them: the lane has no parent, or nothing at
//! all arrived for a while, or a rack peer has it already. Rack peers are asked first; then, and only by the lane's owner, other racks; last the seeder.

use super::Node;
use super::content::{Lane, Trial, Want};
use super::tuning::Tuning;
use crate::io::{AvoidReason, Notice};
use crate::time::Instant;
use shoal_proto::ids::{ContentId, HostIndex, LaneIndex, PieceIndex, ShardIndex};
use shoal_proto::message::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Rack peers asked for a piece before other racks are.
const MATES_ASKED: usize = 4;

/// What is imported from a rack.
#[derive(Default)]
struct Imports {
    /// Something came of late.
    alive: bool,
    /// What comes from there.
    lanes: Vec<(LaneIndex, HostIndex)>,
    /// Lanes that have brought nothing for too long, and whom they come from.
    silent: Vec<(LaneIndex, HostIndex)>,
}

impl Node {
    /// Compares what the parents of a content delivered with what is usual for a lane of it.
    pub(super) fn judge(&mut self, id: ContentId) {
        let (now, me) = (self.now, self.config.me);
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(plan), Some(body)) = (&content.plan, content.body.as_mut()) else { return };
        let span = now.since(body.judged_at).as_millis() as u64;
        if body.missing == 0 || span < self.config.tuning.detect_span.as_millis() as u64 {
            return;
        }
        let near = |host: HostIndex| plan.same_rack(host, me);
        // What is usual is what lanes bring that bring anything: silent ones must not make silence usual.
        let patience = body.patience(&self.config.tuning);
        let alive = body.lanes.iter().filter(|lane| lane.is_awaited() && !lane.is_silent(now, patience));
        let (lanes, parents) = alive.fold((0u64, BTreeSet::new()), |(count, mut parents), lane| {
            parents.extend(lane.parent);
            (count + 1, parents)
        });
        // How many lanes come from a rack peer, and how many pieces more these lack than others do.
        let usual = body.usually_missing();
        // Where there are slow hosts in most lanes' trees, the middle lane is behind as well.
        let best = body.least_missing();
        let mut lanes_of: BTreeMap<HostIndex, (u64, u64, u64)> = BTreeMap::new();
        for lane in body.lanes.iter().filter(|lane| lane.is_awaited()) {
            if let Some(parent) = lane.parent.filter(|parent| near(*parent)) {
                let (lanes, lag, behind) = lanes_of.entry(parent).or_default();
                *lanes += 1;
                *lag += u64::from(lane.missing.saturating_sub(usual));
                *behind += u64::from(lane.missing.saturating_sub(best));
            }
        }
        // A single parent left at the end is compared with what was usual before.
        if parents.len() >= 2 {
            let rate = body.delivered * 1_000_000 / (lanes * span);
            body.typical = if body.typical == 0 { rate } else { (body.typical + rate) / 2 };
        }
        body.delivered = 0;
        body.judged_at = now;
        body.trials.retain(|host, _| lanes_of.contains_key(host));
        body.doubted.retain(|host| lanes_of.contains_key(host));
        let mut slow = Vec::new();
        for (host, (lanes, lag, behind)) in lanes_of {
            let fresh = Trial { since: now, delivered: 0, strikes: 0 };
            let trial = body.trials.entry(host).or_insert(fresh);
            let expected = body.typical * lanes * now.since(trial.since).as_millis() as u64 / 1_000_000;
            if expected < self.config.tuning.detect_pieces_min {
                continue;
            }
            let lags = lag * 1000 >= body.typical * lanes * self.config.tuning.slow_lag.as_secs()
                && trial.delivered * 3 < expected * 2;
            let crawls = trial.delivered.saturating_mul(self.config.tuning.slow_factor) < expected && behind > lanes;
            let strikes = if crawls || lags { trial.strikes + 1 } else { 0 };
            let doubted =
                trial.delivered * self.config.tuning.suspected_factor < expected && body.doubted.contains(&host);
            *trial = Trial { strikes, ..fresh };
            if strikes >= if doubted { self.config.tuning.suspected_strikes } else { self.config.tuning.slow_strikes } {
                slow.push(host);
            }
        }
        for host in slow {
            if self.may_avoid_as_slow(&id, host) {
                self.avoid_host(host, AvoidReason::Slow);
            }
        }
    }

    /// Finds ways around what imports in vain.
    pub(super) fn go_around(&mut self, id: ContentId) {
        let (now, me) = (self.now, self.config.me);
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(plan), Some(body)) = (&content.plan, content.body.as_mut()) else { return };
        let patience = body.patience(&self.config.tuning);
        let mut awaited = body.lanes.iter().filter(|lane| lane.is_awaited());
        // Near the end there is room on the links: whoever has brought little is not waited for.
        let ending = awaited.clone().count().saturating_mul(self.config.tuning.ending_one_in) <= body.lanes.len();
        // Before it, where nothing comes from anybody, nobody is to blame.
        if body.typical == 0 || !ending && awaited.all(|lane| lane.rests || lane.is_silent(now, patience)) {
            return;
        }
        // A host that brings another lane is there: what it does not bring it lacks itself, and finds a way.
        let mut heard: BTreeMap<HostIndex, Instant> = BTreeMap::new();
        for lane in body.lanes.iter().filter(|lane| lane.is_awaited() && !lane.rests) {
            if let Some(parent) = lane.parent {
                let last = heard.entry(parent).or_default();
                *last = (*last).max(lane.since.max(lane.brought));
            }
        }
        let alone = |lane: &Lane| {
            if ending && body.is_behind(lane, &self.config.tuning) {
                patience
            } else {
                patience * self.config.tuning.silence_single_lane
            }
        };
        if heard.values().all(|last| now.since(*last) < patience)
            && !body.lanes.iter().any(|lane| lane.is_awaited() && lane.is_silent(now, alone(lane)))
        {
            return;
        }
        // By the rack they come from, the imported lanes: whether any brings anything, and those that are silent.
        let mut imports: BTreeMap<Vec<HostIndex>, Imports> = BTreeMap::new();
        for (number, lane) in body.lanes.iter().enumerate() {
            let Some(parent) = lane.parent.filter(|_| lane.is_awaited() && !lane.rests) else { continue };
            if content.origin == Some(parent) || plan.same_rack(parent, me) {
                continue;
            }
            let mut rack = self.membership.rack_mates(parent);
            rack.push(parent);
            rack.sort_unstable();
            let from = imports.entry(rack).or_default();
            let number = LaneIndex(number as u8);
            from.lanes.push((number, parent));
            from.alive |= now.since(heard[&parent]) < patience;
            // Who is nearest to where it stops goes around first; those below it then get it as before.
            let depth = if ending {
                1
            } else {
                plan.depth(number, parent).unwrap_or(1).clamp(1, self.config.tuning.silence_depth)
            };
            if now.since(heard[&parent]) >= patience * depth || lane.is_silent(now, alone(lane) * depth) {
                from.silent.push((number, parent));
            }
        }
        let mut found = Vec::new();
        // Whom other lanes go around is nobody to turn to.
        let suspects: BTreeMap<HostIndex, Instant> =
            content.detours.values().flatten().map(|(host, until)| (*host, *until)).collect();
        for (rack, Imports { alive, lanes, silent }) in imports {
            let until = now + self.config.tuning.avoid_useless;
            let hosts: BTreeSet<HostIndex> = lanes.iter().map(|(_, parent)| *parent).collect();
            if hosts.len() >= self.config.tuning.silent_rack_hosts && !alive {
                found.push((None, lanes[0].1));
                content.useless.extend(rack.into_iter().map(|host| (host, until)));
            } else {
                for (lane, parent) in silent {
                    let passed = content.detours.entry(lane).or_default();
                    // The second of a rack: it is not the host.
                    let again = rack.iter().any(|host| passed.contains_key(host));
                    let around = if again { &rack[..] } else { &[parent] };
                    passed.extend(&suspects);
                    passed.extend(around.iter().map(|host| (*host, until)));
                    found.push((Some(lane), parent));
                }
            }
        }
        if found.is_empty() {
            return;
        }
        for (lane, around) in found {
            self.notice(Notice::Detour { content: id, lane, around });
        }
        self.replan(id);
    }

    /// Keeps a misjudgement from spreading: where many seem slow, the cause lies elsewhere.
    fn may_avoid_as_slow(&self, id: &ContentId, host: HostIndex) -> bool {
        let Some(plan) = self.contents.get(id).and_then(|content| content.plan.as_ref()) else { return false };
        let near = |other: &HostIndex| plan.same_rack(*other, host);
        let slow = self.avoid.iter().filter(|(other, avoid)| avoid.why == AvoidReason::Slow && near(other)).count();
        slow < (plan.mates(host).count() / self.config.tuning.slow_one_in).max(1)
    }

    pub(super) fn on_corrupt(&mut self, id: ContentId, shard: ShardIndex, from: HostIndex) {
        if let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) {
            let asked = body.wants.get(&shard).filter(|want| want.from == from).map(|want| want.piece);
            if asked.is_some() {
                body.wants.remove(&shard);
            }
            if let Some(piece) = asked.or(body.geometry.piece_of(shard)) {
                body.failed(piece, self.now, &self.config.tuning);
            }
        }
        self.on_bad_shard(from);
    }

    pub(super) fn on_lack(&mut self, from: HostIndex, id: ContentId, shards: &[ShardIndex]) {
        let now = self.now;
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        for shard in shards {
            let Some(want) = body.wants.get(shard).filter(|want| want.from == from).copied() else { continue };
            body.wants.remove(shard);
            body.failed(want.piece, now, &self.config.tuning);
            if let (Some(piece), Some(child)) = (body.geometry.piece_of(*shard), body.children.get_mut(&from)) {
                child.has.unset(piece.0);
            }
        }
        body.next_repair = now;
        self.warm_lacks(id, from, shards);
    }

    /// A neighbour does not know the content: not a source of its manifest, not a parent for a while.
    pub(super) fn on_unknown(&mut self, from: HostIndex, id: ContentId) {
        let until = self.now + self.config.tuning.avoid_useless;
        let Some(content) = self.contents.get_mut(&id) else { return };
        if content.body.is_none() {
            self.manifest_source_failed(id, from);
            return;
        }
        let Some(body) = content.body.as_mut() else { return };
        body.wants.retain(|_, want| want.from != from);
        if content.warm.is_some() {
            self.warm_lost(id, from);
            return;
        }
        if body.lanes.iter().any(|lane| lane.parent == Some(from)) {
            for lane in body.lanes.iter_mut().filter(|lane| lane.parent == Some(from)) {
                lane.subscribed = false;
                lane.parent = None;
            }
            content.useless.insert(from, until);
            self.replan(id);
        }
    }

    /// Asks for single shards where the lanes will not bring them.
    pub(super) fn repair(&mut self, id: ContentId) {
        let now = self.now;
        self.refresh_useless(id);
        let waited = self.contents.get(&id).and_then(|content| content.body.as_ref());
        if waited.is_some_and(|body| body.import_at > body.next_repair && now >= body.import_at) {
            self.subscribe(id);
        }
        let me = self.config.me;
        let Some(content) = self.contents.get_mut(&id) else { return };
        let far = |host| content.plan.as_ref().is_some_and(|plan| !plan.same_rack(host, me));
        let Some(body) = content.body.as_mut().filter(|body| body.missing > 0) else { return };
        expire_wants(body, now, &self.config.tuning);
        if now < body.next_repair {
            return;
        }
        body.next_repair = now + self.config.tuning.check_every;
        let stalled = now.since(body.last_arrival) >= self.config.tuning.stall;
        let mut room = body.wants_room.saturating_sub(body.wants.len());
        let mut due: Vec<PieceIndex> = Vec::new();
        let mut at = 0;
        while room > 0
            && let Some(piece) = body.have.next_unset(at)
        {
            at = piece + 1;
            let piece = PieceIndex(piece);
            let parent = body.lanes[body.geometry.lane_of_piece(piece).index()].parent;
            let orphan = parent.is_none();
            let spared = body.spared.get(piece.0) && parent.is_some_and(far);
            let waits = body.tries.get(&piece).is_some_and(|tries| tries.not_before > now);
            let asked = body.wants.values().any(|want| want.piece == piece);
            if (orphan || stalled || spared) && !waits && !asked {
                due.push(piece);
                room -= 1;
            }
        }
        let mut asks: BTreeMap<HostIndex, Vec<ShardIndex>> = BTreeMap::new();
        for piece in due {
            self.ask(id, piece, &mut asks);
        }
        for (host, shards) in asks {
            self.counters.wants += shards.len() as u64;
            self.notice(Notice::Repair { content: id, from: host, shards: shards.len() as u32 });
            for batch in shards.chunks(shoal_proto::limits::WANT_SHARDS_MAX) {
                self.send(host, Message::Want { content: id, shards: batch.to_vec() });
            }
        }
    }

    fn refresh_useless(&mut self, id: ContentId) {
        let now = self.now;
        if self.contents.get(&id).is_some_and(|content| content.tries_again(now, &self.config.tuning)) {
            self.replan(id);
        }
    }

    /// Picks whom to ask for a piece, going through the candidates by how often it was asked for.
    fn ask(&mut self, id: ContentId, piece: PieceIndex, asks: &mut BTreeMap<HostIndex, Vec<ShardIndex>>) {
        let candidates = self.candidates(&id, piece);
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        let tries = body.tries.get(&piece).map_or(0, |tries| tries.count);
        if candidates.is_empty() {
            body.failed(piece, self.now, &self.config.tuning);
            return;
        }
        let round = tries as usize / candidates.len();
        let host = candidates[tries as usize % candidates.len()];
        let mut shard = body.geometry.shard_of(piece);
        // Nobody asked so far had the piece itself: any shard of its stripe helps as well.
        if round % 2 == 1 && body.geometry.parity() > 0 {
            let Some((stripe, _)) = body.geometry.split(shard) else { return };
            let row = tries % u32::from(body.geometry.parity());
            shard = body.geometry.shard_at(stripe, u32::from(body.geometry.data()) + row);
            let held = body.parity.get(&stripe).is_some_and(|rows| rows >> row & 1 == 1);
            if held || body.wants.contains_key(&shard) {
                body.failed(piece, self.now, &self.config.tuning);
                return;
            }
        }
        if !self.links.get(&host).is_some_and(|link| link.is_up()) {
            body.failed(piece, self.now, &self.config.tuning);
            self.connect(host);
            return;
        }
        // Every full round without success doubles the wait.
        let wait = self.config.tuning.want_timeout + Duration::from_millis(200) * 2u32.pow((round as u32).min(5));
        let Some(body) = self.contents.get_mut(&id).and_then(|content| content.body.as_mut()) else { return };
        body.wants.insert(shard, Want { piece, from: host, asked: self.now, until: self.now + wait });
        body.asked.insert(host);
        asks.entry(host).or_default().push(shard);
    }

    /// Whom to ask for a piece, best first.
    fn candidates(&self, id: &ContentId, piece: PieceIndex) -> Vec<HostIndex> {
        let me = self.config.me;
        let Some(content) = self.contents.get(id) else { return Vec::new() };
        let (Some(body), Some(plan)) = (&content.body, &content.plan) else { return Vec::new() };
        let number: LaneIndex = body.geometry.lane_of_piece(piece);
        let mut mates: Vec<HostIndex> = plan.mates(me).collect();
        if !mates.is_empty() {
            let turn = piece.0 as usize % mates.len();
            mates.rotate_left(turn);
        }
        mates.sort_by_key(|mate| (!self.is_known_to_have(*mate, id, piece), !self.is_linked(*mate)));
        mates.truncate(MATES_ASKED);
        let mut candidates = mates;
        candidates.extend(body.lanes[number.index()].parent);
        let owner = plan.owner(number, me);
        let tries = body.tries.get(&piece).map_or(0, |tries| tries.count);
        // Others of the rack wait for the owner, unless that has led nowhere for long.
        let patience = match owner {
            Some(owner) if self.is_linked(owner) => self.config.tuning.owner_tries,
            _ => 2 * MATES_ASKED as u32,
        };
        if owner.is_none_or(|owner| owner == me) || tries > patience {
            let known = |host: &HostIndex| self.is_known_to_have(*host, id, piece);
            let mut far: Vec<HostIndex> =
                plan.owners(number).filter(|host| !plan.same_rack(*host, me)).take(16).collect();
            far.sort_by_key(|host| !known(host));
            candidates.extend(far);
            candidates.extend(content.origin);
        }
        let mut seen = BTreeSet::new();
        candidates.retain(|host| {
            let usable = *host != me && self.membership.get(*host).is_some() && !self.avoid.contains_key(host);
            usable && seen.insert(*host)
        });
        candidates
    }
}

fn expire_wants(body: &mut super::content::Body, now: Instant, tuning: &Tuning) {
    let late: Vec<(ShardIndex, PieceIndex)> =
        body.wants.iter().filter(|(_, want)| want.until <= now).map(|(shard, want)| (*shard, want.piece)).collect();
    if !late.is_empty() {
        body.wants_room = (body.wants_room / 2).max(tuning.wants_first);
    }
    for (shard, piece) in late {
        body.wants.remove(&shard);
        body.failed(piece, now, tuning);
    }
}
