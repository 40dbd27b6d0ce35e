//! The demotion and promotion that follow a push when a fault waits for them, done as an operator does them.
//!
//! Invariant: the demotion starts only when the faults of the push have ended and every host has the whole content.

use crate::clock::{made_at, pause, time_of_day, until};
use crate::completion::{self, Awaited};
use crate::faults::Faults;
use crate::namespaces::Place;
use crate::stage::Stage;
use crate::systems::System;
use serde::Serialize;
use shoal_testkit::disk::on_disk;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long after a host came back or was lost all other hosts know it.
const KNOWN: Duration = Duration::from_secs(1);

/// Figures of a demotion and the promotion after it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DemotionFigures {
    /// Hosts that must have the content again: all but those that are lost for good or slow to the end.
    pub(crate) expected: usize,
    /// Expected hosts that had it again with the right bytes.
    pub(crate) finished: usize,
    /// Hosts whose copy differs from the source.
    pub(crate) wrong: Vec<String>,
    /// Bytes on a rack's disks once all hosts had demoted the content, divided by its size: the worst rack.
    pub(crate) copies: f64,
    /// From the request of the promotion to the last expected host, seconds.
    pub(crate) restore_s: f64,
    /// Bytes into each rack from then on, divided by the content's size, control traffic included.
    pub(crate) rack_import: Vec<f64>,
    /// Bytes out of the seeder from then on, divided by the content's size, control traffic included.
    pub(crate) seeder_egress: f64,
}

/// Demotes the content, begins the faults that wait for this, and promotes the content.
pub(crate) fn run(
    stage: &mut Stage,
    system: &mut dyn System,
    faults: &mut Faults,
    limit: Duration,
) -> anyhow::Result<DemotionFigures> {
    faults.end_push(stage, system)?;
    let hosts = stage.racks.hosts();
    until("every host has the content", limit, || {
        hosts.iter().all(|host| made_at(&system.done(stage, *host)).is_some()).then_some(())
    })?;
    pause(KNOWN)?;
    system.demote(stage)?;
    let size = stage.content.bytes as f64;
    let racks = 0..stage.racks.layout().racks.len();
    let copies = racks.map(|rack| stored_bytes(stage, rack) as f64 / size).fold(0.0, f64::max);

    faults.advance(Duration::ZERO, stage, system)?;
    pause(KNOWN)?;
    rustix::fs::sync();
    let before = stage.racks.counters()?;
    let expected: BTreeSet<Place> = hosts.into_iter().filter(|host| !faults.lost.contains(host)).collect();
    let began = time_of_day();
    system.promote(stage)?;
    let sign = |system: &dyn System, stage: &Stage, host| system.restored(stage, host);
    let done = completion::wait(stage, system, faults, &Awaited { expected: &expected, began, limit, sign })?;
    let after = stage.racks.counters()?;

    let (right, wrong): (Vec<Place>, Vec<Place>) =
        done.keys().copied().partition(|host| stage.content.is_at(&system.copy(stage, *host)));
    let finished = right.iter().filter(|host| expected.contains(host)).count();
    let last = done.iter().filter(|(host, _)| expected.contains(host)).map(|(_, at)| *at).fold(0.0, f64::max);
    let into = after.racks.iter().zip(&before.racks).map(|(after, before)| after.since(*before).into as f64 / size);
    Ok(DemotionFigures {
        expected: expected.len(),
        finished,
        wrong: wrong.iter().map(Place::to_string).collect(),
        copies,
        restore_s: if finished == expected.len() { last } else { f64::INFINITY },
        rack_import: into.collect(),
        seeder_egress: after.seeder.since(before.seeder).out as f64 / size,
    })
}

/// Bytes on the disks of a rack: stored contents and active versions.
fn stored_bytes(stage: &Stage, rack: usize) -> u64 {
    let hosts = stage.racks.hosts().into_iter();
    let of_rack = hosts.filter(|host| matches!(host, Place::Host { rack: at, .. } if *at == rack));
    let folders = of_rack.map(|host| stage.dir.path().join(host.to_string()));
    folders.map(|folder| on_disk(&folder.join("state/contents")) + on_disk(&folder.join("content"))).sum()
}
