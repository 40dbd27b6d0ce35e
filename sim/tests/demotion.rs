//! Demotion and promotion in virtual time: stored copies, lost hosts, and traffic on uplinks.

use shoal_proto::ids::{HostIndex, PieceIndex, StripeIndex};
use shoal_sim::check;
use shoal_sim::layout::{Layout, SEEDER};
use shoal_sim::world::{ContentNumber, Push, World};
use shoal_swarm::io::Notice;
use std::time::Duration;

const PIECE: u32 = 256 * 1024;

/// Pushes a content to racks of four hosts. With k = 2 and m = 2 any two hosts of a rack may be lost.
fn pushed(racks: u32, data: u8, parity: u8) -> (World, ContentNumber) {
    let mut world = World::new(Layout::even(racks, 4), check::all());
    world.run_for(Duration::from_millis(500));
    let number = world.push(&Push { data, parity, ..Push::blob(256, PIECE) });
    let all: Vec<HostIndex> = world.peers().collect();
    world.run_to_done(number, &all, Duration::from_secs(60)).expect("the push completes");
    (world, number)
}

/// Runs until every running host has demoted the content.
fn settle(world: &mut World, number: ContentNumber, limit: Duration) {
    let until = world.now() + limit;
    while !world.is_demoted(number) {
        assert!(world.now() < until, "the racks did not agree");
        world.run_for(Duration::from_millis(100));
    }
    world.run_for(Duration::from_millis(100));
}

fn demoted(racks: u32, data: u8, parity: u8) -> (World, ContentNumber) {
    let (mut world, number) = pushed(racks, data, parity);
    let before = world.traffic.all;
    world.demote(number);
    settle(&mut world, number, Duration::from_secs(10));
    assert_eq!(world.traffic.all, before, "the demotion moved payload");
    (world, number)
}

/// Bytes of the content in a rack, divided by the content's size.
fn copies(world: &World, number: ContentNumber, rack: usize) -> f64 {
    let hosts = (0..4).map(|place| world.host(rack, place));
    let bytes: u64 = hosts.map(|host| world.bytes_on_disk(host, number)).sum();
    bytes as f64 / world.pushed(number).geometry.bytes() as f64
}

fn living(world: &World) -> Vec<HostIndex> {
    world.peers().filter(|host| world.is_running(*host)).collect()
}

#[test]
fn a_rack_stores_k_plus_m_of_k_and_recovers_without_its_uplink_when_m_hosts_are_lost() {
    let (mut world, number) = demoted(3, 2, 2);
    for rack in 0..3 {
        assert!((copies(&world, number, rack) - 2.0).abs() < 0.02, "{}", copies(&world, number, rack));
    }
    let (mut lost, pairs) = (0, [(0, 1), (1, 3), (2, 0)]);
    for (rack, (a, b)) in pairs.into_iter().enumerate() {
        world.kill(world.host(rack, a));
        world.kill(world.host(rack, b));
        lost += 2;
    }
    world.run_for(Duration::from_secs(1));
    let imported = world.traffic.imported.clone();
    world.promote(number);
    let left = living(&world);
    assert_eq!(left.len(), 12 - lost);
    let took = world.run_to_done(number, &left, Duration::from_secs(60)).expect("the hosts have the content again");
    assert_eq!(world.traffic.imported, imported, "payload crossed an uplink");
    assert!(took < Duration::from_secs(5), "{took:?}");
    for host in left {
        assert_eq!(world.bytes_on_disk(host, number), world.pushed(number).geometry.bytes());
    }
    world.check_end();
}

