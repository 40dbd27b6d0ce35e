//! Ablation: what each tuning rule of the core is worth in each scenario.
//!
//! A rule is worth what a run loses without it. Each scenario runs with the rule and without it from the same seeds, so
//! both runs meet the same faults (common random numbers) and small differences are visible.
//! Invariant: a comparison is a pure function of the rule, the scenario and the number of seeds.

use crate::faults;
use crate::layout::{Layout, MBIT};
use crate::run::{Scenario, random, run_tuned};
use crate::world::{Push, World};
use serde::Serialize;
use shoal_proto::announcement::Kind;
use shoal_proto::ids::HostIndex;
use shoal_swarm::node::Tuning;
use std::time::Duration;

/// Seeds that must all be unaffected by a rule before the other seeds are skipped.
const PROBE_SEEDS: u64 = 8;
/// Pieces of the content in most scenarios. With [`PIECE_BYTES`] a push takes 8 s, longer than all spans of the rules.
const PIECES: u32 = 384;
const PIECE_BYTES: u32 = 512 * 1024;
/// Virtual time after which a run counts as incomplete.
const LIMIT: Duration = Duration::from_secs(120);

/// A scenario of the ablation.
#[derive(Clone, Copy)]
pub struct Case {
    /// The name in the table.
    pub name: &'static str,
    make: fn(u64) -> Work,
}

/// What a case runs.
enum Work {
    /// A push, with a demotion and promotion if a fault waits for it.
    Push(Box<Scenario>),
    /// An urgent version beside a bulk push over narrow uplinks.
    Urgent { seed: u64 },
}

fn even(faults: &str, seed: u64) -> Scenario {
    Scenario {
        layout: Layout::even(4, 4),
        pieces: PIECES,
        piece_bytes: PIECE_BYTES,
        parity: 4,
        faults: faults::parse(faults).expect("the faults of the table are valid"),
        seed,
        limit: LIMIT,
        checked: false,
    }
}

fn push(scenario: Scenario) -> Work {
    Work::Push(Box::new(scenario))
}

/// A scenario without random hosts. Weights of links between 0.9 and 1 make its seeds differ, so that one unlucky order
/// of events does not decide.
fn mild(faults: &str, seed: u64) -> Scenario {
    let comma = if faults.is_empty() { "" } else { "," };
    even(&format!("uneven=90%{comma}{faults}"), seed)
}

fn with_layout(layout: Layout, seed: u64) -> Work {
    push(Scenario { layout, ..mild("", seed) })
}

fn narrow(seed: u64) -> Work {
    let mut layout = Layout::even(4, 4);
    layout.seeder = 20 * MBIT;
    layout.racks.iter_mut().for_each(|rack| rack.uplink = 10 * MBIT);
    push(Scenario { layout, pieces: 96, piece_bytes: 128 * 1024, ..mild("", seed) })
}

fn two_sites(seed: u64) -> Work {
    let mut layout = Layout { site_uplink: 400 * MBIT, ..Layout::even(4, 4) };
    layout.racks.iter_mut().enumerate().for_each(|(number, rack)| rack.site = format!("site{}", number % 2));
    with_layout(layout, seed)
}

fn uneven_racks(seed: u64) -> Work {
    let mut layout = Layout { declared: true, ..Layout::even(4, 4) };
    layout.racks[3].uplink = 50 * MBIT;
    with_layout(layout, seed)
}

fn neighbours(kind: &str, parity: u8, seed: u64) -> Scenario {
    let faults = ["0/3", "0/4", "1/6", "1/7"].map(|host| format!("{kind}:{host}@demoted")).join(",");
    Scenario { layout: Layout::even(2, 10), pieces: 192, parity, ..mild(&faults, seed) }
}

