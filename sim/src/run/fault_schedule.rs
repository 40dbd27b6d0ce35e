//! The faults of a run: which hosts each one hits, when it begins and when it ends.
//!
//! Invariant: the hosts of all faults are drawn in the order of the scenario, before the push begins. So a fault hits
//! the same hosts whatever the core does.

use super::Scenario;
use crate::Rng;
use crate::faults::{Fault, Kind, When};
use crate::layout::SEEDER;
use crate::world::World;
use shoal_proto::ids::HostIndex;
use shoal_swarm::time::Instant;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often the links of flapping hosts break.
const FLAP_EVERY: Duration = Duration::from_secs(2);

/// A fault that waits for its time, or for its end.
struct Pending {
    fault: Fault,
    hosts: Vec<HostIndex>,
    /// When it begins; `None` while that depends on the push.
    begins: Option<Instant>,
    ends: Option<Instant>,
    running: bool,
    /// Decides the weights of uneven links.
    seed: u64,
    next_flap: Instant,
}

/// The faults that wait for their time or for their end.
#[derive(Default)]
pub struct FaultSchedule {
    pending: Vec<Pending>,
}

impl FaultSchedule {
    /// Draws the hosts of all faults. `start` is the time of the push and `bound` its least possible time.
    pub fn new(scenario: &Scenario, start: Instant, bound: Duration) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let pending = |fault: &Fault| {
            let begins = match fault.when {
                When::At(after) => Some(start + after),
                When::Part(part) => Some(start + bound.mul_f64(part)),
                When::Out | When::Demoted => None,
            };
            let hosts = fault.hosts(&scenario.layout, &mut rng);
            Pending { fault: *fault, hosts, begins, ends: None, running: false, seed: scenario.seed, next_flap: start }
        };
        Self { pending: scenario.faults.iter().map(pending).collect() }
    }

    /// Separates the faults of the push from those that wait for a demotion.
    pub fn split_off_demotion(self) -> (Self, Self) {
        let (later, now) = self.pending.into_iter().partition(|row| row.fault.when == When::Demoted);
        (Self { pending: now }, Self { pending: later })
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Hosts that are slow to the end and need not finish.
    pub fn slow_to_the_end(&self) -> BTreeSet<HostIndex> {
        let slow = self.pending.iter().filter(|row| row.fault.kind == Kind::Slow && row.fault.span.is_none());
        slow.flat_map(|row| row.hosts.iter().copied()).collect()
    }

    /// Hosts that need not have the content again after a promotion.
    pub fn lost(&self) -> BTreeSet<HostIndex> {
        let losing = self.pending.iter().filter(|row| row.fault.loses());
        losing.flat_map(|row| row.hosts.iter().copied()).collect()
    }

    /// Whether a dead host starts again.
    pub fn comes_back(&self, host: HostIndex) -> bool {
        let crashed = |row: &&Pending| row.fault.kind == Kind::Crash && row.ends.is_some() && row.running;
        self.pending.iter().filter(crashed).any(|row| row.hosts.contains(&host))
    }

    /// When a fault begins, ends or acts next.
    pub fn next_at(&self) -> Option<Instant> {
        self.pending.iter().filter_map(Pending::next_at).min()
    }

    /// Lets all faults begin now.
    pub fn begin_all(&mut self, now: Instant) {
        self.pending.iter_mut().for_each(|row| (row.begins, row.next_flap) = (Some(now), now));
    }

    /// Ends all faults that are running.
    pub fn end_all(&self, world: &mut World) {
        self.pending.iter().filter(|row| row.running).for_each(|row| row.switch(world, false));
    }

    /// Begins and ends the faults whose time has come.
    pub fn advance(&mut self, world: &mut World, now: Instant) {
        let out = world.pushed(0).out.is_full();
        for row in &mut self.pending {
            if !row.running && row.begins.is_none() && out {
                row.begins = Some(now);
            }
            if !row.running && row.begins.is_some_and(|at| at <= now) {
                row.running = true;
                row.ends = row.fault.span.map(|span| now + span);
                row.switch(world, true);
            }
            if row.running && row.fault.kind == Kind::Flap && row.next_flap <= now {
                row.next_flap = now + FLAP_EVERY;
                row.hosts.iter().for_each(|host| world.break_links(*host));
            }
        }
        self.pending.retain(|row| {
            let over = row.running && row.ends.is_some_and(|at| at <= now);
            if over {
                row.switch(world, false);
            }
            !over
        });
    }
}

impl Pending {
    fn next_at(&self) -> Option<Instant> {
        let flap = (self.running && self.fault.kind == Kind::Flap).then_some(self.next_flap);
        let edge = if self.running { self.ends } else { self.begins };
        [flap, edge].into_iter().flatten().min()
    }

    /// Applies the fault, or its end.
    fn switch(&self, world: &mut World, begins: bool) {
        let part = if begins { self.fault.rate } else { 1.0 };
        let hosts = self.hosts.iter().copied();
        match self.fault.kind {
            Kind::Crash if begins => hosts.for_each(|host| world.kill(host)),
            Kind::Crash => hosts.for_each(|host| world.start(host)),
            Kind::Seeder if begins => world.kill(SEEDER),
            Kind::Seeder => world.start(SEEDER),
            Kind::Tracker => world.set_tracker(!begins),
            Kind::Corrupt => hosts.for_each(|host| world.set_corrupt(host, begins)),
            Kind::Stale => hosts.for_each(|host| world.set_deaf(host, begins)),
            // `advance` breaks the links.
            Kind::Flap => {}
            Kind::Uneven => world.set_uneven(begins.then_some(part), self.seed),
            Kind::Slow => hosts.for_each(|host| {
                let rack = world.rack_of(host).map_or(0, |rack| rack as usize);
                // The rate is a part of what the push needs of the card. The card itself is mostly idle.
                let row = &world.layout().racks[rack];
                let rate = if begins { row.nic.min(row.uplink) } else { row.nic };
                world.set_nic(host, (rate as f64 * part) as u64);
            }),
            Kind::Uplink => {
                if let Some(rack) = self.fault.rack(world.layout()) {
                    let rate = world.layout().racks[rack].uplink as f64 * part;
                    world.set_uplink(rack, rate as u64);
                }
            }
        }
    }
}
