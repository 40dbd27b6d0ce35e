//! What holding some back costs: whether as much passes as when nobody is held.
//!
//! Invariant: nobody is held for longer than twice [`Tuning::guard_probe_spans`] spans on end.

use super::tuning::Tuning;
use crate::time::Instant;

/// Compares the rate of each span with the best of late.
#[derive(Debug, Default)]
pub(super) struct Toll {
    /// Somebody was held back in the span that runs.
    held: bool,
    /// When that began; `None` before anything passed.
    since: Option<Instant>,
    /// What passed since then, in any unit.
    passed: u64,
    /// What passed in a second of the best span, less the longer ago that is; `None` in the first, which fills buffers.
    best: Option<u64>,
    free_until: Instant,
    /// Spans in a row in which somebody was held back.
    spans: u32,
    /// Nobody was held for a span, and no more passed then.
    looked: bool,
    /// Times in a row that it was found to cost rate.
    costs: u32,
}

impl Toll {
    /// So much passed, while somebody was held back or nobody.
    pub(super) fn count(&mut self, passed: u64, held: bool, now: Instant, tuning: &Tuning) {
        let since = *self.since.get_or_insert(now);
        self.passed += passed;
        self.held |= held;
        let span = now.since(since);
        if span < tuning.guard_span {
            return;
        }
        let rate = self.passed * 1000 / span.as_millis() as u64;
        // After a rest, what was usual before it says nothing.
        let rested = span >= tuning.guard_span * tuning.guard_forget_spans && !self.held;
        self.best = match self.best {
            _ if rested => None,
            None => Some(0),
            Some(best) => {
                self.spans = if self.held { self.spans + 1 } else { 0 };
                if self.held && rate * 5 < best * 4 {
                    self.free_until = now + tuning.guard_suspend * (1 << self.costs.min(tuning.guard_doublings));
                    self.costs += 1;
                    (self.spans, self.looked) = (0, false);
                } else if self.spans >= tuning.guard_probe_spans << u32::from(self.looked) {
                    // What would pass if nobody were held?
                    self.free_until = now + tuning.guard_span;
                    self.looked = true;
                    (self.spans, self.costs) = (0, 0);
                }
                Some(rate.max(best - best / 16))
            }
        };
        (self.since, self.passed, self.held) = (Some(now), 0, held);
    }

    /// Whether it has cost a fifth of the rate of late, or that is to be seen: nobody is to be held back then.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now < self.free_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Spans of this much each; whether it was due after the last.
    fn due_after(spans: &[(u64, bool)]) -> bool {
        let mut toll = Toll::default();
        let mut now = Instant::ZERO;
        toll.count(0, false, now, &Tuning::default());
        for (passed, held) in spans {
            now = now + Tuning::default().guard_span;
            toll.count(*passed, *held, now, &Tuning::default());
        }
        let due = toll.is_due(now);
        assert!(
            !toll.is_due(now + Tuning::default().guard_suspend * (1 << Tuning::default().guard_doublings)),
            "not for ever"
        );
        due
    }

    #[test]
    fn a_rate_that_falls_while_some_are_held_is_due() {
        assert!(due_after(&[(900, false), (100, false), (100, true), (70, true)]));
        assert!(!due_after(&[(900, false), (100, false), (100, true), (85, true)]), "a little less is no sign");
        assert!(!due_after(&[(900, false), (100, false), (100, false), (50, false)]), "nobody was held");
        assert!(!due_after(&[(900, false), (100, true)]), "the first span fills buffers");
    }

    #[test]
    fn now_and_then_nobody_is_held_to_see_what_passes() {
        let held = |count: usize| vec![(100, true); count + 1];
        assert!(!due_after(&held(Tuning::default().guard_probe_spans as usize - 1)));
        assert!(due_after(&held(Tuning::default().guard_probe_spans as usize)));
    }

    #[test]
    fn after_a_rest_it_begins_anew() {
        let mut toll = Toll::default();
        let mut now = Instant::ZERO;
        for _ in 0..4 {
            toll.count(100, false, now, &Tuning::default());
            now = now + Tuning::default().guard_span;
        }
        now = now + Duration::from_secs(60);
        toll.count(1, false, now, &Tuning::default());
        for _ in 0..3 {
            now = now + Tuning::default().guard_span;
            toll.count(10, true, now, &Tuning::default());
        }
        assert!(!toll.is_due(now));
    }
}
