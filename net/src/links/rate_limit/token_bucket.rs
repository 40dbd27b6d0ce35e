//! A token bucket with the time as an argument.
//!
//! A frame may go while the level is above the floor of its class, and then takes its whole length, so the level may
//! end below the floor. The floor of normal and bulk frames is 0. Control and urgent frames may borrow the tokens of 1
//! s, and the others then wait for those. Over any span the bytes are at most rate * span plus burst, loan and one
//! frame.
//!
//! Invariant: the level never exceeds the burst.

use shoal_proto::announcement::Class;
use std::time::Duration;

/// Tokens that a silent bucket gathers, as time at the rate.
const BURST: Duration = Duration::from_millis(50);
/// The smallest burst in bytes: one slice.
const BURST_BYTES_MIN: u64 = shoal_proto::limits::SLICE_BYTES_MAX as u64;
/// Tokens that control and urgent frames may borrow, as time at the rate.
const LOAN: Duration = Duration::from_secs(1);

/// Returns the bytes of `span` at `rate` bytes/s. The cap leaves room for sums.
fn bytes_in(rate: u64, span: Duration) -> i64 {
    i64::try_from(u128::from(rate) * span.as_nanos() / 1_000_000_000).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

/// The bucket. All times count from one fixed moment.
#[derive(Debug)]
pub struct TokenBucket {
    /// Bytes/s.
    rate: u64,
    /// Tokens in bytes. Negative after a loan or a long frame.
    level: i64,
    /// When `level` was right.
    refilled_at: Duration,
}

impl TokenBucket {
    /// Returns a full bucket.
    pub fn new(rate: u64, now: Duration) -> Self {
        Self { rate, level: Self::burst(rate), refilled_at: now }
    }

    fn burst(rate: u64) -> i64 {
        bytes_in(rate, BURST).max(BURST_BYTES_MIN as i64)
    }

    /// Continues at another rate with the present level.
    pub fn set_rate(&mut self, rate: u64, now: Duration) {
        self.refill(now);
        self.rate = rate;
        // A debt of the former rate may be hours at the new one.
        self.level = self.level.clamp(-bytes_in(rate, LOAN), Self::burst(rate));
    }

    fn refill(&mut self, now: Duration) {
        let gained = bytes_in(self.rate, now.saturating_sub(self.refilled_at));
        // Below one byte the time is kept for the next refill, or slow rates would never gain.
        if gained > 0 {
            self.level = self.level.saturating_add(gained).min(Self::burst(self.rate));
            self.refilled_at = now;
        }
    }

    /// Returns when a frame of this class may go, or `None` for now.
    pub fn opens_at(&mut self, class: Class, now: Duration) -> Option<Duration> {
        self.refill(now);
        let floor = match class {
            Class::Control | Class::Urgent => -bytes_in(self.rate, LOAN),
            Class::Normal | Class::Bulk => 0,
        };
        let missing = u128::try_from(floor + 1 - self.level).ok().filter(|missing| *missing > 0)?;
        let nanos = (missing * 1_000_000_000).div_ceil(u128::from(self.rate.max(1)));
        Some(self.refilled_at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Takes the tokens of a frame that goes now.
    pub fn consume(&mut self, bytes: u64, now: Duration) {
        self.refill(now);
        self.level = self.level.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX)).max(i64::MIN / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLICE: u64 = BURST_BYTES_MIN;

    proptest! {
        #[test]
        fn the_rate_holds_over_any_span(
            rate in 10_000u64..1_000_000_000,
            frames in prop::collection::vec((0usize..4, 1u64..SLICE, 0u64..20_000_000), 1..300),
        ) {
            let (mut bucket, mut now, mut sent) = (TokenBucket::new(rate, Duration::ZERO), Duration::ZERO, 0u64);
            for (class, bytes, pause) in frames {
                now += Duration::from_nanos(pause);
                let class = Class::ALL[class];
                if let Some(opens) = bucket.opens_at(class, now) {
                    prop_assert!(opens > now);
                    now = opens;
                    prop_assert!(bucket.opens_at(class, now).is_none(), "the bucket opens when it said");
                }
                bucket.consume(bytes, now);
                sent += bytes;
                let most = bytes_in(rate, now) + bytes_in(rate, LOAN) + TokenBucket::burst(rate) + SLICE as i64;
                prop_assert!(sent as i64 <= most, "{sent} bytes in {now:?} at {rate}");
            }
        }

        #[test]
        fn a_busy_sender_gets_the_whole_rate(rate in 1_000_000u64..1_000_000_000) {
            let (mut bucket, mut now, mut sent) = (TokenBucket::new(rate, Duration::ZERO), Duration::ZERO, 0u64);
            while now < Duration::from_secs(5) {
                match bucket.opens_at(Class::Bulk, now) {
                    Some(opens) => now = opens,
                    None => {
                        bucket.consume(SLICE, now);
                        sent += SLICE;
                    }
                }
            }
            prop_assert!(sent as f64 >= 0.98 * 5.0 * rate as f64, "{sent} at {rate}");
        }
    }

    #[test]
    fn urgent_frames_borrow_and_bulk_pays() {
        let rate = 1_000_000;
        let mut bucket = TokenBucket::new(rate, Duration::ZERO);
        let now = Duration::ZERO;
        while bucket.opens_at(Class::Bulk, now).is_none() {
            bucket.consume(SLICE, now);
        }
        let before = bucket.opens_at(Class::Bulk, now).unwrap();
        assert!(bucket.opens_at(Class::Urgent, now).is_none(), "an urgent frame borrows");
        bucket.consume(500_000, now);
        let after = bucket.opens_at(Class::Bulk, now).unwrap();
        assert_eq!(after - before, Duration::from_millis(500), "bulk pays for the loan");
        bucket.consume(rate, now);
        assert!(bucket.opens_at(Class::Urgent, now).is_some(), "the loan has an end");
    }

    #[test]
    fn a_new_rate_counts_at_once() {
        let mut bucket = TokenBucket::new(1000, Duration::ZERO);
        bucket.consume(10_000_000, Duration::ZERO);
        assert!(bucket.opens_at(Class::Bulk, Duration::ZERO).unwrap() > Duration::from_secs(9000));
        bucket.set_rate(1_000_000, Duration::ZERO);
        assert!(bucket.opens_at(Class::Bulk, Duration::ZERO).unwrap() <= Duration::from_millis(1001));
    }
}
