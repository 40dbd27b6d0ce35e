//! Feeds through real processes: every host has the newest version at once, whatever is killed.

use serde_json::Value;
use shoal_net::admission::{Admission, system_clock};
use shoal_net::identity::{Identity, load_key};
use shoal_net::links::{LinkConfig, LinkEndpoint, LinkEvent, OutFrame, encode_announce};
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::codec::Document;
use shoal_proto::feed::{FeedMark, feed_id};
use shoal_proto::frame::AnnounceFrame;
use shoal_proto::ids::Hash;
use shoal_proto::limits;
use shoal_proto::locality::Selector;
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use shoal_proto::trust::{Envelope, Keypair, Trust};
use shoal_testkit::Program;
use shoal_testkit::feeds::{Reader, numbered, quantile};
use shoal_testkit::http::get;
use shoal_testkit::{Process, Region, noise, until};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SHOAL: Program = shoal_testkit::program!();

/// Publishes a version from a file; returns its sequence.
fn publish(region: &Region, feed: &str, bytes: &[u8]) -> u64 {
    let file = region.folder.path().join("version");
    fs::write(&file, bytes).unwrap();
    let published = region.cli_json(&["feed", "publish", feed, file.to_str().unwrap(), "--json"]);
    published.expect("the version is accepted")["sequence"].as_u64().unwrap()
}

/// The file of a feed that readers on a host open.
fn file_of(peer: &Process, feed: &str) -> Option<Vec<u8>> {
    fs::read(peer.dir().join("content/feeds").join(feed).join("current")).ok()
}