#[test]
fn the_pieces_of_a_stripe_are_due_until_the_stripe_is_whole() {
    let (mut world, number) = demoted(2, 2, 2);
    (0..2).for_each(|place| world.kill(world.host(0, place)));
    world.run_for(Duration::from_secs(1));
    world.promote(number);
    let (host, content) = (world.host(0, 2), world.pushed(number).announcement.content);
    let geometry = world.pushed(number).geometry.clone();
    let (mut kept, mut looks) = (0, 0);
    while !world.pushed(number).done.contains_key(&host) {
        world.step();
        let (Some(node), Some(disk)) = (world.node(host), world.disk(host, number)) else { continue };
        let here = |piece: &u32| disk.get(*piece);
        for stripe in (0..geometry.stripe_count()).map(StripeIndex).filter(|_| world.events % 64 == 0) {
            let pieces = geometry.stripe_pieces(stripe);
            let whole = pieces.clone().all(|piece| here(&piece));
            for shard in pieces.filter(here).map(|piece| geometry.shard_of(PieceIndex(piece))) {
                kept += u32::from(!whole && node.is_due(&content, shard));
                looks += u32::from(!whole);
            }
        }
    }
    assert!(looks > 1000 && kept == looks, "{kept} of {looks}");
    world.run_for(Duration::from_secs(5));
    let node = world.node(host).expect("the host runs");
    assert!((0..geometry.piece_count()).all(|piece| !node.is_due(&content, geometry.shard_of(PieceIndex(piece)))));
}

#[test]
fn parity_saves_uplink_traffic_that_second_copies_do_not() {
    let crossed = |parity| {
        let (mut world, number) = demoted(3, 2, parity);
        assert!(
            (copies(&world, number, 0) - 2.0).abs() < 0.02,
            "the copies take other space: {}",
            copies(&world, number, 0)
        );
        (0..2).for_each(|place| world.kill(world.host(0, place)));
        world.run_for(Duration::from_secs(1));
        let imported = world.traffic.imported[0];
        world.promote(number);
        let left = living(&world);
        world.run_to_done(number, &left, Duration::from_secs(120)).expect("the hosts have the content again");
        (world.traffic.imported[0] - imported) as f64 / world.pushed(number).geometry.bytes() as f64
    };
    let (without, with) = (crossed(0), crossed(2));
    assert!((0.1..=0.35).contains(&without), "the pieces of both lost hosts must be imported: {without}");
    assert_eq!(with, 0.0);
}

#[test]
fn a_rack_that_lost_more_hosts_than_m_imports_the_rest() {
    let (mut world, number) = demoted(3, 2, 2);
    for place in 0..3 {
        world.kill(world.host(0, place));
    }
    world.run_for(Duration::from_secs(1));
    let imported = world.traffic.imported.clone();
    world.promote(number);
    let left = living(&world);
    world.run_to_done(number, &left, Duration::from_secs(120)).expect("the hosts have the content again");
    let size = world.pushed(number).geometry.bytes();
    let crossed = world.traffic.imported[0] - imported[0];
    assert!(crossed > 0 && crossed <= size, "{crossed} of {size}");
    assert_eq!(world.traffic.imported[1..], imported[1..], "another rack imported payload");
    assert!(world.notices.iter().any(|(_, notice)| matches!(notice, Notice::RackLost { .. })));
    world.check_end();
}

#[test]
fn a_rack_peer_with_the_whole_content_replaces_lost_shares() {
    let (mut world, number) = pushed(2, 2, 2);
    let whole = world.host(0, 3);
    world.pin(whole, number);
    world.demote(number);
    let others: Vec<HostIndex> = world.peers().filter(|host| *host != whole).collect();
    let until = world.now() + Duration::from_secs(10);
    while !others.iter().all(|host| world.share(*host, number).is_some_and(|share| share.whole_dropped)) {
        assert!(world.now() < until, "the racks did not agree");
        world.run_for(Duration::from_millis(100));
    }
    world.kill(world.host(0, 0));
    world.kill(world.host(0, 1));
    world.run_for(Duration::from_secs(1));
    let imported = world.traffic.imported.clone();
    world.promote(number);
    let left = living(&world);
    world.run_to_done(number, &left, Duration::from_secs(60)).expect("the hosts have the content again");
    assert_eq!(world.traffic.imported, imported);
}

#[test]
fn small_racks_survive_one_host() {
    let (mut world, number) = demoted(2, 16, 4);
    assert!((copies(&world, number, 0) - 1.5).abs() < 0.05, "{}", copies(&world, number, 0));
    world.kill(world.host(0, 2));
    world.kill(SEEDER);
    world.run_for(Duration::from_secs(1));
    let imported = world.traffic.imported.clone();
    // The seeder starts again, because it sends the order.
    world.start(SEEDER);
    world.run_for(Duration::from_secs(1));
    world.promote(number);
    let left = living(&world);
    world.run_to_done(number, &left, Duration::from_secs(60)).expect("the hosts have the content again");
    assert_eq!(world.traffic.imported, imported);
}

