//! Faults in the field: killed processes, bad sources, full disks, strangers.

use serde_json::Value;
use shoal_testkit::Program;
use shoal_testkit::http::get;
use shoal_testkit::{Process, Region, Setup, noise, until};
use socket2::{Domain, Socket, Type};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SHOAL: Program = shoal_testkit::program!();

const SIZE: usize = 192 << 20;
/// The limit of payload that a host holds in memory before it is on the disk.
const MEMORY: &str = "node.receive_memory=32 MiB";
/// Bytes that may be requested again after a kill: the payload in memory and one stripe.
const IN_FLIGHT: u64 = (32 << 20) + (8 << 20);

/// Payload bytes that a peer received since its start.
fn received(peer: &Process) -> u64 {
    peer.received(&["rack", "site", "region", "seeder"])
}

#[test]
fn a_killed_peer_resumes_and_does_not_delay_others() {
    let mut region = Setup::new(SHOAL, 2, 3).peers(|_| vec![MEMORY.into()]).start();
    let file = region.folder.path().join("big");
    let bytes = noise(SIZE, 1);
    fs::write(&file, &bytes).unwrap();
    let job = region.push(&file, "big", "1");
    until("the peer has half of the content", || (received(&region.peers[1]) > SIZE as u64 / 2).then_some(()));
    let before = received(&region.peers[1]);
    region.peers[1].kill();
    region.peers[1].start();
    region.wait_active(&job, 6);
    for peer in 0..6 {
        region.assert_copy(peer, "big", "big", &bytes);
    }
    let after = received(&region.peers[1]);
    assert!(
        before + after <= SIZE as u64 + IN_FLIGHT,
        "the peer received {before} bytes, and {after} after the restart"
    );
}

#[test]
fn hub_and_tracker_may_be_away_and_receive_each_report_once_after() {
    let mut region = Region::start(SHOAL, 2, 2);
    let file = region.folder.path().join("big");
    let bytes = noise(SIZE, 2);
    fs::write(&file, &bytes).unwrap();
    let job = region.push(&file, "big", "1");
    region.wait_progress(&job, 10);
    region.hub.kill();
    region.tracker.kill();
    until("every host has activated the version", || {
        let is_active = |peer: &Process| peer.dir().join("content/big/current/big").exists();
        region.peers.iter().all(is_active).then_some(())
    });
    region.tracker.start();
    region.wait_active(&job, 4);
    region.hub.start();
    until("the hub has the reports", || region.hub_active(&job).filter(|active| *active == 4));
    until("the spool is empty", || (region.tracker.metric("shoal_tracker_spooled_flushes") == 0).then_some(()));
    // A flush that the hub stored but did not acknowledge before its kill is sent again. The hub does not count it
    // twice.
    assert!(region.hub.metric("shoal_hub_duplicate_reports_total") <= 1);
    assert_eq!(region.hub_active(&job), Some(4));
    (0..4).for_each(|peer| region.assert_copy(peer, "big", "big", &bytes));
}

#[test]
fn the_hub_receives_many_jobs_after_the_tracker_restarts() {
    let mut region = Region::start(SHOAL, 1, 1);
    // More jobs than one flush can hold.
    for number in 0..70 {
        let file = region.folder.path().join(format!("file{number}"));
        fs::write(&file, noise(100, number)).unwrap();
        region.push(&file, &format!("n{number}"), "1");
    }
    region.tracker.kill();
    region.tracker.start();
    let file = region.folder.path().join("last");
    fs::write(&file, b"last").unwrap();
    let job = region.push(&file, "last", "1");
    until("the hub has the reports", || region.hub_active(&job).filter(|active| *active == 1));
}

#[test]
fn the_version_pushed_last_stays_active() {
    let region = Region::start(SHOAL, 1, 2);
    let (large, small) = (region.folder.path().join("large"), region.folder.path().join("small"));
    fs::write(&large, noise(SIZE, 7)).unwrap();
    fs::write(&small, b"small").unwrap();
    let older = region.push(&large, "n", "1");
    let newer = region.push(&small, "n", "2");
    region.wait_active(&newer, 2);
    until("the older push ends", || (region.status(&older)["phase"] == "done").then_some(()));
    for peer in &region.peers {
        let current = fs::read_link(peer.dir().join("content/n/current")).unwrap();
        assert_eq!(current.to_str(), Some("2"));
    }
}

#[test]
fn without_a_seeder_the_region_finishes_what_it_has() {
    let mut region = Region::start(SHOAL, 1, 3);
    let file = region.folder.path().join("big");
    let bytes = noise(32 << 20, 3);
    fs::write(&file, &bytes).unwrap();
    let job = region.push(&file, "big", "1");
    region.wait_active(&job, 3);
    region.seeder.kill();
    // A host comes back with an empty disk. Its rack has everything.
    region.peers[2].kill();
    for folder in ["state", "content"] {
        fs::remove_dir_all(region.peers[2].dir().join(folder)).unwrap();
    }
    region.peers[2].start();
    until("the host has the content again", || {
        region.peers[2].dir().join("content/big/current/big").exists().then_some(())
    });
    region.assert_copy(2, "big", "big", &bytes);
}

