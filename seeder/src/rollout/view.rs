//! Rollouts as the API shows them.
//!
//! Invariant: a view changes nothing.

use super::Rollout;
use super::batches::goal;
use super::spec::rules;
use super::targets::{in_order, with_version};
use shoal_api::rollouts::{DryRun, DryRunBatch, RolloutSpec, RolloutView};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::JobId;
use shoal_swarm::membership::Membership;

/// Hosts that a dry run names of each batch.
const NAMED_MAX: usize = 8;
/// Batches that a dry run shows.
const BATCHES_MAX: u32 = 100;

/// Returns the view of a rollout.
pub(super) fn view(id: JobId, rollout: &Rollout) -> RolloutView {
    let machine = &rollout.machine;
    let (state, tally) = (machine.state(), machine.tally());
    // What a rollout that has ended waits for is no news.
    let trouble = Some(&rollout.trouble).filter(|trouble| !trouble.is_empty() && !state.phase.is_final());
    let why = Some(&state.why).filter(|why| !why.is_empty());
    let why: Vec<&str> = why.into_iter().chain(trouble).map(String::as_str).collect();
    RolloutView {
        id,
        spec: machine.spec().clone(),
        phase: state.phase,
        paused: state.paused,
        batch: state.batch + 1,
        goal: goal(machine.spec(), state.batch, tally.hosts),
        attempt: state.attempt,
        tally,
        why: why.join("; "),
        began_ms: state.began_ms,
        events: state.events.clone(),
        failures: state.failures.clone(),
        superseded: rollout.superseded || state.retired,
    }
}

/// Returns what a rollout would do on these targets.
pub(super) fn dry_run(spec: &RolloutSpec, membership: &Membership, targets: &Bitmap) -> DryRun {
    let order = in_order(&spec.name, membership, targets);
    let hosts = order.len() as u32;
    let rules = rules(spec).unwrap_or_default();
    let counts = rules.iter().map(|rule| {
        let count = with_version(spec, membership, targets, &rule.version).count();
        (rule.version.clone(), count)
    });
    let mut batches = Vec::new();
    let mut from = 0;
    for batch in 0..BATCHES_MAX {
        let to = goal(spec, batch, hosts);
        let some = order[from as usize..to as usize].iter().take(NAMED_MAX);
        let named = some.map(|host| host.member.locality.to_string()).collect();
        batches.push(DryRunBatch { hosts: to - from, named });
        from = to;
        if to >= hosts {
            break;
        }
    }
    DryRun {
        hosts,
        racks: order.iter().map(|host| host.rack).max().map_or(0, |last| last + 1),
        away: order.iter().filter(|host| !membership.is_up(host.member.index)).count() as u32,
        versions: counts.collect(),
        batches,
    }
}
