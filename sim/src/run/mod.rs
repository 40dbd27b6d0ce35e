//! A whole run: a scenario in, figures out.
//!
//! Invariant: a run owns its world. Runs share nothing, so many may go on at the same time.
//!
//! The faults of a run are applied in [`fault_schedule`]. The demotion after the push, where a fault waits for it, is
//! in [`demotion`].

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod demotion;
mod fault_schedule;
mod figures;
mod scenario;

use crate::check;
use crate::world::{ContentNumber, Push, World};
use fault_schedule::FaultSchedule;
use shoal_proto::ids::HostIndex;
use shoal_swarm::node::Tuning;
use std::collections::BTreeSet;
use std::time::Duration;

pub use demotion::DemotionFigures;
pub use figures::{Figures, Outcome};
pub use scenario::{Scenario, random};

/// Time in which the region establishes its links before the push.
const SETTLE: Duration = Duration::from_millis(500);
/// Events between two calls of the progress function.
const PROGRESS_EVERY: u64 = 1 << 16;
/// Events between two looks whether every shard has left the seeder, while a fault may wait for that.
const OUT_CHECK_EVERY: u64 = 64;

/// Runs a scenario to its end. `progress` is called now and then with the part of the payload that was sent.
pub fn run(scenario: &Scenario, progress: impl FnMut(f64)) -> Outcome {
    run_world(scenario, progress).0
}

/// Like [`run`]. Also returns the region as it is at the end.
pub fn run_world(scenario: &Scenario, progress: impl FnMut(f64)) -> (Outcome, World) {
    run_tuned(scenario, Tuning::default(), progress)
}

/// Like [`run_world`], with other tuning constants in all cores.
pub fn run_tuned(scenario: &Scenario, tuning: Tuning, progress: impl FnMut(f64)) -> (Outcome, World) {
    let checks = if scenario.checked { check::all() } else { Vec::new() };
    let mut world = World::with_tuning(scenario.layout.clone(), checks, tuning);
    world.run_for(SETTLE);
    let push = Push { parity: scenario.parity, ..Push::blob(scenario.pieces, scenario.piece_bytes) };
    let start = world.now();
    let number = world.push(&push);
    let bound = scenario.layout.bound(world.pushed(number).geometry.bytes());
    let (mut schedule, later) = FaultSchedule::new(scenario, start, bound).split_off_demotion();
    let slow = schedule.slow_to_the_end();
    run_push(scenario, &mut world, number, &mut schedule, &slow, progress);
    let mut outcome = figures::measure(scenario, &world, number, bound, &slow);
    if !later.is_empty() {
        outcome.figures.demotion = Some(demotion::run(&mut world, number, &schedule, later, scenario.limit));
        outcome.figures.events = world.events;
        outcome.figures.digest = figures::digest(&world, number);
    }
    world.check_end();
    (outcome, world)
}

/// Runs until all hosts that can finish have the content, or until the scenario's limit.
fn run_push(
    scenario: &Scenario,
    world: &mut World,
    number: ContentNumber,
    schedule: &mut FaultSchedule,
    slow: &BTreeSet<HostIndex>,
    mut progress: impl FnMut(f64),
) {
    let hosts = scenario.layout.hosts() as usize;
    let bytes = world.pushed(number).geometry.bytes();
    let until = world.now() + scenario.limit;
    let mut open = hosts - slow.len();
    loop {
        let now = world.now();
        schedule.advance(world, now);
        open -= world.finished.drain(..).filter(|(host, _)| !slow.contains(host)).count();
        let dead_for_good = || {
            let dead = world.peers().filter(|host| !world.is_running(*host) && !slow.contains(host));
            dead.filter(|host| !world.pushed(number).done.contains_key(host) && !schedule.comes_back(*host)).count()
        };
        // The count is costly, so it is made only when few hosts are open.
        if open == 0 || (open <= hosts / 2 && open == dead_for_good()) {
            return;
        }
        let stop = schedule.next_at().unwrap_or(until).min(until);
        let mut handled = 0;
        let was_out = world.pushed(number).out.is_full();
        while handled < PROGRESS_EVERY && world.finished.is_empty() && world.next_at().is_some_and(|at| at <= stop) {
            world.step();
            handled += 1;
            if !was_out && handled % OUT_CHECK_EVERY == 0 && world.pushed(number).out.is_full() {
                break;
            }
        }
        if world.next_at().is_none_or(|at| at > stop) && world.finished.is_empty() {
            world.run_until(stop);
            if stop >= until {
                return;
            }
        }
        progress(world.traffic.all as f64 / (bytes as f64 * hosts as f64));
    }
}
