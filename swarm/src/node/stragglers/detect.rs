//! Detection: what the parents of a content deliver, compared with what is usual for its lanes.
//!
//! Owns: the count of deliveries and the observation of each rack peer.
//! Invariant: only rack peers that are to bring something are observed. See [`super`] for the formula.

use crate::node::Tuning;
use crate::node::cx::Cx;
use crate::node::links::Links;
use crate::node::transfer::{Body, Transfer};
use crate::time::Instant;
use shoal_proto::ids::HostIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What one parent delivered since its observation began. An observation lasts until enough is expected.
#[derive(Clone, Copy, Debug)]
struct Observation {
    since: Instant,
    delivered: u64,
    /// Observations in a row in which the parent was slow.
    strikes: u8,
}

/// What one rack peer is to bring.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    lanes: u64,
    /// Pieces that its lanes lack more than the median lane does, summed.
    behind_median: u64,
    /// Pieces that its lanes lack more than the best quarter of lanes does, summed.
    behind_best: u64,
}

#[derive(Debug)]
pub struct Deliveries {
    /// Shards from all parents since `since`.
    count: u64,
    since: Instant,
    /// Deliveries per lane and second, in thousandths, smoothed; 0 before the first comparison.
    usual_rate_milli: u64,
    observations: BTreeMap<HostIndex, Observation>,
    /// Rack peers whose lanes other racks want from us, because they found those rack peers silent.
    suspected: BTreeSet<HostIndex>,
}

impl Deliveries {
    pub fn new(now: Instant) -> Self {
        Self { count: 0, since: now, usual_rate_milli: 0, observations: BTreeMap::new(), suspected: BTreeSet::new() }
    }

    /// A needed shard came.
    pub fn note(&mut self, from: HostIndex) {
        self.count += 1;
        if let Some(observation) = self.observations.get_mut(&from) {
            observation.delivered += 1;
        }
    }

    pub fn suspect(&mut self, rack_peers: impl Iterator<Item = HostIndex>) {
        self.suspected.extend(rack_peers);
    }

    pub fn forget_parents(&mut self) {
        self.observations.clear();
    }

    /// Compares no parent before `at`: what did not come until then says nothing about which host is slow.
    pub fn restart_at(&mut self, at: Instant) {
        self.observations.clear();
        self.since = at;
    }

    pub fn usual_rate_milli(&self) -> u64 {
        self.usual_rate_milli
    }

    /// How long this many pieces take on one lane.
    pub fn usual_time(&self, pieces: u64) -> Duration {
        Duration::from_millis(pieces * 1_000_000 / self.usual_rate_milli.max(1))
    }

    /// Updates what is usual. `lanes` brought something, and `parents` of them did.
    fn update_usual(&mut self, lanes: u64, parents: usize, span_ms: u64) {
        // A single parent left at the end is compared with what was usual before: it must not define it.
        if parents >= 2 {
            let rate = self.count * 1_000_000 / (lanes * span_ms);
            let former = self.usual_rate_milli;
            self.usual_rate_milli = if former == 0 { rate } else { (former + rate) / 2 };
        }
        self.count = 0;
    }

    /// Ends the observation of a rack peer if enough is expected of it. Returns whether it is a straggler.
    fn is_straggler(&mut self, host: HostIndex, load: Load, tuning: &Tuning, now: Instant) -> bool {
        let usual = self.usual_rate_milli;
        let fresh = Observation { since: now, delivered: 0, strikes: 0 };
        let observation = self.observations.entry(host).or_insert(fresh);
        let Observation { since, delivered, strikes } = *observation;
        let expected = usual * load.lanes * now.since(since).as_millis() as u64 / 1_000_000;
        if expected < tuning.detect_pieces_min {
            return false;
        }
        let lag = load.behind_median * 1000 >= usual * load.lanes * tuning.slow_lag.as_secs();
        let lags = lag && delivered * 3 < expected * 2;
        let crawls = delivered.saturating_mul(tuning.slow_factor) < expected && load.behind_best > load.lanes;
        let strikes = if crawls || lags { strikes + 1 } else { 0 };
        *observation = Observation { strikes, ..fresh };
        let suspected = self.suspected.contains(&host) && delivered * tuning.suspected_factor < expected;
        strikes >= if suspected { tuning.suspected_strikes } else { tuning.slow_strikes }
    }
}

impl Body {
    /// How long an imported lane may bring nothing.
    pub fn silence(&self, tuning: &Tuning) -> Duration {
        tuning.stall.max(self.deliveries.usual_time(tuning.silence_pieces))
    }

    /// What each rack peer is to bring, and how far its lanes are behind.
    fn loads(&self, is_near: impl Fn(HostIndex) -> bool) -> BTreeMap<HostIndex, Load> {
        let median = self.lanes.missing_quantile(2);
        // With slow hosts in the trees of most lanes the median lane is behind, too. The best quarter is not.
        let best = self.lanes.missing_quantile(4);
        let mut loads: BTreeMap<HostIndex, Load> = BTreeMap::new();
        for (_, parent, lane) in self.lanes.awaited().filter(|(_, parent, _)| is_near(*parent)) {
            let load = loads.entry(parent).or_default();
            load.lanes += 1;
            load.behind_median += u64::from(lane.missing().saturating_sub(median));
            load.behind_best += u64::from(lane.missing().saturating_sub(best));
        }
        loads
    }
}

impl Transfer {
    /// Compares what the rack peers delivered with what is usual. Returns the stragglers among them.
    pub fn find_stragglers(&mut self, cx: &Cx) -> Vec<HostIndex> {
        let (now, tuning) = (cx.now, &cx.tuning);
        let (Some(plan), Some(body)) = (&self.plan, self.body.as_mut()) else { return Vec::new() };
        let span_ms = now.since(body.deliveries.since).as_millis() as u64;
        if body.pieces.is_whole() || span_ms < tuning.detect_span.as_millis() as u64 {
            return Vec::new();
        }
        // What is usual is what lanes bring that bring anything: silent lanes must not make silence usual.
        let silence = body.silence(tuning);
        let (mut lanes, mut parents) = (0, BTreeSet::new());
        for (_, parent, _) in body.lanes.awaited().filter(|(_, _, lane)| !lane.is_silent(now, silence)) {
            lanes += 1;
            parents.insert(parent);
        }
        let loads = body.loads(|host| plan.same_rack(host, cx.me));
        let deliveries = &mut body.deliveries;
        deliveries.update_usual(lanes, parents.len(), span_ms);
        deliveries.since = now;
        deliveries.observations.retain(|host, _| loads.contains_key(host));
        deliveries.suspected.retain(|host| loads.contains_key(host));
        let is_straggler =
            |(host, load): (HostIndex, Load)| deliveries.is_straggler(host, load, tuning, now).then_some(host);
        loads.into_iter().filter_map(is_straggler).collect()
    }

    /// Whether one more host of this rack may be avoided as slow. Where many seem slow, the cause lies elsewhere.
    pub fn may_avoid_as_slow(&self, cx: &Cx, links: &Links, host: HostIndex) -> bool {
        let Some(plan) = &self.plan else { return false };
        let slow = links.avoidance.slow_hosts().filter(|other| plan.same_rack(*other, host)).count();
        slow < (plan.rack_peers(host).count() / cx.tuning.slow_one_in).max(1)
    }
}
