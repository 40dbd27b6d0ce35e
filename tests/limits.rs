//! Rate limits with real processes: a push is not faster than its limit, and a changed limit applies at once.

use serde_json::Value;
use shoal_testkit::Program;
use shoal_testkit::http::get;
use shoal_testkit::region::ADMIN_TOKEN;
use shoal_testkit::{Region, Setup, noise, until};
use std::fs;
use std::time::Instant;

const SHOAL: Program = shoal_testkit::program!();

fn set(region: &Region, node: &str, args: &[&str]) -> std::process::Output {
    let token = region.folder.path().join("cluster/admin.token");
    let url = format!("http://{node}");
    let mut all = vec!["limits", "set", "--node", &url, "--token-file", token.to_str().unwrap(), "--json"];
    all.extend(args);
    SHOAL.run(&all)
}

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("the output is not JSON: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_limited_seeder_keeps_to_its_rate_and_a_change_applies_at_once() {
    const SIZE: u64 = 6 << 20;
    const RATE: u64 = 2_000_000;
    let region = Setup::new(SHOAL, 1, 2).seeder(&["node.limits.uplink_out=2 MB/s"]).start();
    let file = region.folder.path().join("file");
    fs::write(&file, noise(SIZE as usize, 1)).unwrap();
    let began = Instant::now();
    let job = region.push(&file, "file", "1");
    region.wait_active(&job, 2);
    let took = began.elapsed().as_secs_f64();
    assert!(took >= 0.9 * SIZE as f64 / RATE as f64, "{SIZE} bytes in {took} s at {RATE} bytes/s");
    (0..2).for_each(|peer| region.assert_copy(peer, "file", "file", &noise(SIZE as usize, 1)));

    // First so slow that the push would take minutes, then without a limit.
    let slow = set(&region, region.seeder.http(), &["--uplink-out", "200 kB/s"]);
    assert_eq!(json(&slow)["effective"]["uplink_out"], "1600 kbit/s", "{}", String::from_utf8_lossy(&slow.stderr));
    let big = region.folder.path().join("big");
    fs::write(&big, noise(64 << 20, 2)).unwrap();
    let job = region.push(&big, "big", "1");
    region.wait_progress(&job, 1);
    // A small urgent push overtakes the slow one.
    let urgent = region.folder.path().join("urgent");
    fs::write(&urgent, noise(150_000, 3)).unwrap();
    let args =
        ["push", urgent.to_str().unwrap(), "--name", "gslb/x", "--version", "1", "--kind", "gslb", "--to", "all"];
    let pushed = region.cli_json(&[&args[..], &["--json"]].concat()).unwrap();
    region.wait_active(pushed["job"].as_str().unwrap(), 2);
    assert_eq!(region.status(&job)["phase"], "distributing", "the limited push has ended too early");
    let free = json(&set(&region, region.seeder.http(), &["--uplink-out", "unlimited"]));
    assert!(free["effective"]["uplink_out"] == "unlimited", "{free:#}");
    region.wait_active(&job, 2);
    let shown = SHOAL.run(&["limits", "show", "--node", &format!("http://{}", region.seeder.http()), "--json"]);
    assert_eq!(json(&shown)["configured"]["uplink_out"], "16 Mbit/s");
    let back = json(&set(&region, region.seeder.http(), &["--reset"]));
    assert_eq!(back["effective"]["uplink_out"], "16 Mbit/s");
}

#[test]
fn a_limited_receiver_slows_its_senders() {
    const SIZE: u64 = 4 << 20;
    const RATE: u64 = 2_000_000;
    let region = Setup::new(SHOAL, 1, 1).peers(|_| {
        vec!["node.limits.window=[{from='00:00', to='12:00', uplink_in='2 MB/s'}, {from='12:00', to='00:00', uplink_in='2 MB/s'}]"
            .to_string()]
    }).start();
    let file = region.folder.path().join("file");
    fs::write(&file, noise(SIZE as usize, 1)).unwrap();
    let began = Instant::now();
    let job = region.push(&file, "file", "1");
    region.wait_active(&job, 1);
    let took = began.elapsed().as_secs_f64();
    // Bytes that fit into socket buffers do not wait.
    assert!(took >= 0.9 * (SIZE - (1 << 18)) as f64 / RATE as f64, "{SIZE} bytes in {took} s at {RATE} bytes/s");
}

#[test]
fn only_the_admin_sets_limits_and_only_valid_ones() {
    let region = Setup::new(SHOAL, 1, 2)
        // The first peer checks the admin token, the second one has none.
        .peers(|number| if number == 0 { vec![format!("admin_token={ADMIN_TOKEN}")] } else { Vec::new() })
        .start();
    let (guarded, open) = (region.peers[0].http(), region.peers[1].http());
    let output = set(&region, guarded, &["--rack-out", "50 Mbit/s", "--uplink-in", "1Gbit"]);
    let view = json(&output);
    assert_eq!((&view["effective"]["rack_out"], &view["set"]["uplink_in"]), (&"50 Mbit/s".into(), &"1 Gbit/s".into()));
    let (status, text) = get(guarded, "/v1/limits", None).unwrap();
    assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()["set"].clone()), (200, view["set"].clone()));
    let slow = set(&region, guarded, &["--rack-out", "1 kB/s"]);
    assert!(!slow.status.success() && String::from_utf8_lossy(&slow.stderr).contains("less than"));
    let nothing = set(&region, guarded, &[]);
    assert!(!nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("--uplink-out"));
    let refused = set(&region, open, &["--rack-out", "50 Mbit/s"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("admin_token"));
    let wrong = region.folder.path().join("wrong.token");
    fs::write(&wrong, "0".repeat(64)).unwrap();
    std::process::Command::new("chmod").args(["600", wrong.to_str().unwrap()]).status().unwrap();
    let url = format!("http://{guarded}");
    let stranger = SHOAL.run(&["limits", "set", "--node", &url, "--token-file", wrong.to_str().unwrap(), "--reset"]);
    assert!(!stranger.status.success());
    until("the limits are unchanged", || {
        let (_, text) = get(guarded, "/v1/limits", None)?;
        (serde_json::from_str::<Value>(&text).ok()?["set"] == view["set"]).then_some(())
    });
}
