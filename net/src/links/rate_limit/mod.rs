//! Rate limits of links: one token bucket for all links of a scope and direction, and one for the host's bulk.
//!
//! A class takes from a bucket only while nothing more urgent waits for the bucket, so an urgent frame never waits for
//! a bulk frame. A limiter without a rate costs one load of a flag.
//!
//! Invariant: the number of waiting frames of each class is exact, however a wait ends.

mod token_bucket;

use shoal_proto::announcement::Class;
use shoal_proto::locality::Locality;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use token_bucket::TokenBucket;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A class that waits behind a more urgent one looks again after this time.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// The longest single wait. The rate may change meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Which network a link passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkScope {
    /// The link stays within the rack.
    Rack,
    /// The link passes the rack's uplink.
    Uplink,
}

impl LinkScope {
    /// Returns the scope of a link between two hosts. Without a locality of its own, a host counts every link as
    /// passing the uplink.
    pub(super) fn between(own: Option<&Locality>, other: &Locality) -> Self {
        match own {
            Some(own) if own.same_rack(other) => Self::Rack,
            _ => Self::Uplink,
        }
    }
}

/// Rates in bytes/s. `None` means unlimited. Frames count with their headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkRates {
    /// What is sent through the uplink.
    pub uplink_out: Option<u64>,
    /// What is received through the uplink.
    pub uplink_in: Option<u64>,
    /// What is sent to rack peers.
    pub rack_out: Option<u64>,
    /// What is received from rack peers.
    pub rack_in: Option<u64>,
    /// What is sent of class bulk, to any host.
    pub bulk_out: Option<u64>,
    /// What is received of class bulk, from any host.
    pub bulk_in: Option<u64>,
}

struct LimiterState {
    bucket: TokenBucket,
    /// Waiting frames of each class.
    waiting: [usize; 4],
}

/// One token bucket with the frames that wait for it.
struct RateLimiter {
    is_limited: AtomicBool,
    state: Mutex<LimiterState>,
    start: Instant,
    rate_changed: Notify,
}

impl RateLimiter {
    fn new() -> Self {
        let state = LimiterState { bucket: TokenBucket::new(u64::MAX, Duration::ZERO), waiting: [0; 4] };
        let (is_limited, rate_changed) = (AtomicBool::new(false), Notify::new());
        Self { is_limited, state: Mutex::new(state), start: Instant::now(), rate_changed }
    }

    fn state(&self) -> MutexGuard<'_, LimiterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_rate(&self, rate: Option<u64>) {
        let now = self.start.elapsed();
        let mut state = self.state();
        match (rate, self.is_limited.load(Ordering::Relaxed)) {
            (Some(rate), false) => state.bucket = TokenBucket::new(rate, now),
            (Some(rate), true) => state.bucket.set_rate(rate, now),
            (None, _) => {}
        }
        self.is_limited.store(rate.is_some(), Ordering::Relaxed);
        drop(state);
        self.rate_changed.notify_waiters();
    }

    /// Returns when a frame of a class may go, or `None` for now.
    fn opens_at(&self, class: Class) -> Option<Instant> {
        if !self.is_limited.load(Ordering::Relaxed) {
            return None;
        }
        let now = self.start.elapsed();
        let mut state = self.state();
        let behind_urgent = state.waiting[..class as usize].iter().any(|waiting| *waiting > 0);
        let opens = state.bucket.opens_at(class, now);
        match opens {
            _ if behind_urgent => Some(self.start + opens.unwrap_or(now).max(now + RETRY_AFTER)),
            Some(opens) => Some(self.start + opens),
            None => None,
        }
    }

    fn consume(&self, bytes: usize) {
        if self.is_limited.load(Ordering::Relaxed) {
            let now = self.start.elapsed();
            self.state().bucket.consume(bytes as u64, now);
        }
    }

    async fn wait(&self, class: Class, until: Instant) {
        let _counted = WaitingFrame::new(self, class);
        let until = until.min(Instant::now() + WAIT_MAX);
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = self.rate_changed.notified() => {}
        }
    }
}

/// Counts a frame as waiting until the value is dropped.
struct WaitingFrame<'a> {
    limiter: &'a RateLimiter,
    class: Class,
}

impl<'a> WaitingFrame<'a> {
    fn new(limiter: &'a RateLimiter, class: Class) -> Self {
        limiter.state().waiting[class as usize] += 1;
        Self { limiter, class }
    }
}

impl Drop for WaitingFrame<'_> {
    fn drop(&mut self) {
        self.limiter.state().waiting[self.class as usize] -= 1;
    }
}

/// The limiters of one direction of a host's links.
struct Direction {
    rack: RateLimiter,
    uplink: RateLimiter,
    bulk: RateLimiter,
}

impl Direction {
    fn new() -> Self {
        Self { rack: RateLimiter::new(), uplink: RateLimiter::new(), bulk: RateLimiter::new() }
    }

    /// Returns the limiters that a frame passes.
    fn limiters(&self, scope: LinkScope, class: Class) -> impl Iterator<Item = &RateLimiter> {
        let by_scope = match scope {
            LinkScope::Rack => &self.rack,
            LinkScope::Uplink => &self.uplink,
        };
        [Some(by_scope), (class == Class::Bulk).then_some(&self.bulk)].into_iter().flatten()
    }

    /// Returns the wait for the first limiter that lets no frame of this class pass now.
    fn wait(&self, scope: LinkScope, class: Class) -> Option<impl Future<Output = ()> + '_> {
        let (limiter, until) =
            self.limiters(scope, class).find_map(|limiter| Some((limiter, limiter.opens_at(class)?)))?;
        Some(limiter.wait(class, until))
    }

    fn consume(&self, scope: LinkScope, class: Class, bytes: usize) {
        self.limiters(scope, class).for_each(|limiter| limiter.consume(bytes));
    }
}

