//! Slow holders: rack peers that take much longer to answer than is usual while a content is promoted.
//!
//! What a slow holder was asked for is asked of other holders too, where they have the shard or parity in its place.
//! For a while the slow holder is asked for nothing more. Where all are slow alike, slow is usual, and no holder is
//! slow.
//! Invariant: a holder is slow only once another answer has shown what is usual.

use crate::node::Tuning;
use crate::node::transfer::Wants;
use crate::time::Instant;
use shoal_proto::ids::HostIndex;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct SlowHolders {
    /// How long an answer takes, smoothed by 1/8; `None` before the first.
    usual: Option<Duration>,
    /// Until when each counts as slow.
    until: BTreeMap<HostIndex, Instant>,
}

impl SlowHolders {
    pub fn note_answer(&mut self, took: Duration) {
        self.usual = Some(self.usual.map_or(took, |usual| (usual * 7 + took) / 8));
    }

    /// Finds the holders that keep us waiting now.
    pub fn update(&mut self, wants: &Wants, tuning: &Tuning, now: Instant) {
        self.until.retain(|_, until| *until > now);
        let Some(usual) = self.usual else { return };
        let patience = (usual * tuning.slow_holder_factor).clamp(tuning.slow_holder_min, tuning.want_timeout);
        for want in wants.iter().filter(|want| now.since(want.asked) >= patience) {
            self.until.entry(want.from).or_insert(now + tuning.slow_holder_time);
        }
    }

    pub fn is_slow(&self, host: HostIndex) -> bool {
        self.until.contains_key(&host)
    }

    /// How many wanted shards come from holders that are not slow.
    pub fn awaited(&self, wants: &Wants) -> usize {
        wants.iter().filter(|want| !self.is_slow(want.from)).count()
    }

    /// How many wanted shards come from this holder; 0 from a slow one.
    pub fn awaited_from(&self, wants: &Wants, host: HostIndex) -> usize {
        if self.is_slow(host) { 0 } else { wants.iter().filter(|want| want.from == host).count() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::transfer::Want;
    use shoal_proto::ids::{PieceIndex, ShardIndex};

    fn wants(rows: &[(u32, u32, u64)]) -> Wants {
        let tuning = Tuning::default();
        let mut wants = Wants::new(&tuning, at(0));
        for (shard, from, asked) in rows {
            let (from, asked) = (HostIndex(*from), at(*asked));
            let until = asked + tuning.want_timeout;
            wants.add(ShardIndex(*shard), Want { piece: PieceIndex(0), from, asked, until });
        }
        wants
    }

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn only_a_holder_slower_than_others_is_slow_and_for_a_while() {
        let (mut holders, tuning) = (SlowHolders::default(), Tuning::default());
        let wanted = wants(&[(0, 1, 0), (1, 1, 90), (2, 2, 150)]);
        holders.update(&wanted, &tuning, at(1000));
        assert!(!holders.is_slow(HostIndex(1)), "nothing shows yet what is usual");
        holders.note_answer(Duration::from_millis(5));
        holders.update(&wanted, &tuning, at(199));
        assert_eq!(holders.awaited(&wanted), 3);
        holders.update(&wanted, &tuning, at(200));
        assert!(holders.is_slow(HostIndex(1)) && !holders.is_slow(HostIndex(2)));
        assert_eq!((holders.awaited(&wanted), holders.awaited_from(&wanted, HostIndex(1))), (1, 0));
        holders.update(&wants(&[]), &tuning, at(1200));
        assert!(!holders.is_slow(HostIndex(1)));
    }

    #[test]
    fn where_answers_take_long_no_holder_is_slow_soon() {
        let (mut holders, tuning) = (SlowHolders::default(), Tuning::default());
        let wanted = wants(&[(0, 1, 0)]);
        holders.note_answer(Duration::from_millis(400));
        holders.update(&wanted, &tuning, at(1599));
        assert!(!holders.is_slow(HostIndex(1)));
        holders.update(&wanted, &tuning, at(1600));
        assert!(holders.is_slow(HostIndex(1)));
    }
}
