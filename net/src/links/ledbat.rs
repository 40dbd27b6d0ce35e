//! Bulk that leaves the queue of an uplink short while something urgent is about.
//!
//! What is on its way cannot be overtaken, and TCP fills whatever queue an uplink has: tens of milliseconds, at whose end
//! an urgent frame is lost as easily as any. So while urgent frames pass, each link through an uplink measures how long
//! a `Ping` takes one way, and sends its bulk no faster than keeps that near [`TARGET`] above the least it ever took,
//! after LEDBAT (RFC 6817): more while the queue is short, less the longer it is. The links of a rack need not know of
//! each other: all of them feel the same queue. What the other end took to get a processor is in the measure as well:
//! where those are short, bulk makes room on them too.
//! Invariant: nothing of this holds up control or urgent frames, and a link's rate never falls below [`RATE_MIN`].

use super::writer::RECORD_BYTES;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long after the last urgent frame.
const URGENT_RECENT: Duration = Duration::from_secs(10);
/// How long bulk may keep the queue.
const TARGET: Duration = Duration::from_millis(3);
/// Between two measurements of a link that sends bulk.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// A measurement that takes longer is bad news by itself.
const LATE: Duration = Duration::from_millis(200);
/// Where a link begins, bytes/s.
const RATE_START: u64 = 128 * 1024;
/// However long the queue, bytes/s.
const RATE_MIN: u64 = 64 * 1024;
/// Nobody needs more, bytes/s.
const RATE_MAX: u64 = 16 << 30;
/// Until a link has met a queue it grows by this share of its rate with each answer.
const RAMP: u64 = 16;
/// From then on by this many times the rate's root: the slower of two links gains more by its own measure than the
/// faster, and loses as much, so that they come to the same. Very fast links grow by a share all the same.
const GROW: u64 = 32;
const GROW_MIN: u64 = 48;
/// The most of its rate that a link loses with one answer, as a share.
const CUT: u64 = 4;
/// How long one slice keeps the link busy at its rate, and between how many bytes that is. Were it longer, a fast link
/// would measure the queue where it is shortest, just before its own next slice.
const SLICE_TIME: Duration = Duration::from_millis(10);
const SLICE_BYTES: RangeInclusive<usize> = 4 * 1024..=RECORD_BYTES;
/// Timers are late; so much of that is made up for.
const MADE_UP: Duration = Duration::from_millis(5);
/// A link that sent nothing for this long begins anew.
const IDLE: Duration = Duration::from_secs(1);
/// A link that could have sent for this long and had nothing loses half of its rate: others have grown into its place.
const HALVED: Duration = Duration::from_millis(200);
/// How long the least delay counts, at least: clocks drift, and routes change.
const FLOOR_KEPT: Duration = Duration::from_secs(300);

/// When something urgent last passed an endpoint, either way.
pub(super) struct UrgentActivity {
    born: Instant,
    /// Milliseconds since `born`, plus one; 0: never.
    last: AtomicU64,
}

