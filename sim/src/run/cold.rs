//! What follows a push where a fault waits for it: every rack demotes the content, the fault begins, and the content is
//! promoted.
//!
//! Owns: the order of these steps, and what is measured of them.
//! Invariant: the demotion finds the region whole. Whatever went wrong in the push has ended, and every host has everything.

use super::{Pending, advance, switch};
use crate::world::{ContentNumber, World};
use serde::Serialize;
use shoal_proto::ids::HostIndex;
use shoal_swarm::time::Instant;
use std::collections::BTreeSet;
use std::time::Duration;

/// So long after hosts came back or were lost all know it.
const KNOWN: Duration = Duration::from_secs(1);
/// Between two looks at what hosts have.
const LOOK: Duration = Duration::from_millis(10);

/// Figures of a demotion and the promotion after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cold {
    /// Hosts that were to have the content again: not those lost for good or slow to the end.
    pub hosts: u32,
    /// Those that had.
    pub complete: u32,
    /// Bytes of the content on a rack's disks by its size, parity included, once all had demoted it: the worst rack.
    pub copies: f64,
    /// From the promotion to the last host that had it again, seconds.
    pub restore_s: f64,
    /// Payload bytes that entered a rack from the promotion on by the content's size: the worst rack.
    pub rack_import_max: f64,
    /// Payload bytes the seeder sent from then on by the content's size.
    pub seeder_egress: f64,
}

/// Demotes a content that was pushed, and promotes it while `later` goes wrong. Each half may take as long as `limit`.
pub(super) fn run(
    world: &mut World,
    number: ContentNumber,
    former: Vec<Pending>,
    mut later: Vec<Pending>,
    limit: Duration,
) -> Cold {
    let until = world.now() + limit;
    former.iter().filter(|row| row.running).for_each(|row| switch(world, row, false));
    let losing = later.iter().filter(|row| row.fault.loses());
    let lost: BTreeSet<HostIndex> = losing.flat_map(|row| row.hosts.iter().copied()).collect();
    let expected: Vec<HostIndex> = world.peers().filter(|host| !lost.contains(host)).collect();
    let mut figures = Cold { hosts: expected.len() as u32, ..Cold::default() };
    let is_whole = |world: &World| world.peers().all(|host| world.pushed(number).done.contains_key(&host));
    if !wait(world, &mut Vec::new(), until, is_whole) {
        return figures;
    }
    world.run_for(KNOWN);
    world.demote(number);
    if !wait(world, &mut Vec::new(), until, |world| world.is_shed(number)) {
        return figures;
    }
    figures.copies = copies(world, number);

    let now = world.now();
    later.iter_mut().for_each(|row| (row.begins, row.next_flap) = (Some(now), now));
    wait(world, &mut later, now + KNOWN, |_| false);
    let before = world.traffic.clone();
    world.promote(number);
    let again = |world: &World| expected.iter().all(|host| world.pushed(number).done.contains_key(host));
    let promoted = world.now();
    wait(world, &mut later, promoted + limit, again);

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

/// Runs until `done`, or until the time is over; tells which.
fn wait(world: &mut World, pending: &mut Vec<Pending>, until: Instant, done: impl Fn(&World) -> bool) -> bool {
    loop {
        advance(world, pending, world.now());
        if done(world) {
            return true;
        }
        if world.now() >= until {
            return false;
        }
        let next = pending.iter().filter_map(Pending::next_at).min().unwrap_or(until);
        world.run_until((world.now() + LOOK).min(next).min(until));
    }
}

/// Copies of a content on the disks of the rack that has most of them.
fn copies(world: &World, number: ContentNumber) -> f64 {
    let kept = |rack: usize| {
        let hosts = world.layout().hosts_of(rack).map(HostIndex);
        hosts.map(|host| world.bytes_on_disk(host, number)).sum::<u64>()
    };
    let most = (0..world.layout().racks.len()).map(kept).max().unwrap_or(0);
    most as f64 / world.pushed(number).geometry.bytes() as f64
}
