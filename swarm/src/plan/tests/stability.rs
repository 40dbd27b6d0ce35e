//! What moves when a host goes away, which is frequent and cheap, or leaves the roster, which is rare and may cost
//! more.

use super::*;

type Edges = BTreeMap<(u8, HostIndex), Option<HostIndex>>;

/// The parent of each live host in each lane.
fn edges(region: &Region, plan: &Plan) -> Edges {
    let live = region.live();
    lanes_of(plan).flat_map(|lane| live.iter().map(move |m| ((lane.0, m.index), plan.parent(lane, m.index)))).collect()
}

/// The number of edges that differ, of those in both.
fn moved(before: &Edges, after: &Edges) -> Vec<(u8, HostIndex)> {
    after.iter().filter(|(at, parent)| before.get(at).is_some_and(|was| was != *parent)).map(|(at, _)| *at).collect()
}

fn all_states() -> [State; 2] {
    [State::Away, State::Avoided]
}

#[test]
fn a_host_going_away_moves_its_own_lanes_only() {
    let region = Region::new(&[vec![5, 4, 6], vec![3, 5]]);
    let plan = region.plan(64);
    let before = edges(&region, &plan);
    for gone in region.peers() {
        for state in all_states() {
            let mut region = region.clone();
            region.set(gone, state);
            let after_plan = region.plan(64);
            let after = edges(&region, &after_plan);
            for (lane, host) in moved(&before, &after) {
                assert!(plan.owned(gone).contains(LaneIndex(lane)), "lane {lane} was not {gone}'s");
                let was = before[&(lane, host)];
                let owner_changed = plan.same_rack(host, gone);
                assert!(was == Some(gone) || owner_changed, "{host} had nothing to do with {gone}");
            }
            // Other racks' owners, and all other lanes' owners, stay.
            for host in region.live() {
                let kept = plan.owned(host.index).0 & !after_plan.owned(host.index).0;
                assert_eq!(kept, 0, "{} lost a lane", host.index);
            }
        }
    }
}

#[test]
fn a_host_that_comes_back_gets_back_exactly_its_lanes() {
    let mut region = Region::new(&[vec![6]]);
    let before = region.plan(64).owned(HostIndex(3));
    region.set(HostIndex(3), State::Away);
    assert!(region.plan(64).owned(HostIndex(3)).is_empty());
    region.members[3].presence = Presence::Up;
    assert_eq!(region.plan(64).owned(HostIndex(3)), before);
}

#[test]
fn a_rack_going_away_moves_only_what_hung_off_it() {
    for sites in [vec![vec![2; 13]], vec![vec![1; 5], vec![2; 4], vec![1; 8]]] {
        let region = Region::new(&sites);
        let plan = region.plan(64);
        let before = edges(&region, &plan);
        for gone in region.peers() {
            let mut region = region.clone();
            let rack: Vec<HostIndex> = region.peers().filter(|host| plan.same_rack(*host, gone)).collect();
            for host in &rack {
                region.set(*host, State::Away);
            }
            for (lane, host) in moved(&before, &edges(&region, &region.plan(64))) {
                let was = before[&(lane, host)].unwrap();
                // Where the rack was at the top of its site, racks of other sites move to the site's new top.
                assert!(rack.contains(&was), "lane {lane}: {host} moved away from {was}");
            }
        }
    }
}

/// A host that leaves the roster, evicted or decommissioned, has its rack's lanes assigned again.
#[test]
fn a_host_evicted_moves_few_other_lanes_of_its_rack_and_none_elsewhere() {
    for (hosts, percent) in [(4, 6), (8, 8), (20, 12), (40, 12)] {
        let region = Region::new(&[vec![hosts, 3]]);
        let elsewhere = HostIndex(hosts as u32 + 1);
        let plan = region.plan(64);
        let (mut moved, mut others) = (0, 0);
        for gone in (1..=hosts as u32).map(HostIndex) {
            let mut region = region.clone();
            region.set(gone, State::Absent);
            let after = region.plan(64);
            let peer = HostIndex(gone.0 % hosts as u32 + 1);
            for lane in lanes_of(&plan) {
                assert_eq!(plan.owner(lane, elsewhere), after.owner(lane, elsewhere));
                if plan.owner(lane, gone) != Some(gone) {
                    others += 1;
                    moved += u32::from(plan.owner(lane, peer) != after.owner(lane, peer));
                }
            }
        }
        assert!(moved * 100 <= others * percent, "{hosts} hosts: {moved} of {others}");
    }
}

/// All later places of the order move up, so a share of the racks gets another parent. That is the price of balance,
/// paid only when a rack leaves the roster.
#[test]
fn a_rack_evicted_moves_less_than_half_of_the_edges() {
    for (racks, percent) in [(8, 45), (32, 35), (100, 35)] {
        let region = Region::even(1, racks, 1);
        let before = edges(&region, &region.plan(64));
        let (mut total, mut all) = (0, 0);
        for gone in (1..=racks as u32).step_by(racks.div_ceil(8)) {
            let mut region = region.clone();
            region.set(HostIndex(gone), State::Absent);
            let after = edges(&region, &region.plan(64));
            total += moved(&before, &after).len();
            all += after.len();
        }
        assert!(total * 100 <= all * percent, "{racks} racks: {total} of {all}");
    }
}
