//! `shoal doctor` on hosts of a real region: a healthy host passes, and each fault is found with what to do.

use crate::SHOAL;
use serde_json::Value;
use shoal_net::control::{ControlConfig, ControlEvent, ControlPlane};
use shoal_net::identity::Identity;
use shoal_proto::control::{Request, Response};
use shoal_proto::trust::Keypair;
use shoal_testkit::{Process, Region, until};
use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a doctor printed.
struct Examined {
    code: Option<i32>,
    document: Value,
}

impl Examined {
    fn rows(&self, check: &str, status: &str) -> Vec<&Value> {
        let rows = self.document["checks"].as_array().unwrap().iter();
        rows.filter(|row| row["check"] == check && row["status"] == status).collect()
    }

    /// Checks that a row was found, that it says what to do, and that the exit code fits.
    #[track_caller]
    fn assert_found(&self, check: &str, status: &str, text: &str) {
        let rows = self.rows(check, status);
        let is_found = rows.iter().any(|row| row["found"].as_str().unwrap().contains(text));
        assert!(is_found, "no {status} row of {check} with `{text}` in {:#}", self.document);
        assert!(status == "ok" || rows.iter().all(|row| row["do"].as_str().unwrap().len() > 15), "{rows:?}");
        assert_eq!(self.code, Some(i32::from(self.document["ok"] == false)), "{:#}", self.document);
        assert!(status != "failed" || self.code == Some(1), "{:#}", self.document);
    }
}

/// Runs the doctor with the settings of a process and some more.
fn doctor(process: &Process, role: &str, more: &[&str]) -> Examined {
    read(command(&mut SHOAL.command(), process, role, more))
}

fn command<'c>(command: &'c mut Command, process: &Process, role: &str, more: &[&str]) -> &'c mut Command {
    command.args(["doctor", "--json", "--role", role]);
    for pair in process.settings().iter().map(String::as_str).chain(more.iter().copied()) {
        command.args(["--set", pair]);
    }
    command
}

fn read(command: &mut Command) -> Examined {
    let output = command.output().unwrap();
    let document = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
    Examined { code: output.status.code(), document }
}

#[test]
fn healthy_hosts_of_all_roles_pass() {
    let region = Region::start(SHOAL, 1, 2);
    until("the rack peers remember each other", || {
        region.peers[0].dir().join("state.rack-peers").exists().then_some(())
    });
    let peer = &region.peers[0];
    let bulk = format!("node.listen=['{}']", peer.addrs["bulk"][0].as_str().unwrap());
    let examined = doctor(peer, "peer", &[&bulk]);
    assert_eq!(examined.rows("configuration", "failed"), Vec::<&Value>::new());
    examined.assert_found("role", "ok", "without problems");
    examined.assert_found("port", "ok", "node.listen");
    examined.assert_found("port", "ok", "`http`");
    examined.assert_found("tracker", "ok", "answers");
    examined.assert_found("clock", "ok", "agrees");
    examined.assert_found("rack peers", "ok", "1 of 1");
    examined.assert_found("write", "ok", "reaches the disk");
    examined.assert_found(
        "open files",
        if examined.rows("open files", "ok").is_empty() { "warning" } else { "ok" },
        "role",
    );
    assert_eq!((examined.code, &examined.document["ok"]), (Some(0), &true.into()), "{:#}", examined.document);
    for (process, role) in [(&region.seeder, "seeder"), (&region.tracker, "tracker"), (&region.hub, "hub")] {
        let more: &[&str] = if role == "seeder" { &["node.listen=['127.0.0.1:0']"] } else { &[] };
        let examined = doctor(process, role, more);
        assert_eq!(examined.code, Some(0), "{role}: {:#}", examined.document);
        examined.assert_found("role", "ok", role);
    }
    doctor(&region.tracker, "tracker", &[]).assert_found("hub", "ok", "answers");
    // The doctor joined nothing: the region has the hosts that it had.
    region.wait_up(2);
}

