//! Why a rollout failed stays, and no other operation fights a rollout.

use crate::{SHOAL, current, directory, ends_with};
use serde_json::Value;
use shoal_testkit::http::get;
use shoal_testkit::{Region, Setup, noise, until};
use std::path::Path;
use std::process::Output;

const NAME: &str = "edge/web";

fn rollout(region: &Region, version: &str, path: Option<&Path>, more: &[&str]) -> Output {
    let what = format!("{NAME}@{version}");
    let mut args = vec!["rollout", what.as_str()];
    args.extend(path.map(|path| path.to_str().unwrap()));
    args.extend(["--to", "all", "--batch", "100%", "--per-rack", "9"]);
    args.extend(more);
    if !more.contains(&"--soak") {
        args.extend(["--soak", "300ms"]);
    }
    region.cli(&args)
}

fn view(region: &Region) -> Value {
    region.cli_json(&["rollout", "status", NAME, "--json"]).expect("the rollout is known")
}

/// Waits until the newest rollout of the name is in a phase.
fn wait_phase(region: &Region, phase: &str) -> Value {
    until(&format!("the rollout is {phase}"), || Some(view(region)).filter(|view| view["phase"] == phase))
}

fn push(region: &Region, path: &Path, version: &str, more: &[&str]) -> Output {
    let args = ["push", path.to_str().unwrap(), "--name", NAME, "--version", version, "--kind", "config"];
    region.cli(&[&args[..], &["--to", "all"], more].concat())
}

#[test]
fn why_a_rollout_went_back_stays() {
    const WORDS: &str = "config line 17: unknown directive";
    let check = format!("grep -q good $SHOAL_PATH/f || {{ echo {WORDS}; exit 3; }}");
    let settings = format!("activation={{ '{NAME}' = {{ check = ['sh', '-c', '{check}'] }} }}");
    let weak = |number: usize| if number == 4 { vec![settings.clone()] } else { Vec::new() };
    let mut region = Setup::new(SHOAL, 2, 3).peers(weak).start();
    let good = directory(&region, "good", b"good");
    ends_with(0, &rollout(&region, "1", Some(&good), &["--wait"]));
    let bad = directory(&region, "bad", b"bad");
    let printed = ends_with(3, &rollout(&region, "2", Some(&bad), &["--wait"]));
    assert!(printed.contains(WORDS) && printed.contains("rack1/host1"), "{printed}");

    let check = |region: &Region| {
        let view = view(region);
        assert_eq!(view["phase"], "rolled-back", "{view:#}");
        let failures = view["failures"].as_array().unwrap();
        assert_eq!(failures.len(), 1, "{view:#}");
        let failure = &failures[0];
        assert_eq!((&failure["host"], &failure["attempt"]), (&"t/site/rack1/host1".into(), &1.into()));
        assert_eq!(failure["reason"], "activation");
        assert!(failure["detail"].as_str().unwrap().contains(WORDS), "{failure:#}");
        assert!(view["why"].as_str().unwrap().contains(WORDS), "{view:#}");
        let tally = &view["tally"];
        assert_eq!((&tally["failed"], &tally["rolled_back"]), (&1.into(), &5.into()), "{view:#}");
        view["id"].as_str().unwrap().to_string()
    };
    let id = check(&region);
    let status = until("every host has reported that it went back", || {
        Some(region.status(&id)).filter(|status| Region::total(status, "rolled_back") == 6)
    });
    assert_eq!(Region::total(&status, "failed"), 0, "{status:#}");
    assert_eq!(status["failures"][0]["host"], "t/site/rack1/host1");
    let shown = ends_with(3, &region.cli(&["status", &id]));
    assert!(shown.contains(WORDS) && shown.contains("1 failed, 5 rolled back"), "{shown}");
    let history = region.cli_json(&["rollout", "history", NAME, "--json"]).unwrap();
    assert!(history.to_string().contains(WORDS), "{history:#}");
    let token = std::fs::read_to_string(region.folder.path().join("cluster/admin.token")).unwrap();
    until("the hub counts no failure", || {
        let (_, body) = get(region.hub.http(), &format!("/v1/jobs/{id}"), Some(token.trim()))?;
        let body: Value = serde_json::from_str(&body).ok()?;
        (body[0]["rolled_back"] == 6 && body[0]["failed"] == 0).then_some(())
    });
    region.seeder.restart();
    until("the seeder is back", || region.cli_json(&["rollout", "status", NAME, "--json"]));
    assert_eq!(check(&region), id);
    // The culprit itself says why, too.
    let line = status["lines"].as_array().unwrap().iter().find(|line| line["host"] == "t/site/rack1/host1").unwrap();
    assert!(line["state"] == "rolled-back" && line["detail"].as_str().unwrap().contains("line 17"), "{line:#}");
}

