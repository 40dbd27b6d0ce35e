//! The simulator on the region, content and faults of a scenario.

use crate::measure::Figures as Measured;
use crate::scenario::{SEED, Scenario};
use shoal_sim::run::{Figures, Scenario as Simulated, run};

/// Simulates a scenario that was run. Returns `None` where nothing is shaped, because the simulator has no model of
/// CPUs.
pub(crate) fn figures(scenario: &Scenario, measured: &Measured, parity: u8) -> Option<Figures> {
    scenario.bound()?;
    let pieces = measured.pieces.max(1);
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
