//! Feeds through real processes: the latest version everywhere, at once, whatever is killed.

mod common;

use common::{Process, Region, get, noise, until};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;

/// Publishes from a file; gives the sequence.
fn publish(region: &Region, feed: &str, bytes: &[u8]) -> u64 {
    let file = region.folder.path().join("version");
    fs::write(&file, bytes).unwrap();
    let published = region.cli_json(&["feed", "publish", feed, file.to_str().unwrap(), "--json"]);
    published.expect("the version is accepted")["sequence"].as_u64().unwrap()
}

/// A feed's file for readers on a host.
fn file_of(peer: &Process, feed: &str) -> Option<Vec<u8>> {
    fs::read(peer.dir().join("content/feeds").join(feed).join("current")).ok()
}

/// What a host serves of a feed, with the sequence its tag says.
fn served(peer: &Process, feed: &str) -> Option<(u64, String)> {
    let mut stream = TcpStream::connect(peer.http()).ok()?;
    write!(stream, "GET /feeds/{feed} HTTP/1.0\r\nhost: x\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: "))?.trim_matches('"').parse().ok()?;
    head.starts_with("HTTP/1.0 200").then(|| (tag, body.to_string()))
}

fn wait_served(region: &Region, feed: &str, sequence: u64, body: &str) {
    for peer in &region.peers {
        until(&format!("{} serves {feed} {sequence}", peer.name), || {
            served(peer, feed).filter(|(tag, _)| *tag == sequence).map(|(_, got)| assert_eq!(got, body))
        });
    }
}

#[test]
fn a_version_reaches_files_polls_and_streams() {
    let region = Region::start(2, 2, |_| Vec::new());
    let first = publish(&region, "gslb/main", b"one");
    wait_served(&region, "gslb/main", first, "one");
    let peer = &region.peers[3];
    until("readers' file", || (file_of(peer, "gslb/main")? == b"one").then_some(()));
    // Nothing newer: not modified, at once and after a wait.
    assert_eq!(get(peer.http(), &format!("/feeds/gslb/main?after={first}"), None).unwrap().0, 304);
    assert_eq!(get(peer.http(), &format!("/feeds/gslb/main?after={first}&wait=50ms"), None).unwrap().0, 304);
    assert_eq!(get(peer.http(), "/feeds/gslb/other?wait=50ms", None).unwrap().0, 404);
    // A stream and a poll that wait are told.
    let mut stream = TcpStream::connect(peer.http()).unwrap();
    write!(stream, "GET /feeds/gslb/main/events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let mut data = move || -> Value {
        let line = lines.find(|line| line.starts_with("data: ")).unwrap();
        serde_json::from_str(&line["data: ".len()..]).unwrap()
    };
    assert_eq!(data()["text"], "one");
    let http = peer.http().to_string();
    let poll = std::thread::spawn(move || get(&http, &format!("/feeds/gslb/main?after={first}&wait=8s"), None));
    let second = publish(&region, "gslb/main", b"two");
    assert!(second > first);
    let told = data();
    assert_eq!((&told["text"], told["sequence"].as_u64()), (&"two".into(), Some(second)));
    assert_eq!(poll.join().unwrap().unwrap(), (200, "two".to_string()));
    wait_served(&region, "gslb/main", second, "two");
    until("readers' file", || (file_of(peer, "gslb/main")? == b"two").then_some(()));
    // The same by the command line, from a host and from the seeder.
    let peer = format!("http://{}", peer.http());
    for from in [&["--peer", &peer][..], &[]] {
        let args = [&["feed", "watch", "gslb/main", "--json", "--count", "1"], from].concat();
        assert_eq!(region.cli_json(&args).unwrap()["sequence"], second);
    }
    let shown = region.cli_json(&["feed", "show", "gslb/main", "--json"]).unwrap();
    assert_eq!((&shown["sequence"], &shown["kind"]), (&second.into(), &"gslb".into()));
    let listed = region.cli_json(&["feed", "ls", "--json"]).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    // No job, no report.
    assert_eq!(region.cli_json(&["status", "--json"]).unwrap(), Value::Array(Vec::new()));
    assert!(!region.cli(&["feed", "publish", "gslb/main/events", file!()]).status.success());
    assert!(!region.cli(&["feed", "publish", "gslb/x", file!(), "--to", "rack=nowhere"]).status.success());
}
