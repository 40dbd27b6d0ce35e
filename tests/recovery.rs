//! Recovery of the control side: backups, restores, other machines under the same names.

use serde_json::Value;
use shoal_testkit::Program;
use shoal_testkit::process::Launcher;
use shoal_testkit::settings::{files, issue, node};
use shoal_testkit::{Process, Region, Setup, noise, own_loopback, until};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

const SHOAL: Program = shoal_testkit::program!();

/// A command that runs a program in its own mount namespace, where `file` replaces the system's `hosts` file. `None`
/// where mount namespaces are not allowed.
fn with_hosts_file(file: &Path) -> Option<Vec<String>> {
    let uid = Command::new("id").arg("-u").output().ok()?;
    let flags = if uid.stdout == b"0\n" { "-m" } else { "-rm" };
    let script = format!("mount --bind '{}' /etc/hosts && exec \"$@\"", file.display());
    let wrap: Vec<String> = ["unshare", flags, "sh", "-c", &script, "sh"].map(str::to_string).to_vec();
    let works = Command::new(&wrap[0]).args(&wrap[1..]).arg("true").status();
    works.is_ok_and(|status| status.success()).then_some(wrap)
}

/// A role's settings as arguments.
fn set(pairs: &[String]) -> Vec<&str> {
    pairs.iter().flat_map(|pair| ["--set", pair.as_str()]).collect()
}

fn received(region: &Region) -> u64 {
    let tiers = ["rack", "site", "region", "seeder", "local"];
    region.peers.iter().map(|peer| peer.received(&tiers)).sum()
}

#[test]
#[allow(clippy::print_stderr, reason = "the test says that it skips itself")]
fn a_region_moves_to_other_machines_under_the_same_names() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let point = |addr: Ipv4Addr| {
        // Written in place, because the processes have mounted this inode.
        fs::write(&hosts, format!("127.0.0.1 localhost\n{addr} tracker.shoal.test hub.shoal.test\n")).unwrap();
    };
    // The names lead to an address before the region starts on it.
    let setup = Setup::new(SHOAL, 1, 2);
    let (first, second) = (setup.addr(), own_loopback());
    point(first);
    let Some(wrap) = with_hosts_file(&hosts) else {
        eprintln!("skipped: mount namespaces are not allowed here");
        return;
    };
    let launcher = Launcher::new(SHOAL, &wrap);
    let port = |addr: &str| addr.rsplit_once(':').unwrap().1.to_string();
    let named = |role: &str, addr: &str| format!("{role}.shoal.test:{}", port(addr));
    let mut region = setup.wrapped_in(&wrap).named(named).start();
    let at = region.folder.path().to_path_buf();
    let file = at.join("content");
    fs::write(&file, noise(3_000_000, 5)).unwrap();
    let job = region.push(&file, "edge", "1");
    region.wait_active(&job, 2);
    until("the hub has the reports", || (region.hub_active(&job)? == 2).then_some(()));
    let mut publisher = region.publisher();
    publisher.publish("gslb/main", b"before").unwrap();

    // Backups of all three roles while they run.
    let state = |name: &str| format!("dir='{}'", at.join(name).join("state").display());
    let token = format!("admin_token='{}'", at.join("cluster/admin.token").display());
    let settings = |role: &str, name: &str, cluster: &str| -> Vec<String> {
        let key = format!("publisher_key='{}'", at.join(cluster).join("publisher.key").display());
        match role {
            "hub" | "tracker" => [files(&at, name, ""), vec![state(name)]].concat(),
            _ => [node(&at, second, name, "tracker.shoal.test:1"), vec![key, token.clone()]].concat(),
        }
    };
    for role in ["hub", "tracker", "seeder"] {
        let (out, settings) = (at.join(format!("{role}.backup")), settings(role, role, "cluster"));
        let mut args = vec!["backup", "--role", role, "--out", out.to_str().unwrap(), "--secrets", "--json"];
        args.extend(set(&settings));
        if role == "seeder" {
            args.push("--contents");
        }
        let report: Value = serde_json::from_str(&SHOAL.ok(&args)).unwrap();
        assert_eq!((&report["role"], &report["running"]), (&role.into(), &true.into()));
    }
    // After the backups a version is published and a host joins.
    let after = publisher.publish("gslb/main", b"after").unwrap();
    issue(SHOAL, &at, "late", "peer", "t/site/rack0/late");
    let tracker = named("tracker", region.tracker.addrs["control"][0].as_str().unwrap());
    let mut late = node(&at, first, "late", &tracker);
    late.push("mirror.listen=''".into());
    late.push(format!("content_dir='{}'", at.join("late/content").display()));
    let mut late = Process::new(&at, "late", "peer", late, &launcher);
    late.start();
    region.peers.push(late);
    region.wait_up(3);
    let shown =
        |region: &Region, peer: usize| fs::read(region.peers[peer].dir().join("content/feeds/gslb/main/current"));
    until("the late host has everything", || {
        let has = fs::metadata(region.peers[2].dir().join("content/edge/current/content")).is_ok();
        (has && shown(&region, 2).ok()? == b"after").then_some(())
    });
    let before = received(&region);

    // The whole control side is lost, and restored on another address.
    let (hub, control) =
        (region.hub.http().to_string(), region.tracker.addrs["control"][0].as_str().unwrap().to_string());
    region.hub.kill();
    region.tracker.kill();
    region.seeder.kill();
    for role in ["hub", "tracker", "seeder"] {
        let (name, from) = (format!("{role}2"), at.join(format!("{role}.backup")));
        let settings = settings(role, &name, &name);
        let settings: Vec<String> = settings.into_iter().filter(|pair| !pair.starts_with("admin_token")).collect();
        let mut args = vec!["restore", "--role", role, "--from", from.to_str().unwrap(), "--secrets", "--json"];
        args.extend(set(&settings));
        let token = format!("admin_token='{}'", at.join(&name).join("admin.token").display());
        if role == "seeder" {
            args.extend(["--set", &token]);
        }
        SHOAL.ok(&args);
        // A restore does not overwrite an existing state.
        let again = SHOAL.run(&args);
        assert!(!again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    }
    point(second);
    let elsewhere = |addr: &str| format!("{second}:{}", port(addr));
    let mut set = settings("hub", "hub2", "");
    set.extend([format!("http={}", elsewhere(&hub)), "http_access.names=['hub.shoal.test']".into()]);
    region.hub = Process::new(&at, "hub2", "hub", set, &launcher);
    region.hub.start();
    let mut set = settings("tracker", "tracker2", "");
    set.extend([format!("listen=['{}']", elsewhere(&control)), format!("http={second}:0")]);
    set.extend([format!("hub=http://{}", named("hub", &hub)), "beat=300ms".into(), "flush=200ms".into()]);
    region.tracker = Process::new(&at, "tracker2", "tracker", set, &launcher);
    region.tracker.start();
    let mut set = node(&at, second, "seeder2", &named("tracker", &control));
    set.push(format!("publisher_key='{}'", at.join("seeder2/publisher.key").display()));
    set.push(format!("admin_token='{}'", at.join("seeder2/admin.token").display()));
    set.push(format!("push_roots=['{}']", std::env::temp_dir().display()));
    region.seeder = Process::new(&at, "seeder2", "seeder", set, &launcher);
    region.seeder.start();

    // The untouched hosts reconnect and fetch no payload.
    region.wait_up(3);
    let status = region.status(&job);
    assert_eq!((&status["phase"], &status["name"]), (&"done".into(), &"edge".into()));
    until("the hub still has the reports", || (region.hub_active(&job)? >= 2).then_some(()));
    // The restored seeder learns the newest version from a host and announces it once more. That is all.
    let since = received(&region) - before;
    assert!(since <= 3 * 3 * "after".len() as u64, "{since} bytes were fetched again");
    for peer in 0..3 {
        assert_eq!(shown(&region, peer).unwrap(), b"after");
    }
    // Afterwards newer versions count as newer, and pushes reach all hosts.
    let mut publisher = region.publisher();
    let sequence = until("the seeder publishes", || publisher.publish("gslb/main", b"moved"));
    assert!(sequence > after, "{sequence} follows {after}");
    for peer in 0..3 {
        until("a host has the version of the new seeder", || (shown(&region, peer).ok()? == b"moved").then_some(()));
    }
    fs::write(&file, noise(500_000, 6)).unwrap();
    let job = region.push(&file, "edge", "2");
    region.wait_active(&job, 3);
    until("the new hub has the reports", || (region.hub_active(&job)? == 3).then_some(()));
}

