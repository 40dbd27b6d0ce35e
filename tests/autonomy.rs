//! A region without hub, tracker and seeder: pushes end, and a host that lost everything recovers from its rack.

use shoal_testkit::Program;
use shoal_testkit::{Region, Setup, noise, until};
use std::fs;

const SHOAL: Program = shoal_testkit::program!();

/// Looks in a row without new traffic before the seeder counts as done.
const STILL: u32 = 10;

fn kill_the_control_side(region: &mut Region) {
    region.hub.kill();
    region.tracker.kill();
    region.seeder.kill();
}

#[test]
fn an_emptied_host_recovers_from_its_rack_without_hub_tracker_and_seeder() {
    let mut region = Region::start(SHOAL, 2, 3);
    let mut files = Vec::new();
    for (name, len) in [("big", 24usize << 20), ("middling", 1 << 20), ("small", 2000)] {
        let file = region.folder.path().join(name);
        fs::write(&file, noise(len, len as u64)).unwrap();
        let job = region.push(&file, name, "1");
        region.wait_active(&job, 6);
        files.push((name, noise(len, len as u64)));
    }
    let recorded = region.peers[1].dir().join("state.rack-peers");
    until("the host has recorded its rack peers", || recorded.exists().then_some(()));
    kill_the_control_side(&mut region);
    region.peers[1].kill();
    for folder in ["state", "content"] {
        fs::remove_dir_all(region.peers[1].dir().join(folder)).unwrap();
    }
    region.peers[1].start();
    for (name, bytes) in &files {
        let copy = region.peers[1].dir().join("content").join(name).join("current").join(name);
        until(&format!("the host has {name} again"), || copy.exists().then_some(()));
        region.assert_copy(1, name, name, bytes);
    }
    assert_eq!(region.peers[1].imported(), 0, "the host imported payload that its rack has");
    // The tracker's membership replaces the one that the rack peers sent, and all hosts report as usual.
    region.tracker.start();
    region.seeder.start();
    region.wait_up(6);
    let file = region.folder.path().join("after");
    fs::write(&file, noise(100_000, 9)).unwrap();
    let job = region.push(&file, "after", "1");
    region.wait_active(&job, 6);
    region.assert_copy(1, "after", "after", &noise(100_000, 9));
}

#[test]
fn a_push_ends_without_the_control_side_once_every_shard_is_out() {
    // Rack peers receive slowly, so that much is left to do when the control side dies.
    let mut region = Setup::new(SHOAL, 2, 3).peers(|_| vec!["node.limits.rack_out=6 MB/s".into()]).start();
    const SIZE: usize = 32 << 20;
    let file = region.folder.path().join("big");
    let bytes = noise(SIZE, 1);
    fs::write(&file, &bytes).unwrap();
    region.push(&file, "big", "1");
    // Shards on their way from the seeder are lost with it. Shards that it sends twice count twice.
    let mut last = 0;
    let mut still = 0;
    until("every shard is out", || {
        let arrived: u64 = region.peers.iter().map(|peer| peer.received(&["seeder"])).sum();
        let sent = region.seeder.metric("shoal_payload_sent_bytes_total");
        still = if arrived == sent && sent == last { still + 1 } else { 0 };
        last = sent;
        (sent >= SIZE as u64 && still >= STILL).then_some(())
    });
    kill_the_control_side(&mut region);
    let copy = |peer: usize| region.peers[peer].dir().join("content/big/current/big");
    assert!((0..6).any(|peer| !copy(peer).exists()), "the push ended before the control side died");
    for peer in 0..6 {
        until("the push ends", || copy(peer).exists().then_some(()));
        region.assert_copy(peer, "big", "big", &bytes);
    }
}
