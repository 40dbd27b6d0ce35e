//! How much each host and rack sends.

use super::*;

/// Exports of each rack with a live host over all lanes. A lane counts once for each rack it is sent to.
fn exports(region: &Region, plan: &Plan) -> BTreeMap<String, u32> {
    let mut by_rack: BTreeMap<String, u32> = BTreeMap::new();
    for host in region.live() {
        by_rack.entry(host.locality.rack_path()).or_default();
    }
    for lane in lanes_of(plan) {
        for host in plan.owners(lane) {
            if let Some(parent) = plan.parent(lane, host).filter(|parent| *parent != ROOT) {
                *by_rack.entry(region.rack(parent)).or_default() += 1;
            }
        }
    }
    by_rack
}

/// The exports of the busiest rack, in percent of the mean.
fn most_percent(region: &Region, plan: &Plan) -> u32 {
    let exports = exports(region, plan);
    let sum: u32 = exports.values().sum();
    exports.values().max().unwrap() * 100 * exports.len() as u32 / sum
}

#[test]
fn with_64_lanes_no_rack_exports_over_a_tenth_above_the_mean() {
    for sites in [1, 2, 3, 4, 5, 7, 8, 9, 12] {
        for racks in (1..=20).chain([32, 40, 63, 64, 65, 100]) {
            if sites * racks >= 4 {
                let region = Region::even(sites, racks, 1);
                let most = most_percent(&region, &region.plan(64));
                assert!(most < 110, "{sites} sites of {racks} racks: {most} %");
            }
        }
    }
}

#[test]
fn a_region_of_1250_racks_is_balanced() {
    let region = Region::even(25, 50, 1);
    assert!(most_percent(&region, &region.plan(64)) < 110);
    let region = Region::even(1, 1250, 1);
    assert!(most_percent(&region, &region.plan(64)) < 110);
}

/// With few lanes the steps of the rotation are coarse, so the bound is absolute. A rack has children in its share of
/// lanes, give or take one. So has its site, and the rack is at the site's top in its share of these.
#[test]
fn with_few_lanes_no_rack_exports_much_over_one_copy() {
    for lanes in [1u32, 2, 3, 5, 8, 16, 24, 32, 48] {
        for sites in [1, 2, 3, 6] {
            for racks in 1..=20 {
                let region = Region::even(sites, racks, 1);
                let most = exports(&region, &region.plan(lanes as u8)).into_values().max().unwrap();
                assert!(most <= lanes + 8, "{lanes} lanes, {sites} sites of {racks} racks: {most}");
            }
        }
    }
}

/// A site of any size exports about one copy, so its racks do not exceed that either.
#[test]
fn with_unequal_sites_no_rack_exports_over_a_tenth_more_than_one_copy() {
    for sites in [&[3usize, 1][..], &[7, 1], &[1, 2, 3], &[20, 1, 1, 1], &[5, 9, 2, 13], &[40, 3, 17, 1, 1, 8]] {
        let region = Region::new(&sites.iter().map(|racks| vec![1; *racks]).collect::<Vec<_>>());
        let most = exports(&region, &region.plan(64)).into_values().max().unwrap();
        assert!(most <= 70, "{sites:?}: {most}");
    }
}

#[test]
fn the_seeder_sends_each_lane_once_even_with_dead_racks() {
    let mut region = Region::even(3, 6, 2);
    for host in [1, 2, 5, 6, 7, 8, 30, 31, 32] {
        region.set(HostIndex(host), State::Away);
    }
    let plan = region.plan(64);
    assert!(lanes_of(&plan).all(|lane| plan.children(lane, ROOT).len() == 1));
    let shape = Shape { roots: 2, fanout: 3 };
    let plan = region.shaped(64, shape);
    assert!(lanes_of(&plan).all(|lane| plan.children(lane, ROOT).len() == 2));
}

#[test]
fn a_dead_rack_in_eight_costs_no_other_more_than_a_third() {
    let mut region = Region::even(1, 32, 1);
    for host in [3, 11, 20, 27] {
        region.set(HostIndex(host), State::Away);
    }
    let most = most_percent(&region, &region.plan(64));
    assert!(most <= 133, "{most} %");
}

#[test]
fn slow_racks_are_leaves_in_every_lane() {
    for (sites, slow) in [(vec![vec![2; 12]], 5), (vec![vec![1; 7], vec![1; 3], vec![2; 9]], 8), (vec![vec![1; 10]], 4)]
    {
        let mut region = Region::new(&sites);
        let racks: BTreeSet<String> = region.peers().map(|host| region.rack(host)).collect();
        let slow: BTreeSet<&String> = racks.iter().take(slow).collect();
        for m in region.members.iter_mut() {
            m.uplink_mbit = if slow.contains(&m.locality.rack_path()) { 499 } else { 1000 };
        }
        let plan = region.plan(64);
        check(&region, &plan, Shape::NARROW);
        for (rack, sent) in exports(&region, &plan) {
            // A site with slow racks only must import its lanes into one of them, but exports nothing.
            let alone = racks.iter().filter(|other| other.starts_with(&rack[..5])).all(|other| slow.contains(other));
            assert!(!slow.contains(&rack) || sent == 0 || alone, "{rack} sends {sent}");
        }
    }
}

/// Slow is less than half of the median. A rack without a declared uplink is not slow.
#[test]
fn half_of_the_median_is_not_slow() {
    for (rate, slow) in [(500, false), (499, true), (0, false)] {
        let mut region = Region::even(1, 9, 1);
        region.members.iter_mut().for_each(|m| m.uplink_mbit = 1000);
        region.members[4].uplink_mbit = rate;
        let sent = exports(&region, &region.plan(64))[&region.rack(HostIndex(4))];
        assert_eq!(sent == 0, slow, "{rate}");
    }
}

#[test]
fn hosts_of_a_rack_own_lanes_within_one() {
    for hosts in 1..=70usize {
        let mut region = Region::new(&[vec![hosts]]);
        for dead in 0..hosts.min(12) {
            for lanes in [1, 16, 64] {
                let plan = region.plan(lanes);
                let owned: Vec<u32> = region.live().iter().map(|m| plan.owned(m.index).0.count_ones()).collect();
                let spread = owned.iter().max().unwrap() - owned.iter().min().unwrap();
                assert!(spread <= 1, "{hosts} hosts, {dead} dead, {lanes} lanes: {owned:?}");
                assert_eq!(owned.iter().sum::<u32>(), u32::from(lanes));
            }
            if dead + 1 < hosts {
                region.set(HostIndex(dead as u32 + 1), if dead % 2 == 0 { State::Away } else { State::Avoided });
            }
        }
    }
}

#[test]
fn weights_share_the_lanes_and_zero_owns_none() {
    let mut region = Region::new(&[vec![4]]);
    for (host, weight) in [(1, 100), (2, 200), (3, 100), (4, 0)] {
        region.members[host].weight = weight;
    }
    let owned = |region: &Region| -> Vec<u32> {
        let plan = region.plan(64);
        (1..=4).map(|host| plan.owned(HostIndex(host)).0.count_ones()).collect()
    };
    assert_eq!(owned(&region), [16, 32, 16, 0]);
    region.set(HostIndex(2), State::Away);
    assert_eq!(owned(&region), [32, 0, 32, 0]);
    region.set(HostIndex(1), State::Away);
    region.set(HostIndex(3), State::Away);
    assert_eq!(owned(&region), [0, 0, 0, 64], "one host has to");
    let mut region = Region::new(&[vec![4]]);
    region.members.iter_mut().for_each(|m| m.weight = 0);
    assert_eq!(owned(&region), [16; 4]);
}
