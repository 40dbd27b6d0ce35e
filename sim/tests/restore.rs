//! What parity is worth after a demotion: hosts are lost or slow when the content is promoted.

use shoal_sim::faults;
use shoal_sim::layout::Layout;
use shoal_sim::run::{DemotionFigures, Scenario, run_world};
use std::time::Duration;

/// Two neighbouring hosts in each of two racks of ten. Without parity the second host holds the copies of the first
/// one.
const NEIGHBOURS: [&str; 4] = ["0/3", "0/4", "1/6", "1/7"];

fn scenario(racks: u32, hosts: u32, parity: u8, faults: &str, seed: u64) -> Scenario {
    Scenario {
        layout: Layout::even(racks, hosts),
        pieces: 512,
        piece_bytes: 256 * 1024,
        parity,
        faults: faults::parse(faults).unwrap(),
        seed,
        limit: Duration::from_secs(120),
        checked: true,
    }
}

/// Pushes, demotes and promotes a content. All living hosts that are not slow must have it again. Also returns the
/// payload bytes that all hosts sent.
fn run(scenario: &Scenario) -> (DemotionFigures, u64) {
    let (outcome, world) = run_world(scenario, |_| {});
    assert!(outcome.is_complete(), "{scenario:?}: {:?}", outcome.figures);
    (outcome.figures.demotion.expect("a fault waits for the demotion"), world.traffic.all)
}

fn restored(racks: u32, hosts: u32, parity: u8, faults: &str, seed: u64) -> (DemotionFigures, u64) {
    run(&scenario(racks, hosts, parity, faults, seed))
}

fn at_neighbours(kind: &str) -> String {
    NEIGHBOURS.map(|host| format!("{kind}:{host}@demoted")).join(",")
}

#[test]
fn parity_saves_half_a_copy_where_one_host_of_each_rack_is_lost() {
    for faults in ["crash:owners@demoted", "crash:10%@40%,crash:owners@demoted"] {
        for seed in 0..8 {
            for (parity, copies) in [(4, 1.5), (0, 2.0)] {
                let (demotion, _) = restored(4, 4, parity, faults, seed);
                assert!((demotion.copies - copies).abs() < 0.01, "seed {seed}, m = {parity}: {demotion:?}");
                assert_eq!(
                    (demotion.hosts, demotion.rack_import_max, demotion.seeder_egress),
                    (12, 0.0, 0.0),
                    "seed {seed}"
                );
                assert!(demotion.restore_s < 0.5, "seed {seed}, m = {parity}: {demotion:?}");
            }
        }
    }
}

#[test]
fn a_rack_recovers_from_two_lost_hosts_with_parity_only() {
    let (with, _) = restored(2, 10, 4, &at_neighbours("crash"), 1);
    let (without, _) = restored(2, 10, 0, &at_neighbours("crash"), 1);
    assert!(with.copies < 1.26 && without.copies > 1.99, "{with:?}\n{without:?}");
    assert_eq!((with.rack_import_max, with.seeder_egress), (0.0, 0.0));
    assert!(
        (0.09..=0.11).contains(&without.rack_import_max),
        "the pieces of both lost hosts must be imported: {without:?}"
    );
    assert!(with.restore_s < 0.5, "{with:?}");
}

#[test]
fn hosts_do_not_wait_for_a_slow_holder_that_others_can_replace() {
    for faults in ["slow:owners@demoted", "slow:owners=10%@demoted"] {
        for seed in 0..8 {
            let (with, _) = restored(4, 4, 4, faults, seed);
            let (without, _) = restored(4, 4, 0, faults, seed);
            assert_eq!((with.rack_import_max, without.rack_import_max), (0.0, 0.0), "{faults}, seed {seed}");
            assert!(with.restore_s < 0.6 && without.restore_s < 0.6, "{faults}, seed {seed}: {with:?}\n{without:?}");
        }
    }
}

#[test]
fn hosts_wait_for_the_only_holder_of_a_piece_without_parity_only() {
    let (with, _) = restored(2, 10, 4, &at_neighbours("slow"), 1);
    let (without, _) = restored(2, 10, 0, &at_neighbours("slow"), 1);
    assert_eq!(with.rack_import_max, 0.0);
    assert!(with.restore_s < 1.0 && with.restore_s * 5.0 < without.restore_s, "{with:?}\n{without:?}");
}

#[test]
fn where_all_hosts_are_equally_slow_no_holder_counts_as_slow() {
    let sent = |faults| restored(2, 10, 4, faults, 1);
    let (usual, usual_bytes) = sent("tracker@demoted+1s");
    let (slow, slow_bytes) = sent("slow:100%=50%@demoted+100s");
    assert_eq!((usual.hosts, slow.hosts), (20, 20));
    assert!(slow.restore_s > 5.0 * usual.restore_s, "{slow:?}\n{usual:?}");
    assert!(slow_bytes as f64 <= usual_bytes as f64 * 1.02, "{slow_bytes} and {usual_bytes}");
}

#[test]
fn the_core_state_is_consistent_during_a_demotion() {
    // The check runs after one input in 97. In this scenario one of them falls between the removal of a whole content
    // and its report.
    let mut demoting = Scenario { pieces: 1024, ..scenario(4, 4, 4, "slow:owners@demoted", 1) };
    demoting.layout.racks.iter_mut().for_each(|rack| rack.site = "site0".into());
    run(&demoting);
}
