//! The core's own time: nanoseconds since a zero that the driver chooses.
//!
//! Owns: [`Instant`].
//! Invariant: time never goes backwards within one [`crate::node::Node`]. The driver takes it from a monotonic clock.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time, nanoseconds since the driver's zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The driver's zero.
    pub const ZERO: Self = Self(0);

    /// Returns how long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}
