//! What containerd chooses from an index, what it cannot unpack, and the names of its records.

use crate::image::{Item, layer, layout, shell};
use crate::lab::{Lab, REGISTRY};
use crate::runtime::{Release, on_each_release};
use serde_json::{Value, json};
use shoal_testkit::{Region, until};
use std::fs;
use std::path::{Path, PathBuf};

on_each_release!(
    the_row_that_containerd_chooses_is_the_one_that_is_prewarmed,
    artifacts_are_stored_and_fail_nothing,
    a_name_with_a_digest_has_one_record
);

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn put(at: &Path, kind: &str, document: &Value) -> Value {
    let bytes = document.to_string().into_bytes();
    let digest = shoal_containerd::sha256(&bytes);
    fs::write(at.join("blobs/sha256").join(&digest["sha256:".len()..]), &bytes).unwrap();
    json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
}

/// Writes a layout of one root.
fn write_root(at: &Path, reference: &str, root: &Value) {
    let mut root = root.clone();
    root["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
    fs::write(at.join("index.json"), json!({ "schemaVersion": 2, "manifests": [root] }).to_string()).unwrap();
}

/// Writes a layout of an index. Each row has an image with a file that says which row it is, and the platform of its
/// row beside this machine's processor.
fn index(at: &Path, reference: &str, rows: &[(&str, Value)]) -> PathBuf {
    let mut manifests = Vec::new();
    for (which, platform) in rows {
        layout(at, reference, &[shell(), layer(&[Item::File("which", 0o644, which.as_bytes())])]);
        let mut row = read(&at.join("index.json"))["manifests"][0].clone();
        row.as_object_mut().unwrap().remove("annotations");
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        row["platform"] = json!({ "os": "linux", "architecture": architecture });
        for (key, value) in platform.as_object().unwrap() {
            row["platform"][key] = value.clone();
        }
        manifests.push(row);
    }
    let root = put(at, OCI_INDEX, &json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests }));
    write_root(at, reference, &root);
    at.to_path_buf()
}

fn the_row_that_containerd_chooses_is_the_one_that_is_prewarmed(release: Release) {
    // The first host loads images by CRI, and on the second one the peer loads them.
    let lab = Lab::start(release, 1, 2, |host| host == 0, |_| Vec::new());
    let features = json!({ "os.features": ["nydus.remoteimage.v1"] });
    for (name, rows, which) in [
        ("higher", vec![("higher", json!({ "variant": "v99" })), ("plain", json!({}))], &["plain"][..]),
        ("twice", vec![("first", json!({})), ("second", json!({}))], &["first"]),
        // Releases differ here. Each one must be able to start what it chooses.
        ("features", vec![("features", features.clone()), ("plain", json!({}))], &["features", "plain"]),
    ] {
        let reference = format!("{REGISTRY}/lab/{name}:v1");
        let at = index(&lab.folder.path().join(name), &reference, &rows);
        let job = lab.push(&at, &reference);
        lab.region.wait_active(&job, 2);
        for runtime in &lab.runtimes {
            let found = runtime.run(&reference, "cat /which");
            assert!(which.contains(&found.as_str()), "{name}: {found}");
        }
    }
}

fn artifacts_are_stored_and_fail_nothing(release: Release) {
    let lab = Lab::start(release, 1, 2, |host| host == 0, |_| Vec::new());
    let (_, image, _) = lab.image("v1", 100_000, 1);
    let subject = read(&image.join("index.json"))["manifests"][0].clone();
    let at = |name: &str| {
        let at = lab.folder.path().join(name);
        fs::create_dir_all(at.join("blobs/sha256")).unwrap();
        fs::write(at.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string()).unwrap();
        at
    };
    let artifact = |name: &str, config_kind: &str, blob_kind: &str, config: Value| {
        let at = at(name);
        let (config, blob) = (put(&at, config_kind, &config), put(&at, blob_kind, &json!({ "of": name })));
        let subject = json!({ "mediaType": OCI_MANIFEST, "digest": subject["digest"], "size": subject["size"] });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [blob], "subject": subject,
        });
        let reference = format!("{REGISTRY}/lab/{name}:v1");
        write_root(&at, &reference, &put(&at, OCI_MANIFEST, &manifest));
        (at, reference)
    };
    let oci = "application/vnd.oci.image.config.v1+json";
    // A signature has the configuration of an image, whose layers are no file system.
    let ids = [shoal_containerd::sha256(json!({ "of": "signature" }).to_string().as_bytes())];
    let config = json!({ "architecture": "", "os": "", "rootfs": { "type": "layers", "diff_ids": ids } });
    let signature = artifact("signature", oci, "application/vnd.dev.cosign.simplesigning.v1+json", config);
    let chart_kind = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
    let chart = artifact("chart", "application/vnd.cncf.helm.config.v1+json", chart_kind, json!({ "name": "chart" }));
    let sbom = artifact("sbom", "application/vnd.oci.empty.v1+json", "application/spdx+json", json!({}));
    for (at, reference) in [signature, chart, sbom] {
        let job = lab.push(&at, &reference);
        let status = until("the job ends", || Some(lab.region.status(&job)).filter(|status| status["phase"] == "done"));
        let counts = (Region::total(&status, "stored"), Region::total(&status, "failed"));
        assert_eq!(counts, (2, 0), "{reference}: {status:#}");
    }
    assert!(lab.runtimes.iter().all(|runtime| !runtime.ok(&["images", "ls", "-q"]).contains("signature")));
}

fn a_name_with_a_digest_has_one_record(release: Release) {
    let lab = Lab::start(release, 1, 1, |_| false, |_| Vec::new());
    let (_, at, _) = lab.image("v1", 100_000, 2);
    let root = read(&at.join("index.json"))["manifests"][0]["digest"].as_str().unwrap().to_string();
    for reference in [format!("{REGISTRY}/lab/app@{root}"), format!("{REGISTRY}/lab/app:v1@{root}")] {
        let job = lab.push(&at, &reference);
        lab.region.wait_active(&job, 1);
        let names = lab.runtimes[0].ok(&["images", "ls", "-q"]);
        let names: Vec<&str> = names.lines().collect();
        assert_eq!(names, [format!("{REGISTRY}/lab/app@{root}")], "{reference}");
    }
    let output = lab.runtimes[0].run(&format!("{REGISTRY}/lab/app@{root}"), "echo runs");
    assert!(output.contains("runs"), "{output}");
}
