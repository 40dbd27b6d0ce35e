//! The core's tuning: windows, waits and thresholds, each with what it costs to change.
//!
//! Owns: [`Tuning`], which the driver hands to a node once. The daemon uses [`Tuning::default`] throughout; the
//! simulator can switch off one rule at a time ([`Tuning::rules`]).
//!
//! Each field names the simulated scenarios that need it, and what they lose without it, on the mean over 16 seeds. The
//! scenarios are those of `cargo run --release -p shoal-sim --example ablate`. A rule that moves no scenario by more
//! than 0.5 % is deleted.
//! Invariant: no value here guards memory or peers. Those are in [`super::bounds`].

use super::bounds;
use std::time::Duration;

/// Longer than any run. Small enough to be multiplied.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// All tuning constants of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    // Fairness on the sending side (`fairness::sender`).
    /// Pieces of its own that a child may be ahead of the lower quartile of children, at a content's origin.
    ///
    /// Rule off at `u32::MAX`: no child is paused. Needed by `slow-uplink` +5.6 % makespan, `owners-30%` +2.3 %.
    pub send_lead_pieces: u32,
    /// One child in this many may be slow by itself without making the others wait.
    ///
    /// Rule off at `usize::MAX`: the others wait for the slowest child. Needed by `slow-uplink` +6.9 % makespan,
    /// `owners-30%` +3.7 %.
    pub send_slow_one_in: usize,

    // The throughput guard (`fairness::throughput_guard`).
    /// The span over which the guard measures a rate.
    ///
    /// Rule off at `NEVER`: the guard never suspends fairness. Needed by `owners-30%` +28 % makespan, `uplink-cut`
    /// +19 %.
    pub guard_span: Duration,
    /// After this many spans in a row with pauses the guard resumes everything for one span, to see what passes then.
    /// It waits twice as long after a probe that showed no gain.
    ///
    /// Rule off at `u32::MAX`: the guard never probes. Needed by `slow-uplink` +5.6 % makespan, `owners-30%` +4.5 %.
    pub guard_probe_spans: u32,
    /// How often `guard_suspend` doubles.
    ///
    /// Rule off at `0`: it never doubles. Needed by `two-cuts` +3.5 % import, `flap` +1.6 % makespan.
    pub guard_doublings: u32,
    /// How long fairness is suspended once pauses have cost a fifth of the rate. Doubles with each repeat.
    ///
    /// Rule off at `Duration::ZERO`: a loss of rate suspends nothing. Needed by `slow-uplink` +3.1 % makespan,
    /// `cut-at-start` +2.9 % egress.
    pub guard_suspend: Duration,

    // Fairness on the receiving side (`fairness::receiver`).
    /// Pieces that an imported lane may be ahead of the others. The lead is at least the height of the trees.
    ///
    /// Rule off at `u32::MAX`: no lane is paused. Needed by `owners-30%` +8.2 % makespan, `corrupt` +1.9 % egress.
    pub lane_lead_pieces: u32,
    /// The others do not wait for a lane that has brought nothing for this long.
    ///
    /// Rule off at `NEVER`: they wait for every lane. Needed by `owners-30%` +5.9 % makespan, `slow-uplink` +5.1 %.
    pub lane_idle: Duration,

    // Jobs, manifests and feeds.
    /// How long a host waits for the manifest's own lane when another lane was faster. It also waits so for a requested
    /// manifest, beyond the time to send it. A lost packet costs 250 ms. A manifest that comes twice is a few parts in
    /// 10,000 of its content.
    ///
    /// Rule off at `Duration::ZERO`: it does not wait. Needed by `uplink-cut` +22 % makespan, `quarter-50%` +1.3 %
    /// import.
    pub manifest_patience: Duration,
    /// How long a host waits for a small version's data on its own lane, when another lane announced the version first.
    /// A link of 10 Mbit/s carries 64 KiB, the largest small version, in this time.
    ///
    /// Rule off at `Duration::from_millis(1)`: it requests the data after 1 ms. Needed by `swarm/tests/feeds.rs`, and
    /// the lab scenario `feeds`.
    pub feed_patience: Duration,
    /// How many further hosts are asked for a late manifest. With one slow host in four, as many as there are
    /// announcement lanes.
    ///
    /// Rule off at `0`: one source at a time. Needed by `20-ms` +109 % makespan, `cut-at-start` +61 %.
    pub manifest_extra_sources: usize,
    /// How long a host that joins late waits for its rack peers to say what they have, before it imports anything.
    ///
    /// Rule off at `Duration::ZERO`: it does not wait. Needed by `flap` +1.4 % makespan, `late` +1.2 %.
    pub rack_peers_patience: Duration,
    /// How long a parked subscription waits before the child hears `NotServed`.
    ///
    /// Rule off at `Duration::ZERO`: until the next check. Needed by `slow-owners` +18 % import, `late` +12 % egress.
    pub parked_time: Duration,

    // Detection of slow parents (`stragglers::detect`).
    /// Shortest span over which a parent's deliveries are compared.
    ///
    /// Rule off at `NEVER`: no parent is compared and no lane rerouted. Needed by `owners-30%` +164 % makespan,
    /// `uplink-cut` +30 %.
    pub detect_span: Duration,
    /// Deliveries expected of a parent before it is compared. Fewer say little.
    ///
    /// Rule off at `0`: every span counts. Needed by `two-cuts` +4.5 % import, `owners-30%` +2.9 % makespan.
    pub detect_pieces_min: u64,
    /// A parent crawls when it delivers less than one part in this many of what is usual per lane.
    ///
    /// Rule off at `u64::MAX`: only a parent that delivers nothing crawls. Needed by `owners-30%` +12 % makespan.
    pub slow_factor: u64,
    /// A parent lags when its lanes lack what others bring in this time and it delivers under two thirds of what is
    /// usual. Such a parent would make its rack wait for the whole push.
    ///
    /// Rule off at `NEVER`: no parent lags. Needed by `owners-30%` +163 % makespan.
    pub slow_lag: Duration,
    /// Spans in a row in which a parent crawls or lags before it is avoided. Its rack imports its lanes a second time,
    /// so a host that lacked a processor for one second must not look slow.
    ///
    /// Rule off at `1`: one span is enough. Needed by `uplink-cut` +21 % makespan, `quarter-50%` +8.6 % import.
    pub slow_strikes: u8,
    /// The same for a parent that hosts of other racks found silent, if it also delivers less than one part in
    /// `suspected_factor`.
    ///
    /// Rule off at `4`: suspicion changes nothing. Needed by `slow-owners` +1.6 % makespan.
    pub suspected_strikes: u8,
    /// See `suspected_strikes`. A host at half an uplink's rate is often silent to others, and its rack is better off
    /// with it.
    ///
    /// Rule off at `1`: any delivery below what is expected. Needed by `random` +6.5 % makespan.
    pub suspected_factor: u64,

    // Reroutes of silent lanes (`stragglers::reroute`).
    /// A silent lane has also brought nothing for as long as this many pieces usually take.
    ///
    /// Rule off at `0`: `stall` alone decides. Needed by `narrow` +99 % egress, `uneven-racks` +25 % makespan.
    pub silence_pieces: u64,
    /// The deeper in a lane's tree its parent is, the longer the silence must last, up to this many times as long.
    ///
    /// Rule off at `1`: depth does not matter. Needed by `stale` +43 % makespan, `cut-at-start` +2.0 % egress.
    pub silence_depth: u32,
    /// A lane whose parent brings other lanes must be silent this many times as long.
    ///
    /// Rule off at `1`: no longer than others. Needed by `uplink-cut` +23 % makespan, `cut-at-start` +7.5 % egress.
    pub silence_single_lane: u32,
    /// The end is near when one lane in this many is still awaited.
    ///
    /// Rule off at `usize::MAX`: the end is never near. Needed by `uplink-cut` +25 % makespan, `slow-uplink` +6.9 %.
    pub ending_one_in: usize,
    /// Near the end a lane is behind when it lacks one piece in this many, or more. Others are merely last: links share
    /// a rate unevenly, and a reroute would only make the others later.
    ///
    /// Rule off at `0`: no lane is behind. Needed by `uplink-cut` +23 % makespan, `slow-uplink` +5.6 %.
    pub ending_behind: u32,
    /// A whole rack is bypassed when at least this many of its hosts should bring something and all are silent.
    ///
    /// Rule off at `usize::MAX`: racks are never bypassed as a whole. Needed by `cut-at-start` +1.8 % egress.
    pub silent_rack_hosts: usize,
    /// One in this many rack peers may be avoided as slow at the same time, and one always. When more seem slow, the
    /// cause lies elsewhere.
    ///
    /// Rule off at `1`: all may be. Needed by `stalls-3-s` +15 % import.
    pub slow_one_in: usize,

    // Repair.
    /// When nothing arrived for this long although the parents' links are up, single pieces are wanted. A disk that
    /// writes back for 1 to 2 s must not look like a stall, because wanted pieces then arrive twice.
    ///
    /// Rule off at `NEVER`: a stall causes no wants. Needed by `uplink-cut` +30 % makespan, `corrupt` +11 %.
    pub stall: Duration,
    /// After this time a want goes to another host.
    ///
    /// Rule off at `Duration::from_secs(60)`: after a minute. Needed by `random` +55 % makespan, `uplink-cut` +2.7 %
    /// import.
    pub want_timeout: Duration,
    /// Wants for one piece that may fail without a wait. Then the wait doubles with each further such number of
    /// failures.
    ///
    /// Rule off at `u32::MAX`: no want ever waits. Needed by `stalls-3-s` +5.6 % egress.
    pub tries_without_wait: u32,
    /// Wants under way per content at first, and at least. Each arrival allows one more, and each timeout halves the
    /// number.
    ///
    /// Rule off at `bounds::WANTS_MAX`: the number is always the maximum. Needed by `stalls-3-s` +35 % import,
    /// `uplink-cut` +23 % makespan.
    pub wants_first: usize,
    /// While a lane's owner is linked, its rack peers ask other racks only after this many failed wants for the piece.
    ///
    /// Rule off at `8`: as soon as without an owner. Needed by `stalls-3-s` +9.5 % import.
    pub owner_tries: u32,

    // Avoidance.
    /// How long a lost host is avoided. Doubles with each strike.
    ///
    /// Rule off at `Duration::from_millis(100)`: until about the next check. Needed by `corrupt` +73 % makespan, `flap`
    /// +3.0 % egress.
    pub avoid: Duration,
    /// How long a slow host is avoided. Doubles with each strike.
    ///
    /// Rule off at `Duration::from_millis(100)`: until about the next check. Needed by `slow-owners` +528 % makespan,
    /// `owners-30%` +179 %.
    pub avoid_slow: Duration,
    /// How often parents hear which pieces came from elsewhere.
    ///
    /// Rule off at `Duration::ZERO`: each piece at once. Needed by `flap` +1.8 % makespan.
    pub received_every: Duration,

    // Demotion and promotion.
    /// How long the rack may bring nothing of a content whose rack shares it holds, before other racks are asked.
    ///
    /// Rule off at `Duration::ZERO`: other racks are asked at once. It protects the uplink from imports while rack
    /// peers are late. It costs where shares are lost for good: `neighbours-m0` -87 % restore without it.
    pub promote_patience: Duration,
    /// A holder of rack shares is slow when its answer takes this many times as long as usual. What it was asked for is
    /// then sent twice within the rack.
    ///
    /// Rule off at `u32::MAX`: no holder is slow before a want times out. Needed by `demoted-slow` +571 % restore,
    /// `neighbours-slow` +438 %.
    pub slow_holder_factor: u32,
    /// A holder is not slow before this time.
    ///
    /// Rule off at `Duration::ZERO`: `slow_holder_factor` alone decides. It is for real disks, whose answers vary. The
    /// simulated ones do not: `demoted-slow` -35 % restore without it.
    pub slow_holder_min: Duration,
    /// How long a slow holder is asked for nothing more.
    ///
    /// Rule off at `Duration::ZERO`: until the next look. Needed by `demoted-slow` +3.1 % restore.
    pub slow_holder_time: Duration,

    // Links.
    /// How often job lists are compared with a neighbour.
    ///
    /// Rule off at `NEVER`: lists are never compared. Needed by `flap` +2.1 % makespan.
    pub anti_entropy_every: Duration,
    /// Shortest wait before a host is dialled again.
    ///
    /// Rule off at `Duration::from_millis(10)`: 10 ms. Needed by `flap` +11 % makespan, `corrupt` +5.3 %.
    pub redial_first: Duration,
    /// The wait is one part in this many of the time the host was away.
    ///
    /// Rule off at `u32::MAX`: the wait does not grow. Needed by `cut-at-start` +5.8 % makespan, `two-cuts` +1.7 %.
    pub redial_one_in: u32,
    /// Hosts that were lost within this time of each other were lost to one cause and come back together.
    ///
    /// Rule off at `Duration::ZERO`: each comes back alone. Needed by `stale` +15 % makespan, `two-cuts` +0.7 %.
    pub lost_together: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            send_lead_pieces: 8,
            send_slow_one_in: 4,
            guard_span: Duration::from_millis(500),
            guard_probe_spans: 4,
            guard_doublings: 3,
            guard_suspend: Duration::from_secs(2),
            lane_lead_pieces: 2,
            lane_idle: Duration::from_secs(1),
            manifest_patience: Duration::from_millis(100),
            feed_patience: Duration::from_millis(50),
            manifest_extra_sources: bounds::ANNOUNCE_LANES as usize,
            rack_peers_patience: Duration::from_millis(250),
            parked_time: Duration::from_secs(15),
            detect_span: Duration::from_millis(600),
            detect_pieces_min: 8,
            slow_factor: 6,
            slow_lag: Duration::from_secs(3),
            slow_strikes: 4,
            suspected_strikes: 3,
            suspected_factor: 3,
            silence_pieces: 3,
            silence_depth: 3,
            silence_single_lane: 4,
            ending_one_in: 4,
            ending_behind: 2,
            silent_rack_hosts: 2,
            slow_one_in: 4,
            stall: Duration::from_millis(2000),
            want_timeout: Duration::from_secs(2),
            tries_without_wait: 8,
            wants_first: 8,
            owner_tries: 40,
            avoid: Duration::from_secs(10),
            avoid_slow: Duration::from_secs(30),
            received_every: Duration::from_millis(50),
            promote_patience: Duration::from_secs(3),
            slow_holder_factor: 4,
            slow_holder_min: Duration::from_millis(200),
            slow_holder_time: Duration::from_secs(1),
            anti_entropy_every: Duration::from_secs(5),
            redial_first: Duration::from_millis(500),
            redial_one_in: 4,
            lost_together: Duration::from_secs(5),
        }
    }
}

