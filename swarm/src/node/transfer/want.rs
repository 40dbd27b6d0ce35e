//! Wants: shards requested outside their lanes, and pieces for which requests failed.
//!
//! Invariant: at most `bounds::WANTS_MAX` wants are under way for one content.

use crate::node::{Tuning, bounds};
use crate::time::Instant;
use shoal_proto::ids::{HostIndex, PieceIndex, ShardIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

/// A shard under way that was requested.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// The piece that it brings: itself, or a piece of its stripe when it is parity.
    pub piece: PieceIndex,
    pub from: HostIndex,
    pub asked: Instant,
    /// After this the want has failed.
    pub until: Instant,
}

/// Requests for one missing piece that failed.
#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    count: u32,
    not_before: Instant,
}

#[derive(Debug)]
pub struct Wants {
    by_shard: BTreeMap<ShardIndex, Want>,
    /// Wants allowed under way. Each arrival adds one, each time-out halves it (as TCP does with its window).
    room: usize,
    tries: BTreeMap<PieceIndex, Tries>,
    /// Hosts that were asked for anything on the links that are up. They hear when nothing more is needed.
    asked_hosts: BTreeSet<HostIndex>,
    /// When missing pieces are looked for again.
    next_round: Instant,
}

impl Wants {
    pub fn new(tuning: &Tuning, now: Instant) -> Self {
        Self {
            by_shard: BTreeMap::new(),
            room: tuning.wants_first,
            tries: BTreeMap::new(),
            asked_hosts: BTreeSet::new(),
            next_round: now,
        }
    }

