//! Which hosts a rollout targets, in which order they switch, and which version each gets.
//!
//! Invariant: the order depends on the membership and the name alone, so every dry run and every restart has the same.

use super::spec::{VersionRule, rules};
use shoal_api::rollouts::RolloutSpec;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::desired::hash_bucket;
use shoal_proto::ids::{HostIndex, NodeId};
use shoal_proto::locality::Selector;
use shoal_proto::membership::Member;
use shoal_swarm::membership::Membership;
use std::collections::BTreeMap;

fn rule_of<'a>(rules: &'a [VersionRule], name: &str, member: &Member) -> Option<&'a VersionRule> {
    rules.iter().find(|rule| rule.hosts.has(name, member))
}

/// Returns the hosts that a rollout targets. A host that no rule of the split matches is not a target.
pub(super) fn targets(spec: &RolloutSpec, membership: &Membership) -> Bitmap {
    let Ok(selector) = Selector::parse(&spec.to) else { return Bitmap::default() };
    let rules = rules(spec).unwrap_or_default();
    let mut hosts = membership.select(&selector);
    for host in hosts.clone().iter() {
        let member = membership.get(HostIndex(host));
        if member.and_then(|member| rule_of(&rules, &spec.name, member)).is_none() {
            hosts.unset(host);
        }
    }
    hosts
}

/// Returns the targets that get a version.
pub(super) fn with_version(spec: &RolloutSpec, membership: &Membership, targets: &Bitmap, version: &str) -> Bitmap {
    let rules = rules(spec).unwrap_or_default();
    let gets = |host: &u32| {
        let member = membership.get(HostIndex(*host))?;
        Some(rule_of(&rules, &spec.name, member)?.version == version)
    };
    let mut hosts = Bitmap::new(targets.len());
    targets.iter().filter(|host| gets(host) == Some(true)).for_each(|host| {
        hosts.set(host);
    });
    hosts
}

/// A host in its place in the order.
#[derive(Clone, Copy)]
pub(super) struct OrderedHost<'a> {
    /// A number that hosts of one rack share, from 0.
    pub(super) rack: u32,
    pub(super) member: &'a Member,
}

/// Returns the targets in the order in which they switch: one host of each rack, then the next host of each rack.
///
/// Within a rack, a hash of host and name decides, so that different names do not always begin on the same host.
pub(super) fn in_order<'a>(name: &str, membership: &'a Membership, targets: &Bitmap) -> Vec<OrderedHost<'a>> {
    struct InRack<'a> {
        bucket: u32,
        node: NodeId,
        member: &'a Member,
    }
    let mut racks: BTreeMap<String, Vec<InRack<'_>>> = BTreeMap::new();
    for member in targets.iter().filter_map(|host| membership.get(HostIndex(host))) {
        let host = InRack { bucket: hash_bucket(&member.node, name), node: member.node, member };
        racks.entry(member.locality.rack_path()).or_default().push(host);
    }
    let mut order = Vec::new();
    for (rack, hosts) in (0..).zip(racks.values_mut()) {
        hosts.sort_unstable_by_key(|host| (host.bucket, host.node));
        let first_bucket = hosts.first().map_or(0, |host| host.bucket);
        order.extend((0usize..).zip(hosts.iter()).map(|(place, host)| {
            let key = (place, first_bucket, rack);
            (key, OrderedHost { rack, member: host.member })
        }));
    }
    order.sort_by_key(|(key, _)| *key);
    order.into_iter().map(|(_, host)| host).collect()
}
