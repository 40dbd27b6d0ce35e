//! Rollouts as the API shows them.

use super::machine::{Event, Machine, Phase, Tally};
use super::spec::RolloutSpec;
use super::with_version;
use serde::{Deserialize, Serialize};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::desired::share_of;
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::membership::Member;
use shoal_swarm::membership::Membership;
use std::collections::BTreeMap;

/// Hosts named of each wave of a dry run.
const NAMED_MAX: usize = 8;
/// Waves shown of a dry run.
const WAVES_MAX: u32 = 100;

/// A rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Its id; hosts report on it as on a job.
    pub id: JobId,
    /// What was asked for.
    pub spec: RolloutSpec,
    /// How far.
    pub phase: Phase,
    /// Nobody begins to switch until it is resumed.
    pub paused: bool,
    /// The wave, from 1.
    pub wave: u32,
    /// Hosts that have switched when it is over, in all.
    pub goal: u32,
    /// The attempt.
    pub attempt: u16,
    /// The hosts.
    pub tally: Tally,
    /// Why it is not going on as planned.
    pub why: String,
    /// When it was asked for, Unix milliseconds.
    pub began_ms: u64,
    /// What happened.
    pub events: Vec<Event>,
    /// A newer rollout of the name has taken over.
    pub superseded: bool,
}

impl RolloutView {
    pub(super) fn new(id: JobId, machine: &Machine, superseded: bool) -> Self {
        let (state, tally) = (machine.state(), machine.tally());
        Self {
            id,
            spec: machine.spec().clone(),
            phase: state.phase,
            paused: state.paused,
            wave: state.wave + 1,
            goal: machine.spec().goal(state.wave, tally.hosts),
            attempt: state.attempt,
            tally,
            why: state.why.clone(),
            began_ms: state.began_ms,
            events: state.events.clone(),
            superseded,
        }
    }
}

/// A wave of a dry run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryWave {
    /// Hosts that switch in it.
    pub hosts: u32,
    /// Some of them.
    pub named: Vec<String>,
}

/// What a rollout would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dry {
    /// Hosts.
    pub hosts: u32,
    /// Racks.
    pub racks: u32,
    /// Hosts that are away now.
    pub away: u32,
    /// Hosts by version.
    pub versions: BTreeMap<String, u32>,
    /// The waves, if every host is there and all is well.
    pub waves: Vec<DryWave>,
}

/// Hosts in the order they should switch in: one of each rack, then the next of each.
pub(super) fn in_order<'a>(name: &str, membership: &'a Membership, targets: &Bitmap) -> Vec<(u32, &'a Member)> {
    let mut racks: BTreeMap<String, Vec<(u32, NodeId, &Member)>> = BTreeMap::new();
    for member in targets.iter().filter_map(|host| membership.get(HostIndex(host))) {
        let row = (share_of(&member.node, name), member.node, member);
        racks.entry(member.locality.rack_path()).or_default().push(row);
    }
    let mut order = Vec::new();
    for (number, mates) in (0..).zip(racks.values_mut()) {
        mates.sort_unstable_by_key(|(share, node, _)| (*share, *node));
        let first = mates.first().map_or(0, |(share, _, _)| *share);
        order.extend(mates.iter().enumerate().map(|(place, (_, _, member))| (place, first, number, *member)));
    }
    order.sort_by_key(|(place, first, number, _)| (*place, *first, *number));
    order.into_iter().map(|(_, _, number, member)| (number, member)).collect()
}

pub(super) fn dry(spec: &RolloutSpec, membership: &Membership, targets: &Bitmap) -> Dry {
    let order = in_order(&spec.name, membership, targets);
    let hosts = order.len() as u32;
    let rules = spec.rules().unwrap_or_default();
    let counts =
        rules.iter().map(|(_, version)| (version.clone(), with_version(spec, membership, targets, version).count()));
    let mut waves = Vec::new();
    let mut from = 0;
    for wave in 0..WAVES_MAX {
        let to = spec.goal(wave, hosts);
        let some = order[from as usize..to as usize].iter().take(NAMED_MAX);
        let named = some.map(|(_, member)| member.locality.to_string()).collect();
        waves.push(DryWave { hosts: to - from, named });
        from = to;
        if to >= hosts {
            break;
        }
    }
    Dry {
        hosts,
        racks: order.iter().map(|(rack, _)| rack).max().map_or(0, |last| last + 1),
        away: order.iter().filter(|(_, member)| !membership.is_up(member.index)).count() as u32,
        versions: counts.collect(),
        waves,
    }
}
