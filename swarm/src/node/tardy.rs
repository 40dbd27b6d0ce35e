//! Mates that take much longer to answer than mates usually do while a content comes back.
//!
//! What such a mate was asked for is asked of others too where they can give it or parity in its place, and for a while it
//! is asked for nothing more. Where all are slow alike, what is usual is slow, and nobody is tardy.
//! Invariant: a mate is tardy only once another answer has told what is usual.

use super::content::Want;
use super::tuning::Tuning;
use crate::time::Instant;
use shoal_proto::ids::{HostIndex, ShardIndex};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Tardy {
    /// How long an answer takes, smoothed; `None` before the first.
    usual: Option<Duration>,
    /// Until when each counts as tardy.
    until: BTreeMap<HostIndex, Instant>,
}

impl Tardy {
    pub(super) fn answered(&mut self, took: Duration) {
        self.usual = Some(self.usual.map_or(took, |usual| (usual * 7 + took) / 8));
    }

    /// Sees who keeps us waiting now.
    pub(super) fn look(&mut self, wants: &BTreeMap<ShardIndex, Want>, now: Instant, tuning: &Tuning) {
        self.until.retain(|_, until| *until > now);
        let Some(usual) = self.usual else { return };
        let patience = (usual * tuning.slow_holder_factor).clamp(tuning.slow_holder_min, tuning.want_timeout);
        for want in wants.values().filter(|want| now.since(want.asked) >= patience) {
            self.until.entry(want.from).or_insert(now + tuning.slow_holder_time);
        }
    }

    pub(super) fn is(&self, host: HostIndex) -> bool {
        self.until.contains_key(&host)
    }

    /// How many of the shards asked for come from mates that are not tardy, or from one of them.
    pub(super) fn awaited(&self, wants: &BTreeMap<ShardIndex, Want>, of: Option<HostIndex>) -> usize {
        let counts = |want: &&Want| !self.is(want.from) && of.is_none_or(|host| host == want.from);
        wants.values().filter(counts).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::ids::PieceIndex;

    fn wants(rows: &[(u32, u32, u64)]) -> BTreeMap<ShardIndex, Want> {
        let want = |from, asked| {
            let asked = Instant::ZERO + Duration::from_millis(asked);
            Want { piece: PieceIndex(0), from: HostIndex(from), asked, until: asked + Tuning::default().want_timeout }
        };
        rows.iter().map(|(shard, from, asked)| (ShardIndex(*shard), want(*from, *asked))).collect()
    }

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn only_who_is_slower_than_others_is_tardy_and_for_a_while() {
        let (mut tardy, wants) = (Tardy::default(), wants(&[(0, 1, 0), (1, 1, 90), (2, 2, 150)]));
        tardy.look(&wants, at(1000), &Tuning::default());
        assert!(!tardy.is(HostIndex(1)), "nothing tells yet what is usual");
        tardy.answered(Duration::from_millis(5));
        tardy.look(&wants, at(199), &Tuning::default());
        assert_eq!(tardy.awaited(&wants, None), 3);
        tardy.look(&wants, at(200), &Tuning::default());
        assert!(tardy.is(HostIndex(1)) && !tardy.is(HostIndex(2)));
        assert_eq!((tardy.awaited(&wants, None), tardy.awaited(&wants, Some(HostIndex(1)))), (1, 0));
        tardy.look(&BTreeMap::new(), at(1200), &Tuning::default());
        assert!(!tardy.is(HostIndex(1)));
    }

    #[test]
    fn where_answers_take_long_nobody_is_tardy_soon() {
        let (mut tardy, wants) = (Tardy::default(), wants(&[(0, 1, 0)]));
        tardy.answered(Duration::from_millis(400));
        tardy.look(&wants, at(1599), &Tuning::default());
        assert!(!tardy.is(HostIndex(1)));
        tardy.look(&wants, at(1600), &Tuning::default());
        assert!(tardy.is(HostIndex(1)));
    }
}
