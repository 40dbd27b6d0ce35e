//! LEDBAT (RFC 6817): delay-based congestion control for the bulk traffic of a link.
//!
//! **Problem.** An urgent version of a feed must reach its readers within milliseconds while a push fills the uplink of
//! their rack. TCP fills the queue of the uplink, in the lab 40 ms of it, and packets at its end are lost. A feed's
//! 99th percentile was 150 to 320 ms during a push.
//!
//! **Naive answer.** Urgent frames go first on their link, or get a connection of their own.
//!
//! **Why it fails.** Bytes that have left the host cannot be overtaken. A connection of its own stands in the same
//! queue, and marked packets help only where the switches obey the marks.
//!
//! **Answer.** Bulk keeps the queue short. While urgent frames pass the host, and for 10 s after, each link through an
//! uplink measures how long a `Ping` takes one way, every 50 ms. The smallest time of the last minutes is the base
//! delay, that of an empty queue. The rest is the queuing delay. The link sends its bulk at a rate that holds the
//! queuing delay near a target of 3 ms:
//!
//! ```text
//! delay   = mean of the last queuing delays, each weighing half as much as the next one
//! delay <= target:  rate += gain * (target - delay) / target        gain = max(32 * sqrt(rate), rate / 48)
//! delay >  target:  rate -= rate / 4 * min(delay - target, 4 * target) / (4 * target)
//! ```
//!
//! Growth by the root of the rate and decrease by a share of it bring links of unequal rates together: by its own
//! measure the slower link gains more. Links of a rack need not know of each other, because all of them measure the
//! same queue. The clocks of both ends need not agree, because only the excess over the base delay counts. One-way
//! times are needed because both directions of an uplink are busy during a push.
//!
//! A link that has met no queue yet grows faster (slow start). A link that pauses loses half of its rate each 200 ms,
//! because other links grow into its place. In a packet capture the late versions stood in a queue that five links had
//! filled within 160 ms, each at its rate from before a pause. The former rate comes back by doubling.
//!
//! The measure includes the time that the other end took to get a processor. That is intended: on a host without spare
//! processors bulk makes room there as well.
//!
//! **Numbers** (`docs/adr/0016-ledbat-for-bulk-traffic.md`). The 99th percentile of a feed beside a push fell from
//! 150 ms to 21 ms. The push beside a feed takes 1.2 to 1.4 of the bound instead of 1.1. Without urgent traffic nothing
//! changes.
//!
//! Invariant: LEDBAT never delays control or urgent frames, and a link's rate never falls below [`RATE_MIN`].

use super::sizes::RECORD_PAYLOAD_BYTES;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Bulk is paced for this long after the last urgent frame.
const URGENT_RECENT: Duration = Duration::from_secs(10);
/// The queuing delay that bulk may cause.
const TARGET: Duration = Duration::from_millis(3);
/// Time between two measurements while bulk is sent.
const PING_INTERVAL: Duration = Duration::from_millis(50);
/// A measurement that takes longer halves the rate.
const PONG_TIMEOUT: Duration = Duration::from_millis(200);
/// The first rate of a link, bytes/s.
const RATE_START: u64 = 128 * 1024;
/// The lowest rate, bytes/s, however long the queue is.
const RATE_MIN: u64 = 64 * 1024;
/// The highest rate, bytes/s: no network card is faster.
const RATE_MAX: u64 = 16 << 30;
/// In slow start each measurement adds the rate divided by this.
const SLOW_START_DIVISOR: u64 = 16;
/// After slow start a measurement adds at most the root of the rate times this.
const GAIN_OF_ROOT: u64 = 32;
/// Very fast links gain at least the rate divided by this. Their root is too small a share.
const GAIN_DIVISOR: u64 = 48;
/// One measurement takes at most the rate divided by this.
const DECREASE_DIVISOR: u64 = 4;
/// The time that one slice occupies the link at its rate. With longer slices a fast link would measure the queue just
/// before its own next slice, when the queue is shortest.
const SLICE_TIME: Duration = Duration::from_millis(10);
/// The shortest and the longest slice in bytes.
const SLICE_BYTES: RangeInclusive<usize> = 4 * 1024..=RECORD_PAYLOAD_BYTES;
/// A link may make up this much time after a late timer.
const TIMER_SLACK: Duration = Duration::from_millis(5);
/// A link that sent nothing for this long starts again from [`RATE_START`].
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// A link that may send and has nothing to send loses half of its rate in this time.
const HALVE_AFTER: Duration = Duration::from_millis(200);
/// A base delay counts for this long to twice as long. Clocks drift and routes change.
const BASE_DELAY_PERIOD: Duration = Duration::from_secs(300);

