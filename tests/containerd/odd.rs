//! Invalid images and hosts that are too slow. Each has a clear outcome and harms no other host.

use crate::image::{Item, layer, layout, layout_with_ids, shell};
use crate::lab::{Lab, REGISTRY, line};
use crate::runtime::{Release, on_each_release};
use serde_json::Value;
use shoal_testkit::{Region, until};
use std::fs;

on_each_release!(
    layers_that_unpack_to_other_bytes_are_reported,
    layers_cannot_write_outside_of_their_image,
    a_host_that_takes_too_long_reports_a_timeout
);

/// Waits for the end of a job; returns its status.
fn ended(lab: &Lab, job: &str) -> Value {
    until("the job ends", || Some(lab.region.status(job)).filter(|status| status["phase"] == "done"))
}

/// The state that a host reported, and its reason.
fn reported(status: &Value, host: &str) -> (String, String) {
    let line = line(status, host);
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_string();
    (text("state"), text("detail"))
}

fn layers_that_unpack_to_other_bytes_are_reported(release: Release) {
    // The first host loads images by CRI, and on the second one the peer loads them.
    let lab = Lab::start(release, 1, 2, |host| host == 0, |_| Vec::new());
    let layers = [shell(), layer(&[Item::File("one", 0o644, b"one")])];
    let wrong = format!("sha256:{}", "5".repeat(64));
    let ids = [shoal_containerd::sha256(&layers[0]), wrong.clone()];
    let reference = format!("{REGISTRY}/lab/odd:v1");
    let at = layout_with_ids(&lab.folder.path().join("odd"), &reference, &layers, &ids);
    let job = lab.push(&at, &reference);
    let status = ended(&lab, &job);
    for host in ["host0", "host1"] {
        let (state, detail) = reported(&status, host);
        assert_eq!(state, "failed: digest-mismatch", "{host}: {detail}");
        // A report has room for the beginning of containerd's message.
        assert!(detail.contains(&wrong[..20]), "{host}: {detail}");
    }
}

fn layers_cannot_write_outside_of_their_image(release: Release) {
    let lab = Lab::start(release, 1, 2, |host| host == 0, |_| Vec::new());
    let outside = lab.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let at = outside.to_str().unwrap();
    let up = format!("{}{at}/up", "../".repeat(12));
    let (absolute, through) = (format!("{at}/absolute"), "way/through");
    let tricks = layer(&[
        Item::File(&up, 0o644, b"up"),
        Item::File(&absolute, 0o644, b"absolute"),
        Item::Link("way", at),
        Item::File(through, 0o644, b"through"),
    ]);
    let reference = format!("{REGISTRY}/lab/tricks:v1");
    let image = layout(&lab.folder.path().join("tricks"), &reference, &[shell(), tricks]);
    let job = lab.push(&image, &reference);
    let status = ended(&lab, &job);
    // containerd resolves such names inside the image.
    assert_eq!(Region::total(&status, "active"), 2, "{status:#}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "a layer wrote outside the image");
    for runtime in &lab.runtimes {
        let inside = runtime.run(&reference, &format!("cat {at}/up"));
        assert_eq!(inside, "up");
    }
}

fn a_host_that_takes_too_long_reports_a_timeout(release: Release) {
    let lab = Lab::start(release, 1, 2, |host| host == 0, |_| vec!["containerd.timeout='1ms'".into()]);
    let (reference, at, _) = lab.image("v1", 3_000_000, 7);
    let job = lab.push(&at, &reference);
    let status = ended(&lab, &job);
    for host in ["host0", "host1"] {
        let (state, detail) = reported(&status, host);
        assert_eq!(state, "failed: timeout", "{host}: {detail}");
        assert!(detail.contains(&reference), "{host}: {detail}");
    }
}