/// Every scenario, in the order of the table.
pub const CASES: [Case; 34] = [
    case("healthy", |seed| push(mild("", seed))),
    case("2x8", |seed| with_layout(Layout::even(2, 8), seed)),
    case("8x2", |seed| with_layout(Layout::even(8, 2), seed)),
    case("thin-seeder", |seed| with_layout(Layout { seeder: 100 * MBIT, ..Layout::even(4, 4) }, seed)),
    case("fat-seeder", |seed| with_layout(Layout { seeder: 2000 * MBIT, ..Layout::even(4, 4) }, seed)),
    case("narrow", narrow),
    case("20-ms", |seed| with_layout(Layout { far: Duration::from_millis(20), ..Layout::even(4, 4) }, seed)),
    case("two-sites", two_sites),
    case("uneven-racks", uneven_racks),
    case("uneven-links", |seed| push(even("uneven", seed))),
    case("slow-owners", |seed| push(even("slow", seed))),
    case("owners-30%", |seed| push(even("slow:owners=30%", seed))),
    case("quarter-50%", |seed| push(even("slow:25%=50%", seed))),
    case("stalls-1.5-s", |seed| push(even("slow:25%=0.1%@30%+1500ms", seed))),
    case("stalls-3-s", |seed| push(even("slow:25%=0.1%@30%+3s", seed))),
    case("slow-uplink", |seed| push(mild("uplink:1=50%", seed))),
    case("uplink-cut", |seed| push(mild("uplink:1=0%@30%+5s", seed))),
    case("two-cuts", |seed| push(mild("uplink:1=0%@30%+10s,uplink:2=0%@30%+10s", seed))),
    case("cut-at-start", |seed| push(mild("uplink:1=0%@0s+8s", seed))),
    case("late", |seed| push(even("crash:25%@0s+4s", seed))),
    case("killed", |seed| push(even("crash:10%@40%", seed))),
    case("restarted", |seed| push(even("crash:25%@30%+2s", seed))),
    case("corrupt", |seed| push(even("corrupt", seed))),
    case("flap", |seed| push(even("flap:10%", seed))),
    case("stale", |seed| push(even("stale:25%,crash:10%@20%+3s", seed))),
    case("seeder-lost", |seed| push(mild("seeder@out,tracker@20%", seed))),
    case("random", |seed| push(Scenario { checked: false, ..random(seed) })),
    case("urgent", |seed| Work::Urgent { seed }),
    case("demoted-lost", |seed| push(Scenario { pieces: 192, ..even("crash:owners@demoted", seed) })),
    case("demoted-slow", |seed| push(Scenario { pieces: 192, ..even("slow:owners@demoted", seed) })),
    case("demoted-10%", |seed| push(Scenario { pieces: 192, ..even("slow:owners=10%@demoted", seed) })),
    case("neighbours-slow", |seed| push(neighbours("slow", 4, seed))),
    case("neighbours-m0", |seed| push(neighbours("crash", 0, seed))),
    case("demoted-rack-lost", |seed| push(mild("crash:0/0@demoted,crash:0/1@demoted,crash:0/2@demoted", seed))),
];

const fn case(name: &'static str, make: fn(u64) -> Work) -> Case {
    Case { name, make }
}

/// What one run is judged by. Less is better for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// From the push to the last host.
    Makespan,
    /// Payload into the worst rack.
    Import,
    /// Payload out of the seeder.
    Egress,
    /// From the promotion to the last host.
    Restore,
}

impl Measure {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Makespan => "makespan",
            Self::Import => "import",
            Self::Egress => "egress",
            Self::Restore => "restore",
        }
    }
}

/// The values of one run.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    digest: String,
    complete: bool,
    values: Vec<(Measure, f64)>,
}

fn sample(case: &Case, seed: u64, tuning: Tuning) -> Sample {
    match (case.make)(seed) {
        Work::Push(scenario) => {
            let (outcome, _) = run_tuned(&scenario, tuning, |_| {});
            let complete = outcome.is_complete();
            let figures = outcome.figures;
            let mut values = vec![
                (Measure::Makespan, figures.makespan_s),
                (Measure::Import, figures.rack_import_max),
                (Measure::Egress, figures.seeder_egress),
            ];
            values.extend(figures.demotion.map(|demotion| (Measure::Restore, demotion.restore_s)));
            Sample { digest: figures.digest, complete, values }
        }
        Work::Urgent { seed } => urgent(seed, tuning),
    }
}