#[test]
fn a_failed_push_and_a_slow_switch_are_named_too() {
    let slow = format!("activation={{ '{NAME}' = {{ post_start = ['sleep', '20'] }} }}");
    let settings = |number: usize| match number {
        0 => vec!["node.quota=1 MiB".to_string()],
        1 => vec![slow.clone()],
        _ => Vec::new(),
    };
    let region = Setup::new(SHOAL, 1, 3).peers(settings).start();
    let large = directory(&region, "large", &noise(4_000_000, 1));
    let more = ["--max-failures", "3", "--switch-timeout", "2s", "--wait"];
    ends_with(3, &rollout(&region, "1", Some(&large), &more));
    let view = view(&region);
    let reason = |host: &str| {
        let failures = view["failures"].as_array().unwrap();
        let failure = failures.iter().find(|failure| failure["host"].as_str().unwrap().ends_with(host));
        failure.unwrap_or_else(|| panic!("no failure of {host}: {view:#}"))["reason"].as_str().unwrap().to_string()
    };
    assert_eq!((reason("host0"), reason("host1")), ("no-space".to_string(), "timeout".to_string()));
}

#[test]
fn a_promotion_and_a_rollout_of_one_name_do_not_fight() {
    let region = Region::start(SHOAL, 1, 2);
    let (one, two) = (directory(&region, "1", &noise(200_000, 1)), directory(&region, "2", &noise(200_000, 2)));
    ends_with(0, &rollout(&region, "1", Some(&one), &["--wait"]));
    ends_with(0, &rollout(&region, "2", Some(&two), &["--soak", "1h"]));
    wait_phase(&region, "soaking");
    let old = format!("{NAME}@1");
    let refused = ends_with(1, &region.cli(&["promote", &old, "--wait"]));
    let id = view(&region)["id"].as_str().unwrap().to_string();
    assert!(refused.contains(&id) && refused.contains("to version 2 is not over"), "{refused}");
    assert!(refused.contains("shoal rollout cancel"), "{refused}");
    assert!((0..2).all(|peer| current(&region, peer, NAME).as_deref() == Some("2")), "a refused promotion switched");

    // A rollout that has ended no longer brings hosts to its version.
    ends_with(0, &region.cli(&["rollout", "promote", NAME]));
    wait_phase(&region, "done");
    ends_with(0, &region.cli(&["promote", &old, "--wait"]));
    let all_on = |version: &str| (0..2).all(|peer| current(&region, peer, NAME).as_deref() == Some(version));
    assert!(all_on("1"));
    let refused = ends_with(1, &region.cli(&["rollout", "rollback", NAME]));
    assert!(refused.contains("has replaced"), "{refused}");
    until("the desired version is the promoted one", || {
        let rows = region.cli_json(&["versions", NAME, "--json"])?;
        rows.as_array()?.iter().all(|row| row["desired"] == "1" && row["actual"] == "1").then_some(())
    });
    assert!(all_on("1"), "the finished rollout fought the promotion");
    ends_with(0, &rollout(&region, "2", None, &["--wait"]));
    assert!(all_on("2"));
}

#[test]
fn a_rollout_to_an_older_version_waits_for_a_newer_push() {
    let region = Setup::new(SHOAL, 1, 2).seeder(&["node.limits.uplink_out=200 kB/s"]).start();
    let old = directory(&region, "old", b"old");
    ends_with(0, &push(&region, &old, "1", &["--stage", "--wait"]));
    let new = directory(&region, "new", &noise(20_000_000, 1));
    ends_with(0, &push(&region, &new, "2", &[]));
    let refused = ends_with(1, &rollout(&region, "1", None, &[]));
    assert!(refused.contains("the push of edge/web@2 is under way as job"), "{refused}");
    assert!(refused.contains("shoal status") && refused.contains("name a path"), "{refused}");
    // A newer version is a way out.
    let newest = directory(&region, "newest", b"newest");
    ends_with(0, &rollout(&region, "3", Some(&newest), &["--wait"]));
    assert!((0..2).all(|peer| current(&region, peer, NAME).as_deref() == Some("3")));
}

#[test]
fn a_push_that_a_rollout_replaced_comes_back_on_no_host() {
    let mut region = Region::start(SHOAL, 1, 2);
    let (one, two) = (directory(&region, "1", &noise(200_000, 1)), directory(&region, "2", &noise(200_000, 2)));
    ends_with(0, &push(&region, &one, "1", &["--wait"]));
    region.peers[1].kill();
    region.wait_up(1);
    let pushed = region.cli_json(&[
        "push",
        two.to_str().unwrap(),
        "--name",
        NAME,
        "--version",
        "2",
        "--kind",
        "config",
        "--to",
        "all",
        "--json",
    ]);
    let job = pushed.unwrap()["job"].as_str().unwrap().to_string();
    until("the push has ended", || (region.status(&job)["phase"] == "done").then_some(()));
    assert_eq!(current(&region, 0, NAME).as_deref(), Some("2"));
    // Back to the older version, while one host is away. That host missed the push, too.
    ends_with(4, &rollout(&region, "1", None, &["--wait"]));
    region.peers[0].restart();
    region.peers[1].start();
    region.wait_up(2);
    until("both hosts have reported on the push", || {
        let status = region.status(&job);
        (Region::total(&status, "active") + Region::total(&status, "failed") == 2).then_some(())
    });
    until("the rollout counts both hosts", || (view(&region)["tally"]["active"] == 2).then_some(()));
    region.wait_active(&region.push(&two, "edge/other", "1"), 2);
    for peer in 0..2 {
        assert_eq!(current(&region, peer, NAME).as_deref(), Some("1"), "host {peer}");
    }
}
