//! A bound on how often something may happen: a burst, and a rate after it.
//!
//! Invariant: over any time, at most `burst` events pass beyond the rate.

use std::time::Instant;

/// A burst and a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

/// What is left of a burst.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Pace {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate.per_second).min(self.rate.burst);
        self.at = now;
    }

    /// Whether one more event may happen now. Counts it then.
    pub(crate) fn pass(&mut self, now: Instant) -> bool {
        self.fill(now);
        let may = self.left >= 1.0;
        self.left -= f64::from(u8::from(may));
        may
    }

    /// Whether the bucket is full, so that it can be dropped without loss.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.rate.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(Rate { burst: 3.0, per_second: 0.5 }, start);
        assert_eq!((0..5).filter(|_| pace.pass(start)).count(), 3);
        assert!(!pace.pass(start + Duration::from_secs(1)));
        assert!(pace.pass(start + Duration::from_secs(2)) && !pace.pass(start + Duration::from_secs(2)));
        assert!(!pace.is_full(start + Duration::from_secs(5)) && pace.is_full(start + Duration::from_secs(8)));
    }
}
