//! What goes wrong in a run: when, to whom, and how it ends.
//!
//! Invariant: the same hosts are hit as in the simulator, which draws them from the same seed in the same order.

use super::measure::Stage;
use super::namespaces::Place;
use super::note;
use super::scenario::{SEED, Scenario};
use super::systems::System;
use anyhow::Context;
use shoal_proto::ids::HostIndex;
use shoal_sim::Rng;
use shoal_sim::faults::{self, Fault, When};
use std::collections::BTreeSet;
use std::time::Duration;

/// A fault that waits for its time, or for its end.
struct Trouble {
    fault: Fault,
    hosts: Vec<Place>,
    begins: Option<Duration>,
    ends: Option<Duration>,
    running: bool,
}

/// What goes wrong in a run.
pub(super) struct Troubles {
    waiting: Vec<Trouble>,
    /// What waits for the content to be demoted.
    cold: Vec<Trouble>,
    /// Hosts that are not there at the start.
    pub(super) late: BTreeSet<Place>,
    /// Hosts nobody waits for.
    pub(super) lost: BTreeSet<Place>,
}

impl Troubles {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let bound = scenario.bound().unwrap_or_default();
        let mut rng = Rng::new(SEED);
        let layout = &scenario.layout;
        let place = |index: HostIndex| {
            let rack = (0..layout.racks.len()).find(|rack| layout.hosts_of(*rack).contains(&index.0));
            let rack = rack.expect("faults are about hosts of the layout");
            Place::Host { rack, host: (index.0 - layout.hosts_of(rack).start) as usize }
        };
        let (mut waiting, mut cold) = (Vec::new(), Vec::new());
        let (mut late, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for fault in &scenario.faults {
            let hosts: Vec<Place> = fault.hosts(layout, &mut rng).into_iter().map(place).collect();
            let mut begins = match fault.when {
                When::At(at) => Some(at),
                When::Part(part) => Some(bound.mul_f64(part)),
                When::Out => None,
                When::Cold => {
                    let begins = Some(Duration::ZERO);
                    cold.push(Trouble { fault: *fault, hosts, begins, ends: None, running: false });
                    continue;
                }
            };
            let (mut ends, mut running) = (None, false);
            match (fault.kind, fault.span) {
                (faults::Kind::Crash, Some(span)) if begins == Some(Duration::ZERO) => {
                    late.extend(&hosts);
                    (begins, ends, running) = (None, Some(span), true);
                }
                _ if fault.loses() => lost.extend(&hosts),
                _ => {}
            }
            waiting.push(Trouble { fault: *fault, hosts, begins, ends, running });
        }
        Self { waiting, cold, late, lost }
    }

    /// Whether something waits for the content to be demoted.
    pub(super) fn goes_cold(&self) -> bool {
        !self.cold.is_empty()
    }

    /// Ends what goes wrong. What waits for the content to be demoted is next.
    pub(super) fn end(&mut self, stage: &mut Stage, system: &mut dyn System) -> anyhow::Result<()> {
        for trouble in std::mem::replace(&mut self.waiting, std::mem::take(&mut self.cold)) {
            if trouble.running && (trouble.ends.is_some() || trouble.fault.span.is_none()) {
                trouble.switch(false, stage, system)?;
            }
        }
        let losing = self.waiting.iter().filter(|trouble| trouble.fault.loses());
        self.lost = losing.flat_map(|trouble| trouble.hosts.iter().copied()).collect();
        Ok(())
    }

    /// Begins and ends what is due.
    pub(super) fn advance(
        &mut self,
        elapsed: Duration,
        stage: &mut Stage,
        system: &mut dyn System,
    ) -> anyhow::Result<()> {
        for trouble in &mut self.waiting {
            if trouble.fault.when == When::Out
                && !trouble.running
                && trouble.begins.is_none()
                && system.all_out(stage)?
            {
                trouble.begins = Some(elapsed);
            }
            if trouble.begins.is_some_and(|at| at <= elapsed) {
                trouble.begins = None;
                trouble.running = true;
                trouble.ends = trouble.fault.span.map(|span| elapsed + span);
                trouble.switch(true, stage, system)?;
            }
            if trouble.ends.is_some_and(|at| at <= elapsed) {
                trouble.ends = None;
                trouble.switch(false, stage, system)?;
            }
        }
        Ok(())
    }
}

impl Trouble {
    fn switch(&self, on: bool, stage: &mut Stage, system: &mut dyn System) -> anyhow::Result<()> {
        let Self { fault, hosts, .. } = self;
        let left = |rate: u64| if on { (rate as f64 * fault.rate) as u64 } else { rate };
        let layout = stage.racks.layout().clone();
        match fault.kind {
            faults::Kind::Crash if on => hosts.iter().for_each(|host| stage.processes.kill(*host)),
            faults::Kind::Crash => hosts.iter().try_for_each(|host| system.start_host(stage, *host))?,
            faults::Kind::Slow => {
                for host in hosts {
                    let Place::Host { rack, .. } = *host else { continue };
                    // A part of what is needed, as in the simulator, not of a card that is hardly used.
                    let row = &layout.racks[rack];
                    let full = if on { row.nic.min(row.uplink) } else { row.nic };
                    stage.racks.set_nic(*host, left(full))?;
                }
            }
            faults::Kind::Uplink => {
                let rack = fault.rack(&layout).context("the fault is about a rack of the layout")?;
                stage.racks.set_uplink(rack, left(layout.racks[rack].uplink))?;
            }
            faults::Kind::Seeder if on => stage.processes.kill(Place::Seeder),
            faults::Kind::Seeder => system.start_host(stage, Place::Seeder)?,
            other => anyhow::bail!("the lab cannot do `{other:?}`"),
        }
        note(&format!("{:?} {}", fault.kind, if on { "begins" } else { "ends" }));
        Ok(())
    }
}
