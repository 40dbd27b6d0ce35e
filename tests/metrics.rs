//! Metrics of the four roles, against the rules of Prometheus.

use shoal_testkit::{Program, Region, http, noise, until};
use std::io::Write;
use std::process::{Command, Stdio};

const SHOAL: Program = shoal_testkit::program!();

/// Runs `promtool check metrics` on the text of a role. Returns what it complains about.
fn complaints(text: &str) -> String {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed: it comes with Debian's package prometheus");
    // The pipe closes at the end of the statement, which ends promtool's input.
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() || !text.is_empty(), "promtool failed without a complaint");
    text
}

#[test]
fn every_role_follows_the_rules_of_prometheus() {
    let region = Region::start(SHOAL, 1, 2);
    // Metrics with labels appear only after their first use.
    let source = region.folder.path().join("source");
    std::fs::write(&source, noise(300_000, 1)).unwrap();
    region.cli(&["push", source.to_str().unwrap(), "--name", "app/metrics", "--version", "1", "--to", "all", "--wait"]);
    until("the hub has the job", || (region.hub.metric("shoal_hub_reports_total") > 0).then_some(()));
    let roles =
        [("hub", &region.hub), ("tracker", &region.tracker), ("seeder", &region.seeder), ("peer", &region.peers[0])];
    let mut wrong = String::new();
    for (role, process) in roles {
        let (status, text) = http::get(process.http(), "/metrics", None).unwrap();
        assert_eq!(status, 200, "{role}");
        assert!(text.contains("# TYPE process_cpu_seconds_total counter"), "{role}: {text}");
        let complaints = complaints(&text);
        if !complaints.is_empty() {
            wrong.push_str(&format!("{role}:\n{complaints}"));
        }
    }
    assert!(wrong.is_empty(), "promtool check metrics complains:\n{wrong}");
}
