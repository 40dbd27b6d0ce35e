//! A token bucket, with the time as an argument.
//!
//! A frame may go while the bucket is above its class's floor, and takes what it is long, so the bucket may end below it.
//! Less urgent classes have their floor at nothing; urgent ones may borrow a second's worth, which the others then wait
//! for. Whatever is sent, over any span the bytes are at most rate times span, plus the burst, the loan and one frame.
//! Invariant: the level never exceeds the burst.

use shoal_proto::announcement::Class;
use std::time::Duration;

/// What may go at once after a silence, as time at the rate.
const BURST: Duration = Duration::from_millis(50);
/// The least of it, bytes: one slice.
const BURST_MIN: u64 = shoal_proto::limits::SLICE_BYTES_MAX as u64;
/// What urgent classes may borrow, as time at the rate.
const LOAN: Duration = Duration::from_secs(1);

fn times(rate: u64, span: Duration) -> i64 {
    i64::try_from(u128::from(rate) * span.as_nanos() / 1_000_000_000).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

/// The bucket. Times are since some moment that does not change.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Bytes/s.
    rate: u64,
    level: i64,
    at: Duration,
}

impl TokenBucket {
    /// A full one.
    pub(super) fn new(rate: u64, now: Duration) -> Self {
        Self { rate, level: Self::burst(rate), at: now }
    }

    fn burst(rate: u64) -> i64 {
        times(rate, BURST).max(BURST_MIN as i64)
    }

    /// Goes on at another rate with what there is.
    pub(super) fn set_rate(&mut self, rate: u64, now: Duration) {
        self.refill(now);
        self.rate = rate;
        self.level = self.level.clamp(-times(rate, LOAN), Self::burst(rate));
    }

    fn refill(&mut self, now: Duration) {
        let gained = times(self.rate, now.saturating_sub(self.at));
        // Less than a byte: the time is not used up yet.
        if gained > 0 {
            self.level = self.level.saturating_add(gained).min(Self::burst(self.rate));
            self.at = now;
        }
    }

    /// When a frame of this class may go; `None`: now.
    pub(super) fn opens_at(&mut self, class: Class, now: Duration) -> Option<Duration> {
        self.refill(now);
        let floor = match class {
            Class::Control | Class::Urgent => -times(self.rate, LOAN),
            Class::Normal | Class::Bulk => 0,
        };
        let lacking = u128::try_from(floor + 1 - self.level).ok().filter(|lacking| *lacking > 0)?;
        let nanos = (lacking * 1_000_000_000).div_ceil(u128::from(self.rate.max(1)));
        Some(self.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// A frame goes.
    pub(super) fn spend(&mut self, bytes: u64, now: Duration) {
        self.refill(now);
        self.level = self.level.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX)).max(i64::MIN / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLICE: u64 = BURST_MIN;

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
                    prop_assert!(bucket.opens_at(class, now).is_none(), "open when it said");
                }
                bucket.spend(bytes, now);
                sent += bytes;
                let most = times(rate, now) + times(rate, LOAN) + TokenBucket::burst(rate) + SLICE as i64;
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
                        bucket.spend(SLICE, now);
                        sent += SLICE;
                    }
                }
            }
            prop_assert!(sent as f64 >= 0.98 * 5.0 * rate as f64, "{sent} at {rate}");
        }
    }

    #[test]
    fn the_urgent_go_while_bulk_waits_and_bulk_pays() {
        let rate = 1_000_000;
        let mut bucket = TokenBucket::new(rate, Duration::ZERO);
        let now = Duration::ZERO;
        while bucket.opens_at(Class::Bulk, now).is_none() {
            bucket.spend(SLICE, now);
        }
        let before = bucket.opens_at(Class::Bulk, now).unwrap();
        assert!(bucket.opens_at(Class::Urgent, now).is_none(), "it borrows");
        bucket.spend(500_000, now);
        let after = bucket.opens_at(Class::Bulk, now).unwrap();
        assert_eq!(after - before, Duration::from_millis(500), "bulk pays");
        bucket.spend(rate, now);
        assert!(bucket.opens_at(Class::Urgent, now).is_some(), "the loan has an end");
    }

    #[test]
    fn another_rate_counts_at_once() {
        let mut bucket = TokenBucket::new(1000, Duration::ZERO);
        bucket.spend(10_000_000, Duration::ZERO);
        assert!(bucket.opens_at(Class::Bulk, Duration::ZERO).unwrap() > Duration::from_secs(9000));
        bucket.set_rate(1_000_000, Duration::ZERO);
        assert!(bucket.opens_at(Class::Bulk, Duration::ZERO).unwrap() <= Duration::from_millis(1001));
    }
}
