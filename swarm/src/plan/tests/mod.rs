//! The plan's promises: exhaustive on small regions, by property on larger ones, by measure for balance and stability.

mod balance;
mod stability;

use super::*;
use proptest::prelude::*;
use shoal_proto::ids::{Epoch, NodeId};
use shoal_proto::locality::{Labels, Locality};
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::Role;

/// A region to plan for. The seeder is host 0.
#[derive(Clone, Debug)]
struct Region {
    members: Vec<Member>,
    targets: Bitmap,
    avoid: BTreeSet<HostIndex>,
}

fn node(number: u32) -> NodeId {
    NodeId(*shoal_proto::ids::Hash::of(&number.to_be_bytes()).as_bytes())
}

fn member(index: u32, role: Role, site: usize, rack: usize) -> Member {
    Member {
        index: HostIndex(index),
        node: node(index),
        role,
        locality: Locality::new("r", &format!("s{site}"), &format!("k{rack}"), &format!("h{index}")).unwrap(),
        labels: Labels::new(),
        addrs: Vec::new(),
        weight: 100,
        uplink_mbit: 0,
        presence: Presence::Up,
        credential: Default::default(),
    }
}

const ROOT: HostIndex = HostIndex(0);

impl Region {
    /// `sites[s][k]` hosts in rack k of site s, all up and targeted.
    fn new(sites: &[Vec<usize>]) -> Self {
        let mut members = vec![member(0, Role::Seeder, 99, 0)];
        for (site, racks) in sites.iter().enumerate() {
            for (rack, hosts) in racks.iter().enumerate() {
                for _ in 0..*hosts {
                    members.push(member(members.len() as u32, Role::Peer, site, rack));
                }
            }
        }
        let targets = Bitmap::full(members.len() as u32);
        Self { members, targets, avoid: BTreeSet::new() }
    }

    fn even(sites: usize, racks: usize, hosts: usize) -> Self {
        Self::new(&vec![vec![hosts; racks]; sites])
    }

    fn membership(&self) -> Membership {
        let update =
            MembershipUpdate { epoch: Epoch(1), base: None, upserts: self.members.clone(), removed: Vec::new() };
        let mut membership = Membership::default();
        membership.apply(update).unwrap();
        membership
    }

    fn plan(&self, lanes: u8) -> Plan {
        self.shaped(lanes, Shape::NARROW)
    }

    fn shaped(&self, lanes: u8, shape: Shape) -> Plan {
        let request = PlanRequest { targets: &self.targets, root: Some(ROOT), avoid: &self.avoid, lanes, shape };
        Plan::new(&self.membership(), &request)
    }

    fn live(&self) -> Vec<&Member> {
        let live = |m: &&Member| {
            m.role == Role::Peer
                && m.presence == Presence::Up
                && self.targets.get(m.index.0)
                && !self.avoid.contains(&m.index)
        };
        self.members.iter().filter(live).collect()
    }

    fn rack(&self, host: HostIndex) -> String {
        self.members[host.index()].locality.rack_path()
    }

    fn peers(&self) -> impl Iterator<Item = HostIndex> {
        self.members.iter().filter(|m| m.role == Role::Peer).map(|m| m.index)
    }
}

fn lanes_of(plan: &Plan) -> impl Iterator<Item = LaneIndex> + use<> {
    (0..plan.lanes()).map(LaneIndex)
}

