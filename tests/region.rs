//! Pushes of real contents through racks of real processes, with checks of every copy and of the reports.

use serde_json::Value;
use shoal_testkit::Program;
use shoal_testkit::{Process, Region, noise, until};
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const SHOAL: Program = shoal_testkit::program!();

/// A directory with unusual names, modes and links, and 20 MB of noise.
fn awkward(dir: &Path) {
    fs::create_dir_all(dir.join("deep/er/still")).unwrap();
    fs::create_dir(dir.join("empty directory")).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::write(dir.join("one"), b"1").unwrap();
    fs::write(dir.join("deep/er/still/with space"), b"x".repeat(10_000)).unwrap();
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"not\xff\xfeutf8")), b"bytes").unwrap();
    for number in 0..20 {
        fs::write(dir.join(format!("bulk{number}")), noise(1_000_000, number)).unwrap();
    }
    fs::set_permissions(dir.join("one"), Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(dir.join("empty"), Permissions::from_mode(0o000)).unwrap();
    symlink("deep/er", dir.join("link")).unwrap();
    symlink("../../one", dir.join("deep/er/up")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    fs::set_permissions(dir.join("deep/er"), Permissions::from_mode(0o555)).unwrap();
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn demo(args: &[&str]) -> Value {
    let mut all = vec!["demo", "--json"];
    all.extend(args);
    serde_json::from_str(&SHOAL.ok(&all)).unwrap()
}

#[test]
fn a_directory_reaches_every_host_and_a_new_version_moves_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    awkward(&first);
    awkward(&second);
    // One per cent of the bytes changes, in ten files.
    for file in 0..10 {
        let file = fs::OpenOptions::new().write(true).open(second.join(format!("bulk{file}"))).unwrap();
        file.write_all_at(&noise(20_000, 99), 300_000).unwrap();
    }
    let summary = demo(&[first.to_str().unwrap(), "--then", second.to_str().unwrap(), "--racks", "2", "--hosts", "4"]);
    for (push, most) in [(&summary, 1.03), (&summary["then"], 0.10)] {
        assert_eq!(push["hosts"], 8);
        assert_eq!(push["complete"], 8);
        assert_eq!(push["verified"], 8);
        for (rack, ratio) in push["rack_import_ratio"].as_object().unwrap() {
            assert!(number(ratio) <= most, "{rack} imported {ratio}");
        }
        assert!(number(&push["hub_messages"]) <= 6.0, "{}", push["hub_messages"]);
        assert!(number(&push["hub_bytes_in"]) <= 16.0 * 1024.0);
    }
    assert!(number(&summary["seeder_egress_ratio"]) <= 1.05);
}

#[test]
fn tiny_and_empty_contents_arrive() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty"), b"").unwrap();
    fs::write(dir.path().join("one"), b"1").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let summary = demo(&[&path("empty"), "--then", &path("one"), "--racks", "2", "--hosts", "2"]);
    assert_eq!((&summary["verified"], &summary["then"]["verified"]), (&4.into(), &4.into()));
    let summary = demo(&[&path("folder"), "--racks", "1", "--hosts", "1"]);
    assert_eq!(summary["verified"], 1);
}

#[test]
fn a_hundred_thousand_small_files_arrive() {
    let dir = tempfile::tempdir().unwrap();
    for folder in 0..100 {
        let at = dir.path().join(format!("{folder}"));
        fs::create_dir(&at).unwrap();
        for file in 0..1000 {
            fs::write(at.join(format!("{file}")), format!("{folder} {file}")).unwrap();
        }
    }
    let summary = demo(&[dir.path().to_str().unwrap(), "--racks", "1", "--hosts", "2"]);
    assert_eq!(summary["verified"], 2);
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = SHOAL.command();
    demo.args(["demo", "--racks", "1", "--hosts", "2", "--dir"]).arg(dir.path());
    let mut child = demo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let folder = dir.path().join(format!("shoal-demo-{}", child.id()));
    until("a peer runs", || folder.join("rack1-host1/ready").exists().then_some(()));
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let status = until("the demo ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    assert!(!folder.exists());
    until("the processes of the demo end", || {
        let mut others = fs::read_dir("/proc").unwrap().flatten();
        let left = others.any(|process| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&folder.display().to_string())
        });
        (!left).then_some(())
    });
}

