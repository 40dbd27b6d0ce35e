//! What is measured of a run.

use super::{DemotionFigures, Scenario};
use crate::layout::SEEDER;
use crate::world::{ContentNumber, World};
use serde::Serialize;
use shoal_proto::ids::{Hash, HostIndex};
use std::collections::BTreeSet;
use std::time::Duration;

/// Figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Number of hosts.
    pub hosts: u32,
    /// Hosts that have the whole content, without those that were slow to the end.
    pub complete: u32,
    /// Hosts that were dead at the end and had not finished.
    pub dead: u32,
    /// Hosts that were slow to the end. They need not finish, and the times are those of the other hosts.
    pub slow: u32,
    /// Payload bytes of the content.
    pub bytes: u64,
    /// From the push to the last host's completion, seconds.
    pub makespan_s: f64,
    /// The least possible makespan without faults, seconds.
    pub bound_s: f64,
    /// The makespan divided by the bound.
    pub ratio: f64,
    /// From the push to the median host's completion, seconds.
    pub p50_s: f64,
    /// From the push to the 99th percentile of completions, seconds.
    pub p99_s: f64,
    /// Payload bytes that entered a rack, divided by the content's size: the worst rack.
    pub rack_import_max: f64,
    /// The same: the mean of all racks.
    pub rack_import_mean: f64,
    /// Payload bytes that the seeder sent, divided by the content's size.
    pub seeder_egress: f64,
    /// Parity bytes that entered racks, divided by all payload bytes that entered racks.
    pub parity_over_uplinks: f64,
    /// The greatest number of links that any piece crossed from the seeder.
    pub depth: u8,
    /// Events handled.
    pub events: u64,
    /// A hash of everything that happened.
    pub digest: String,
    /// Figures of the demotion and promotion after the push, if a fault waits for them. The other figures are those of
    /// the push, except the events and the digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demotion: Option<DemotionFigures>,
}

/// A run's figures, and the data of its picture.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The figures.
    pub figures: Figures,
    /// For every rack, when each of its hosts finished, seconds after the push; `None` for hosts that never did.
    pub done: Vec<Vec<Option<f64>>>,
}

impl Outcome {
    /// Whether every living host has the whole content, also after a promotion.
    pub fn is_complete(&self) -> bool {
        let figures = &self.figures;
        let restored = figures.demotion.as_ref().is_none_or(|demotion| demotion.complete == demotion.hosts);
        restored && figures.complete + figures.dead + figures.slow >= figures.hosts
    }
}

/// Measures the push.
pub(super) fn measure(
    scenario: &Scenario,
    world: &World,
    number: ContentNumber,
    bound: Duration,
    slow: &BTreeSet<HostIndex>,
) -> Outcome {
    let pushed = world.pushed(number);
    let bytes = pushed.geometry.bytes();
    let seconds = |at: u64| (at - pushed.at) as f64 / 1e9;
    let done: Vec<Vec<Option<f64>>> = (0..scenario.layout.racks.len())
        .map(|rack| {
            let hosts = scenario.layout.hosts_of(rack).map(HostIndex);
            hosts.map(|host| pushed.done.get(&host).map(|at| seconds(*at))).collect()
        })
        .collect();
    let counted = pushed.done.iter().filter(|(host, _)| **host != SEEDER && !slow.contains(host));
    let mut times: Vec<f64> = counted.map(|(_, at)| seconds(*at)).collect();
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times.get(((times.len() as f64 * part).ceil() as usize).max(1) - 1).copied().unwrap_or(0.0);
    let makespan_s = times.last().copied().unwrap_or(0.0);
    let imports = &world.traffic.imported;
    let size = bytes as f64;
    let imported: u64 = imports.iter().sum();
    let lost = |host: &HostIndex| !world.is_running(*host) && !pushed.done.contains_key(host) && !slow.contains(host);
    let dead = world.peers().filter(lost).count();
    let figures = Figures {
        hosts: scenario.layout.hosts(),
        complete: times.len() as u32,
        dead: dead as u32,
        slow: slow.len() as u32,
        bytes,
        makespan_s,
        bound_s: bound.as_secs_f64(),
        ratio: makespan_s / bound.as_secs_f64(),
        p50_s: at(0.50),
        p99_s: at(0.99),
        rack_import_max: imports.iter().max().copied().unwrap_or(0) as f64 / size,
        rack_import_mean: imported as f64 / size / imports.len().max(1) as f64,
        seeder_egress: world.traffic.seeder as f64 / size,
        parity_over_uplinks: world.traffic.parity as f64 / (imported as f64).max(1.0),
        depth: world.depth,
        events: world.events,
        digest: digest(world, number),
        demotion: None,
    };
    Outcome { figures, done }
}

/// A hash of events, traffic and completion times.
pub(super) fn digest(world: &World, number: ContentNumber) -> String {
    let mut trace = format!("{} {:?}", world.events, world.traffic).into_bytes();
    for (host, at) in &world.pushed(number).done {
        trace.extend_from_slice(&host.0.to_be_bytes());
        trace.extend_from_slice(&at.to_be_bytes());
    }
    format!("{:016x}", Hash::of(&trace).prefix())
}
