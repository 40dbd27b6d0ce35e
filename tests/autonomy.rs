//! With hub, tracker and seeder gone, a region goes on: what is under way ends, and who lost everything gets it again.

mod common;

use common::{Region, noise, until};
use std::fs;

/// Looks in a row at a seeder with nothing on its way, before it is taken to be done.
const STILL: u32 = 10;

fn stop_the_centre(region: &mut Region) {
    region.hub.kill();
    region.tracker.kill();
    region.seeder.kill();
}

#[test]
fn an_emptied_host_finds_its_rack_and_gets_all_of_it_without_hub_tracker_and_seeder() {
    let mut region = Region::start(2, 3, |_| Vec::new());
    let mut files = Vec::new();
    for (name, len) in [("big", 24usize << 20), ("middling", 1 << 20), ("small", 2000)] {
        let file = region.folder.path().join(name);
        fs::write(&file, noise(len, len as u64)).unwrap();
        let job = region.push(&file, name, "1");
        region.wait_active(&job, 6);
        files.push((name, noise(len, len as u64)));
    }
    let remembered = region.peers[1].dir().join("state.mates");
    until("its mates are remembered", || remembered.exists().then_some(()));
    stop_the_centre(&mut region);
    region.peers[1].kill();
    for folder in ["state", "content"] {
        fs::remove_dir_all(region.peers[1].dir().join(folder)).unwrap();
    }
    region.peers[1].start();
    for (name, bytes) in &files {
        let copy = region.peers[1].dir().join("content").join(name).join("current").join(name);
        until(&format!("it has {name} again"), || copy.exists().then_some(()));
        region.assert_copy(1, name, name, bytes);
    }
    assert_eq!(region.peers[1].imported(), 0, "its rack has everything");
    // The tracker's word replaces the mate's, and everybody reports as if nothing had been.
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
fn a_push_ends_without_the_centre_once_every_shard_is_out() {
    // Rack peers get it slowly, so that most is still to be done when the centre goes.
    let mut region = Region::start(2, 3, |_| vec!["node.limits.rack_out=6 MB/s".into()]);
    const SIZE: usize = 32 << 20;
    let file = region.folder.path().join("big");
    let bytes = noise(SIZE, 1);
    fs::write(&file, &bytes).unwrap();
    region.push(&file, "big", "1");
    // What the seeder sent and nobody got yet dies with it; what it sends twice counts twice.
    let mut last = 0;
    let mut still = 0;
    until("every shard is out", || {
        let arrived: u64 = region.peers.iter().map(|peer| peer.received(&["Seeder"])).sum();
        let sent = region.seeder.metric("shoal_payload_sent_bytes_total");
        still = if arrived == sent && sent == last { still + 1 } else { 0 };
        last = sent;
        (sent >= SIZE as u64 && still >= STILL).then_some(())
    });
    stop_the_centre(&mut region);
    let copy = |peer: usize| region.peers[peer].dir().join("content/big/current/big");
    assert!((0..6).any(|peer| !copy(peer).exists()), "it is still under way");
    for peer in 0..6 {
        until("it ends all the same", || copy(peer).exists().then_some(()));
        region.assert_copy(peer, "big", "big", &bytes);
    }
}
