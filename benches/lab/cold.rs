//! What follows a push where a fault waits for it: the content is demoted and, while something is wrong, promoted, as an
//! operator does it.
//!
//! Invariant: the demotion finds the region whole. What went wrong in the push has ended, and every host has everything.

use super::disk::on_disk;
use super::measure::{Stage, clock, rest, watch};
use super::namespaces::Place;
use super::processes::{made_at, until};
use super::systems::System;
use super::troubles::Troubles;
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// So long after hosts came back or were lost all know it.
const KNOWN: Duration = Duration::from_secs(1);

/// Figures of a demotion and the promotion after it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ColdFigures {
    /// Hosts that were to have the content again: not those lost for good or slow to the end.
    pub(super) expected: usize,
    /// Those that had, with the right bytes.
    pub(super) finished: usize,
    /// Copies that differ from the source.
    pub(super) wrong: Vec<String>,
    /// Bytes on a rack's disks by the content's size once all had demoted it: the worst rack.
    pub(super) copies: f64,
    /// From before the promotion was asked for to the last expected host, seconds.
    pub(super) restore_s: f64,
    /// Bytes into each rack from then on by the content's size, control traffic included.
    pub(super) rack_import: Vec<f64>,
    /// Bytes out of the seeder from then on by the content's size, control traffic included.
    pub(super) seeder_egress: f64,
}

/// Demotes a content that was pushed, and promotes it while something is wrong.
pub(super) fn run(
    stage: &mut Stage,
    system: &mut dyn System,
    troubles: &mut Troubles,
    limit: Duration,
) -> anyhow::Result<ColdFigures> {
    troubles.end(stage, system)?;
    let hosts = stage.racks.hosts();
    until("every host has the content", limit, || {
        hosts.iter().all(|host| made_at(&system.done(stage, *host)).is_some()).then_some(())
    })?;
    rest(KNOWN)?;
    system.demote(stage)?;
    let size = stage.content.bytes as f64;
    let copies = (0..stage.racks.layout().racks.len()).map(|rack| kept(stage, rack) as f64 / size).fold(0.0, f64::max);

    troubles.advance(Duration::ZERO, stage, system)?;
    rest(KNOWN)?;
    rustix::fs::sync();
    let before = stage.racks.counters()?;
    let expected: BTreeSet<Place> = hosts.into_iter().filter(|host| !troubles.lost.contains(host)).collect();
    let began = clock();
    system.promote(stage)?;
    let sign = |system: &dyn System, stage: &Stage, host| system.restored(stage, host);
    let done = watch(stage, system, troubles, &expected, began, limit, sign)?;
    let after = stage.racks.counters()?;

    let (right, wrong): (Vec<Place>, Vec<Place>) =
        done.keys().copied().partition(|host| stage.content.is_at(&system.copy(stage, *host)));
    let finished = right.iter().filter(|host| expected.contains(host)).count();
    let last = done.iter().filter(|(host, _)| expected.contains(host)).map(|(_, at)| *at).fold(0.0, f64::max);
    let into = after.racks.iter().zip(&before.racks).map(|(after, before)| after.since(*before).into as f64 / size);
    Ok(ColdFigures {
        expected: expected.len(),
        finished,
        wrong: wrong.iter().map(Place::to_string).collect(),
        copies,
        restore_s: if finished == expected.len() { last } else { f64::INFINITY },
        rack_import: into.collect(),
        seeder_egress: after.seeder.since(before.seeder).out as f64 / size,
    })
}

/// Bytes on the disks of a rack: what is stored and what is switched in.
fn kept(stage: &Stage, rack: usize) -> u64 {
    let hosts =
        stage.racks.hosts().into_iter().filter(|host| matches!(host, Place::Host { rack: at, .. } if *at == rack));
    let folders = hosts.map(|host| stage.dir.path().join(host.to_string()));
    folders.map(|folder| on_disk(&folder.join("state/contents")) + on_disk(&folder.join("content"))).sum()
}
