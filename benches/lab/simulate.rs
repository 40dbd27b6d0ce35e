//! The simulator on the lab's region, content and faults.

use super::measure::Figures as Seen;
use super::scenario::{SEED, Scenario};
use shoal_sim::run::{Figures, Scenario as Simulated, run};

/// Simulates what was run; `None` where nothing is shaped, for what a machine can do is not simulated.
pub(super) fn figures(scenario: &Scenario, seen: &Seen, parity: u8) -> Option<Figures> {
    scenario.bound()?;
    let pieces = seen.pieces.max(1);
    let simulated = Simulated {
        layout: scenario.goodput(),
        pieces,
        piece_bytes: u32::try_from(scenario.bytes / u64::from(pieces)).ok()?,
        parity,
        faults: scenario.faults.clone(),
        seed: SEED,
        limit: scenario.limit(),
        checked: false,
    };
    Some(run(&simulated, |_| {}).figures)
}