/// The time of the last urgent frame of an endpoint, in either direction.
pub struct UrgentActivity {
    start: Instant,
    /// Milliseconds since `start`, plus one. 0 without an urgent frame so far.
    last_ms: AtomicU64,
}

impl UrgentActivity {
    pub fn new() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    /// Notes an urgent frame.
    pub fn note(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64 + 1
    }

    /// Returns whether an urgent frame passed within the last 10 s.
    pub fn is_recent(&self) -> bool {
        let last = self.last_ms.load(Ordering::Relaxed);
        last > 0 && self.now_ms() - last < URGENT_RECENT.as_millis() as u64
    }
}

/// The smallest one-way time of the present period and of the one before, in microseconds.
#[derive(Clone, Copy, Debug)]
struct BaseDelay {
    present_us: i64,
    former_us: i64,
    /// When the present period started.
    since: Duration,
}

impl BaseDelay {
    fn new(one_way_us: i64, now: Duration) -> Self {
        Self { present_us: one_way_us, former_us: one_way_us, since: now }
    }

    /// Takes a measurement and returns its excess over the base delay.
    fn queuing_delay(&mut self, one_way_us: i64, now: Duration) -> Duration {
        if now >= self.since + BASE_DELAY_PERIOD {
            *self = Self { present_us: one_way_us, former_us: self.present_us, since: now };
        }
        self.present_us = self.present_us.min(one_way_us);
        let excess = one_way_us.saturating_sub(self.present_us.min(self.former_us)).max(0);
        Duration::from_micros(excess as u64)
    }
}

/// The controller of one link. All times count from one fixed moment.
#[derive(Debug)]
pub struct Ledbat {
    base: Option<BaseDelay>,
    /// The mean of the last queuing delays.
    queuing_delay: Duration,
    /// Bytes/s.
    rate: u64,
    /// When the next slice may go.
    opens: Duration,
    /// Set when the rate delayed a slice since the last measurement. A rate that is not used is not raised.
    rate_was_limiting: bool,
    /// When the last `Pong` arrived.
    measured: Duration,
    /// When the `Ping` left that is not answered yet.
    pinged: Option<Duration>,
    in_slow_start: bool,
    /// The rate before a pause, until the link has it again. 0 without a pause.
    rate_before_pause: u64,
}

impl Ledbat {
    pub fn new() -> Self {
        Self {
            base: None,
            queuing_delay: Duration::ZERO,
            rate: RATE_START,
            opens: Duration::ZERO,
            rate_was_limiting: false,
            measured: Duration::ZERO,
            pinged: None,
            in_slow_start: true,
            rate_before_pause: 0,
        }
    }

    /// Returns whether a `Ping` must go before the next slice, and counts the ping as sent if so.
    pub fn take_ping_due(&mut self, now: Duration) -> bool {
        match self.pinged {
            Some(pinged) if now < pinged + PONG_TIMEOUT => return false,
            Some(_) => self.rate = (self.rate / 2).max(RATE_MIN),
            None if now < self.measured + PING_INTERVAL && self.base.is_some() => return false,
            None => {}
        }
        self.pinged = Some(now);
        true
    }

    /// Takes a measurement: the stamp of a `Pong` is the one-way time of its `Ping` in microseconds plus the difference
    /// of both clocks.
    pub fn on_pong(&mut self, stamp: u64, now: Duration) {
        // The difference of the clocks may be negative.
        let one_way_us = stamp as i64;
        let delay = self.base.get_or_insert(BaseDelay::new(one_way_us, now)).queuing_delay(one_way_us, now);
        self.queuing_delay = (self.queuing_delay + delay) / 2;
        self.adjust_rate();
        (self.pinged, self.measured, self.rate_was_limiting) = (None, now, false);
    }

    fn adjust_rate(&mut self) {
        let target = TARGET.as_micros() as u64;
        let delay = self.queuing_delay.as_micros() as u64;
        self.rate = match delay.checked_sub(target) {
            None if !self.rate_was_limiting => self.rate,
            None if self.rate < self.rate_before_pause => (self.rate * 2).min(self.rate_before_pause),
            None if self.in_slow_start => self.rate + self.rate / SLOW_START_DIVISOR,
            None => {
                let gain = (GAIN_OF_ROOT * self.rate.isqrt()).max(self.rate / GAIN_DIVISOR);
                self.rate + gain * (target - delay) / target
            }
            Some(excess) => {
                (self.in_slow_start, self.rate_before_pause) = (false, 0);
                self.rate - self.rate / DECREASE_DIVISOR * excess.min(4 * target) / (4 * target)
            }
        };
        self.rate = self.rate.clamp(RATE_MIN, RATE_MAX);
    }

