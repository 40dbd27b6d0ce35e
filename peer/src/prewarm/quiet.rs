//! The pause after containerd fell silent while it worked on a call of this host.
//!
//! A call can be what ends containerd, and the next one would end it again right after its restart. So nothing is asked
//! for a while, and operators read why.
//! Invariant: all workers of a host share one pause.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The first pause. Each further silence doubles it, until a work succeeds.
const FIRST: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    next: Option<Duration>,
}

/// When containerd may be asked again.
#[derive(Debug, Default)]
pub struct QuietTime {
    state: Mutex<State>,
}

impl QuietTime {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a pause and returns its length. Workers that fall silent together begin one pause.
    pub fn begin(&self) -> Duration {
        let (now, mut state) = (Instant::now(), self.state());
        if let Some(until) = state.until.filter(|until| *until > now) {
            return until - now;
        }
        let pause = state.next.unwrap_or(FIRST);
        state.until = Some(now + pause);
        state.next = Some((pause * 2).min(LONGEST));
        pause
    }

    /// Notes that containerd did all that was asked. A pause that another worker has begun goes on.
    pub fn end(&self) {
        let mut state = self.state();
        if state.until.is_none_or(|until| until <= Instant::now()) {
            *state = State::default();
        }
    }

    /// Returns when containerd may be asked again.
    pub async fn over(&self) {
        loop {
            let until = self.state().until;
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }

    /// Whether containerd may not be asked now.
    pub fn is_on(&self) -> bool {
        self.state().until.is_some_and(|until| until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_until_a_work_succeeds() {
        let quiet = QuietTime::default();
        quiet.over().await;
        assert!(!quiet.is_on());
        let mut expected = FIRST;
        for _ in 0..10 {
            let (began, pause) = (Instant::now(), quiet.begin());
            assert_eq!(pause, expected);
            assert!(quiet.is_on() && quiet.begin() <= pause, "one pause for all");
            quiet.over().await;
            assert_eq!(began.elapsed(), pause);
            expected = (expected * 2).min(LONGEST);
        }
        quiet.end();
        assert_eq!(quiet.begin(), FIRST);
        quiet.end();
        assert!(quiet.is_on(), "a success elsewhere ends no pause");
    }
}
