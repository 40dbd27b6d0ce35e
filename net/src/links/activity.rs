//! When a link last received and sent something.
//!
//! Invariant: a link counts as busy for 10 s after its last payload in either direction.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a link stays busy after its last payload.
const BUSY_AFTER_PAYLOAD: Duration = Duration::from_secs(10);

/// The times of one link's last events, in milliseconds since the link came up.
pub struct Activity {
    start: Instant,
    received_ms: AtomicU64,
    sent_ms: AtomicU64,
    slice_ms: AtomicU64,
    busy_since_ms: AtomicU64,
    busy_until_ms: AtomicU64,
    became_busy: Notify,
    /// Parts of which only the first slices have arrived.
    open_parts: AtomicU64,
    /// Set while the reader waits for the driver, for memory or for a rate limit.
    reading_paused: AtomicBool,
}

impl Activity {
    pub fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            start: Instant::now(),
            received_ms: zero(),
            sent_ms: zero(),
            slice_ms: zero(),
            busy_since_ms: zero(),
            busy_until_ms: zero(),
            became_busy: Notify::new(),
            open_parts: zero(),
            reading_paused: AtomicBool::new(false),
        }
    }

    /// Returns the time since the link came up.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Returns [`Activity::now`] as the stamp of a `Ping`, in microseconds.
    pub fn stamp(&self) -> u64 {
        self.now().as_micros() as u64
    }

    fn now_ms(&self) -> u64 {
        self.now().as_millis() as u64
    }

    pub fn note_received(&self) {
        self.received_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub fn note_sent(&self) {
        self.sent_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Notes payload in either direction.
    pub fn note_payload(&self) {
        let now = self.now_ms();
        if self.busy_until_ms.swap(now + BUSY_AFTER_PAYLOAD.as_millis() as u64, Ordering::Relaxed) <= now {
            self.busy_since_ms.store(now, Ordering::Relaxed);
            self.became_busy.notify_one();
        }
    }

    /// Notes a received slice, after which `open_parts` parts are incomplete.
    pub fn note_slice(&self, open_parts: usize) {
        self.slice_ms.store(self.now_ms(), Ordering::Relaxed);
        self.open_parts.store(open_parts as u64, Ordering::Relaxed);
    }

    pub fn pause_reading(&self) {
        self.reading_paused.store(true, Ordering::Relaxed);
    }

    pub fn resume_reading(&self) {
        // The other end could not be heard during the pause, so its time starts again.
        self.note_received();
        self.slice_ms.store(self.now_ms(), Ordering::Relaxed);
        self.reading_paused.store(false, Ordering::Relaxed);
    }

    pub fn is_reading_paused(&self) -> bool {
        self.reading_paused.load(Ordering::Relaxed)
    }

    fn since(&self, ms: &AtomicU64) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(ms.load(Ordering::Relaxed)))
    }

    pub fn since_received(&self) -> Duration {
        self.since(&self.received_ms)
    }

    pub fn since_sent(&self) -> Duration {
        self.since(&self.sent_ms)
    }

    pub fn since_busy(&self) -> Duration {
        self.since(&self.busy_since_ms)
    }

    pub fn is_busy(&self) -> bool {
        self.now_ms() < self.busy_until_ms.load(Ordering::Relaxed)
    }

    /// Returns once an idle link became busy.
    pub async fn until_busy(&self) {
        self.became_busy.notified().await;
    }

    /// Returns how long an incomplete part has received no slice. Zero without an incomplete part.
    pub fn part_stalled_for(&self) -> Duration {
        match self.open_parts.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            _ => self.since(&self.slice_ms),
        }
    }
}
