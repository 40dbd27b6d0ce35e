//! Prewarmed images: every host unpacks them, and only peers serve them.

use crate::SHOAL;
use crate::lab::{Lab, REGISTRY, line, run_in};
use crate::runtime::{Release, on_each_release};
use serde_json::Value;
use shoal_testkit::http::get;
use shoal_testkit::registry::Registry;
use shoal_testkit::{Region, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

on_each_release!(
    an_image_is_prewarmed_on_every_host_from_peers_alone,
    a_peer_waits_for_a_containerd_that_is_away_or_killed,
    hosts_that_cannot_prewarm_report_the_reason,
    a_pull_outlives_its_mirror,
    staged_images_are_warmed_in_batches
);

/// Size of the image: `SHOAL_TEST_IMAGE_BYTES`, or a size that six hosts on one machine load in seconds.
fn image_bytes() -> usize {
    std::env::var("SHOAL_TEST_IMAGE_BYTES").map_or(24_000_000, |bytes| bytes.parse().expect("a number of bytes"))
}

fn an_image_is_prewarmed_on_every_host_from_peers_alone(release: Release) {
    // The last host of each rack serves no CRI, so the peer loads the image there.
    let mut lab = Lab::start(release, 2, 3, |host| host % 3 != 2, |_| Vec::new());
    let (reference, at, data) = lab.image("v1", image_bytes(), 1);
    let registry = Registry::start(&lab.folder.path().join("registry"));
    registry.copy(&format!("oci:{}", at.display()), "lab/app:v1");
    lab.region.seeder.kill();
    let there = format!("{{ url = 'http://{}', plain_http = true }}", registry.addr);
    lab.region.seeder.configure(&format!("registries={{ '{REGISTRY}' = {there} }}"));
    lab.region.seeder.start();
    lab.region.wait_up(6);
    let output = lab.region.cli(&["prewarm", &reference, "--to", "all", "--wait", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let status: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let job = status["job"].as_str().unwrap().to_string();
    assert_eq!(Region::total(&status, "active"), 6, "{status:#}");
    let gets = registry.blobs_sent();
    assert_eq!(gets.len(), 3, "a configuration and two layers: {gets:?}");
    assert!(gets.values().all(|count| *count == 1), "a blob was pulled more than once: {gets:?}");
    let size = status["size"].as_u64().unwrap();
    for rack in status["racks"].as_array().unwrap() {
        let tiers = &rack["tiers"];
        let imported: u64 = ["site", "region", "seeder"].iter().map(|tier| tiers[*tier].as_u64().unwrap()).sum();
        assert!(imported <= size * 103 / 100, "{rack}: the rack imported {imported} of {size}");
    }
    let shown = String::from_utf8(lab.region.cli(&["status", &job]).stdout).unwrap();
    assert!(shown.contains("6 of 6 hosts prewarmed"), "{shown}");
    // From here on only the hosts can serve the image.
    drop(registry);
    lab.region.seeder.kill();
    lab.region.tracker.kill();
    for (host, runtime) in lab.runtimes.iter().enumerate() {
        run_in(runtime, &reference, &data);
        let pinned = runtime.ok(&["leases", "ls"]);
        assert!(pinned.contains(&format!("shoal.pin-{job}")), "{pinned}");
        let asked = lab.metric(host, "shoal_mirror_requests_total{what=\"blob\",outcome=\"hit\"}");
        match host % 3 {
            2 => assert_eq!(asked, 0, "a containerd without CRI pulled from the mirror"),
            _ => assert!(
                asked >= 3,
                "containerd must request the configuration and two layers from the mirror, not {asked} blobs"
            ),
        }
        assert_eq!(lab.metric(host, "shoal_images_past_mirror_total"), 0);
    }
    // The library of podman and CRI-O sends other requests than containerd.
    let conf = lab.folder.path().join("registries.conf");
    let mirror = lab.mirror(0);
    let text = format!(
        "[[registry]]\nlocation = \"{REGISTRY}\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
    );
    fs::write(&conf, text).unwrap();
    let out = lab.folder.path().join("out");
    let copied = Command::new("skopeo")
        .args(["--registries-conf", conf.to_str().unwrap(), "copy", "-q", "--src-tls-verify=false"])
        .args([format!("docker://{reference}"), format!("oci:{}:v1", out.display())])
        .output()
        .unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}

fn a_peer_waits_for_a_containerd_that_is_away_or_killed(release: Release) {
    let mut lab = Lab::start(release, 1, 2, |_| true, |_| Vec::new());
    let (reference, at, data) = lab.image("v1", 60_000_000, 2);
    lab.runtimes[1].kill();
    let job = lab.push(&at, &reference);
    lab.region.wait_active(&job, 1);
    until("the second host has the image, but has not prewarmed it", || {
        let status = lab.region.status(&job);
        (Region::total(&status, "has") == 2 && Region::total(&status, "active") == 1).then_some(())
    });
    // containerd is killed again during its pull.
    lab.runtimes[1].start();
    until("containerd pulls", || (lab.metric(1, "shoal_mirror_sent_bytes_total") > 0).then_some(()));
    lab.runtimes[1].kill();
    lab.runtimes[1].start();
    lab.region.wait_active(&job, 2);
    run_in(&lab.runtimes[1], &reference, &data);
    // A restarted peer finds the image prewarmed.
    let warmed = |lab: &Lab| lab.metric(1, "shoal_images_prewarmed_total");
    assert_eq!(warmed(&lab), 1);
    lab.region.peers[1].kill();
    // A pin of a job that has ended meanwhile.
    let over = format!("shoal.pin-{}", "0".repeat(32));
    lab.runtimes[1].ok(&["leases", "create", "--id", &over, &format!("shoal.pin={reference}")]);
    lab.region.peers[1].start();
    until("the peer has checked the image again", || (warmed(&lab) == 1).then_some(()));
    until("the peer removes the pin of the ended job", || {
        (!lab.runtimes[1].ok(&["leases", "ls"]).contains(&over)).then_some(())
    });
    assert!(lab.runtimes[1].ok(&["leases", "ls"]).contains(&format!("shoal.pin-{job}")));
    assert_eq!(lab.metric(1, "shoal_images_prewarm_failed_total"), 0);
}

/// A small file system. It is unmounted when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status().unwrap();
        assert!(mounted.success(), "cannot mount a small disk at {}: run this test as root", at.display());
        Self(at.to_path_buf())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status(); // Best effort in a destructor.
    }
}

fn hosts_that_cannot_prewarm_report_the_reason(release: Release) {
    let disk = tempfile::tempdir().unwrap();
    let small = SmallDisk::mount(&disk.path().join("root"), "24m");
    let patience = |host: usize| if host == 1 { vec!["containerd.retry_for=2s".to_string()] } else { Vec::new() };
    let mut lab = Lab::start(release, 1, 4, |_| true, patience);
    // The first host's disk is too small, the second host's containerd is away, and the third host has no mirror
    // configured.
    lab.runtimes[0].kill();
    let config = lab.runtimes[0].dir.join("config.toml");
    let root = format!("root = \"{}/root\"", lab.runtimes[0].dir.display());
    let text = fs::read_to_string(&config).unwrap().replace(&root, &format!("root = \"{}\"", small.0.display()));
    fs::write(&config, text).unwrap();
    lab.runtimes[0].start();
    lab.runtimes[1].kill();
    let hosts = lab.runtimes[2].hosts_dir();
    let undone = SHOAL.ok(&["containerd", "setup", "--undo", "--hosts-dir", hosts.to_str().unwrap()]);
    assert!(undone.contains("removed"), "{undone}");
    let (reference, at, data) = lab.image("v1", 30_000_000, 3);
    let job = lab.push(&at, &reference);
    let status = until("the job ends", || {
        let status = lab.region.status(&job);
        (status["phase"] == "done").then_some(status)
    });
    assert_eq!((Region::total(&status, "active"), Region::total(&status, "failed")), (1, 3), "{status:#}");
    let state = |host: &str| line(&status, host)["state"].as_str().unwrap().to_string();
    let detail = |host: &str| line(&status, host)["detail"].as_str().unwrap().to_string();
    assert_eq!(state("host0"), "failed: no-space", "{}", detail("host0"));
    assert!(detail("host0").contains("at least"), "{}", detail("host0"));
    assert_eq!(state("host1"), "failed: runtime-away");
    assert!(detail("host1").contains("c.sock"), "{}", detail("host1"));
    assert_eq!(state("host2"), "failed: pull-failed");
    assert!(detail("host2").contains(REGISTRY), "{}", detail("host2"));
    until("the hub has the reasons", || {
        let (_, body) = get(lab.region.hub.http(), &format!("/v1/jobs/{job}?hosts=true"), None)?;
        let found = ["failed: no-space", "failed: runtime-away", "failed: pull-failed"].map(|why| body.contains(why));
        (found == [true; 3]).then_some(())
    });
    assert_eq!(lab.region.cli(&["status", &job, "--wait"]).status.code(), Some(3));

    // The faults are repaired and the image is pushed again. No peer restarts, and no payload moves.
    let grown = Command::new("mount").args(["-o", "remount,size=400m"]).arg(&small.0).status().unwrap();
    assert!(grown.success());
    lab.runtimes[1].start();
    lab.set_up(2, &[]);
    let again = lab.push(&at, &reference);
    lab.region.wait_active(&again, 4);
    let status = lab.region.status(&again);
    for rack in status["racks"].as_array().unwrap() {
        assert!(rack["tiers"].as_object().unwrap().values().all(|bytes| bytes == 0), "{rack}");
    }
    lab.runtimes.iter().for_each(|runtime| run_in(runtime, &reference, &data));
}

fn a_pull_outlives_its_mirror(release: Release) {
    let mut lab = Lab::start(release, 1, 2, |_| true, |_| Vec::new());
    let (reference, at, data) = lab.image("v1", 300_000_000, 4);
    let registry = Registry::start(&lab.folder.path().join("registry"));
    registry.copy(&format!("oci:{}", at.display()), "lab/app:v1");
    lab.set_up(0, &["--server", &format!("http://{}", registry.addr)]);
    // Only the second host prewarms the image. The first host pulls it later.
    lab.runtimes[0].kill();
    let job = lab.push(&at, &reference);
    lab.region.wait_active(&job, 1);
    until("the first host has the image", || (Region::total(&lab.region.status(&job), "has") == 2).then_some(()));
    lab.region.peers[0].kill();
    let socket = "containerd.socket='/nowhere.sock'".to_string();
    lab.region.peers[0].configure(&socket);
    lab.region.peers[0].start();
    lab.runtimes[0].start();
    let hosts = lab.runtimes[0].hosts_dir();
    let mut pull = lab.runtimes[0].command(&["images", "pull", "--hosts-dir", hosts.to_str().unwrap(), &reference]);
    let mut pull = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the pull has received 1 MB", || (lab.metric(0, "shoal_mirror_sent_bytes_total") > 1_000_000).then_some(()));
    lab.region.peers[0].kill();
    assert!(pull.try_wait().unwrap().is_none(), "the pull ended before the mirror was killed");
    let status = until("the pull ends", || pull.try_wait().unwrap());
    assert!(status.success(), "the pull did not continue at the registry");
    run_in(&lab.runtimes[0], &reference, &data);
}

fn staged_images_are_warmed_in_batches(release: Release) {
    let lab = Lab::start(release, 1, 2, |_| true, |_| Vec::new());
    let (reference, at, data) = lab.image("v1", 3_000_000, 3);
    let args = ["push", at.to_str().unwrap(), "--kind", "image", "--ref", &reference, "--to", "all"];
    let output = lab.region.cli(&[&args[..], &["--stage", "--wait"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let jobs = lab.region.cli_json(&["status", "--json"]).unwrap();
    assert_eq!(Region::total(&jobs[0], "active"), 0, "a staged image was prewarmed");
    assert!(lab.runtimes.iter().all(|runtime| !runtime.ok(&["images", "ls"]).contains(&reference)));
    let what = format!("{}@{}", jobs[0]["name"].as_str().unwrap(), jobs[0]["version"].as_str().unwrap());
    let args = [
        "rollout", &what, "--kind", "image", "--to", "all", "--batch", "1,100%", "--soak", "300ms", "--wait", "--json",
    ];
    let output = lab.region.cli(&args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let views: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        views.iter().any(|view| view["batch"] == 1 && view["tally"]["active"] == 1),
        "the first batch was more than one host: {text}"
    );
    assert_eq!(views.last().unwrap()["tally"]["active"], 2);
    lab.runtimes.iter().for_each(|runtime| run_in(runtime, &reference, &data));
}