#[test]
fn commands_show_jobs_contents_and_hosts() {
    let region = Region::start(SHOAL, 2, 2);
    let file = region.folder.path().join("settings");
    fs::write(&file, noise(300_000, 1)).unwrap();
    let args = ["push", file.to_str().unwrap(), "--name", "edge/settings", "--version", "7", "--kind", "config"];
    let output = region.cli(&[&args[..], &["--to", "rack=rack1", "--to", "host=host0,rack=rack0", "--wait"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("3 of 3 hosts active"), "{text}");
    assert!(!region.peers[1].dir().join("content/edge").exists(), "a host outside the selector received the content");
    region.assert_copy(3, "edge/settings", "settings", &noise(300_000, 1));

    let jobs = region.cli_json(&["status", "--json"]).unwrap();
    assert_eq!(jobs[0]["name"], "edge/settings");
    assert_eq!(jobs[0]["phase"], "done");
    let contents = region.cli_json(&["ls", "--json"]).unwrap();
    assert_eq!(contents[0]["size"], 300_000);
    let hosts = region.cli_json(&["hosts", "--json"]).unwrap();
    assert_eq!(hosts.as_array().unwrap().len(), 5, "four peers and the seeder");
    for command in [&["status"][..], &["ls"], &["hosts"]] {
        let output = region.cli(command);
        assert!(output.status.success() && !output.stdout.is_empty(), "{command:?}");
    }
}

#[test]
fn roles_stop_in_time_and_continue_after_a_restart() {
    let mut region = Region::start(SHOAL, 1, 2);
    let file = region.folder.path().join("file");
    fs::write(&file, noise(2_000_000, 5)).unwrap();
    let job = region.push(&file, "thing", "1");
    region.wait_active(&job, 2);
    let stop = |process: &mut Process| {
        let (took, status) = process.terminate();
        assert!(status.success(), "{}: {status}\n{}", process.name, process.log());
        assert!(took < Duration::from_secs(10), "{} took {took:?}", process.name);
        process.start();
    };
    stop(&mut region.hub);
    stop(&mut region.tracker);
    stop(&mut region.seeder);
    region.peers.iter_mut().for_each(stop);
    region.wait_up(2);
    assert_eq!(region.hub_active(&job), Some(2));
    assert_eq!(region.status(&job)["phase"], "done");
    fs::write(&file, noise(2_000_000, 6)).unwrap();
    let job = region.push(&file, "thing", "2");
    region.wait_active(&job, 2);
    region.assert_copy(1, "thing", "file", &noise(2_000_000, 6));
    let old = region.peers[0].dir().join("content/thing/1/file");
    assert_eq!(fs::read(old).unwrap(), noise(2_000_000, 5), "the previous version changed");
}

#[test]
fn configurations_are_checked_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("peer.toml");
    fs::write(&file, "keep_versions = 3\n[node]\ntrackers = ['tracker.example:7710']\nquota = '10 GiB'\n").unwrap();
    let file = file.to_str().unwrap();
    assert!(SHOAL.ok(&["config", "check", "--role", "peer", "--values-only", file]).contains("valid"));
    assert!(SHOAL.ok(&["config", "show", "--role", "peer", file]).contains("quota = \"10 GiB\""));
    let wrong = SHOAL.run(&["config", "check", "--role", "peer", file, "--set", "keep_version=1"]);
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("keep_version"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(SHOAL.ok(&["completions", shell]).contains("shoal"));
    }
}