/// A rule that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The name of its field in [`Tuning`].
    pub name: &'static str,
    /// Sets the field to the value at which the rule is off.
    pub switch_off: fn(&mut Tuning),
}

impl Tuning {
    /// Returns every rule, one for each tuning constant that has one.
    pub fn rules() -> &'static [Rule] {
        RULES
    }

    /// Returns the defaults with one rule off.
    pub fn without(rule: Rule) -> Self {
        let mut tuning = Self::default();
        (rule.switch_off)(&mut tuning);
        tuning
    }
}

const RULES: &[Rule] = &[
    Rule { name: "send_lead_pieces", switch_off: |tuning| tuning.send_lead_pieces = u32::MAX },
    Rule { name: "send_slow_one_in", switch_off: |tuning| tuning.send_slow_one_in = usize::MAX },
    Rule { name: "guard_span", switch_off: |tuning| tuning.guard_span = NEVER },
    Rule { name: "guard_probe_spans", switch_off: |tuning| tuning.guard_probe_spans = u32::MAX },
    Rule { name: "guard_doublings", switch_off: |tuning| tuning.guard_doublings = 0 },
    Rule { name: "guard_suspend", switch_off: |tuning| tuning.guard_suspend = Duration::ZERO },
    Rule { name: "lane_lead_pieces", switch_off: |tuning| tuning.lane_lead_pieces = u32::MAX },
    Rule { name: "lane_idle", switch_off: |tuning| tuning.lane_idle = NEVER },
    Rule { name: "manifest_patience", switch_off: |tuning| tuning.manifest_patience = Duration::ZERO },
    Rule { name: "feed_patience", switch_off: |tuning| tuning.feed_patience = Duration::from_millis(1) },
    Rule { name: "manifest_extra_sources", switch_off: |tuning| tuning.manifest_extra_sources = 0 },
    Rule { name: "rack_peers_patience", switch_off: |tuning| tuning.rack_peers_patience = Duration::ZERO },
    Rule { name: "parked_time", switch_off: |tuning| tuning.parked_time = Duration::ZERO },
    Rule { name: "detect_span", switch_off: |tuning| tuning.detect_span = NEVER },
    Rule { name: "detect_pieces_min", switch_off: |tuning| tuning.detect_pieces_min = 0 },
    Rule { name: "slow_factor", switch_off: |tuning| tuning.slow_factor = u64::MAX },
    Rule { name: "slow_lag", switch_off: |tuning| tuning.slow_lag = NEVER },
    Rule { name: "slow_strikes", switch_off: |tuning| tuning.slow_strikes = 1 },
    Rule { name: "suspected_strikes", switch_off: |tuning| tuning.suspected_strikes = 4 },
    Rule { name: "suspected_factor", switch_off: |tuning| tuning.suspected_factor = 1 },
    Rule { name: "silence_pieces", switch_off: |tuning| tuning.silence_pieces = 0 },
    Rule { name: "silence_depth", switch_off: |tuning| tuning.silence_depth = 1 },
    Rule { name: "silence_single_lane", switch_off: |tuning| tuning.silence_single_lane = 1 },
    Rule { name: "ending_one_in", switch_off: |tuning| tuning.ending_one_in = usize::MAX },
    Rule { name: "ending_behind", switch_off: |tuning| tuning.ending_behind = 0 },
    Rule { name: "silent_rack_hosts", switch_off: |tuning| tuning.silent_rack_hosts = usize::MAX },
    Rule { name: "slow_one_in", switch_off: |tuning| tuning.slow_one_in = 1 },
    Rule { name: "stall", switch_off: |tuning| tuning.stall = NEVER },
    Rule { name: "want_timeout", switch_off: |tuning| tuning.want_timeout = Duration::from_secs(60) },
    Rule { name: "tries_without_wait", switch_off: |tuning| tuning.tries_without_wait = u32::MAX },
    Rule { name: "wants_first", switch_off: |tuning| tuning.wants_first = bounds::WANTS_MAX },
    Rule { name: "owner_tries", switch_off: |tuning| tuning.owner_tries = 8 },
    Rule { name: "avoid", switch_off: |tuning| tuning.avoid = Duration::from_millis(100) },
    Rule { name: "avoid_slow", switch_off: |tuning| tuning.avoid_slow = Duration::from_millis(100) },
    Rule { name: "received_every", switch_off: |tuning| tuning.received_every = Duration::ZERO },
    Rule { name: "promote_patience", switch_off: |tuning| tuning.promote_patience = Duration::ZERO },
    Rule { name: "slow_holder_factor", switch_off: |tuning| tuning.slow_holder_factor = u32::MAX },
    Rule { name: "slow_holder_min", switch_off: |tuning| tuning.slow_holder_min = Duration::ZERO },
    Rule { name: "slow_holder_time", switch_off: |tuning| tuning.slow_holder_time = Duration::ZERO },
    Rule { name: "anti_entropy_every", switch_off: |tuning| tuning.anti_entropy_every = NEVER },
    Rule { name: "redial_first", switch_off: |tuning| tuning.redial_first = Duration::from_millis(10) },
    Rule { name: "redial_one_in", switch_off: |tuning| tuning.redial_one_in = u32::MAX },
    Rule { name: "lost_together", switch_off: |tuning| tuning.lost_together = Duration::ZERO },
];
