//! Drills: a publisher is stolen, a host is stolen, the root is replaced. One command heals each, without a restart.

use super::SHOAL;
use super::intruder::{Intruder, small};
use serde_json::Value;
use shoal_net::identity::load_key;
use shoal_proto::announcement::Kind;
use shoal_proto::codec::Document;
use shoal_proto::feed::{FeedMark, feed_id};
use shoal_proto::sequence;
use shoal_proto::trust::{Credential, Envelope};
use shoal_testkit::http::get;
use shoal_testkit::{Process, Region, settings, until};
use std::fs;

const NAME: &str = "edge/settings";
const FEED: &str = "gslb/main";

/// Runs a command of `shoal cluster` that publishes through the region's seeder.
fn cluster(region: &Region, args: &[&str]) -> String {
    let dir = region.folder.path().join("cluster");
    let output = region.cli(&[&["cluster"], args, &["--dir", dir.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a role has this version of the trust document.
fn wait_trust(role: &Process, version: u64) {
    until(&format!("{} has trust document {version}", role.name), || {
        (role.metric("shoal_trust_version") == version).then_some(())
    });
}

fn all_roles(region: &Region) -> impl Iterator<Item = &Process> {
    [&region.hub, &region.tracker, &region.seeder].into_iter().chain(&region.peers)
}

fn content_of(peer: &Process) -> Vec<u8> {
    fs::read(peer.dir().join("content").join(NAME).join("current/settings")).unwrap_or_default()
}

fn wait_content(peer: &Process, data: &[u8]) {
    until("the content is active", || (content_of(peer) == data).then_some(()));
}

fn feed_of(peer: &Process) -> Option<String> {
    let (status, body) = get(peer.http(), &format!("/feeds/{FEED}"), None)?;
    (status == 200).then_some(body)
}

#[test]
fn one_command_heals_a_stolen_publisher_key() {
    let region = Region::start(SHOAL, 1, 2);
    let source = region.folder.path().join("settings");
    fs::write(&source, "honest 1").unwrap();
    region.wait_active(&region.push(&source, NAME, "1"), 2);
    region.publisher().publish(FEED, b"honest 1").unwrap();
    until("the feed is everywhere", || region.peers.iter().all(|peer| feed_of(peer).is_some()).then_some(()));

    // The thief signs the greatest sequence that hosts accept, for a push and for a feed.
    let mut thief = Intruder::enter(&region);
    let stolen = load_key(&region.folder.path().join("cluster/publisher.key")).unwrap();
    let manifest = small(b"settings", b"stolen");
    let ahead = (shoal_net::admission::system_clock() + 290) * 1000;
    let mut push = thief.announcement(&manifest, 6);
    push.sequence = sequence::at(1, ahead).unwrap();
    let announced = Envelope::seal(&push, &stolen).to_bytes();
    let small_version = small(b"feed", b"stolen");
    let mut version = thief.announcement(&small_version, 6);
    (version.job, version.name, version.kind) = (feed_id(FEED), FEED.into(), Kind::Gslb);
    (version.sequence, version.feed) = (sequence::at(1, ahead).unwrap(), Some(FeedMark { published_at_ms: 1 }));
    let published = Envelope::seal(&version, &stolen).to_bytes();
    until("every host has what the thief signed", || {
        // A host drops what comes before it knows the sender.
        for (signed, manifest) in [(&announced, &manifest), (&published, &small_version)] {
            thief.announce(signed.clone(), Some((manifest.clone(), b"stolen".to_vec())));
        }
        let has = |peer: &Process| content_of(peer) == b"stolen" && feed_of(peer).as_deref() == Some("stolen");
        region.peers.iter().all(has).then_some(())
    });

    let said = cluster(&region, &["rotate-publisher"]);
    assert!(said.contains("epoch 2"), "{said}");
    all_roles(&region).for_each(|role| wait_trust(role, 2));
    for peer in &region.peers {
        assert_eq!(feed_of(peer).as_deref(), Some("stolen"), "a rotation empties no feed");
    }
    fs::write(&source, "honest 2").unwrap();
    region.wait_active(&region.push(&source, NAME, "2"), 2);
    region.publisher().publish(FEED, b"honest 2").unwrap();
    for peer in &region.peers {
        wait_content(peer, b"honest 2");
        until("the honest version of the feed", || (feed_of(peer)? == "honest 2").then_some(()));
    }
    // The key is worth nothing now, whatever the sequence.
    let refused = region.peers.iter().map(|peer| peer.metric("shoal_announcements_refused_total")).sum::<u64>();
    let mut late = thief.announcement(&manifest, 6);
    late.sequence = sequence::at(2, ahead).unwrap();
    thief.announce(Envelope::seal(&late, &stolen).to_bytes(), Some((manifest, b"stolen".to_vec())));
    until("a host refuses the stolen key", || {
        let now = region.peers.iter().map(|peer| peer.metric("shoal_announcements_refused_total")).sum::<u64>();
        (now > refused).then_some(())
    });
    region.peers.iter().for_each(|peer| wait_content(peer, b"honest 2"));
}

#[test]
fn a_restart_goes_back_to_no_former_trust_document() {
    let mut region = Region::start(SHOAL, 1, 1);
    region.publisher().publish(FEED, b"one").unwrap();
    until("the feed arrives", || feed_of(&region.peers[0]));
    cluster(&region, &["rotate-publisher"]);
    all_roles(&region).for_each(|role| wait_trust(role, 2));
    // The files of the configuration still have version 1, and the first publisher key.
    for role in [&mut region.hub, &mut region.tracker, &mut region.seeder].into_iter().chain(&mut region.peers) {
        role.restart();
        wait_trust(role, 2);
    }
    region.wait_up(1);
    until("the feed outlives the restart", || (feed_of(&region.peers[0])? == "one").then_some(()));
    until("the seeder publishes with its new key", || region.publisher().publish(FEED, b"two"));
    until("the next version arrives", || (feed_of(&region.peers[0])? == "two").then_some(()));
}

#[test]
fn a_revoked_host_loses_its_links_also_without_a_hub() {
    let mut region = Region::start(SHOAL, 1, 3);
    region.hub.kill();
    let source = region.folder.path().join("settings");
    fs::write(&source, "one").unwrap();
    region.wait_active(&region.push(&source, NAME, "1"), 3);
    cluster(&region, &["revoke", "t/site/rack0/host1"]);
    let (stolen, others) = (&region.peers[1], [&region.peers[0], &region.peers[2], &region.seeder, &region.tracker]);
    others.into_iter().for_each(|role| wait_trust(role, 2));
    until("the stolen host has no link", || (stolen.metric("shoal_links") == 0).then_some(()));
    until("the tracker has dropped the stolen host", || {
        let hosts = region.cli_json(&["hosts", "--json"])?;
        let hosts: Vec<_> = hosts.as_array()?.iter().map(|row| row["host"].as_str().unwrap().to_string()).collect();
        assert!(hosts.contains(&"t/site/rack0/host0".to_string()), "{hosts:?}");
        (!hosts.contains(&"t/site/rack0/host1".to_string())).then_some(())
    });
    fs::write(&source, "two").unwrap();
    region.wait_active(&region.push(&source, NAME, "2"), 2);
    assert_eq!(content_of(stolen), b"one", "the stolen host gets nothing");
}

#[test]
fn a_new_root_and_a_reload_of_the_file_keep_the_region_at_work() {
    let region = Region::start(SHOAL, 1, 2);
    cluster(&region, &["rotate-root"]);
    all_roles(&region).for_each(|role| wait_trust(role, 2));
    // A credential of the new root is admitted, and those of the former root still are.
    settings::issue(SHOAL, region.folder.path(), "late", "peer", "t/site/rack0/late");
    let source = region.folder.path().join("settings");
    fs::write(&source, "one").unwrap();
    region.wait_active(&region.push(&source, NAME, "1"), 2);
    // SIGHUP reads the file of the configuration.
    let dir = region.folder.path().join("cluster");
    let added = SHOAL.run(&[
        "cluster",
        "add-publisher",
        "--dir",
        dir.to_str().unwrap(),
        "--names",
        "other",
        "--out",
        region.folder.path().join("second.key").to_str().unwrap(),
    ]);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let peer = &region.peers[0];
    fs::copy(dir.join("trust"), peer.dir().join("trust")).unwrap();
    peer.signal("HUP");
    all_roles(&region).for_each(|role| wait_trust(role, 3));
}

#[test]
fn a_publisher_stays_within_its_scope() {
    let region = Region::start(SHOAL, 1, 1);
    cluster(&region, &["rotate-publisher", "--names", "edge", "--to", "site=site"]);
    all_roles(&region).for_each(|role| wait_trust(role, 2));
    let source = region.folder.path().join("settings");
    fs::write(&source, "one").unwrap();
    let push = |name: &str, to: &str| {
        region.cli(&["push", source.to_str().unwrap(), "--name", name, "--version", "1", "--to", to, "--wait"])
    };
    for (name, to, why) in [("other/settings", "site=site", "name"), ("edge/other", "all", "selector")] {
        let output = push(name, to);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(why), "{text}");
    }
    let output = push(NAME, "site=site");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_host_that_missed_a_new_root_gets_it_from_its_tracker() {
    let mut region = Region::start(SHOAL, 1, 1);
    region.peers[0].kill();
    cluster(&region, &["rotate-root"]);
    wait_trust(&region.tracker, 2);
    // The tracker has a credential that only the new document admits, and no neighbour passes the document on.
    let (dir, folder) = (region.folder.path().join("cluster"), region.tracker.dir().to_path_buf());
    let root = load_key(&dir.join("root.key")).unwrap();
    let issued: Envelope = Envelope::from_bytes(&fs::read(folder.join("node.cred")).unwrap()).unwrap();
    let renewed = Envelope::seal(&issued.open::<Credential>().unwrap(), &root).to_bytes();
    region.tracker.kill();
    region.seeder.kill();
    fs::write(folder.join("node.cred"), renewed).unwrap();
    fs::write(folder.join("trust"), fs::read(dir.join("trust")).unwrap()).unwrap();
    region.tracker.start();
    region.peers[0].start();
    wait_trust(&region.peers[0], 2);
    until("the host is up", || {
        let (_, hosts) = get(region.tracker.http(), "/v1/hosts", None)?;
        let hosts: Vec<Value> = serde_json::from_str(&hosts).ok()?;
        hosts.iter().any(|host| host["role"] == "peer" && host["presence"] == "up").then_some(())
    });
    assert!(!region.tracker.log().contains("refused a second live host"), "{}", region.tracker.log());
}
