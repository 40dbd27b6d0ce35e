//! Demotion and promotion with real processes: disk space, lost hosts, and traffic on the uplink.

use serde_json::Value;
use shoal_testkit::Program;
use shoal_testkit::disk::on_disk;
use shoal_testkit::{Process, Region, Setup, noise, until};
use std::fs;

const SHOAL: Program = shoal_testkit::program!();

const SIZE: usize = 24 << 20;

/// Bytes on the disks of a rack's hosts: stored contents and active versions.
fn rack_bytes(peers: &[Process]) -> u64 {
    peers.iter().map(|peer| on_disk(&peer.dir().join("state/contents")) + on_disk(&peer.dir().join("content"))).sum()
}

fn order(region: &Region, order: &str, target: &str) -> (i32, Value, String) {
    let output = region.cli(&[order, target, "--wait", "--timeout", "60s", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
    (output.status.code().unwrap(), last, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Two racks of four hosts, with stripes of two pieces and two parity shards, so that any two hosts of a rack may be
/// lost. All hosts have version 1 of `app`. The active version is 2, which is small.
fn with_two_versions() -> (Region, Vec<u8>) {
    let region = Setup::new(SHOAL, 2, 4).seeder(&["data_shards=2", "parity_shards=2"]).start();
    let (first, second) = (region.folder.path().join("app"), region.folder.path().join("v2/app"));
    fs::create_dir(region.folder.path().join("v2")).unwrap();
    let bytes = noise(SIZE, 1);
    fs::write(&first, &bytes).unwrap();
    fs::write(&second, noise(100_000, 2)).unwrap();
    let job = region.push(&first, "app", "1");
    region.wait_active(&job, 8);
    let job = region.push(&second, "app", "2");
    region.wait_active(&job, 8);
    (region, bytes)
}

#[test]
fn a_demoted_version_takes_k_plus_m_of_k_a_rack_and_comes_back_from_any_k_without_the_uplink() {
    let (mut region, bytes) = with_two_versions();
    let size = SIZE as u64;
    assert!(rack_bytes(&region.peers[..4]) >= 4 * size);
    let before: u64 = region.peers.iter().map(Process::imported).sum();
    let (code, status, text) = order(&region, "demote", "app@1");
    assert_eq!(code, 0, "{status:#}\n{text}");
    assert_eq!((&status["order"], &status["demoted"]), (&"demote".into(), &true.into()), "{status:#}");
    for rack in [&region.peers[..4], &region.peers[4..]] {
        // The rack stores every piece once. Parity is as long as the longest piece of its stripe, so it takes more than
        // m / k.
        let used: u64 = rack.iter().map(|peer| peer.metric("shoal_store_used_bytes")).sum();
        assert!((size * 2..size * 26 / 10).contains(&used), "{used}");
        // The disk also holds the active version 2, and a partial block at each end of a piece.
        until("the old version's folder is gone", || (rack_bytes(rack) < used + (3 << 20)).then_some(()));
    }
    let jobs = region.cli_json(&["status", "--json"]).unwrap();
    let push = jobs.as_array().unwrap().iter().find(|job| job["version"] == "1" && job["order"].is_null()).unwrap();
    assert_eq!(push["demoted"], true);
    assert_eq!(region.peers.iter().map(Process::imported).sum::<u64>(), before, "a demotion moved payload");

    // A restarted host finds its rack share. Then two hosts of the first rack are lost for good.
    region.peers[1].kill();
    region.peers[1].start();
    region.peers[0].kill();
    region.peers[2].kill();
    region.wait_up(6);
    let left = [1, 3, 4, 5, 6, 7];
    let before: Vec<u64> = left.iter().map(|peer| region.peers[*peer].imported()).collect();
    let output = region.cli_json(&["promote", "app@1", "--json"]).expect("the order is accepted");
    let job = output["job"].as_str().unwrap().to_string();
    let status = region.wait_active(&job, 6);
    assert_eq!(
        status["tiers"]["seeder"].as_u64().unwrap() + status["tiers"]["site"].as_u64().unwrap(),
        0,
        "{status:#}"
    );
    for (peer, before) in left.iter().zip(before) {
        region.assert_copy(*peer, "app", "app", &bytes);
        assert_eq!(region.peers[*peer].imported(), before, "payload crossed the uplink");
    }
}

#[test]
fn a_rack_that_lost_more_hosts_than_m_imports_the_rest() {
    let (mut region, bytes) = with_two_versions();
    assert_eq!(order(&region, "demote", "app@1").0, 0);
    (0..3).for_each(|peer| region.peers[peer].kill());
    region.wait_up(5);
    let before = region.peers[3].imported();
    let output = region.cli_json(&["promote", "app@1", "--json"]).expect("the order is accepted");
    region.wait_active(output["job"].as_str().unwrap(), 5);
    region.assert_copy(3, "app", "app", &bytes);
    let crossed = region.peers[3].imported() - before;
    assert!(crossed > 0 && crossed <= SIZE as u64 + (4 << 20), "{crossed}");
}

#[test]
fn an_active_version_is_not_demoted() {
    let (region, _) = with_two_versions();
    let (code, _, text) = order(&region, "demote", "app@2");
    assert_eq!(code, 1);
    assert!(text.contains("newest version"), "{text}");
    let (code, _, text) = order(&region, "demote", "app@3");
    assert_eq!(code, 1);
    assert!(text.contains("app@3"), "{text}");
    // The same content is active under another name.
    let file = region.folder.path().join("app");
    let job = region.push(&file, "other", "1");
    region.wait_active(&job, 8);
    let (code, _, text) = order(&region, "demote", "app@1");
    assert_eq!(code, 1);
    assert!(text.contains("other@1"), "{text}");
    let file = region.folder.path().join("v2/app");
    let job = region.push(&file, "other", "2");
    region.wait_active(&job, 8);
    // On the hosts of one rack the content is active again.
    let rack = region
        .cli_json(&[
            "push",
            region.folder.path().join("app").to_str().unwrap(),
            "--name",
            "third",
            "--version",
            "1",
            "--to",
            "rack=rack0",
            "--json",
        ])
        .unwrap();
    region.wait_active(rack["job"].as_str().unwrap(), 4);
    let rack = region
        .cli_json(&[
            "push",
            region.folder.path().join("v2/app").to_str().unwrap(),
            "--name",
            "third",
            "--version",
            "2",
            "--to",
            "rack=rack1",
            "--json",
        ])
        .unwrap();
    region.wait_active(rack["job"].as_str().unwrap(), 4);
    let (code, status, text) = order(&region, "demote", "app@1");
    assert_eq!(code, 3, "{status:#}\n{text}");
    assert_eq!((Region::total(&status, "failed"), Region::total(&status, "active")), (4, 4), "{status:#}");
    assert!(status["lines"][0]["detail"].as_str().unwrap().contains("`third/1` is active here"), "{status:#}");
}
