//! Waits until hosts are done, and applies the faults that are due meanwhile.

use crate::clock::{LOOK, time_of_day};
use crate::faults::Faults;
use crate::interrupt;
use crate::namespaces::Place;
use crate::output::note;
use crate::stage::Stage;
use crate::systems::System;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Between two looks at memory.
const PEAKS_EVERY: Duration = Duration::from_millis(500);

/// Tells when a host was done, time of day; `None` while it is not.
pub(crate) type Sign = fn(&dyn System, &Stage, Place) -> Option<Duration>;

/// The hosts to wait for, and how.
pub(crate) struct Awaited<'a> {
    pub(crate) expected: &'a BTreeSet<Place>,
    /// When the run began, time of day.
    pub(crate) began: Duration,
    /// When the lab gives up, since then.
    pub(crate) limit: Duration,
    pub(crate) sign: Sign,
}

/// Waits until every expected host is done, or until the limit. Returns when each was done, in seconds since the start.
pub(crate) fn wait(
    stage: &mut Stage,
    system: &mut dyn System,
    faults: &mut Faults,
    awaited: &Awaited<'_>,
) -> anyhow::Result<BTreeMap<Place, f64>> {
    let Awaited { expected, began, limit, sign } = *awaited;
    let mut done = BTreeMap::new();
    let mut looked = Instant::now();
    loop {
        interrupt::check()?;
        stage.processes.check()?;
        for host in stage.racks.hosts() {
            if !done.contains_key(&host)
                && let Some(at) = sign(system, stage, host)
            {
                done.insert(host, at.saturating_sub(began).as_secs_f64());
            }
        }
        let elapsed = time_of_day().saturating_sub(began);
        if expected.iter().all(|host| done.contains_key(host)) {
            return Ok(done);
        }
        if elapsed > limit {
            let missing: Vec<Place> = expected.iter().copied().filter(|host| !done.contains_key(host)).collect();
            let first = missing.first().copied().unwrap_or(Place::Seeder);
            let log = stage.processes.log_tail(first);
            note(&format!("{} hosts are not done; the log of {first} ends with:\n{log}", missing.len()));
            return Ok(done);
        }
        faults.advance(elapsed, stage, system)?;
        if looked.elapsed() >= PEAKS_EVERY {
            looked = Instant::now();
            stage.processes.look();
        }
        std::thread::sleep(LOOK);
    }
}
