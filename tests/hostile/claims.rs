//! Hosts that say of themselves what their credentials do not.

use super::SHOAL;
use super::member::Member;
use serde_json::Value;
use shoal_proto::control::Response;
use shoal_testkit::settings::{issue_with, node};
use shoal_testkit::{Region, until};
use std::fs;

/// The row of a host in the region's list.
fn row(region: &Region, host: &str) -> Option<Value> {
    let hosts = region.cli_json(&["hosts", "--json"])?;
    hosts.as_array()?.iter().find(|row| row["host"] == host).cloned()
}

#[test]
fn claims_outside_of_the_credential_are_refused() {
    let region = Region::start(SHOAL, 1, 1);
    let plain = Member::issue(&region, "plain", "t/site/rack0/plain", &[]);
    for addr in ["127.0.0.1:22", "[::1]:22", "169.254.169.254:80", "224.0.0.1:7700", "[fe80::1]:7700", "[ff02::1]:1"] {
        let why = plain.refused(100, &["10.0.0.1:7700", addr]);
        assert!(why.contains(addr) && why.contains("--address"), "{why}");
    }
    // The tracker sees this host at a loopback address, which stands for the unspecified one.
    assert!(plain.refused(100, &["0.0.0.0:7700"]).contains("loopback"));
    assert!(plain.refused(100, &["255.255.255.255:7700"]).contains("leads to no host"));
    assert!(plain.refused(101, &["10.0.0.1:7700"]).contains("--weight-max 101"));

    let wide = Member::issue(&region, "wide", "t/site/rack0/wide", &["--address", "0.0.0.0/0"]);
    assert!(wide.refused(100, &["127.0.0.1:22"]).contains("loopback"));

    let bound = ["--address", "10.1.0.0/16", "--address", "127.0.0.0/8", "--weight-max", "50"];
    let bound = Member::issue(&region, "bound", "t/site/rack0/bound", &bound);
    let why = bound.refused(50, &["127.0.0.1:7700", "10.2.0.1:7700"]);
    assert!(why.contains("10.2.0.1:7700") && why.contains("10.1.0.0/16, 127.0.0.0/8"), "{why}");
    assert!(bound.refused(51, &["10.1.0.1:7700"]).contains("--weight-max 51"));
    for host in ["plain", "wide", "bound"] {
        assert_eq!(row(&region, &format!("t/site/rack0/{host}")), None);
    }

    let joined = bound.join(50, &["10.1.0.1:7700", "127.0.0.1:7700"]);
    assert!(matches!(joined, Response::Joined { .. }), "{joined:?}");
    until("the host is a member", || row(&region, "t/site/rack0/bound"));
    // A later join with false claims does not replace the row.
    assert!(bound.refused(50, &["10.2.0.1:7700"]).contains("10.2.0.1:7700"));
    let addrs = row(&region, "t/site/rack0/bound").unwrap()["addrs"].clone();
    assert_eq!(addrs, serde_json::json!(["10.1.0.1:7700", "127.0.0.1:7700"]));
}

#[test]
fn labels_come_from_the_credential() {
    let region = Region::start(SHOAL, 1, 1);
    let labels = ["--label", "service=cache", "--label", "tier=1", "--address", "10.0.0.0/8"];
    let cache = Member::issue(&region, "cache", "t/site/rack0/cache", &labels);
    assert!(matches!(cache.join(100, &["10.0.0.1:7700"]), Response::Joined { .. }));
    let row = until("the host is a member", || row(&region, "t/site/rack0/cache"));
    assert_eq!(row["labels"], serde_json::json!({ "service": "cache", "tier": "1" }));
    // The host without the label is no target, whatever its configuration says.
    let file = region.folder.path().join("file");
    fs::write(&file, "content").unwrap();
    let args = ["push", file.to_str().unwrap(), "--name", "n", "--version", "1", "--to", "service=cache", "--json"];
    let pushed = region.cli_json(&args).expect("the push is accepted");
    let job = pushed["job"].as_str().unwrap();
    let hosts = until("the job has its hosts", || Some(Region::total(&region.status(job), "hosts")).filter(|n| *n > 0));
    assert_eq!(hosts, 1);
    let mut command = SHOAL.command();
    let output = command.args(["peer", "--set", "node.labels={service='cache'}"]).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.contains("labels"), "{complaint}");
}

#[test]
fn a_host_whose_settings_exceed_its_credential_says_what_to_do() {
    let region = Region::start(SHOAL, 1, 1);
    let at = region.folder.path();
    issue_with(SHOAL, at, "far", "peer", "t/site/rack0/far", &["--address", "10.1.0.0/16"]);
    let control = region.tracker.addrs["control"][0].as_str().unwrap();
    let mut settings = node(at, region.addr, "far", control);
    settings.push("mirror.listen=''".into());
    settings.push(format!("content_dir='{}'", at.join("far/content").display()));
    let run = |more: &[&str]| {
        let mut command = SHOAL.command();
        command.arg("peer");
        settings.iter().map(String::as_str).chain(more.iter().copied()).for_each(|set| {
            command.args(["--set", set]);
        });
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let complaint = run(&[]);
    assert!(complaint.contains("is a loopback address, which the credential does not name"), "{complaint}");
    let complaint = run(&["node.advertise=['10.2.0.1:7700']"]);
    assert!(complaint.contains("--address 10.2.0.1/32") && complaint.contains("node.advertise"), "{complaint}");
    let complaint = run(&["node.advertise=['10.1.0.1:7700']", "node.weight=500"]);
    assert!(complaint.contains("--weight-max 500"), "{complaint}");
}
