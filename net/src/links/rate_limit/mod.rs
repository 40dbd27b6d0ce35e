//! Rates that links keep to: one bucket for all links of a tier and way, and one for the host's bulk alone.
//!
//! An urgent frame never waits for a bulk one: a class takes from a bucket only while nothing more urgent waits for it.
//! Without a rate none of this costs more than reading a flag.
//! Invariant: whoever waits is counted as waiting, and stops being counted however the wait ends.

mod token_bucket;

use shoal_proto::announcement::Class;
use shoal_proto::locality::Locality;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use token_bucket::TokenBucket;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Whoever waits looks again after this long at the latest, and lets those more urgent go first for as long.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Longest single wait: rates may change meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How far a link reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkScope {
    /// To a host behind the same uplink.
    Rack,
    /// Through the uplink.
    Uplink,
}

/// Rates, bytes/s; `None` limits nothing. Frames count with their headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkRates {
    /// Sent through the uplink.
    pub uplink_out: Option<u64>,
    /// Received through the uplink.
    pub uplink_in: Option<u64>,
    /// Sent to rack peers.
    pub rack_out: Option<u64>,
    /// Received from rack peers.
    pub rack_in: Option<u64>,
    /// Sent of class bulk, to anybody.
    pub bulk_out: Option<u64>,
    /// Received of class bulk, from anybody.
    pub bulk_in: Option<u64>,
}

struct State {
    bucket: TokenBucket,
    /// How many wait, by class.
    waiting: [usize; 4],
}

/// One bucket, and who waits for it.
struct RateLimiter {
    limited: AtomicBool,
    state: Mutex<State>,
    born: Instant,
    changed: Notify,
}

impl RateLimiter {
    fn new() -> Self {
        let state = State { bucket: TokenBucket::new(u64::MAX, Duration::ZERO), waiting: [0; 4] };
        let (limited, changed) = (AtomicBool::new(false), Notify::new());
        Self { limited, state: Mutex::new(state), born: Instant::now(), changed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, rate: Option<u64>) {
        let now = self.born.elapsed();
        let mut state = self.state();
        match (rate, self.limited.load(Ordering::Relaxed)) {
            (Some(rate), false) => state.bucket = TokenBucket::new(rate, now),
            (Some(rate), true) => state.bucket.set_rate(rate, now),
            (None, _) => {}
        }
        self.limited.store(rate.is_some(), Ordering::Relaxed);
        drop(state);
        self.changed.notify_waiters();
    }

    /// When a frame of a class may go; `None`: now.
    fn opens_at(&self, class: Class) -> Option<Instant> {
        if !self.limited.load(Ordering::Relaxed) {
            return None;
        }
        let now = self.born.elapsed();
        let mut state = self.state();
        let behind = state.waiting[..class as usize].iter().any(|waiting| *waiting > 0);
        let opens = state.bucket.opens_at(class, now);
        match opens {
            _ if behind => Some(self.born + opens.unwrap_or(now).max(now + LOOK_AGAIN)),
            Some(opens) => Some(self.born + opens),
            None => None,
        }
    }

    fn spend(&self, bytes: usize) {
        if self.limited.load(Ordering::Relaxed) {
            let now = self.born.elapsed();
            self.state().bucket.spend(bytes as u64, now);
        }
    }

    async fn wait(&self, class: Class, until: Instant) {
        let _counted = Waiting::new(self, class);
        let until = until.min(Instant::now() + WAIT_MAX);
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = self.changed.notified() => {}
        }
    }
}

struct Waiting<'a> {
    limiter: &'a RateLimiter,
    class: Class,
}

impl<'a> Waiting<'a> {
    fn new(limiter: &'a RateLimiter, class: Class) -> Self {
        limiter.state().waiting[class as usize] += 1;
        Self { limiter, class }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.limiter.state().waiting[self.class as usize] -= 1;
    }
}

/// One way of a host's links.
struct Direction {
    rack: RateLimiter,
    uplink: RateLimiter,
    bulk: RateLimiter,
}

impl Direction {
    fn new() -> Self {
        Self { rack: RateLimiter::new(), uplink: RateLimiter::new(), bulk: RateLimiter::new() }
    }

    fn limiters(&self, scope: LinkScope, class: Class) -> impl Iterator<Item = &RateLimiter> {
        let tier = match scope {
            LinkScope::Rack => &self.rack,
            LinkScope::Uplink => &self.uplink,
        };
        [Some(tier), (class == Class::Bulk).then_some(&self.bulk)].into_iter().flatten()
    }
}

struct Inner {
    out: Direction,
    into: Direction,
    rates: Mutex<LinkRates>,
}

/// The rates of an endpoint's links. Clones are the same.
#[derive(Clone)]
pub struct RateLimits {
    inner: Arc<Inner>,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { inner: Arc::new(Inner { out: Direction::new(), into: Direction::new(), rates: Mutex::default() }) }
    }
}

impl RateLimits {
    /// Rates from now on. What waits goes on at these.
    pub fn set(&self, rates: LinkRates) {
        let mut held = self.inner.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == rates {
            return;
        }
        *held = rates;
        let Inner { out, into, .. } = &*self.inner;
        out.uplink.set(rates.uplink_out);
        out.rack.set(rates.rack_out);
        out.bulk.set(rates.bulk_out);
        into.uplink.set(rates.uplink_in);
        into.rack.set(rates.rack_in);
        into.bulk.set(rates.bulk_in);
    }