/// The version of a feed that a host serves: the sequence in its tag, and its data.
fn served(peer: &Process, feed: &str) -> Option<(u64, String)> {
    let mut stream = TcpStream::connect(peer.http()).ok()?;
    write!(stream, "GET /feeds/{feed} HTTP/1.0\r\nhost: localhost\r\n\r\n").ok()?;
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
    let region = Region::start(SHOAL, 2, 2);
    let first = publish(&region, "gslb/main", b"one");
    wait_served(&region, "gslb/main", first, "one");
    let peer = &region.peers[3];
    until("the readers' file changes", || (file_of(peer, "gslb/main")? == b"one").then_some(()));
    // There is no newer version, so the answer is 304 at once and after a wait.
    assert_eq!(get(peer.http(), &format!("/feeds/gslb/main?after={first}"), None).unwrap().0, 304);
    assert_eq!(get(peer.http(), &format!("/feeds/gslb/main?after={first}&wait=50ms"), None).unwrap().0, 304);
    assert_eq!(get(peer.http(), "/feeds/gslb/other?wait=50ms", None).unwrap().0, 404);
    // A waiting stream and a waiting poll receive the next version.
    let mut stream = TcpStream::connect(peer.http()).unwrap();
    write!(stream, "GET /feeds/gslb/main/events HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
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
    let event = data();
    assert_eq!((&event["text"], event["sequence"].as_u64()), (&"two".into(), Some(second)));
    assert_eq!(poll.join().unwrap().unwrap(), (200, "two".to_string()));
    wait_served(&region, "gslb/main", second, "two");
    until("the readers' file changes", || (file_of(peer, "gslb/main")? == b"two").then_some(()));
    // The command line shows the same version, from a host and from the seeder.
    let peer = format!("http://{}", peer.http());
    for from in [&["--peer", &peer][..], &[]] {
        let args = [&["feed", "watch", "gslb/main", "--json", "--count", "1"], from].concat();
        assert_eq!(region.cli_json(&args).unwrap()["sequence"], second);
    }
    let shown = region.cli_json(&["feed", "show", "gslb/main", "--json"]).unwrap();
    assert_eq!((&shown["sequence"], &shown["kind"]), (&second.into(), &"gslb".into()));
    let listed = region.cli_json(&["feed", "ls", "--json"]).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    // A feed makes no job and no report.
    assert_eq!(region.cli_json(&["status", "--json"]).unwrap(), Value::Array(Vec::new()));
    assert!(!region.cli(&["feed", "publish", "gslb/main/events", file!()]).status.success());
    assert!(!region.cli(&["feed", "publish", "gslb/x", file!(), "--to", "rack=nowhere"]).status.success());
}

#[allow(clippy::print_stderr, reason = "the developer may read the times; the test asserts none")]
fn report(took: &[u64]) {
    eprintln!("{} readings, p50 {} us, p99 {} us", took.len(), quantile(took, 0.5), quantile(took, 0.99));
}

/// Publishes 2 KiB ten times a second for a minute, while the publisher and a host are killed and start again.
#[test]
fn fast_versions_are_never_reordered_and_the_last_is_never_lost() {
    let mut region = Region::start(SHOAL, 4, 4);
    let readers: Vec<Reader> = region.peers.iter().map(|peer| Reader::start(peer.http(), "gslb/main", || {})).collect();
    let mut publisher = region.publisher();
    let began = Instant::now();
    let (mut number, mut last) = (0, 0);
    let rounds = 600;
    for round in 0..rounds {
        // The sleep sets the rate of versions.
        let due = began + Duration::from_millis(100) * round;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        match round {
            200 => region.peers[5].kill(),
            300 => region.peers[5].start(),
            400 => {
                region.seeder.kill();
                region.seeder.start();
            }
            _ => {}
        }
        number += 1;
        let sequence = publisher.publish("gslb/main", &numbered(number, 2048));
        if let Some(sequence) = sequence {
            assert!(sequence > last, "the sequence went back");
            last = sequence;
        }
    }
    number += 1;
    let data = numbered(number, 2048);
    last = until("the seeder accepts the last version", || publisher.publish("gslb/main", &data));
    let mut took = Vec::new();
    for (peer, reader) in region.peers.iter().zip(&readers) {
        until(&format!("{} has the last version", peer.name), || (reader.last()?.sequence == last).then_some(()));
        let seen = reader.readings();
        assert_eq!(seen.last().unwrap().number, number, "{}", peer.name);
        // A reopened stream begins with the newest version, which the reader may have received before.
        let grows =
            seen.windows(2).all(|pair| pair[0].sequence <= pair[1].sequence && pair[0].number <= pair[1].number);
        assert!(grows, "{}: {seen:?}", peer.name);
        took.extend(seen.iter().map(|seen| seen.took_us));
        until("the file has the last version", || (file_of(peer, "gslb/main")? == data).then_some(()));
    }
    took.sort_unstable();
    report(&took);
    // Versions leave nothing behind: no contents, and one file per feed.
    for process in region.peers.iter().chain([&region.seeder]) {
        assert_eq!(process.metric("shoal_contents"), 0, "{}", process.name);
        assert_eq!(fs::read_dir(process.dir().join("state/feeds")).unwrap().count(), 1, "{}", process.name);
    }
    // All processes are killed. One host starts alone and serves the last version from its disk.
    region.seeder.kill();
    region.tracker.kill();
    region.peers.iter_mut().for_each(Process::kill);
    let name = region.peers[7].name.clone();
    region.peers[7].start();
    let again = until(&format!("{name} serves the last version"), || served(&region.peers[7], "gslb/main"));
    assert_eq!(again, (last, String::from_utf8(data).unwrap()));
}

/// Payload bytes that all hosts of a rack imported so far.
fn imported(region: &Region, rack: usize) -> u64 {
    let peers = region.peers.iter().filter(|peer| peer.name.starts_with(&format!("rack{rack}-")));
    peers.map(Process::imported).sum()
}

#[test]
fn a_large_table_moves_only_what_changed() {
    const SIZE: usize = 4 << 20;
    let mut region = Region::start(SHOAL, 4, 2);
    let mut publisher = region.publisher();
    let mut table = noise(SIZE, 1);
    let mut last = until("the seeder accepts the version", || publisher.publish("gslb/table", &table));
    let arrived = |region: &Region, sequence: u64, table: &[u8]| {
        for peer in &region.peers {
            until(&format!("{} has {sequence}", peer.name), || {
                (served(peer, "gslb/table")?.0 == sequence).then_some(())
            });
            assert!(file_of(peer, "gslb/table").unwrap() == table, "{}", peer.name);
        }
    };
    arrived(&region, last, &table);
    for version in 0..6u64 {
        // Each version changes one per cent of the bytes, in at most four runs, at other places each time.
        let runs = 1 + (version as usize) % 4;
        let len = SIZE / 100 / runs;
        for run in 0..runs {
            let at = (version as usize * 377_777 + run * 1_000_003) % (SIZE - len);
            table[at..at + len].copy_from_slice(&noise(len, 100 + version * 10 + run as u64));
        }
        let before: Vec<u64> = (0..4).map(|rack| imported(&region, rack)).collect();
        let next = until("the seeder accepts the version", || publisher.publish("gslb/table", &table));
        assert!(next > last);
        last = next;
        arrived(&region, last, &table);
        for (rack, before) in before.iter().enumerate() {
            let came = imported(&region, rack) - before;
            assert!(came * 100 <= SIZE as u64 * 3, "{came} bytes into rack {rack} for {runs} runs of bytes");
        }
    }
    // Every process has removed the former versions.
    for process in region.peers.iter().chain([&region.seeder]) {
        until(&format!("{} removes the former versions", process.name), || {
            (process.metric("shoal_contents") == 1).then_some(())
        });
    }
    // Versions come faster than hosts can fetch them. The last one wins, and the others leave nothing behind.
    for version in 0..8u64 {
        let at = version as usize * 500_000;
        table[at..at + 40_000].copy_from_slice(&noise(40_000, 900 + version));
        last = until("the seeder accepts the version", || publisher.publish("gslb/table", &table));
    }
    arrived(&region, last, &table);
    // A host that was away fetches only the changed pieces, from rack peers.
    region.peers[3].kill();
    table[..1000].copy_from_slice(&noise(1000, 99));
    last = until("the seeder accepts the version", || publisher.publish("gslb/table", &table));
    region.peers[3].start();
    arrived(&region, last, &table);
    assert!(region.peers[3].received(&["rack"]) < SIZE as u64 / 20);
    for process in region.peers.iter().chain([&region.seeder]) {
        until(&format!("{} removes the former versions", process.name), || {
            (process.metric("shoal_contents") == 1).then_some(())
        });
    }
}

/// An attacker with the keys of an admitted host.
struct Impostor {
    runtime: tokio::runtime::Runtime,
    endpoint: LinkEndpoint,
    target: shoal_proto::ids::NodeId,
}

impl Impostor {
    /// Links to `target` with the keys of `as_host`, which must not run.
    fn new(as_host: &Process, target: &Process) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let keys = load_key(&as_host.dir().join("node.key")).unwrap();
        let trust = Trust::open(&fs::read(as_host.dir().join("trust")).unwrap(), None).unwrap();
        let credential = fs::read(as_host.dir().join("node.cred")).unwrap();
        let admission = Admission::new(Arc::new(trust), credential, system_clock);
        let config = LinkConfig::new(Vec::new(), Identity::new(&keys), admission);
        let node = load_key(&target.dir().join("node.key")).unwrap().node();
        let addr = target.addrs["bulk"][0].as_str().unwrap().parse().unwrap();
        let endpoint = runtime.block_on(async {
            let (endpoint, mut events) = LinkEndpoint::bind(config).await.unwrap();
            endpoint.dial(node, vec![addr]);
            while !matches!(events.recv().await.unwrap(), LinkEvent::LinkUp { .. }) {}
            // All events are read and dropped, because an unread queue would end the link.
            tokio::spawn(async move { while events.recv().await.is_some() {} });
            endpoint
        });
        Self { runtime, endpoint, target: node }
    }

    fn say(&self, announcement: &Announcement, signer: &Keypair, manifest: &Manifest, data: &[u8]) {
        let envelope = Envelope::seal(announcement, signer).to_bytes();
        let frame = AnnounceFrame { envelope, lane: 0, manifest: Some(manifest.to_bytes()), data: Some(data.to_vec()) };
        let _inside = self.runtime.enter();
        self.endpoint.send(self.target, OutFrame::Announce(encode_announce(&frame))).unwrap();
    }
}

