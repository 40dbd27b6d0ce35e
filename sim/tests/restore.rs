//! What parity is worth where racks keep only shares: hosts are lost or slow when a content is wanted again.

use shoal_sim::faults;
use shoal_sim::layout::Layout;
use shoal_sim::run::{Cold, Scenario, run_world};
use std::time::Duration;

/// Two hosts in a row of each of two racks of ten: without parity, the second holds the copies of what the first one does.
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

/// Pushes, demotes, and promotes while something is wrong; all hosts that live and are not slow must have it again. Gives
/// the payload bytes sent in all, too.
fn run(scenario: &Scenario) -> (Cold, u64) {
    let (outcome, world) = run_world(scenario, |_| {});
    assert!(outcome.is_complete(), "{scenario:?}: {:?}", outcome.figures);
    (outcome.figures.cold.expect("a fault waits for it"), world.traffic.all)
}

fn restored(racks: u32, hosts: u32, parity: u8, faults: &str, seed: u64) -> (Cold, u64) {
    run(&scenario(racks, hosts, parity, faults, seed))
}

fn at_neighbours(kind: &str) -> String {
    NEIGHBOURS.map(|host| format!("{kind}:{host}@cold")).join(",")
}

#[test]
fn one_lost_host_of_each_rack_costs_half_a_copy_less_with_parity() {
    for faults in ["crash:owners@cold", "crash:10%@40%,crash:owners@cold"] {
        for seed in 0..8 {
            for (parity, copies) in [(4, 1.5), (0, 2.0)] {
                let (cold, _) = restored(4, 4, parity, faults, seed);
                assert!((cold.copies - copies).abs() < 0.01, "seed {seed}, m = {parity}: {cold:?}");
                assert_eq!((cold.hosts, cold.rack_import_max, cold.seeder_egress), (12, 0.0, 0.0), "seed {seed}");
                assert!(cold.restore_s < 0.5, "seed {seed}, m = {parity}: {cold:?}");
            }
        }
    }
}

#[test]
fn two_lost_hosts_are_made_up_for_in_the_rack_with_parity_only() {
    let (with, _) = restored(2, 10, 4, &at_neighbours("crash"), 1);
    let (without, _) = restored(2, 10, 0, &at_neighbours("crash"), 1);
    assert!(with.copies < 1.26 && without.copies > 1.99, "{with:?}\n{without:?}");
    assert_eq!((with.rack_import_max, with.seeder_egress), (0.0, 0.0));
    assert!((0.09..=0.11).contains(&without.rack_import_max), "what both held: {without:?}");
    assert!(with.restore_s < 0.5, "{with:?}");
}

#[test]
fn nobody_waits_for_a_slow_mate_whose_share_others_can_make_up_for() {
    for faults in ["slow:owners@cold", "slow:owners=10%@cold"] {
        for seed in 0..8 {
            let (with, _) = restored(4, 4, 4, faults, seed);
            let (without, _) = restored(4, 4, 0, faults, seed);
            assert_eq!((with.rack_import_max, without.rack_import_max), (0.0, 0.0), "{faults}, seed {seed}");
            assert!(with.restore_s < 0.6 && without.restore_s < 0.6, "{faults}, seed {seed}: {with:?}\n{without:?}");
        }
    }
}

#[test]
fn slow_hosts_that_alone_hold_something_are_waited_for_without_parity_only() {
    let (with, _) = restored(2, 10, 4, &at_neighbours("slow"), 1);
    let (without, _) = restored(2, 10, 0, &at_neighbours("slow"), 1);
    assert_eq!(with.rack_import_max, 0.0);
    assert!(with.restore_s < 1.0 && with.restore_s * 5.0 < without.restore_s, "{with:?}\n{without:?}");
}

#[test]
fn where_all_are_slow_alike_nobody_is_tardy() {
    let sent = |faults| restored(2, 10, 4, faults, 1);
    let (usual, usual_bytes) = sent("tracker@cold+1s");
    let (slow, slow_bytes) = sent("slow:100%=50%@cold+100s");
    assert_eq!((usual.hosts, slow.hosts), (20, 20));
    assert!(slow.restore_s > 5.0 * usual.restore_s, "{slow:?}\n{usual:?}");
    assert!(slow_bytes as f64 <= usual_bytes as f64 * 1.02, "{slow_bytes} and {usual_bytes}");
}

#[test]
fn the_brains_books_balance_while_racks_let_go() {
    // They are looked into once in so many facts; here that is when a host has let go and has not been told.
    let mut letting_go = Scenario { pieces: 1024, ..scenario(4, 4, 4, "slow:owners@cold", 1) };
    letting_go.layout.racks.iter_mut().for_each(|rack| rack.site = "site0".into());
    run(&letting_go);
}
