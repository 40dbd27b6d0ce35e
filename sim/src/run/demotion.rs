//! The demotion and promotion that follow a push when a fault waits for them.
//!
//! Owns: the order of these steps, and their figures.
//! Invariant: the demotion starts only when the faults of the push have ended and every host has the whole content.

use super::fault_schedule::FaultSchedule;
use crate::world::{ContentNumber, World};
use serde::Serialize;
use shoal_proto::ids::HostIndex;
use shoal_swarm::time::Instant;
use std::time::Duration;

/// How long after a host came back or was lost all other hosts know it.
const KNOWN: Duration = Duration::from_secs(1);
/// Between two looks at what hosts have.
const LOOK: Duration = Duration::from_millis(10);

/// Figures of a demotion and the promotion after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DemotionFigures {
    /// Hosts that must have the content again: all but those that are lost for good or slow to the end.
    pub hosts: u32,
    /// Those of them that had it again.
    pub complete: u32,
    /// Bytes on a rack's disks once all hosts had demoted the content, parity included, divided by its size: the worst
    /// rack.
    pub copies: f64,
    /// From the promotion to the last host that had the whole content again, seconds.
    pub restore_s: f64,
    /// Payload bytes that entered a rack from the promotion on, divided by the content's size: the worst rack.
    pub rack_import_max: f64,
    /// Payload bytes that the seeder sent from then on, divided by the content's size.
    pub seeder_egress: f64,
}

/// Demotes a content that was pushed, lets `later` begin, and promotes the content. Each half may take as long as
/// `limit`.
pub(super) fn run(
    world: &mut World,
    number: ContentNumber,
    of_push: &FaultSchedule,
    mut later: FaultSchedule,
    limit: Duration,
) -> DemotionFigures {
    let until = world.now() + limit;
    of_push.end_all(world);
    let lost = later.lost();
    let expected: Vec<HostIndex> = world.peers().filter(|host| !lost.contains(host)).collect();
    let mut figures = DemotionFigures { hosts: expected.len() as u32, ..DemotionFigures::default() };
    let is_whole = |world: &World| world.peers().all(|host| world.pushed(number).done.contains_key(&host));
    if !wait(world, &mut FaultSchedule::default(), until, is_whole) {
        return figures;
    }
    world.run_for(KNOWN);
    world.demote(number);
    if !wait(world, &mut FaultSchedule::default(), until, |world| world.is_demoted(number)) {
        return figures;
    }
    figures.copies = copies(world, number);

    let now = world.now();
    later.begin_all(now);
    wait(world, &mut later, now + KNOWN, |_| false);
    let before = world.traffic.clone();
    world.promote(number);
    let restored = |world: &World| expected.iter().all(|host| world.pushed(number).done.contains_key(host));
    let promoted = world.now();
    wait(world, &mut later, promoted + limit, restored);

    let pushed = world.pushed(number);
    let size = pushed.geometry.bytes() as f64;
    let times: Vec<u64> = expected.iter().filter_map(|host| pushed.done.get(host).copied()).collect();
    figures.complete = times.len() as u32;
    figures.restore_s = times.iter().max().map_or(0.0, |last| (last - pushed.at) as f64 / 1e9);
    let imported = world.traffic.imported.iter().zip(&before.imported).map(|(after, before)| after - before);
    figures.rack_import_max = imported.max().unwrap_or(0) as f64 / size;
    figures.seeder_egress = (world.traffic.seeder - before.seeder) as f64 / size;
    figures
}

/// Runs until `done`, or until the time is over. Returns whether `done` holds.
fn wait(world: &mut World, faults: &mut FaultSchedule, until: Instant, done: impl Fn(&World) -> bool) -> bool {
    loop {
        let now = world.now();
        faults.advance(world, now);
        if done(world) {
            return true;
        }
        if world.now() >= until {
            return false;
        }
        let next = faults.next_at().unwrap_or(until);
        world.run_until((world.now() + LOOK).min(next).min(until));
    }
}

/// Copies of a content on the disks of the rack that stores most of it.
fn copies(world: &World, number: ContentNumber) -> f64 {
    let stored = |rack: usize| {
        let hosts = world.layout().hosts_of(rack).map(HostIndex);
        hosts.map(|host| world.bytes_on_disk(host, number)).sum::<u64>()
    };
    let most = (0..world.layout().racks.len()).map(stored).max().unwrap_or(0);
    most as f64 / world.pushed(number).geometry.bytes() as f64
}