#[test]
fn faults_of_a_host_are_found() {
    let mut region = Region::start(SHOAL, 1, 2);
    let trackers = |addr: &str| format!("node.trackers=['{addr}']");
    // A name that does not resolve. The tracker itself still answers.
    let control = region.tracker.addrs["control"][0].as_str().unwrap().to_string();
    let two = format!("node.trackers=['tracker.shoal.invalid:7710', '{control}']");
    let examined = doctor(&region.peers[0], "peer", &[&two]);
    examined.assert_found("name", "failed", "does not resolve");
    examined.assert_found("tracker", "ok", &control);
    assert!(examined.rows("trackers", "failed").is_empty());

    until("the rack peers remember each other", || {
        region.peers[0].dir().join("state.rack-peers").exists().then_some(())
    });
    // A port that another program holds.
    let held = TcpListener::bind((region.addr, 0)).unwrap();
    let taken = held.local_addr().unwrap();
    region.peers[1].kill();
    let listen = format!("node.listen=['{taken}']");
    doctor(&region.peers[1], "peer", &[&listen]).assert_found("port", "failed", &taken.to_string());
    let foreign = "node.listen=['192.0.2.1:7700']";
    doctor(&region.peers[1], "peer", &[foreign]).assert_found("port", "failed", "192.0.2.1");

    // A rack peer that is away, and a key that others can read.
    doctor(&region.peers[0], "peer", &[]).assert_found("rack peers", "failed", "none of 1");
    let key = region.peers[0].dir().join("node.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    doctor(&region.peers[0], "peer", &[]).assert_found("configuration", "failed", "chmod 600");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

    // A disk without the space that the settings keep free.
    let disk = rustix::fs::statvfs(region.peers[0].dir()).unwrap();
    let all = format!("node.min_free={}", disk.f_blocks * disk.f_frsize);
    doctor(&region.peers[0], "peer", &[&all]).assert_found("disk", "failed", "free");

    // containerd is not there, and nothing leads to the mirror.
    let certs = tempfile::tempdir().unwrap();
    let socket = format!("containerd.socket='{}'", certs.path().join("none.sock").display());
    let mut with_mirror = SHOAL.command();
    command(&mut with_mirror, &region.peers[0], "peer", &[&socket, "mirror.listen='127.0.0.1:0'"]);
    let examined = read(with_mirror.args(["--hosts-dir", certs.path().to_str().unwrap()]));
    examined.assert_found("containerd", "failed", "none.sock");
    examined.assert_found("containerd", "warning", "mirror");

    // The tracker is away.
    region.tracker.kill();
    let examined = doctor(&region.peers[0], "peer", &[&trackers(&control)]);
    examined.assert_found("tracker", "warning", &control);
    examined.assert_found("trackers", "failed", "cannot join");
    region.hub.kill();
    doctor(&region.tracker, "tracker", &[]).assert_found("hub", "failed", region.hub.http());

    let printed = SHOAL.run(&["doctor", "--role", "peer", "/no/such/file"]);
    let text = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.status.code() == Some(1) && text.contains("/no/such/file") && text.contains("FAILED"), "{text}");
}

/// A tracker whose clock differs.
struct FakeTracker {
    addr: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl FakeTracker {
    fn start(ahead_s: i64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let addr = runtime.block_on(async {
            let identity = Identity::new(&Keypair::from_seed([9; 32]));
            let config = ControlConfig::new(identity, vec!["127.0.0.1:0".parse().unwrap()]);
            let (control, mut events) = ControlPlane::start(config).await.unwrap();
            let addr = control.local_addrs()[0];
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    let ControlEvent::Request { request: Request::Clock, reply, .. } = event else { continue };
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                    let unix_ms = (now.as_millis() as i64 + ahead_s * 1000) as u64;
                    reply.send(Response::Clock { unix_ms });
                }
                drop(control);
            });
            addr
        });
        Self { addr, _runtime: runtime }
    }
}

#[test]
fn a_wrong_clock_is_found() {
    let mut region = Region::start(SHOAL, 1, 1);
    region.peers[0].kill();
    let found = |ahead_s: i64, status: &str, text: &str| {
        let tracker = FakeTracker::start(ahead_s);
        let set = format!("node.trackers=['{}']", tracker.addr);
        let examined = doctor(&region.peers[0], "peer", &[&set]);
        examined.assert_found("clock", status, text);
        assert_eq!(examined.code, Some(i32::from(status == "failed")));
    };
    found(3600, "failed", "behind");
    found(-3600, "failed", "ahead of");
    found(10, "warning", "behind");
    found(0, "ok", "agrees");
}

/// A disk that is full, in a mount namespace of the test's own.
#[test]
fn a_full_disk_is_found() {
    if !rustix::process::geteuid().is_root() {
        return; // only root can mount
    }
    let mut region = Region::start(SHOAL, 1, 1);
    region.peers[0].kill();
    let state = region.peers[0].dir().join("state");
    let script =
        "mount -t tmpfs -o size=1m,mode=700 none \"$0\" && head -c 2000000 /dev/zero > \"$0/fill\"; exec \"$@\"";
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--mount", "sh", "-c", script]).arg(&state).arg(SHOAL.path());
    let examined = read(command(&mut wrapped, &region.peers[0], "peer", &[]));
    examined.assert_found("disk", "failed", "free");
    examined.assert_found("write", "failed", "No space left");
    examined.assert_found("configuration", "warning", "in memory");
}