impl UrgentActivity {
    pub(super) fn new() -> Self {
        Self { born: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Something urgent passes.
    pub(super) fn note(&self) {
        self.last.store(self.born.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// Whether something urgent is about.
    pub(super) fn is_recent(&self) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        last > 0 && self.born.elapsed().as_millis() as u64 + 1 - last < URGENT_RECENT.as_millis() as u64
    }
}

/// The least of what was seen during the last [`FLOOR_KEPT`] to twice that.
#[derive(Clone, Copy, Debug)]
struct Floor {
    now: i64,
    before: i64,
    since: Duration,
}

/// One link's delays, and the rate they leave to its bulk. Times are since some moment that does not change.
#[derive(Debug)]
pub(super) struct Ledbat {
    floor: Option<Floor>,
    /// Of the last delays above the floor, each half as much as the one after it.
    delay: Duration,
    /// Bytes/s.
    rate: u64,
    /// When the next slice may go.
    opens: Duration,
    /// A slice had to wait since the last answer.
    held: bool,
    answered: Duration,
    asked: Option<Duration>,
    /// It has not met a queue yet.
    ramps: bool,
    /// The rate before a pause, while it has not been met again.
    known: u64,
}

impl Ledbat {
    pub(super) fn new() -> Self {
        let zero = Duration::ZERO;
        Self {
            floor: None,
            delay: zero,
            rate: RATE_START,
            opens: zero,
            held: false,
            answered: zero,
            asked: None,
            ramps: true,
            known: 0,
        }
    }

    /// Whether a `Ping` is due before the next slice. If so it counts as sent.
    pub(super) fn asks(&mut self, now: Duration) -> bool {
        match self.asked {
            Some(asked) if now < asked + LATE => return false,
            Some(_) => self.rate = (self.rate / 2).max(RATE_MIN),
            None if now < self.answered + ASK_EVERY && self.floor.is_some() => return false,
            None => {}
        }
        self.asked = Some(now);
        true
    }

    /// A `Pong` says how long its `Ping` took, microseconds, plus what the clocks differ.
    pub(super) fn answer(&mut self, took: u64, now: Duration) {
        let took = took as i64;
        let mut floor = self.floor.unwrap_or(Floor { now: took, before: took, since: now });
        if now >= floor.since + FLOOR_KEPT {
            floor = Floor { now: took, before: floor.now, since: now };
        }
        floor.now = floor.now.min(took);
        self.floor = Some(floor);
        let above = took.saturating_sub(floor.now.min(floor.before)).max(0);
        self.delay = (self.delay + Duration::from_micros(above as u64)) / 2;
        self.steer();
        (self.asked, self.answered, self.held) = (None, now, false);
    }

    fn steer(&mut self) {
        let target = TARGET.as_micros() as u64;
        let queue = self.delay.as_micros() as u64;
        self.rate = match queue.checked_sub(target) {
            // A rate that is not used says nothing.
            None if !self.held => self.rate,
            None if self.rate < self.known => (self.rate * 2).min(self.known),
            None if self.ramps => self.rate + self.rate / RAMP,
            None => {
                let most = (GROW * self.rate.isqrt()).max(self.rate / GROW_MIN);
                self.rate + most * (target - queue) / target
            }
            Some(over) => {
                (self.ramps, self.known) = (false, 0);
                self.rate - self.rate / CUT * over.min(4 * target) / (4 * target)
            }
        };
        self.rate = self.rate.clamp(RATE_MIN, RATE_MAX);
    }

    /// When a slice may go; `None`: now.
    pub(super) fn opens_at(&mut self, now: Duration) -> Option<Duration> {
        let unused = now.saturating_sub(self.opens);
        if unused > IDLE {
            *self = Self { floor: self.floor, answered: now, opens: now, ..Self::new() };
        } else if unused >= HALVED {
            let halvings = unused.as_millis() / HALVED.as_millis();
            self.known = self.known.max(self.rate);
            self.rate = (self.rate >> halvings).max(self.rate.min(RATE_START));
            (self.opens, self.delay) = (now, Duration::ZERO);
        }
        self.held |= self.opens > now;
        (self.opens > now).then_some(self.opens)
    }

    /// The longest slice that may go, bytes.
    pub(super) fn slice(&self) -> usize {
        let bytes = u128::from(self.rate) * SLICE_TIME.as_micros() / 1_000_000;
        usize::try_from(bytes).unwrap_or(usize::MAX).clamp(*SLICE_BYTES.start(), *SLICE_BYTES.end())
    }

    /// A slice goes.
    pub(super) fn spend(&mut self, bytes: usize, now: Duration) {
        let takes = Duration::from_micros(bytes as u64 * 1_000_000 / self.rate);
        self.opens = self.opens.max(now.saturating_sub(MADE_UP)) + takes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: Duration = Duration::from_micros(250);

    /// A link, its answers on the way with when they are due, and what it sent.
    type Row = (Ledbat, Vec<(Duration, u64)>, u64);

    /// Links that share one queue.
    struct Uplink {
        /// Bytes/s.
        rate: u64,
        queued: f64,
        sent: u64,
        now: Duration,
        links: Vec<Row>,
        /// Answers come with the noise of a busy machine.
        busy: bool,
        /// Links have something to send now and then only, several at a time.
        fitful: bool,
        noise: u64,
    }

    impl Uplink {
        fn new(rate: u64, links: usize, busy: bool) -> Self {
            let links = (0..links).map(|_| (Ledbat::new(), Vec::new(), 0)).collect();
            Self { rate, queued: 0.0, sent: 0, now: Duration::from_secs(1000), links, busy, fitful: false, noise: 1 }
        }

        /// Whether a link has something to send: always, or in a pattern of its own that changes each quarter second.
        fn wishes(&self, at: usize) -> bool {
            let spell = self.now.as_millis() as u64 / 250;
            let mixed = (spell * 64 + at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            !self.fitful || (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 62 == 0
        }

        fn late(&mut self) -> u64 {
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

        /// Runs for a while; gives the queue's delays and what share of the rate was used.
        fn run(&mut self, time: Duration) -> (Vec<Duration>, f64) {
            let (until, before) = (self.now + time, self.sent);
            let mut delays = Vec::new();
            while self.now < until {
                self.now += STEP;
                let gone = (self.rate as f64 * STEP.as_secs_f64()).min(self.queued);
                self.queued -= gone;
                self.sent += gone as u64;
                for at in 0..self.links.len() {
                    let (now, delay) = (self.now, self.delay());
                    let (late, wishes) = (self.late(), self.wishes(at));
                    let (pacer, answers, sent) = &mut self.links[at];
                    answers.retain(|(due, took)| {
                        if *due <= now {
                            pacer.answer(*took, now);
                        }
                        *due > now
                    });
                    while wishes && pacer.opens_at(now).is_none() {
                        if pacer.asks(now) {
                            let took = delay + Duration::from_micros(200 + late);
                            // Clocks differ.
                            answers.push((now + took, (took.as_micros() as u64).wrapping_sub(77_000_000)));
                        }
                        let slice = pacer.slice();
                        pacer.spend(slice, now);
                        self.queued += slice as f64;
                        *sent += slice as u64;
                    }
                }
                delays.push(self.delay());
            }
            delays.sort_unstable();
            (delays, (self.sent - before) as f64 / (self.rate as f64 * time.as_secs_f64()))
        }
    }

    #[test]
    fn the_queue_stays_short_and_the_uplink_busy() {
        let uplinks = [(50, 16), (200, 16), (200, 4), (1_000, 16), (10_000, 32)];
        for ((mbit, links), busy) in uplinks.into_iter().flat_map(|uplink| [(uplink, false), (uplink, true)]) {
            let mut uplink = Uplink::new(mbit * 125_000, links, busy);
            let (start, _) = uplink.run(Duration::from_secs(8));
            let (delays, used) = uplink.run(Duration::from_secs(30));
            let at = |share: usize| delays[delays.len() * share / 100];
            let case = format!("{mbit} Mbit/s, {links} links, busy {busy}: {:?}, {:?}, {used:.3}", at(50), at(99));
            assert!(*start.last().unwrap() < Duration::from_millis(40), "{case}; at first {:?}", start.last());
            assert!(at(50) <= 2 * TARGET && at(99) <= 3 * TARGET, "{case}");
            assert!(used > if busy { 0.5 } else { 0.95 }, "{case}");
            let sent = || uplink.links.iter().map(|(_, _, sent)| *sent);
            // Noise is each link's own.
            assert!(busy || sent().min() > sent().max().map(|most| most / 10), "{case}");
        }
    }

    #[test]
    fn links_that_had_nothing_to_send_do_not_fill_the_queue_when_they_do() {
        for (mbit, links) in [(50, 32), (200, 16), (200, 64), (1_000, 64)] {
            let mut uplink = Uplink { fitful: true, ..Uplink::new(mbit * 125_000, links, false) };
            uplink.run(Duration::from_secs(20));
            let (delays, used) = uplink.run(Duration::from_secs(60));
            let at = |share: usize| delays[delays.len() * share / 1000];
            let case = format!("{mbit} Mbit/s, {links} links: {:?}, {:?}, {used:.3}", at(990), at(999));
            assert!(at(990) <= 2 * TARGET && at(999) <= 7 * TARGET, "{case}");
        }
    }

    #[test]
    fn after_a_pause_a_link_is_soon_as_fast_as_before() {
        let mut uplink = Uplink::new(25_000_000, 2, false);
        uplink.run(Duration::from_secs(20));
        uplink.now += IDLE / 2;
        let (_, used) = uplink.run(IDLE);
        assert!(used > 0.7, "{used:.3}");
    }

    #[test]
    fn who_is_not_answered_slows_down_and_asks_again() {
        let mut pacer = Ledbat::new();
        let mut now = Duration::from_secs(1);
        assert!(pacer.opens_at(now).is_none() && pacer.asks(now) && !pacer.asks(now));
        for _ in 0..20 {
            now += LATE;
            assert!(pacer.asks(now));
            pacer.spend(pacer.slice(), now);
        }
        assert_eq!(pacer.rate, RATE_MIN);
        assert!(pacer.opens_at(now).is_some());
        assert!(
            pacer.opens_at(now + IDLE + LATE).is_none() && pacer.rate == RATE_START,
            "after a pause it begins anew"
        );
    }

    proptest! {
        #[test]
        fn no_answer_stops_a_link(answers in prop::collection::vec((any::<u64>(), 0u64..1_000_000), 1..50)) {
            let (mut pacer, mut now) = (Ledbat::new(), Duration::from_secs(1));
            for (took, pause) in answers {
                now += Duration::from_micros(pause);
                pacer.answer(took, now);
                pacer.spend(pacer.slice(), now);
                let opens = pacer.opens_at(now).unwrap_or(now);
                prop_assert!(opens - now <= Duration::from_secs(1), "{opens:?} at {now:?}");
                now = opens;
            }
        }
    }
}
