//! The faults of a run: when each begins, which hosts it hits, and how it ends.
//!
//! Invariant: a fault hits the same hosts as in the simulator, because both draw them from the same seed in the same
//! order.

use crate::namespaces::Place;
use crate::output::note;
use crate::scenario::{SEED, Scenario};
use crate::stage::Stage;
use crate::systems::System;
use anyhow::Context;
use shoal_proto::ids::HostIndex;
use shoal_sim::Rng;
use shoal_sim::faults::{Fault, Kind, When};
use shoal_sim::layout::Layout;
use std::collections::BTreeSet;
use std::time::Duration;

/// A fault that waits for its time, or for its end.
struct Pending {
    fault: Fault,
    hosts: Vec<Place>,
    begins: Option<Duration>,
    ends: Option<Duration>,
    running: bool,
}

/// The faults of a run.
pub(crate) struct Faults {
    waiting: Vec<Pending>,
    /// Faults that begin once the content is demoted.
    at_demotion: Vec<Pending>,
    /// Hosts that start late.
    pub(crate) late: BTreeSet<Place>,
    /// Hosts that need not finish.
    pub(crate) lost: BTreeSet<Place>,
}

/// A host of the layout as a machine of the lab.
fn place_of(layout: &Layout, index: HostIndex) -> Place {
    let rack = (0..layout.racks.len()).find(|rack| layout.hosts_of(*rack).contains(&index.0));
    let rack = rack.expect("faults hit hosts of the layout");
    Place::Host { rack, host: (index.0 - layout.hosts_of(rack).start) as usize }
}

impl Faults {
    /// Draws the hosts of a scenario's faults.
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let bound = scenario.bound().unwrap_or_default();
        let mut rng = Rng::new(SEED);
        let layout = &scenario.layout;
        let (mut waiting, mut at_demotion) = (Vec::new(), Vec::new());
        let (mut late, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for fault in &scenario.faults {
            let drawn = fault.hosts(layout, &mut rng).into_iter();
            let hosts: Vec<Place> = drawn.map(|index| place_of(layout, index)).collect();
            let mut begins = match fault.when {
                When::At(at) => Some(at),
                When::Part(part) => Some(bound.mul_f64(part)),
                When::Out => None,
                When::Demoted => {
                    let begins = Some(Duration::ZERO);
                    at_demotion.push(Pending { fault: *fault, hosts, begins, ends: None, running: false });
                    continue;
                }
            };
            let (mut ends, mut running) = (None, false);
            match (fault.kind, fault.span) {
                // A host that is dead from the start is one that starts late.
                (Kind::Crash, Some(span)) if begins == Some(Duration::ZERO) => {
                    late.extend(&hosts);
                    (begins, ends, running) = (None, Some(span), true);
                }
                _ if fault.loses() => lost.extend(&hosts),
                _ => {}
            }
            waiting.push(Pending { fault: *fault, hosts, begins, ends, running });
        }
        Self { waiting, at_demotion, late, lost }
    }

    /// Whether a fault waits for the content to be demoted.
    pub(crate) fn has_demotion(&self) -> bool {
        !self.at_demotion.is_empty()
    }

    /// Ends the faults of the push. From then on [`advance`](Self::advance) applies those of the demotion.
    pub(crate) fn end_push(&mut self, stage: &mut Stage, system: &mut dyn System) -> anyhow::Result<()> {
        for pending in std::mem::replace(&mut self.waiting, std::mem::take(&mut self.at_demotion)) {
            if pending.running && (pending.ends.is_some() || pending.fault.span.is_none()) {
                pending.end(stage, system)?;
            }
        }
        let losing = self.waiting.iter().filter(|pending| pending.fault.loses());
        self.lost = losing.flat_map(|pending| pending.hosts.iter().copied()).collect();
        Ok(())
    }

    /// Begins and ends the faults that are due.
    pub(crate) fn advance(
        &mut self,
        elapsed: Duration,
        stage: &mut Stage,
        system: &mut dyn System,
    ) -> anyhow::Result<()> {
        for pending in &mut self.waiting {
            let waits_for_seeder = pending.fault.when == When::Out && !pending.running && pending.begins.is_none();
            if waits_for_seeder && system.all_out(stage)? {
                pending.begins = Some(elapsed);
            }
            if pending.begins.is_some_and(|at| at <= elapsed) {
                pending.begins = None;
                pending.running = true;
                pending.ends = pending.fault.span.map(|span| elapsed + span);
                pending.begin(stage, system)?;
            }
            if pending.ends.is_some_and(|at| at <= elapsed) {
                pending.ends = None;
                pending.end(stage, system)?;
            }
        }
        Ok(())
    }
}

impl Pending {
    fn begin(&self, stage: &mut Stage, system: &mut dyn System) -> anyhow::Result<()> {
        self.switch(true, stage, system)
    }

    fn end(&self, stage: &mut Stage, system: &mut dyn System) -> anyhow::Result<()> {
        self.switch(false, stage, system)
    }

    fn switch(&self, on: bool, stage: &mut Stage, system: &mut dyn System) -> anyhow::Result<()> {
        let Self { fault, hosts, .. } = self;
        let left = |rate: u64| if on { (rate as f64 * fault.rate) as u64 } else { rate };
        let layout = stage.racks.layout().clone();
        match fault.kind {
            Kind::Crash if on => hosts.iter().for_each(|host| stage.processes.kill(*host)),
            Kind::Crash => hosts.iter().try_for_each(|host| system.start_host(stage, *host))?,
            Kind::Slow => {
                for host in hosts {
                    let Place::Host { rack, .. } = *host else { continue };
                    // The rate is a part of what the push needs of the card. The card itself is mostly idle.
                    let row = &layout.racks[rack];
                    let full = if on { row.nic.min(row.uplink) } else { row.nic };
                    stage.racks.set_nic(*host, left(full))?;
                }
            }
            Kind::Uplink => {
                let rack = fault.rack(&layout).context("the fault names a rack that the layout lacks")?;
                stage.racks.set_uplink(rack, left(layout.racks[rack].uplink))?;
            }
            Kind::Seeder if on => stage.processes.kill(Place::Seeder),
            Kind::Seeder => system.start_host(stage, Place::Seeder)?,
            other => anyhow::bail!("the lab does not support the fault `{other:?}`"),
        }
        note(&format!("{:?} {}", fault.kind, if on { "begins" } else { "ends" }));
        Ok(())
    }
}