#[test]
fn a_stopped_role_is_backed_up_from_its_folder() {
    let mut region = Region::start(SHOAL, 1, 1);
    let at = region.folder.path().to_path_buf();
    let dir = format!("dir='{}'", at.join("hub/state").display());
    let out = at.join("hub.backup");
    region.hub.kill();
    let args = ["backup", "--role", "hub", "--set", &dir, "--out", out.to_str().unwrap(), "--json"];
    let report: Value = serde_json::from_str(&SHOAL.ok(&args)).unwrap();
    assert_eq!(report["running"], false);
    // A changed backup and a backup of another role are refused, and neither leaves files.
    let into = at.join("elsewhere");
    let place = format!("dir='{}'", into.display());
    let restore =
        |role: &str| SHOAL.run(&["restore", "--role", role, "--set", &place, "--from", out.to_str().unwrap()]);
    assert!(!restore("tracker").status.success());
    let mut bytes = fs::read(&out).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&out, &bytes).unwrap();
    assert!(!restore("hub").status.success());
    assert!(!into.exists());
    bytes[middle] ^= 1;
    fs::write(&out, &bytes).unwrap();
    assert!(restore("hub").status.success());
    // The backup was made without secrets, so a restore with secrets fails.
    let asked = SHOAL.run(&[
        "restore",
        "--role",
        "hub",
        "--set",
        &place,
        "--from",
        out.to_str().unwrap(),
        "--force",
        "--secrets",
    ]);
    assert!(!asked.status.success());
    assert!(!SHOAL.run(&["backup", "--role", "peer", "--out", "x"]).status.success());
}
