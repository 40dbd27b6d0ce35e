//! A limit for log lines that others can cause.
//!
//! Invariant: in each period at most the given number of lines passes, however many threads ask.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a number of log lines pass in each period, and counts the others.
#[derive(Debug)]
pub struct LogLimit {
    lines_max: u32,
    period: Duration,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    lines: u32,
    skipped: u64,
}

impl LogLimit {
    /// Returns a limit of `lines_max` lines in each `period`.
    pub const fn new(lines_max: u32, period: Duration) -> Self {
        Self { lines_max, period, window: Mutex::new(Window { began: None, lines: 0, skipped: 0 }) }
    }

    /// Returns how many lines were left out since the last one, if a line may be written now.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.saturating_duration_since(began) >= self.period) {
            window.began = Some(now);
            window.lines = 0;
        }
        if window.lines >= self.lines_max {
            window.skipped = window.skipped.saturating_add(1);
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_limit_are_counted_and_reported_with_the_next_one() {
        let limit = LogLimit::new(2, Duration::from_secs(1));
        let start = Instant::now();
        let passed: Vec<_> = (0..5).map(|_| limit.pass_at(start)).collect();
        assert_eq!(passed, [Some(0), Some(0), None, None, None]);
        assert_eq!(limit.pass_at(start + Duration::from_millis(999)), None);
        assert_eq!(limit.pass_at(start + Duration::from_secs(1)), Some(4));
        assert_eq!(limit.pass_at(start + Duration::from_secs(1)), Some(0));
    }
}