    /// The rates in force.
    pub fn rates(&self) -> LinkRates {
        *self.inner.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a link with this scope keeps to.
    pub(in crate::links) fn of_link(&self, scope: LinkScope) -> LinkRateLimiter {
        LinkRateLimiter { inner: self.inner.clone(), scope }
    }
}

/// How far a link between two hosts reaches.
pub(super) fn scope(ours: Option<&Locality>, theirs: &Locality) -> LinkScope {
    match ours {
        Some(ours) if ours.same_rack(theirs) => LinkScope::Rack,
        _ => LinkScope::Uplink,
    }
}

/// What one link keeps to.
pub(super) struct LinkRateLimiter {
    inner: Arc<Inner>,
    scope: LinkScope,
}

impl LinkRateLimiter {
    /// Whether the link passes the uplink.
    pub(super) fn through_uplink(&self) -> bool {
        self.scope == LinkScope::Uplink
    }

    /// Whether a slice of this class must wait before it is sent; if so, what for.
    pub(super) fn must_wait(&self, class: Class) -> Option<impl Future<Output = ()> + '_> {
        let waits =
            self.inner.out.limiters(self.scope, class).find_map(|limiter| Some((limiter, limiter.opens_at(class)?)));
        waits.map(move |(limiter, until)| limiter.wait(class, until))
    }

    /// A frame was sent.
    pub(super) fn sent(&self, class: Class, bytes: usize) {
        self.inner.out.limiters(self.scope, class).for_each(|limiter| limiter.spend(bytes));
    }

    /// Whether a slice of this class must wait before it is read; if so, what for.
    pub(super) fn must_wait_in(&self, class: Class) -> Option<impl Future<Output = ()> + '_> {
        let waits =
            self.inner.into.limiters(self.scope, class).find_map(|limiter| Some((limiter, limiter.opens_at(class)?)));
        waits.map(move |(limiter, until)| limiter.wait(class, until))
    }

    /// A slice is being read.
    pub(super) fn received(&self, class: Class, bytes: usize) {
        self.inner.into.limiters(self.scope, class).for_each(|limiter| limiter.spend(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `slices` of a class as fast as the limit lets it; gives when the last went.
    async fn send(limit: &LinkRateLimiter, class: Class, slices: usize, bytes: usize) -> Instant {
        for _ in 0..slices {
            while let Some(wait) = limit.must_wait(class) {
                wait.await;
            }
            limit.sent(class, bytes);
        }
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn all_links_of_a_tier_share_its_rate_and_the_other_tier_is_free() {
        let limits = RateLimits::default();
        limits.set(LinkRates { uplink_out: Some(1_000_000), ..LinkRates::default() });
        let began = Instant::now();
        let (a, b, near) =
            (limits.of_link(LinkScope::Uplink), limits.of_link(LinkScope::Uplink), limits.of_link(LinkScope::Rack));
        let (a, b) = tokio::join!(send(&a, Class::Bulk, 50, 100_000), send(&b, Class::Bulk, 50, 100_000));
        let took = a.max(b) - began;
        assert!(took >= Duration::from_millis(9_500) && took < Duration::from_secs(11), "{took:?}");
        let before = Instant::now();
        assert_eq!(send(&near, Class::Bulk, 1000, 100_000).await, before, "nobody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limited_bulk_class_delays_no_urgent_frame() {
        let limits = RateLimits::default();
        limits.set(LinkRates { uplink_out: Some(1_000_000), ..LinkRates::default() });
        let (bulk, urgent) = (limits.of_link(LinkScope::Uplink), limits.of_link(LinkScope::Uplink));
        let urgents = async {
            let mut worst = Duration::ZERO;
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let asked = Instant::now();
                worst = worst.max(send(&urgent, Class::Urgent, 1, 10_000).await - asked);
            }
            worst
        };
        let (_, worst) = tokio::join!(send(&bulk, Class::Bulk, 40, 100_000), urgents);
        assert_eq!(worst, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn configs_go_before_images_across_links() {
        let limits = RateLimits::default();
        limits.set(LinkRates { rack_out: Some(1_000_000), ..LinkRates::default() });
        let (bulk, normal) = (limits.of_link(LinkScope::Rack), limits.of_link(LinkScope::Rack));
        let began = Instant::now();
        let (images, configs) =
            tokio::join!(send(&bulk, Class::Bulk, 50, 100_000), send(&normal, Class::Normal, 20, 100_000));
        assert!(configs - began < Duration::from_millis(2_600), "{:?}", configs - began);
        assert!(images - began > Duration::from_secs(6), "{:?}", images - began);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_wakes_who_waits() {
        let limits = RateLimits::default();
        limits.set(LinkRates { bulk_out: Some(1000), ..LinkRates::default() });
        let link = limits.of_link(LinkScope::Rack);
        let began = Instant::now();
        let change = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            limits.set(LinkRates::default());
        };
        let (done, ()) = tokio::join!(send(&link, Class::Bulk, 100, 100_000), change);
        assert!(done - began < Duration::from_millis(400), "{:?}", done - began);
        assert_eq!(limits.rates(), LinkRates::default());
    }
}