    pub fn len(&self) -> usize {
        self.by_shard.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_shard.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Want> {
        self.by_shard.values()
    }

    pub fn get(&self, shard: ShardIndex) -> Option<&Want> {
        self.by_shard.get(&shard)
    }

    pub fn in_range(&self, shards: Range<ShardIndex>) -> impl Iterator<Item = &Want> {
        self.by_shard.range(shards).map(|(_, want)| want)
    }

    pub fn contains(&self, shard: ShardIndex) -> bool {
        self.by_shard.contains_key(&shard)
    }

    pub fn is_wanted(&self, piece: PieceIndex) -> bool {
        self.by_shard.values().any(|want| want.piece == piece)
    }

    pub fn room(&self) -> usize {
        self.room
    }

    /// How many more may be requested now.
    pub fn free(&self) -> usize {
        self.room.saturating_sub(self.by_shard.len())
    }

    pub fn add(&mut self, shard: ShardIndex, want: Want) {
        self.by_shard.insert(shard, want);
        self.asked_hosts.insert(want.from);
    }

    /// A wanted shard arrived, from whomever.
    pub fn on_arrival(&mut self, shard: ShardIndex) -> Option<Want> {
        let want = self.by_shard.remove(&shard)?;
        self.room = (self.room + 1).min(bounds::WANTS_MAX);
        Some(want)
    }

    pub fn remove(&mut self, shard: ShardIndex) {
        self.by_shard.remove(&shard);
    }

    /// Takes the want for this shard back if `from` was asked for it.
    pub fn take_from(&mut self, shard: ShardIndex, from: HostIndex) -> Option<Want> {
        let want = *self.by_shard.get(&shard).filter(|want| want.from == from)?;
        self.by_shard.remove(&shard);
        Some(want)
    }

    /// Nothing comes from this host any more.
    pub fn forget_host(&mut self, host: HostIndex) {
        self.by_shard.retain(|_, want| want.from != host);
    }

    /// The link to the host is down: it does not know any more that it was asked.
    pub fn on_link_lost(&mut self, host: HostIndex) {
        self.forget_host(host);
        self.asked_hosts.remove(&host);
    }

    /// Takes out the wants whose time is over. A time-out halves the room.
    pub fn take_late(&mut self, tuning: &Tuning, now: Instant) -> Vec<Want> {
        let late: Vec<(ShardIndex, Want)> =
            self.by_shard.iter().filter(|(_, want)| want.until <= now).map(|(shard, want)| (*shard, *want)).collect();
        if !late.is_empty() {
            self.room = (self.room / 2).max(tuning.wants_first);
        }
        for (shard, _) in &late {
            self.by_shard.remove(shard);
        }
        late.into_iter().map(|(_, want)| want).collect()
    }

    pub fn note_asked(&mut self, hosts: impl Iterator<Item = HostIndex>) {
        self.asked_hosts.extend(hosts);
    }

    /// Everything is here. Returns the hosts that were asked for something.
    pub fn finish(&mut self) -> BTreeSet<HostIndex> {
        self.by_shard.clear();
        self.tries.clear();
        std::mem::take(&mut self.asked_hosts)
    }

    pub fn clear(&mut self) {
        self.by_shard.clear();
    }

    /// A request for a piece failed. The more failures, the longer the wait before the next request.
    pub fn note_failed(&mut self, piece: PieceIndex, tuning: &Tuning, now: Instant) {
        let tries = self.tries.entry(piece).or_default();
        tries.count = tries.count.saturating_add(1);
        let doublings = (tries.count / tuning.tries_without_wait).min(bounds::FAILED_WANT_DOUBLINGS);
        let wait = if doublings == 0 { Duration::ZERO } else { bounds::CHECK_EVERY * 2u32.pow(doublings) };
        tries.not_before = now + wait;
    }

    /// Failed requests for a piece. The count selects the next host to ask.
    pub fn failures(&self, piece: PieceIndex) -> u32 {
        self.tries.get(&piece).map_or(0, |tries| tries.count)
    }

    pub fn must_wait(&self, piece: PieceIndex, now: Instant) -> bool {
        self.tries.get(&piece).is_some_and(|tries| tries.not_before > now)
    }

    /// The piece is here.
    pub fn forget_failures_of(&mut self, piece: PieceIndex) {
        self.tries.remove(&piece);
    }

    pub fn forget_failures(&mut self) {
        self.tries.clear();
    }

    pub fn next_round(&self) -> Instant {
        self.next_round
    }

    pub fn set_next_round(&mut self, at: Instant) {
        self.next_round = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: PieceIndex = PieceIndex(7);

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn want(from: u32, until: u64) -> Want {
        Want { piece: PIECE, from: HostIndex(from), asked: at(0), until: at(until) }
    }

    #[test]
    fn arrivals_add_room_and_time_outs_halve_it() {
        let tuning = Tuning::default();
        let mut wants = Wants::new(&tuning, at(0));
        let first = tuning.wants_first;
        for number in 0..first as u32 * 3 {
            wants.add(ShardIndex(number), want(1, 100));
            wants.on_arrival(ShardIndex(number));
        }
        assert_eq!((wants.room(), wants.free()), (first * 4, first * 4));
        wants.add(ShardIndex(0), want(1, 100));
        assert!(wants.take_late(&tuning, at(99)).is_empty());
        assert_eq!(wants.take_late(&tuning, at(100)).len(), 1);
        assert_eq!(wants.room(), first * 2);
        wants.add(ShardIndex(0), want(1, 100));
        wants.add(ShardIndex(1), want(1, 100));
        for _ in 0..9 {
            let _ = wants.take_late(&tuning, at(100)); // nothing is left to fail
        }
        assert!(wants.room() >= first, "never below the first room");
    }

    #[test]
    fn the_wait_grows_with_failures_and_ends_with_the_piece() {
        let tuning = Tuning::default();
        let mut wants = Wants::new(&tuning, at(0));
        (1..tuning.tries_without_wait).for_each(|_| wants.note_failed(PIECE, &tuning, at(0)));
        assert!(!wants.must_wait(PIECE, at(0)));
        wants.note_failed(PIECE, &tuning, at(0));
        assert!(wants.must_wait(PIECE, at(0)));
        wants.forget_failures_of(PIECE);
        assert!(!wants.must_wait(PIECE, at(0)) && wants.failures(PIECE) == 0);
    }

    #[test]
    fn only_the_host_that_was_asked_takes_a_want_back() {
        let mut wants = Wants::new(&Tuning::default(), at(0));
        wants.add(ShardIndex(3), want(1, 100));
        assert!(wants.take_from(ShardIndex(3), HostIndex(2)).is_none());
        assert!(wants.take_from(ShardIndex(3), HostIndex(1)).is_some());
        assert!(wants.is_empty());
        assert_eq!(wants.finish(), BTreeSet::from([HostIndex(1)]), "it hears when nothing more is needed");
    }
}