    /// Returns when the next slice may go, or `None` for now.
    pub fn opens_at(&mut self, now: Duration) -> Option<Duration> {
        let unused = now.saturating_sub(self.opens);
        if unused > RESTART_AFTER {
            *self = Self { base: self.base, measured: now, opens: now, ..Self::new() };
        } else if unused >= HALVE_AFTER {
            let halvings = unused.as_millis() / HALVE_AFTER.as_millis();
            self.rate_before_pause = self.rate_before_pause.max(self.rate);
            self.rate = (self.rate >> halvings).max(self.rate.min(RATE_START));
            (self.opens, self.queuing_delay) = (now, Duration::ZERO);
        }
        self.rate_was_limiting |= self.opens > now;
        (self.opens > now).then_some(self.opens)
    }

    /// Returns the length of the longest slice that may go, in bytes.
    pub fn slice_bytes(&self) -> usize {
        let bytes = u128::from(self.rate) * SLICE_TIME.as_micros() / 1_000_000;
        usize::try_from(bytes).unwrap_or(usize::MAX).clamp(*SLICE_BYTES.start(), *SLICE_BYTES.end())
    }

    /// Notes a slice that goes now.
    pub fn on_sent(&mut self, bytes: usize, now: Duration) {
        let time = Duration::from_micros(bytes as u64 * 1_000_000 / self.rate);
        self.opens = self.opens.max(now.saturating_sub(TIMER_SLACK)) + time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: Duration = Duration::from_micros(250);

    /// A `Pong` on its way.
    struct PendingPong {
        due: Duration,
        stamp: u64,
    }

    struct SimulatedLink {
        ledbat: Ledbat,
        pongs: Vec<PendingPong>,
        sent: u64,
    }

    /// Links that send through one queue.
    struct Uplink {
        /// Bytes/s.
        rate: u64,
        queued: f64,
        sent: u64,
        now: Duration,
        links: Vec<SimulatedLink>,
        /// Measurements carry the noise of a busy machine.
        busy: bool,
        /// Links have something to send only now and then, several at a time.
        fitful: bool,
        noise: u64,
    }

    impl Uplink {
        fn new(rate: u64, links: usize, busy: bool) -> Self {
            let link = |_| SimulatedLink { ledbat: Ledbat::new(), pongs: Vec::new(), sent: 0 };
            let links = (0..links).map(link).collect();
            Self { rate, queued: 0.0, sent: 0, now: Duration::from_secs(1000), links, busy, fitful: false, noise: 1 }
        }

        /// Returns whether a link has something to send: always, or in a pattern that changes each 250 ms.
        fn has_data(&self, at: usize) -> bool {
            let spell = self.now.as_millis() as u64 / 250;
            let mixed = (spell * 64 + at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            !self.fitful || (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 62 == 0
        }

        fn noise_us(&mut self) -> u64 {
            self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match self.noise >> 60 {
                0 if self.busy => 12_000,
                1..=4 if self.busy => 2_000,
                _ => (self.noise >> 40) % 500,
            }
        }

        fn delay(&self) -> Duration {
            Duration::from_secs_f64(self.queued / self.rate as f64)
        }

        /// Runs for `time`. Returns the sorted delays of the queue and the used fraction of the rate.
        fn run(&mut self, time: Duration) -> (Vec<Duration>, f64) {
            let (until, before) = (self.now + time, self.sent);
            let mut delays = Vec::new();
            while self.now < until {
                self.now += STEP;
                let gone = (self.rate as f64 * STEP.as_secs_f64()).min(self.queued);
                self.queued -= gone;
                self.sent += gone as u64;
                for at in 0..self.links.len() {
                    self.step_link(at);
                }
                delays.push(self.delay());
            }
            delays.sort_unstable();
            (delays, (self.sent - before) as f64 / (self.rate as f64 * time.as_secs_f64()))
        }

        fn step_link(&mut self, at: usize) {
            let (now, delay) = (self.now, self.delay());
            let (noise, has_data) = (self.noise_us(), self.has_data(at));
            let SimulatedLink { ledbat, pongs, sent } = &mut self.links[at];
            pongs.retain(|pong| {
                if pong.due <= now {
                    ledbat.on_pong(pong.stamp, now);
                }
                pong.due > now
            });
            while has_data && ledbat.opens_at(now).is_none() {
                if ledbat.take_ping_due(now) {
                    let time = delay + Duration::from_micros(200 + noise);
                    // The clocks of both ends differ by 77 s.
                    pongs.push(PendingPong {
                        due: now + time,
                        stamp: (time.as_micros() as u64).wrapping_sub(77_000_000),
                    });
                }
                let slice = ledbat.slice_bytes();
                ledbat.on_sent(slice, now);
                self.queued += slice as f64;
                *sent += slice as u64;
            }
        }
    }

    #[test]
    fn the_queue_stays_short_and_the_uplink_busy() {
        let uplinks = [(50, 16), (200, 16), (200, 4), (1_000, 16), (10_000, 32)];
        for ((mbit, links), busy) in uplinks.into_iter().flat_map(|uplink| [(uplink, false), (uplink, true)]) {
            let mut uplink = Uplink::new(mbit * 125_000, links, busy);
            let (start, _) = uplink.run(Duration::from_secs(8));
            let (delays, used) = uplink.run(Duration::from_secs(30));
            let percentile = |percent: usize| delays[delays.len() * percent / 100];
            let (median, p99) = (percentile(50), percentile(99));
            let case = format!("{mbit} Mbit/s, {links} links, busy {busy}: {median:?}, {p99:?}, {used:.3}");
            assert!(*start.last().unwrap() < Duration::from_millis(40), "{case}; at first {:?}", start.last());
            assert!(median <= 2 * TARGET && p99 <= 3 * TARGET, "{case}");
            assert!(used > if busy { 0.5 } else { 0.95 }, "{case}");
            let sent = || uplink.links.iter().map(|link| link.sent);
            // Each link has noise of its own, so busy links differ.
            assert!(busy || sent().min() > sent().max().map(|most| most / 10), "{case}");
        }
    }

    #[test]
    fn links_that_had_nothing_to_send_do_not_fill_the_queue_when_they_do() {
        for (mbit, links) in [(50, 32), (200, 16), (200, 64), (1_000, 64)] {
            let mut uplink = Uplink { fitful: true, ..Uplink::new(mbit * 125_000, links, false) };
            uplink.run(Duration::from_secs(20));
            let (delays, used) = uplink.run(Duration::from_secs(60));
            let permille = |permille: usize| delays[delays.len() * permille / 1000];
            let (p99, p999) = (permille(990), permille(999));
            let case = format!("{mbit} Mbit/s, {links} links: {p99:?}, {p999:?}, {used:.3}");
            assert!(p99 <= 2 * TARGET && p999 <= 7 * TARGET, "{case}");
        }
    }

    #[test]
    fn after_a_pause_a_link_is_soon_as_fast_as_before() {
        let mut uplink = Uplink::new(25_000_000, 2, false);
        uplink.run(Duration::from_secs(20));
        uplink.now += RESTART_AFTER / 2;
        let (_, used) = uplink.run(RESTART_AFTER);
        assert!(used > 0.7, "{used:.3}");
    }

    #[test]
    fn a_link_without_pongs_slows_down_and_pings_again() {
        let mut ledbat = Ledbat::new();
        let mut now = Duration::from_secs(1);
        assert!(ledbat.opens_at(now).is_none() && ledbat.take_ping_due(now) && !ledbat.take_ping_due(now));
        for _ in 0..20 {
            now += PONG_TIMEOUT;
            assert!(ledbat.take_ping_due(now));
            ledbat.on_sent(ledbat.slice_bytes(), now);
        }
        assert_eq!(ledbat.rate, RATE_MIN);
        assert!(ledbat.opens_at(now).is_some());
        let restarted = ledbat.opens_at(now + RESTART_AFTER + PONG_TIMEOUT).is_none() && ledbat.rate == RATE_START;
        assert!(restarted, "after a pause the link starts again");
    }

    proptest! {
        #[test]
        fn no_stamp_stops_a_link(pongs in prop::collection::vec((any::<u64>(), 0u64..1_000_000), 1..50)) {
            let (mut ledbat, mut now) = (Ledbat::new(), Duration::from_secs(1));
            for (stamp, pause) in pongs {
                now += Duration::from_micros(pause);
                ledbat.on_pong(stamp, now);
                ledbat.on_sent(ledbat.slice_bytes(), now);
                let opens = ledbat.opens_at(now).unwrap_or(now);
                prop_assert!(opens - now <= Duration::from_secs(1), "{opens:?} at {now:?}");
                now = opens;
            }
        }
    }
}
