//! The throughput guard: whether as much passes with pauses as without.
//!
//! Owns: the rate of recent spans, and until when fairness is suspended.
//! Invariant: pauses last for at most twice [`Tuning::guard_probe_spans`] spans without a probe.

use crate::node::Tuning;
use crate::time::Instant;

/// The best rate fades by one part in this many per span.
const BEST_FADES: u64 = 16;

/// Compares the rate of each span with the best recent one.
#[derive(Debug, Default)]
pub struct ThroughputGuard {
    /// When the running span began; `None` before anything passed.
    since: Option<Instant>,
    /// What passed since then, in any unit.
    passed: u64,
    /// Something was paused in the running span.
    paused: bool,
    /// What passed per second in the best span, faded; `None` before the first span is over, which only fills buffers.
    best: Option<u64>,
    suspended_until: Instant,
    /// Spans in a row with pauses.
    paused_spans: u32,
    /// A probe has shown that nothing more passes without pauses.
    probed: bool,
    /// Spans in a row that showed a cost.
    costs: u32,
}

impl ThroughputGuard {
    /// Counts what passed, and whether something was paused at the time.
    pub fn count(&mut self, passed: u64, paused: bool, now: Instant, tuning: &Tuning) {
        let since = *self.since.get_or_insert(now);
        self.passed += passed;
        self.paused |= paused;
        let span = now.since(since);
        if span < tuning.guard_span {
            return;
        }
        let rate = self.passed * 1000 / span.as_millis() as u64;
        // After a long gap the former rate says nothing about this one.
        let forget = span >= tuning.guard_span * tuning.guard_probe_spans && !self.paused;
        self.best = match self.best {
            _ if forget => None,
            None => Some(0),
            Some(best) => {
                self.judge_span(rate, best, now, tuning);
                Some(rate.max(best - best / BEST_FADES))
            }
        };
        (self.since, self.passed, self.paused) = (Some(now), 0, paused);
    }

    fn judge_span(&mut self, rate: u64, best: u64, now: Instant, tuning: &Tuning) {
        self.paused_spans = if self.paused { self.paused_spans + 1 } else { 0 };
        if self.paused && rate * 5 < best * 4 {
            // Pauses cost a fifth of the rate, or more.
            self.suspended_until = now + tuning.guard_suspend * (1 << self.costs.min(tuning.guard_doublings));
            self.costs += 1;
            (self.paused_spans, self.probed) = (0, false);
        } else if self.paused_spans >= tuning.guard_probe_spans << u32::from(self.probed) {
            // The probe: what passes for one span without pauses becomes the best rate if it is more.
            self.suspended_until = now + tuning.guard_span;
            self.probed = true;
            (self.paused_spans, self.costs) = (0, 0);
        }
    }

    /// Whether nothing may be paused now, because pauses cost rate or because of a probe.
    pub fn is_suspended(&self, now: Instant) -> bool {
        now < self.suspended_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Whether the guard suspends fairness after spans in which this much passed, with or without pauses.
    fn suspends_after(spans: &[(u64, bool)]) -> bool {
        let tuning = Tuning::default();
        let mut guard = ThroughputGuard::default();
        let mut now = Instant::ZERO;
        guard.count(0, false, now, &tuning);
        for (passed, paused) in spans {
            now = now + tuning.guard_span;
            guard.count(*passed, *paused, now, &tuning);
        }
        let suspended = guard.is_suspended(now);
        let longest = tuning.guard_suspend * (1 << tuning.guard_doublings);
        assert!(!guard.is_suspended(now + longest), "not for ever");
        suspended
    }

    #[test]
    fn a_rate_that_falls_during_pauses_suspends_them() {
        assert!(suspends_after(&[(900, false), (100, false), (100, true), (70, true)]));
        assert!(!suspends_after(&[(900, false), (100, false), (100, true), (85, true)]), "a little less is no sign");
        assert!(!suspends_after(&[(900, false), (100, false), (100, false), (50, false)]), "nothing was paused");
        assert!(!suspends_after(&[(900, false), (100, true)]), "the first span fills buffers");
    }

    #[test]
    fn after_enough_paused_spans_comes_a_probe() {
        let paused = |count: usize| vec![(100, true); count + 1];
        let probe = Tuning::default().guard_probe_spans as usize;
        assert!(!suspends_after(&paused(probe - 1)));
        assert!(suspends_after(&paused(probe)));
    }

    #[test]
    fn after_a_long_gap_the_former_rate_is_forgotten() {
        let tuning = Tuning::default();
        let mut guard = ThroughputGuard::default();
        let mut now = Instant::ZERO;
        for _ in 0..4 {
            guard.count(100, false, now, &tuning);
            now = now + tuning.guard_span;
        }
        now = now + Duration::from_secs(60);
        guard.count(1, false, now, &tuning);
        for _ in 0..3 {
            now = now + tuning.guard_span;
            guard.count(10, true, now, &tuning);
        }
        assert!(!guard.is_suspended(now));
    }
}
