//! A bank of seeds: small regions with random faults. All rules are checked, and every living host must finish.

use shoal_sim::run::{random, run};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs seeds on all cores; returns the seeds that broke a rule or did not finish.
#[allow(clippy::disallowed_methods, reason = "the runs share nothing")]
fn broken(seeds: std::ops::Range<u64>) -> Vec<String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let mine = seeds.clone().skip(thread as usize).step_by(threads as usize);
                scope.spawn(move || mine.filter_map(fault_of).collect::<Vec<_>>())
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
    })
}

fn fault_of(seed: u64) -> Option<String> {
    let scenario = random(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&scenario, |_| {})));
    match outcome {
        Ok(outcome) if outcome.is_complete() => None,
        Ok(outcome) => Some(format!("seed {seed}: {:?}: {:?}", scenario.faults, outcome.figures)),
        Err(_) => Some(format!("seed {seed}: {:?}: a rule is broken", scenario.faults)),
    }
}

#[test]
fn five_hundred_regions_survive_random_faults() {
    let broken = broken(0..500);
    assert!(broken.is_empty(), "{} of 500:\n{}", broken.len(), broken.join("\n"));
}
