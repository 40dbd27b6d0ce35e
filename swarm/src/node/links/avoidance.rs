//! Hosts that are not used as parents for a while, and hosts that are banned.
//!
//! Invariant: a ban is never shortened or replaced by a milder avoidance.

use crate::io::AvoidReason;
use crate::node::Tuning;
use crate::time::Instant;
use shoal_proto::ids::HostIndex;
use std::collections::{BTreeMap, BTreeSet};

/// The wait doubles with each strike, up to 2^5 times.
const DOUBLINGS_MAX: u32 = 5;

#[derive(Clone, Copy, Debug)]
struct Avoided {
    until: Instant,
    why: AvoidReason,
    strikes: u32,
    banned: bool,
}

/// The avoided hosts.
#[derive(Debug, Default)]
pub struct Avoidance {
    by_host: BTreeMap<HostIndex, Avoided>,
}

impl Avoidance {
    pub fn is_empty(&self) -> bool {
        self.by_host.is_empty()
    }

    pub fn contains(&self, host: HostIndex) -> bool {
        self.by_host.contains_key(&host)
    }

    pub fn hosts(&self) -> impl Iterator<Item = HostIndex> {
        self.by_host.keys().copied()
    }

    pub fn to_set(&self) -> BTreeSet<HostIndex> {
        self.hosts().collect()
    }

    pub fn slow_hosts(&self) -> impl Iterator<Item = HostIndex> {
        self.by_host.iter().filter(|(_, avoided)| avoided.why == AvoidReason::Slow).map(|(host, _)| *host)
    }

    pub fn is_banned(&self, host: HostIndex, now: Instant) -> bool {
        self.by_host.get(&host).is_some_and(|avoided| avoided.banned && avoided.until > now)
    }

    /// Avoids the host, longer with each strike. Returns false for a banned host, whose ban stays as it is.
    pub fn avoid(&mut self, host: HostIndex, why: AvoidReason, now: Instant, tuning: &Tuning) -> bool {
        let former = self.by_host.get(&host).copied();
        if former.is_some_and(|avoided| avoided.banned) {
            return false;
        }
        let strikes = former.map_or(0, |avoided| avoided.strikes) + 1;
        let span = match why {
            AvoidReason::Unreachable => tuning.avoid,
            AvoidReason::Slow => tuning.avoid_slow,
            AvoidReason::Useless => tuning.avoid,
        } * 2u32.pow((strikes - 1).min(DOUBLINGS_MAX));
        let until = now + span;
        // A slow host often loses its links too, and is no faster when they are back: it stays slow.
        let avoided = match former.filter(|former| former.why == AvoidReason::Slow) {
            Some(former) => Avoided { until: until.max(former.until), strikes, ..former },
            None => Avoided { until, why, strikes, banned: false },
        };
        self.by_host.insert(host, avoided);
        true
    }

    pub fn ban(&mut self, host: HostIndex, until: Instant) {
        self.by_host.insert(host, Avoided { until, why: AvoidReason::Useless, strikes: 1, banned: true });
    }

    /// Uses the host again if it was only unreachable. Returns whether that changed anything.
    pub fn forgive_unreachable(&mut self, host: HostIndex) -> bool {
        let unreachable = |avoided: &Avoided| avoided.why == AvoidReason::Unreachable && !avoided.banned;
        let forgiven = self.by_host.get(&host).is_some_and(unreachable);
        if forgiven {
            self.by_host.remove(&host);
        }
        forgiven
    }

    /// Uses hosts again whose time is over. Returns whether there were any.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.by_host.len();
        self.by_host.retain(|_, avoided| avoided.until > now);
        self.by_host.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HOST: HostIndex = HostIndex(1);

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn each_strike_doubles_the_time() {
        let (mut avoidance, tuning) = (Avoidance::default(), Tuning::default());
        let first = tuning.avoid.as_secs();
        avoidance.avoid(HOST, AvoidReason::Unreachable, at(0), &tuning);
        avoidance.avoid(HOST, AvoidReason::Unreachable, at(1), &tuning);
        assert!(!avoidance.expire(at(first * 2)) && avoidance.contains(HOST));
        assert!(avoidance.expire(at(first * 2 + 1)) && avoidance.is_empty());
    }

    #[test]
    fn a_slow_host_stays_slow_when_its_link_is_lost_and_back() {
        let (mut avoidance, tuning) = (Avoidance::default(), Tuning::default());
        avoidance.avoid(HOST, AvoidReason::Slow, at(0), &tuning);
        avoidance.avoid(HOST, AvoidReason::Unreachable, at(1), &tuning);
        assert!(!avoidance.forgive_unreachable(HOST));
        assert_eq!(avoidance.slow_hosts().collect::<Vec<_>>(), [HOST]);
    }

    #[test]
    fn a_ban_is_not_replaced_by_a_milder_avoidance() {
        let (mut avoidance, tuning) = (Avoidance::default(), Tuning::default());
        avoidance.ban(HOST, at(600));
        assert!(!avoidance.avoid(HOST, AvoidReason::Unreachable, at(1), &tuning));
        assert!(!avoidance.forgive_unreachable(HOST));
        assert!(avoidance.is_banned(HOST, at(599)) && !avoidance.is_banned(HOST, at(600)));
    }
}