/// Checks everything that must hold of any plan, on every host of every lane.
fn check(region: &Region, plan: &Plan, shape: Shape) {
    let live = region.live();
    let hosts: BTreeSet<HostIndex> = live.iter().map(|m| m.index).collect();
    assert_eq!(plan.hosts().collect::<BTreeSet<_>>(), hosts);
    let several_sites = live.iter().any(|m| !m.locality.same_site(&live[0].locality));
    for lane in lanes_of(plan) {
        let (mut rack_imports, mut site_imports) = (BTreeMap::new(), BTreeMap::new());
        let mut edges = BTreeSet::new();
        for m in &live {
            let owner = plan.owner(lane, m.index).unwrap();
            assert!(hosts.contains(&owner) && region.members[owner.index()].locality.same_rack(&m.locality));
            let ranked = plan.owner_ranked(lane, m.index);
            assert_eq!(ranked[0], owner);
            assert_eq!(ranked.len(), plan.rack_peers(m.index).count() + 1);
            let parent = plan.parent(lane, m.index).expect("the root is up");
            assert!(parent == ROOT || hosts.contains(&parent), "a parent is live");
            assert!(plan.depth(lane, m.index).unwrap() <= 64, "leads to the root");
            edges.insert((parent, m.index));
            let from = &region.members[parent.index()];
            if parent == ROOT || !from.locality.same_rack(&m.locality) {
                assert_eq!(owner, m.index, "only owners import");
                assert_eq!(plan.import_parent(lane, m.index), Some(parent));
                *rack_imports.entry(m.locality.rack_path()).or_insert(0) += 1;
            }
            if parent == ROOT || !from.locality.same_site(&m.locality) {
                *site_imports.entry(m.locality.site.clone()).or_insert(0) += 1;
            }
        }
        let racks: BTreeSet<String> = live.iter().map(|m| m.locality.rack_path()).collect();
        assert_eq!(rack_imports.len(), racks.len());
        assert!(rack_imports.values().all(|imports| *imports == 1), "one import a rack: {rack_imports:?}");
        if several_sites || shape.roots == 1 {
            assert!(site_imports.values().all(|imports| *imports == 1), "one import a site: {site_imports:?}");
        }
        // Children and parents are two sides of the same edges.
        let mut down = BTreeSet::new();
        for host in region.members.iter().map(|m| m.index) {
            for child in plan.children(lane, host) {
                assert!(down.insert((host, child)), "a child twice");
            }
        }
        assert_eq!(down, edges);
        let owned: u32 = live.iter().filter(|m| plan.owned(m.index).contains(lane)).count() as u32;
        assert_eq!(owned as usize, racks.len());
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Absent,
    Up,
    Away,
    Avoided,
    Untargeted,
}

impl Region {
    fn set(&mut self, host: HostIndex, state: State) {
        match state {
            State::Up => {}
            // An absent host would have no row. A role that no plan uses has the same effect.
            State::Absent => self.members[host.index()].role = Role::Tracker,
            State::Away => self.members[host.index()].presence = Presence::Away,
            State::Avoided => drop(self.avoid.insert(host)),
            State::Untargeted => drop(self.targets.unset(host.0)),
        }
    }
}

#[test]
fn every_state_of_three_racks_of_two() {
    for sites in [vec![vec![2, 2, 2]], vec![vec![2, 2], vec![2]]] {
        for code in 0..4u32.pow(6) {
            let mut region = Region::new(&sites);
            for host in 1..=6 {
                let state =
                    [State::Absent, State::Up, State::Away, State::Avoided][(code >> (2 * (host - 1)) & 3) as usize];
                region.set(HostIndex(host), state);
            }
            check(&region, &region.plan(5), Shape::NARROW);
        }
    }
}

#[test]
fn every_subset_of_eight_single_host_racks_slow_ones_too() {
    for slow in [0, 3, 4, 7] {
        for live in 0..256u32 {
            let mut region = Region::even(1, 8, 1);
            for host in 1..=8u32 {
                region.members[host as usize].uplink_mbit = if host <= slow { 10 } else { 1000 };
                region.set(HostIndex(host), if live >> (host - 1) & 1 == 1 { State::Up } else { State::Away });
            }
            check(&region, &region.plan(8), Shape::NARROW);
        }
    }
}

/// In a region of mostly fast racks, a site may have more slow racks than its tree has leaves. They are spread evenly.
#[test]
fn a_site_of_mostly_slow_racks() {
    for live in 0..1u32 << 9 {
        let mut region = Region::new(&[vec![1; 9], vec![1; 10]]);
        for host in 1..=19u32 {
            region.members[host as usize].uplink_mbit = if host <= 7 { 10 } else { 1000 };
            if host <= 9 && live >> (host - 1) & 1 == 0 {
                region.set(HostIndex(host), State::Away);
            }
        }
        let plan = region.plan(8);
        check(&region, &plan, Shape::NARROW);
        if live == (1 << 9) - 1 {
            // Two racks send to seven in one lane: neither to more than half of them, rounded up, and the other's
            // subtree.
            let most = region.peers().map(|host| plan.children(LaneIndex(0), host).len()).max();
            assert!(most <= Some(6), "{most:?}");
            assert!((1..=7).all(|host| plan.children(LaneIndex(0), HostIndex(host)).is_empty()));
        }
    }
}

fn any_region() -> impl Strategy<Value = Region> {
    let state = prop_oneof![
        8 => Just(State::Up),
        2 => Just(State::Away),
        2 => Just(State::Avoided),
        1 => Just(State::Untargeted),
        1 => Just(State::Absent),
    ];
    let sites = prop::collection::vec(prop::collection::vec(1usize..5, 1..9), 1..6);
    (sites, prop::collection::vec((state, 0u16..3, 0u32..4), 160)).prop_map(|(sites, traits)| {
        let mut region = Region::new(&sites);
        for (host, (state, weight, uplink)) in region.peers().collect::<Vec<_>>().into_iter().zip(traits) {
            region.members[host.index()].weight = weight * 50;
            region.members[host.index()].uplink_mbit = [0, 100, 1000, 10_000][uplink as usize];
            region.set(host, state);
        }
        region
    })
}

fn any_shape() -> impl Strategy<Value = Shape> {
    (1u8..4, 2u8..5).prop_map(|(roots, fanout)| Shape { roots, fanout })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_over_all_live_targets(region in any_region(), shape in any_shape(), lanes in 1u8..=64) {
        check(&region, &region.shaped(lanes, shape), shape);
    }

    /// The order of rows and the roster indices depend on admission. The trees, by key, do not.
    #[test]
    fn independent_of_order_and_indices(region in any_region(), seed in any::<u64>(), lanes in 1u8..=64) {
        let plan = region.plan(lanes);
        let mut order: Vec<usize> = (1..region.members.len()).collect();
        order.sort_by_key(|at| crate::membership::mix(seed ^ *at as u64));
        let mut other = Region { members: vec![region.members[0].clone()], ..region.clone() };
        other.targets = Bitmap::new(region.members.len() as u32);
        other.avoid = BTreeSet::new();
        for (at, old) in order.iter().enumerate() {
            let new = HostIndex(at as u32 + 1);
            other.members.push(Member { index: new, ..region.members[*old].clone() });
            if region.targets.get(*old as u32) {
                other.targets.set(new.0);
            }
            if region.avoid.contains(&HostIndex(*old as u32)) {
                other.avoid.insert(new);
            }
        }
        let other_plan = other.plan(lanes);
        let by_key = |region: &Region, host: HostIndex| region.members[host.index()].node;
        for (at, old) in order.iter().enumerate() {
            for lane in lanes_of(&plan) {
                let parent = plan.parent(lane, HostIndex(*old as u32)).map(|host| by_key(&region, host));
                let other_parent = other_plan.parent(lane, HostIndex(at as u32 + 1)).map(|host| by_key(&other, host));
                prop_assert_eq!(parent, other_parent);
            }
        }
    }

    /// Hosts that avoid different hosts still agree on an order, so no rack waits for itself.
    #[test]
    fn racks_with_different_views_build_no_circle(
        region in any_region(),
        more in prop::collection::btree_set(1u32..60, 0..20),
        pick in any::<u64>(),
    ) {
        let views = [region.plan(9), region.plan(9).avoiding(&more.into_iter().map(HostIndex).collect())];
        for lane in lanes_of(&views[0]) {
            for start in region.live() {
                let mut at = start.index;
                let mut steps = 0;
                loop {
                    let place = shoal_proto::ids::Hash::of(region.rack(at).as_bytes());
                    let view = &views[(pick >> (place.as_bytes()[0] & 63) & 1) as usize];
                    match view.import_parent(lane, at) {
                        Some(above) if above != ROOT => at = above,
                        _ => break,
                    }
                    steps += 1;
                    prop_assert!(steps <= 60, "a circle");
                }
            }
        }
    }

    #[test]
    fn avoiding_is_the_same_as_planning_anew(region in any_region(), lanes in 1u8..=64) {
        let plan = region.plan(lanes);
        let blank = Region { avoid: BTreeSet::new(), ..region.clone() };
        let derived = blank.plan(lanes).avoiding(&region.avoid);
        for lane in lanes_of(&plan) {
            for host in region.members.iter().map(|m| m.index) {
                prop_assert_eq!(plan.parent(lane, host), derived.parent(lane, host));
                prop_assert_eq!(plan.children(lane, host), derived.children(lane, host));
            }
        }
    }

    /// A targeted host that the tracker lost still finds a live parent wherever a host is left.
    #[test]
    fn a_lost_host_finds_a_parent(region in any_region()) {
        let plan = region.plan(16);
        for host in region.peers().filter(|host| plan.targets(*host) && !plan.contains(*host)) {
            for lane in lanes_of(&plan) {
                let parent = plan.parent(lane, host);
                prop_assert!(parent.is_some_and(|parent| parent == ROOT || plan.contains(parent)));
                prop_assert!(plan.children(lane, host).is_empty());
                let owner = plan.owner(lane, host);
                prop_assert!(owner.is_none() || owner == parent, "the rack's owner, if there is one");
                prop_assert!(owner.is_none_or(|owner| plan.leaves(owner).any(|leaf| leaf == host)));
            }
        }
        for host in plan.hosts() {
            prop_assert!(plan.leaves(host).all(|leaf| plan.same_rack(leaf, host) && !plan.contains(leaf)));
        }
    }

    #[test]
    fn whoever_owns_in_the_owners_place_reaches_the_same_hosts(region in any_region()) {
        let plan = region.plan(16);
        for (host, lane) in plan.hosts().flat_map(|host| lanes_of(&plan).map(move |lane| (host, lane))) {
            let owner = plan.owner(lane, host).unwrap();
            let theirs = BTreeSet::from_iter(plan.children(lane, owner).into_iter().chain([owner]));
            let ours = BTreeSet::from_iter(plan.children_as_owner(lane, host).into_iter().chain([host]));
            prop_assert_eq!(theirs, ours);
        }
    }
}

#[test]
fn the_tree_is_the_rotated_heap_when_all_are_live() {
    for len in 1..20u32 {
        for turns in [1, 7, 64] {
            for turn in 0..turns {
                let lane = rack_ring::Ring::new(len, 0, 1, 2).lane(turn, turns, |_| true);
                let order: Vec<u32> = (0..len).map(|slot| (slot + turn * len / turns) % len).collect();
                for (slot, place) in order.iter().enumerate() {
                    let above = (slot > 0).then(|| order[(slot - 1) / 2]);
                    assert_eq!(lane.parent(*place), above);
                }
            }
        }
    }
}

#[test]
fn without_a_root_the_tops_have_no_parent() {
    let mut region = Region::even(2, 3, 2);
    region.members[0].presence = Presence::Away;
    let plan = region.plan(8);
    assert_eq!(plan.root(), None);
    for lane in lanes_of(&plan) {
        let tops: Vec<_> = region.peers().filter(|host| plan.parent(lane, *host).is_none()).collect();
        assert_eq!(tops.len(), 1);
        assert_eq!(plan.depth(lane, tops[0]), Some(0));
    }
    region.members[0].presence = Presence::Up;
    region.avoid.insert(ROOT);
    assert_eq!(region.plan(8).root(), None);
}

#[test]
fn nobody_to_reach_and_lanes_out_of_range() {
    let mut region = Region::even(1, 2, 2);
    let plan = region.plan(8);
    let beyond = LaneIndex(8);
    assert_eq!(plan.parent(beyond, HostIndex(1)), None);
    assert_eq!(plan.owner(beyond, HostIndex(1)), None);
    assert!(plan.children(beyond, ROOT).is_empty() && plan.children(beyond, HostIndex(1)).is_empty());
    assert_eq!(plan.owners(beyond).count(), 0);
    assert_eq!(region.plan(0).lanes(), 1);
    assert_eq!(region.plan(200).lanes(), limits::LANES_MAX);
    region.targets = Bitmap::default();
    let plan = region.plan(8);
    assert_eq!(plan.hosts().count(), 0);
    assert!(plan.children(LaneIndex(0), ROOT).is_empty());
    assert_eq!(plan.parent(LaneIndex(0), HostIndex(1)), None);
    assert_eq!(plan.parent(LaneIndex(0), HostIndex(900)), None);
}

#[test]
fn large_racks_relay_over_mates() {
    let region = Region::new(&[vec![RACK_FANOUT * 3]]);
    let plan = region.plan(4);
    check(&region, &plan, Shape::NARROW);
    for lane in lanes_of(&plan) {
        let most = region.peers().map(|host| plan.children(lane, host).len()).max();
        assert_eq!(most, Some(RACK_FANOUT));
        assert_eq!(region.peers().map(|host| plan.depth(lane, host).unwrap()).max(), Some(3));
    }
    // Also beyond the second level: levels have 40, 1600 and the remaining hosts.
    let region = Region::new(&[vec![RACK_FANOUT * RACK_FANOUT + 200]]);
    let plan = region.plan(1);
    let lane = LaneIndex(0);
    let below: usize = region.peers().map(|host| plan.children(lane, host).len()).sum();
    assert_eq!(below, region.peers().count() - 1);
    assert!(region.peers().all(|host| plan.children(lane, host).len() <= RACK_FANOUT));
    assert_eq!(region.peers().map(|host| plan.depth(lane, host).unwrap()).max(), Some(4));
}