#[test]
fn bad_sources_are_refused_by_name() {
    let region = Region::start(SHOAL, 1, 1);
    let at = region.folder.path();
    let push = |path: &std::path::Path| {
        let path = path.to_str().unwrap();
        region.cli(&["push", path, "--name", "n", "--version", "1", "--to", "all", "--wait"])
    };
    let source = at.join("escaping");
    fs::create_dir(&source).unwrap();
    symlink("/etc/passwd", source.join("bad-link")).unwrap();
    let output = push(&source);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("bad-link") && text.contains("leads out"), "{text}");

    let missing = push(&at.join("missing"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("missing"));

    let file = at.join("changing");
    fs::write(&file, noise(64 << 20, 4)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::OpenOptions::new().append(true).open(&file).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.write_all(b"more").unwrap();
            }
        });
        let output = push(&file);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("changed while it was read"), "{text}");
    });
    let wrong = region.cli(&["push", file.to_str().unwrap(), "--name", "../up", "--version", "1", "--to", "all"]);
    assert_eq!(wrong.status.code(), Some(1));
    let wrong = region.cli(&["push", file.to_str().unwrap(), "--name", "n", "--version", "1", "--to", "rack"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("selector"));
}

#[test]
fn a_full_host_reports_it_and_the_others_finish() {
    let small = |number: usize| if number == 1 { vec!["node.quota=1 MiB".to_string()] } else { Vec::new() };
    let region = Setup::new(SHOAL, 1, 3).peers(small).start();
    let file = region.folder.path().join("file");
    let bytes = noise(8 << 20, 5);
    fs::write(&file, &bytes).unwrap();
    let output =
        region.cli(&["push", file.to_str().unwrap(), "--name", "n", "--version", "1", "--to", "all", "--wait"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("no-space") && text.contains("host1"), "{text}");
    region.assert_copy(0, "n", "file", &bytes);
    region.assert_copy(2, "n", "file", &bytes);
}

#[test]
fn a_node_of_another_cluster_stays_out() {
    let mut region = Region::start(SHOAL, 1, 2);
    let (other, stolen) = (region.folder.path().join("other"), region.folder.path().join("stolen"));
    let (other, stolen) = (other.to_str().unwrap(), stolen.to_str().unwrap());
    SHOAL.ok(&["cluster", "init", "--dir", other]);
    SHOAL.ok(&[
        "cluster",
        "issue",
        "--dir",
        other,
        "--role",
        "peer",
        "--locality",
        "t/site/rack0/host1",
        "--out",
        stolen,
    ]);
    // The second peer comes back with a key and a credential of another cluster, and with our trust document.
    region.peers[1].kill();
    for file in ["node.key", "node.cred"] {
        fs::copy(format!("{stolen}/{file}"), region.peers[1].dir().join(file)).unwrap();
    }
    let mut command = SHOAL.command();
    let dir = region.peers[1].dir();
    for (key, file) in [("trust", "trust"), ("key", "node.key"), ("credential", "node.cred")] {
        command.arg("--set").arg(format!("node.{key}='{}'", dir.join(file).display()));
    }
    let mut refused = SHOAL.command();
    refused.arg("peer").args(command.get_args()).args(["--set", "node.trackers=['127.0.0.1:1']"]);
    let output = refused.output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("node.cred"), "{text}");
}

/// A connection from another address of this machine.
fn from_elsewhere(to: &str) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.bind(&"127.0.0.2:0".parse::<SocketAddr>().ok()?.into()).ok()?;
    socket.connect(&to.parse::<SocketAddr>().ok()?.into()).ok()?;
    Some(socket.into())
}

#[test]
fn a_crowd_of_idle_strangers_blocks_no_host() {
    let mut region = Region::start(SHOAL, 1, 1);
    let control = region.tracker.addrs["control"][0].as_str().unwrap().to_string();
    let mut crowd: Vec<TcpStream> = (0..300).filter_map(|_| from_elsewhere(&control)).collect();
    for _ in 0..300 {
        let Some(mut stream) = from_elsewhere(region.hub.http()) else { continue };
        let _ = stream.write_all(b"POST /v1/reports HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nx");
        crowd.push(stream);
    }
    assert!(crowd.len() > 400, "too few connections were made");
    let (status, _) = get(region.hub.http(), "/healthz", None).unwrap();
    assert_eq!(status, 200);
    region.peers[0].kill();
    region.peers[0].start();
    let file = region.folder.path().join("file");
    fs::write(&file, noise(100_000, 9)).unwrap();
    let job = region.push(&file, "n", "1");
    region.wait_active(&job, 1);
    until("the hub has the reports", || region.hub_active(&job).filter(|active| *active == 1));
    drop(crowd);
}

#[test]
fn garbage_on_any_port_disturbs_no_host() {
    let region = Region::start(SHOAL, 1, 2);
    let mut ports: Vec<String> = vec![region.hub.http().into(), region.tracker.http().into()];
    ports.extend([region.seeder.http().into(), region.peers[0].http().into()]);
    let listed = |value: &Value| value[0].as_str().unwrap().to_string();
    ports.push(listed(&region.tracker.addrs["control"]));
    ports.push(listed(&region.seeder.addrs["bulk"]));
    ports.push(listed(&region.peers[0].addrs["bulk"]));
    let mut silent = Vec::new();
    for port in &ports {
        for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &noise(10_000, 1), b"\x16\x03\x01\xff\xff", b""] {
            let mut stream = TcpStream::connect(port).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let _ = stream.write_all(garbage);
            let _ = stream.read(&mut [0u8; 1024]);
            silent.push(stream);
        }
    }
    for process in [&region.hub, &region.tracker, &region.seeder, &region.peers[0]] {
        let (status, body) = get(process.http(), "/healthz", None).unwrap();
        assert_eq!(status, 200, "{}: {body}", process.name);
    }
    let (status, _) = get(region.seeder.http(), "/v1/jobs", None).unwrap();
    assert_eq!(status, 401, "the seeder's API needs the token");
    let file = region.folder.path().join("file");
    fs::write(&file, noise(100_000, 9)).unwrap();
    let job = region.push(&file, "n", "1");
    region.wait_active(&job, 2);
}
