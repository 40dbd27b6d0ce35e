//! Waits for something that a test cannot subscribe to.

use std::time::{Duration, Instant};

/// How long a test waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Calls `look` until it returns a value, and returns that value.
///
/// # Panics
/// After [`PATIENCE`], with `what` in the message.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "gave up after {} s: {what}", PATIENCE.as_secs());
        std::thread::park_timeout(LOOK);
    }
}