fn small_manifest(data: &[u8]) -> Manifest {
    let size = data.len() as u64;
    Manifest {
        root: Root::File,
        entries: vec![Entry { path: b"current".to_vec(), mode: 0o644, kind: EntryKind::File { size } }],
        streams: vec![size],
        piece_bytes_avg: 8192,
        data: 1,
        parity: 0,
        lanes: 1,
        piece_lens: (size as u32).to_le_bytes().to_vec(),
        piece_hashes: Hash::of(data).0.to_vec(),
        parity_hashes: Vec::new(),
        image: None,
    }
}

#[test]
fn unsigned_versions_are_refused_and_change_nothing() {
    let mut region = Region::start(SHOAL, 1, 2);
    let current = publish(&region, "gslb/main", b"good");
    wait_served(&region, "gslb/main", current, "good");
    region.peers[0].kill();
    let peer = &region.peers[1];
    let impostor = Impostor::new(&region.peers[0], peer);
    let publisher = load_key(&region.folder.path().join("cluster/publisher.key")).unwrap();
    let origin = load_key(&region.seeder.dir().join("node.key")).unwrap().node();
    let manifest = small_manifest(b"evil");
    let version = |sequence: u64, size: u64| Announcement {
        job: feed_id("gslb/main"),
        content: Manifest::id(&manifest.to_bytes()),
        kind: Kind::Gslb,
        name: "gslb/main".into(),
        version: sequence.to_string(),
        sequence,
        selector: Selector::all(),
        origin,
        manifest_bytes: manifest.to_bytes().len() as u64,
        size,
        created_at: system_clock(),
        expires_at: system_clock() + 1000,
        order: None,
        feed: Some(FeedMark { published_at_ms: sequence }),
        staged: false,
    };
    let refused = |why: &str| peer.metric(&format!("shoal_feed_refused_total{{reason=\"{why}\"}}"));
    let unreadable = || peer.metric("shoal_announcements_refused_total");
    let unchanged = |after: &str| {
        assert_eq!(served(peer, "gslb/main").unwrap(), (current, "good".to_string()), "after {after}");
        assert_eq!(file_of(peer, "gslb/main").unwrap(), b"good", "after {after}");
    };

    let before = unreadable();
    impostor.say(&version(current + 1000, 4), &Keypair::from_seed([66; 32]), &manifest, b"evil");
    until("the untrusted version is refused", || (unreadable() == before + 1).then_some(()));
    unchanged("untrusted");
    impostor.say(&version(current - 1, 4), &publisher, &manifest, b"evil");
    until("the older version is refused", || (refused("stale") >= 1).then_some(()));
    unchanged("older");
    let before = unreadable();
    impostor.say(&version(current + 1000, limits::FEED_BYTES_MAX + 1), &publisher, &manifest, b"evil");
    until("the oversized version is refused", || (unreadable() == before + 1).then_some(()));
    let escaping = Announcement { name: "../main".into(), job: feed_id("../main"), ..version(current + 1000, 4) };
    impostor.say(&escaping, &publisher, &manifest, b"evil");
    until("the name outside the folder is refused", || (unreadable() == before + 2).then_some(()));
    unchanged("oversized and escaping");
    // First data longer than the announcement says, then other bytes than the signed ones.
    impostor.say(&version(current + 1000, 3), &publisher, &manifest, b"evil");
    until("the longer data is refused", || (refused("corrupt") == 1).then_some(()));
    impostor.say(&version(current + 2000, 4), &publisher, &manifest, b"Evil");
    until("the altered data is refused", || (refused("corrupt") == 2).then_some(()));
    unchanged("corrupt");
    let (_, body) = get(peer.http(), "/feeds", None).unwrap();
    let feeds: Value = serde_json::from_str(&body).unwrap();
    let listed = feeds["refused"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{feeds:#}");
    assert!(listed.iter().all(|row| row["why"].as_str().unwrap().contains("differs")), "only verified: {feeds:#}");
    // A version that a publisher signed, with the right data, is accepted after all this.
    impostor.say(&version(current + 3000, 4), &publisher, &manifest, b"evil");
    until("the signed version is accepted", || (served(peer, "gslb/main")?.0 == current + 3000).then_some(()));
}