struct HostLimits {
    out: Direction,
    into: Direction,
    rates: Mutex<LinkRates>,
}

/// The rate limits of an endpoint. Clones share the limits.
#[derive(Clone)]
pub struct RateLimits {
    host: Arc<HostLimits>,
}

impl Default for RateLimits {
    fn default() -> Self {
        let host = HostLimits { out: Direction::new(), into: Direction::new(), rates: Mutex::default() };
        Self { host: Arc::new(host) }
    }
}

impl RateLimits {
    /// Puts new rates in force. Waiting frames continue at the new rates.
    pub fn set(&self, rates: LinkRates) {
        let mut former = self.host.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if *former == rates {
            return;
        }
        *former = rates;
        let HostLimits { out, into, .. } = &*self.host;
        out.uplink.set_rate(rates.uplink_out);
        out.rack.set_rate(rates.rack_out);
        out.bulk.set_rate(rates.bulk_out);
        into.uplink.set_rate(rates.uplink_in);
        into.rack.set_rate(rates.rack_in);
        into.bulk.set_rate(rates.bulk_in);
    }

    /// Returns the rates in force.
    pub fn rates(&self) -> LinkRates {
        *self.host.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the limits of a link with this scope.
    pub(super) fn limiter(&self, scope: LinkScope) -> LinkRateLimiter {
        LinkRateLimiter { host: self.host.clone(), scope }
    }
}

/// The rate limits of one link.
pub struct LinkRateLimiter {
    host: Arc<HostLimits>,
    scope: LinkScope,
}

impl LinkRateLimiter {
    pub fn passes_uplink(&self) -> bool {
        self.scope == LinkScope::Uplink
    }

    /// Returns the wait before a slice of this class may be sent, or `None` if the slice may go now.
    pub fn send_wait(&self, class: Class) -> Option<impl Future<Output = ()> + '_> {
        self.host.out.wait(self.scope, class)
    }

    pub fn note_sent(&self, class: Class, bytes: usize) {
        self.host.out.consume(self.scope, class, bytes);
    }

    /// Returns the wait before a slice of this class may be read, or `None` if the slice may be read now.
    pub fn receive_wait(&self, class: Class) -> Option<impl Future<Output = ()> + '_> {
        self.host.into.wait(self.scope, class)
    }

    pub fn note_received(&self, class: Class, bytes: usize) {
        self.host.into.consume(self.scope, class, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `slices` of a class as fast as the limits allow. Returns when the last slice went.
    async fn send(limiter: &LinkRateLimiter, class: Class, slices: usize, bytes: usize) -> Instant {
        for _ in 0..slices {
            while let Some(wait) = limiter.send_wait(class) {
                wait.await;
            }
            limiter.note_sent(class, bytes);
        }
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn links_of_a_scope_divide_its_rate_and_the_other_scope_is_free() {
        let limits = RateLimits::default();
        limits.set(LinkRates { uplink_out: Some(1_000_000), ..LinkRates::default() });
        let start = Instant::now();
        let [a, b] = [0, 1].map(|_| limits.limiter(LinkScope::Uplink));
        let near = limits.limiter(LinkScope::Rack);
        let (a, b) = tokio::join!(send(&a, Class::Bulk, 50, 100_000), send(&b, Class::Bulk, 50, 100_000));
        let took = a.max(b) - start;
        assert!(took >= Duration::from_millis(9_500) && took < Duration::from_secs(11), "{took:?}");
        let before = Instant::now();
        assert_eq!(send(&near, Class::Bulk, 1000, 100_000).await, before, "links within the rack do not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn limited_bulk_delays_no_urgent_frame() {
        let limits = RateLimits::default();
        limits.set(LinkRates { uplink_out: Some(1_000_000), ..LinkRates::default() });
        let (bulk, urgent) = (limits.limiter(LinkScope::Uplink), limits.limiter(LinkScope::Uplink));
        let urgent_frames = async {
            let mut worst = Duration::ZERO;
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let start = Instant::now();
                worst = worst.max(send(&urgent, Class::Urgent, 1, 10_000).await - start);
            }
            worst
        };
        let (_, worst) = tokio::join!(send(&bulk, Class::Bulk, 40, 100_000), urgent_frames);
        assert_eq!(worst, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn configs_go_before_images_across_links() {
        let limits = RateLimits::default();
        limits.set(LinkRates { rack_out: Some(1_000_000), ..LinkRates::default() });
        let (bulk, normal) = (limits.limiter(LinkScope::Rack), limits.limiter(LinkScope::Rack));
        let start = Instant::now();
        let (images, configs) =
            tokio::join!(send(&bulk, Class::Bulk, 50, 100_000), send(&normal, Class::Normal, 20, 100_000));
        assert!(configs - start < Duration::from_millis(2_600), "{:?}", configs - start);
        assert!(images - start > Duration::from_secs(6), "{:?}", images - start);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_wakes_waiting_frames() {
        let limits = RateLimits::default();
        limits.set(LinkRates { bulk_out: Some(1000), ..LinkRates::default() });
        let link = limits.limiter(LinkScope::Rack);
        let start = Instant::now();
        let change = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            limits.set(LinkRates::default());
        };
        let (done, ()) = tokio::join!(send(&link, Class::Bulk, 100, 100_000), change);
        assert!(done - start < Duration::from_millis(400), "{:?}", done - start);
        assert_eq!(limits.rates(), LinkRates::default());
    }
}