/// Pushes a small urgent version while bulk fills uplinks of 1.6 Mbit/s. Its time counts as the makespan.
fn urgent(seed: u64, tuning: Tuning) -> Sample {
    let mut world = World::with_tuning(Layout::even(2, 2), Vec::new(), tuning);
    world.set_uneven(Some(0.9), seed);
    (0..2).for_each(|rack| world.set_uplink(rack, 200_000));
    world.run_for(Duration::from_millis(500));
    world.push(&Push::blob(64, 256 * 1024));
    world.run_for(Duration::from_secs(5));
    let all: Vec<HostIndex> = world.peers().collect();
    let number = world.push(&Push { name: "gslb".into(), kind: Kind::Gslb, ..Push::blob(4, 32 * 1024) });
    let took = world.run_to_done(number, &all, LIMIT);
    let seconds = took.unwrap_or(LIMIT).as_secs_f64();
    Sample { digest: format!("{seconds}"), complete: took.is_some(), values: vec![(Measure::Makespan, seconds)] }
}

/// How a measure changes when a rule is off, in percent of the value with the rule. Positive means that the rule helps.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The measure.
    pub measure: Measure,
    /// The mean over all seeds.
    pub mean_percent: f64,
    /// The median over all seeds. Unlike the mean it does not depend on one unlucky seed.
    pub median_percent: f64,
    /// The seed that changes most.
    pub worst_percent: f64,
}

/// A rule in a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The scenario.
    pub case: &'static str,
    /// Seeds that ran.
    pub seeds: u64,
    /// Seeds in which the rule changed anything at all.
    pub affected: u64,
    /// Seeds in which a host did not finish without the rule but finished with it.
    pub newly_incomplete: u64,
    /// The changes, one for each measure.
    pub changes: Vec<Change>,
}

/// Values of a scenario with all rules.
pub struct Baseline {
    case: Case,
    samples: Vec<Sample>,
}

impl Baseline {
    /// Runs a scenario with all rules from `seeds` seeds.
    pub fn new(case: Case, seeds: u64) -> Self {
        Self { case, samples: (0..seeds).map(|seed| sample(&case, seed, Tuning::default())).collect() }
    }

    /// Compares the scenario with a changed tuning.
    pub fn compare(&self, tuning: &Tuning) -> Comparison {
        let mut pairs: Vec<(&Sample, Sample)> = Vec::new();
        for (seed, with) in (0..).zip(&self.samples) {
            // A rule that changes none of the first seeds is not at work in this scenario.
            if seed == PROBE_SEEDS && pairs.iter().all(|(with, without)| with.digest == without.digest) {
                break;
            }
            pairs.push((with, sample(&self.case, seed, tuning.clone())));
        }
        let measures = self.samples.first().map_or(&[][..], |sample| &sample.values);
        let changes = measures.iter().enumerate().map(|(place, (measure, _))| {
            let percent = |(with, without): &(&Sample, Sample)| change(with.values[place].1, without.values[place].1);
            let all: Vec<f64> = pairs.iter().map(percent).collect();
            let mean_percent = all.iter().sum::<f64>() / all.len().max(1) as f64;
            let worst_percent = all.iter().copied().fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
            let mut sorted = all;
            sorted.sort_by(f64::total_cmp);
            let median_percent = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
            Change { measure: *measure, mean_percent, median_percent, worst_percent }
        });
        Comparison {
            case: self.case.name,
            seeds: pairs.len() as u64,
            affected: pairs.iter().filter(|(with, without)| with.digest != without.digest).count() as u64,
            newly_incomplete: pairs.iter().filter(|(with, without)| with.complete && !without.complete).count() as u64,
            changes: changes.collect(),
        }
    }
}

/// The change from `with` to `without`, in percent of `with`. Values below a thousandth count as one thousandth, so
/// that a change from nothing stays finite.
fn change(with: f64, without: f64) -> f64 {
    const LEAST: f64 = 0.001;
    (without.max(LEAST) / with.max(LEAST) - 1.0) * 100.0
}