#[test]
fn a_host_away_during_the_demotion_takes_its_share_when_it_comes_back() {
    let (mut world, number) = pushed(2, 2, 2);
    let away = world.host(0, 1);
    world.kill(away);
    world.run_for(Duration::from_secs(1));
    world.demote(number);
    settle(&mut world, number, Duration::from_secs(20));
    world.start(away);
    settle(&mut world, number, Duration::from_secs(30));
    // A host of the first placement is lost. The late host's share comes on top.
    world.kill(world.host(0, 0));
    world.run_for(Duration::from_secs(1));
    let imported = world.traffic.imported.clone();
    world.promote(number);
    let left = living(&world);
    world.run_to_done(number, &left, Duration::from_secs(60)).expect("the hosts have the content again");
    assert_eq!(world.traffic.imported, imported);
}

#[test]
fn a_host_that_dies_during_the_agreement_does_not_block_its_rack() {
    for after in [0, 1, 2, 5, 50] {
        let (mut world, number) = pushed(2, 2, 2);
        world.demote(number);
        world.run_for(Duration::from_millis(after));
        let dying = world.host(0, 3);
        world.kill(dying);
        settle(&mut world, number, Duration::from_secs(30));
        world.kill(world.host(0, 0));
        world.run_for(Duration::from_secs(1));
        let imported = world.traffic.imported.clone();
        world.promote(number);
        let left = living(&world);
        world.run_to_done(number, &left, Duration::from_secs(60)).expect("the hosts have the content again");
        assert_eq!(world.traffic.imported, imported, "killed after {after} ms");
        // The dead host comes back with its disk.
        world.start(dying);
        world.run_to_done(number, &[dying], Duration::from_secs(60)).expect("the restarted host has the content again");
        world.check_end();
    }
}

#[test]
fn restarted_hosts_find_their_shares() {
    let (mut world, number) = demoted(2, 2, 2);
    let all: Vec<HostIndex> = world.peers().collect();
    all.iter().for_each(|host| world.kill(*host));
    world.run_for(Duration::from_secs(1));
    all.iter().for_each(|host| world.start(*host));
    world.run_for(Duration::from_secs(10));
    assert!(world.is_demoted(number), "a restarted host fetched the content");
    let imported = world.traffic.imported.clone();
    world.promote(number);
    world.run_to_done(number, &all, Duration::from_secs(60)).expect("the hosts have the content again");
    assert_eq!(world.traffic.imported, imported);
}

#[test]
fn a_wiped_host_restores_a_promoted_content_from_its_rack() {
    let (mut world, number) = demoted(2, 2, 2);
    let wiped = world.host(0, 2);
    world.kill(wiped);
    world.wipe(wiped);
    world.run_for(Duration::from_secs(1));
    world.start(wiped);
    world.run_for(Duration::from_secs(10));
    assert_eq!(world.bytes_on_disk(wiped, number), 0, "a wiped host fetched a demoted content");
    let imported = world.traffic.imported.clone();
    world.promote(number);
    let all: Vec<HostIndex> = world.peers().collect();
    world.run_to_done(number, &all, Duration::from_secs(60)).expect("the hosts have the content again");
    assert_eq!(world.traffic.imported, imported);
}

#[test]
fn a_promotion_during_the_demotion_leaves_all_hosts_whole() {
    for after in [0, 1, 3, 10] {
        let (mut world, number) = pushed(2, 2, 2);
        world.demote(number);
        world.run_for(Duration::from_millis(after));
        let imported = world.traffic.imported.clone();
        world.promote(number);
        world.run_for(Duration::from_secs(20));
        for host in world.peers() {
            assert_eq!(world.bytes_on_disk(host, number), world.pushed(number).geometry.bytes(), "after {after} ms");
        }
        assert_eq!(world.traffic.imported, imported);
    }
}
