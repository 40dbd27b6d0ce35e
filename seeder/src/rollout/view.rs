//! Rollouts as the API shows them.

use super::machine::{Event, Machine, Phase, Tally};
use super::spec::RolloutSpec;
use super::with_version;
use serde::{Deserialize, Serialize};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::desired::hash_bucket;
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::membership::Member;
use shoal_swarm::membership::Membership;
use std::collections::BTreeMap;

/// Hosts named of each batch of a dry run.
const NAMED_MAX: usize = 8;
/// Batches shown of a dry run.
const BATCHES_MAX: u32 = 100;

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
    /// The batch, from 1.
    pub batch: u32,
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
            batch: state.batch + 1,
            goal: machine.spec().goal(state.batch, tally.hosts),
            attempt: state.attempt,
            tally,
            why: state.why.clone(),
            began_ms: state.began_ms,
            events: state.events.clone(),
            superseded,
        }
    }
}

/// A batch of a dry run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRunBatch {
    /// Hosts that switch in it.
    pub hosts: u32,
    /// Some of them.
    pub named: Vec<String>,
}

/// What a rollout would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRun {
    /// Hosts.
    pub hosts: u32,
    /// Racks.
    pub racks: u32,
    /// Hosts that are away now.
    pub away: u32,
    /// Hosts by version.
    pub versions: BTreeMap<String, u32>,
    /// The batches, if every host is there and all is well.
    pub batches: Vec<DryRunBatch>,
}

/// Hosts in the order they should switch in: one of each rack, then the next of each.
pub(super) fn in_order<'a>(name: &str, membership: &'a Membership, targets: &Bitmap) -> Vec<(u32, &'a Member)> {
    let mut racks: BTreeMap<String, Vec<(u32, NodeId, &Member)>> = BTreeMap::new();
    for member in targets.iter().filter_map(|host| membership.get(HostIndex(host))) {
        let row = (hash_bucket(&member.node, name), member.node, member);
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

pub(super) fn dry(spec: &RolloutSpec, membership: &Membership, targets: &Bitmap) -> DryRun {
    let order = in_order(&spec.name, membership, targets);
    let hosts = order.len() as u32;
    let rules = spec.rules().unwrap_or_default();
    let counts =
        rules.iter().map(|(_, version)| (version.clone(), with_version(spec, membership, targets, version).count()));
    let mut batches = Vec::new();
    let mut from = 0;
    for batch in 0..BATCHES_MAX {
        let to = spec.goal(batch, hosts);
        let some = order[from as usize..to as usize].iter().take(NAMED_MAX);
        let named = some.map(|(_, member)| member.locality.to_string()).collect();
        batches.push(DryRunBatch { hosts: to - from, named });
        from = to;
        if to >= hosts {
            break;
        }
    }
    DryRun {
        hosts,
        racks: order.iter().map(|(rack, _)| rack).max().map_or(0, |last| last + 1),
        away: order.iter().filter(|(_, member)| !membership.is_up(member.index)).count() as u32,
        versions: counts.collect(),
        batches,
    }
}
