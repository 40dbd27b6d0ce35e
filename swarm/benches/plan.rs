//! What a plan costs: to group a membership, to plan for all of it, and to ask about one host.
//!
//! `cargo bench -p shoal-swarm --bench plan`

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{Epoch, Hash, HostIndex, LaneIndex, NodeId};
use shoal_proto::locality::{Labels, Locality};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;
use shoal_swarm::membership::Membership;
use shoal_swarm::plan::{Plan, PlanRequest, Shape};
use std::collections::BTreeSet;
use std::hint::black_box;

const LANES: u8 = 64;

/// `racks` racks of `hosts` hosts each, 50 racks to a site. The seeder is host 0.
fn region(racks: u32, hosts: u32) -> Membership {
    let upserts = (0..=racks * hosts).map(|index| {
        let rack = index / hosts;
        let names = [format!("site-{:03}", rack / 50), format!("rack-{rack:04}"), format!("host-{index:06}")];
        Member {
            index: HostIndex(index),
            node: NodeId(*Hash::of(&index.to_be_bytes()).as_bytes()),
            role: if index == 0 { Role::Seeder } else { Role::Peer },
            locality: Locality::new("region-1", &names[0], &names[1], &names[2]).expect("names are valid"),
            labels: Labels::new(),
            addrs: Vec::new(),
            weight: 100,
            uplink_mbit: 0,
            presence: Presence::Up,
            credential: Default::default(),
        }
    });
    let mut membership = Membership::default();
    let update = MembershipUpdate { epoch: Epoch(1), base: None, upserts: upserts.collect(), removed: Vec::new() };
    membership.apply(update).expect("a full update applies");
    membership
}

fn all(membership: &Membership) -> Bitmap {
    Bitmap::full(membership.index_space())
}

fn large(c: &mut Criterion) {
    let membership = region(1250, 40);
    let targets = all(&membership);
    let avoid = BTreeSet::new();
    let request =
        PlanRequest { targets: &targets, root: Some(HostIndex(0)), avoid: &avoid, lanes: LANES, shape: Shape::NARROW };
    c.bench_function("membership/clone_50k", |b| b.iter(|| membership.clone()));
    c.bench_function("topology/50k", |b| {
        let touch = || {
            let mut fresh = membership.clone();
            let next =
                MembershipUpdate { epoch: Epoch(2), base: Some(Epoch(1)), upserts: Vec::new(), removed: Vec::new() };
            fresh.apply(next).expect("a delta on its base applies");
            fresh
        };
        b.iter_batched_ref(touch, |fresh| fresh.topology().rack_count(), BatchSize::LargeInput);
    });
    membership.topology();
    c.bench_function("plan/new_50k", |b| b.iter(|| Plan::new(&membership, black_box(&request))));
    let plan = Plan::new(&membership, &request);
    let lost: BTreeSet<HostIndex> = (1..9).map(HostIndex).collect();
    c.bench_function("plan/avoiding_8_of_50k", |b| b.iter(|| plan.avoiding(black_box(&lost))));
    // What one host asks for a content: its parent and children in each lane, on a fresh plan.
    c.bench_function("plan/one_host_all_lanes_fresh", |b| {
        let fresh = || Plan::new(&membership, &request);
        b.iter_batched_ref(fresh, |plan| ask(plan, HostIndex(25_000)), BatchSize::LargeInput);
    });
    c.bench_function("plan/one_host_all_lanes_again", |b| b.iter(|| ask(&plan, HostIndex(25_000))));
}

fn ask(plan: &Plan, host: HostIndex) -> usize {
    (0..LANES)
        .map(LaneIndex)
        .map(|lane| usize::from(plan.parent(lane, host).is_some()) + plan.children(lane, host).len())
        .sum()
}

fn one_rack(c: &mut Criterion) {
    let membership = region(1, 40);
    let targets = all(&membership);
    let avoid = BTreeSet::from([HostIndex(7)]);
    let request = PlanRequest { targets: &targets, root: None, avoid: &avoid, lanes: LANES, shape: Shape::NARROW };
    c.bench_function("owners/40_hosts_64_lanes", |b| {
        let fresh = || Plan::new(&membership, &request);
        b.iter_batched_ref(fresh, |plan| plan.owner(LaneIndex(0), HostIndex(1)), BatchSize::SmallInput);
    });
}

criterion_group!(plans, large, one_rack);
criterion_main!(plans);
