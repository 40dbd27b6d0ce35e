//! Images in files, as builders, archivers and signers write them.

use crate::shelf::{LAYER, OCI_CONFIG, Shelf, digest, on};
use crate::{done, mirror, refused, region};
use serde_json::{Value, json};
use shoal_testkit::http::{get, send};
use shoal_testkit::oci::{sha256, tar};
use shoal_testkit::{Process, Region};
use std::fs;
use std::path::Path;

const NAME: &str = "registry.example:5000";

/// A layer that says what it is, as [`Shelf::image`] makes it.
fn layer(what: &str) -> String {
    sha256(&tar(&[("what", what.as_bytes())]))
}

fn push(region: &Region, path: &Path, more: &[&str]) -> Value {
    done(region, &[&["push", path.to_str().unwrap(), "--kind", "image"], more].concat())
}

fn has(process: &Process, what: &str) -> bool {
    process.stored_digests().contains(&layer(what))
}

#[test]
fn the_platform_is_chosen_as_containerd_chooses_it() {
    let region = region(1, &[]);
    let at = |name: &str| region.folder.path().join(name);
    // A processor level comes first, then the plain one.
    let mut amd64 = Shelf::default();
    let rows = [("level 3", "amd64", "v3"), ("plain", "amd64", ""), ("level 2", "x86_64", "v2")]
        .map(|(what, arch, variant)| on(&amd64.image(what, "amd64"), arch, variant));
    let index = amd64.index(&rows);
    amd64.write(&at("amd64"), &[(&index, "")]);
    push(&region, &at("amd64"), &["--ref", "r.example/amd64:v1", "--platform", "linux/amd64"]);
    let host = &region.peers[0];
    assert!(has(host, "plain") && !has(host, "level 3") && !has(host, "level 2"));
    assert!(host.stored_digests().contains(digest(&index)), "the index travels with its image");
    push(&region, &at("amd64"), &["--ref", "r.example/amd64:v3", "--platform", "linux/x86_64/v3"]);
    assert!(has(host, "level 3") && !has(host, "level 2"));

    let mut arm = Shelf::default();
    let rows = [("five", "arm", "v5"), ("seven", "arm", "v7"), ("sixty-four", "arm64", "")]
        .map(|(what, arch, variant)| on(&arm.image(what, arch), arch, variant));
    let index = arm.index(&rows);
    arm.write(&at("arm"), &[(&index, "")]);
    for (platform, what, others) in [
        ("linux/arm64/v8", "sixty-four", ["five", "seven"]),
        ("linux/arm", "seven", ["five", "five"]),
        ("linux/arm/v6", "five", ["none", "none"]),
    ] {
        let reference = format!("r.example/{}:v1", platform.replace('/', "-"));
        push(&region, &at("arm"), &["--ref", &reference, "--platform", platform]);
        assert!(has(host, what) && others.iter().all(|other| !has(host, other)), "{platform}");
    }
    let text = refused(
        &region,
        &[
            "push",
            at("arm").to_str().unwrap(),
            "--kind",
            "image",
            "--ref",
            "r.example/a:v1",
            "--platform",
            "linux/riscv64",
        ],
    );
    assert!(text.contains("no platform linux/riscv64") && text.contains("linux/arm/v5, linux/arm/v7"), "{text}");
}

#[test]
fn lists_that_go_writes_as_null_are_taken_in() {
    let region = region(1, &[]);
    let at = |name: &str| region.folder.path().join(name);
    let mut shelf = Shelf::default();
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": null } });
    let bytes = config.to_string().into_bytes();
    let config = shelf.document(OCI_CONFIG, &config);
    let root = shelf.manifest(json!({ "config": config, "layers": null, "annotations": null }));
    shelf.write(&at("null"), &[(&root, "registry.example:5000/lab/null:v1")]);
    let status = push(&region, &at("null"), &[]);
    assert_eq!((status["phase"].as_str(), Region::total(&status, "stored")), (Some("done"), 1));
    let name = format!("{}.json", &digest(&config)["sha256:".len()..]);
    let rows = json!([{ "Config": name, "RepoTags": ["lab/null:v1"], "Layers": null }]).to_string();
    fs::write(at("null.tar"), tar(&[(&name, &bytes), ("manifest.json", rows.as_bytes())])).unwrap();
    push(&region, &at("null.tar"), &[]);
    assert!(region.peers[0].stored_digests().contains(digest(&config)));
}

#[test]
fn a_name_is_one_name_however_it_is_written() {
    let region = region(1, &[]);
    let at = |name: &str| region.folder.path().join(name);
    let (mut now, mut before) = (Shelf::default(), Shelf::default());
    let (new, old) = (now.image("now", "amd64"), before.image("before", "amd64"));
    now.write(&at("now"), &[(&new, "")]);
    before.write(&at("before"), &[(&old, "")]);
    let head = |path: &str| {
        let answer = send(mirror(&region, 0), "HEAD", path, None, None).unwrap();
        let found = answer.head.lines().find_map(|line| line.strip_prefix("docker-content-digest: "));
        (answer.status, found.unwrap_or_default().to_string())
    };
    push(&region, &at("now"), &["--ref", "docker.io/solo:c"]);
    for path in ["/v2/library/solo/manifests/c?ns=docker.io", "/v2/solo/manifests/c?ns=docker.io"] {
        assert_eq!(head(path), (200, digest(&new).to_string()), "{path}");
    }
    // A tag that moved, and the old one by its digest: the tag stays what the reference without a digest says.
    let (tag, pinned) = (format!("{NAME}/lab/pin:latest"), format!("{NAME}/lab/pin:latest@{}", digest(&old)));
    let tagged = push(&region, &at("now"), &["--ref", &tag]);
    let pinned_status = push(&region, &at("before"), &["--ref", &pinned]);
    assert_ne!(tagged["name"], pinned_status["name"], "one would be a version of the other");
    let path = |reference: &str| format!("/v2/lab/pin/manifests/{reference}?ns=registry.example%3A5000");
    assert_eq!(head(&path("latest")), (200, digest(&new).to_string()));
    assert_eq!(head(&path(digest(&old))), (200, digest(&old).to_string()));
    // A pinned name never leads to other bytes.
    let lie = format!("{NAME}/lab/lie:v1@{}", digest(&old));
    let text = refused(&region, &["push", at("now").to_str().unwrap(), "--kind", "image", "--ref", &lie]);
    assert!(text.contains(digest(&new)) && text.contains(&lie), "{text}");
    let sha512 = format!("{NAME}/lab/lie@sha512:{}", "0".repeat(128));
    let text = refused(&region, &["push", at("now").to_str().unwrap(), "--kind", "image", "--ref", &sha512]);
    assert!(text.contains("only sha256 digests are supported"), "{text}");
}

#[test]
fn of_two_forms_in_an_archive_the_whole_one_is_taken() {
    let region = region(1, &[]);
    let at = |name: &str| region.folder.path().join(name);
    let mut shelf = Shelf::default();
    let image = shelf.image("both", "amd64");
    let manifest: Value = serde_json::from_slice(shelf.bytes(&image)).unwrap();
    let blob = |row: &Value| format!("blobs/sha256/{}", &digest(row)["sha256:".len()..]);
    let (config, layer) = (&manifest["config"], &manifest["layers"][0]);
    let saved = json!([{ "Config": blob(config), "RepoTags": ["r.example/both:v1"], "Layers": [blob(layer)] }]);
    let index = json!({ "manifests": [image, { "digest": "sha512:00" }] }).to_string();
    let list = saved.to_string();
    let parts = [
        ("oci-layout", &br#"{"imageLayoutVersion":"1.0.0"}"#[..]),
        ("index.json", index.as_bytes()),
        ("manifest.json", list.as_bytes()),
        (&blob(config), shelf.bytes(config)),
        (&blob(layer), shelf.bytes(layer)),
    ];
    fs::write(at("both.tar"), tar(&parts)).unwrap();
    push(&region, &at("both.tar"), &[]);
    assert!(has(&region.peers[0], "both"));
    // Without its layer no form is whole.
    fs::write(at("part.tar"), tar(&parts[..4])).unwrap();
    let text = refused(&region, &["push", at("part.tar").to_str().unwrap(), "--kind", "image"]);
    assert!(text.contains(&blob(layer)), "{text}");
    // Several images without names are not told apart by luck.
    let two = json!([
        { "Config": blob(config), "RepoTags": null, "Layers": [blob(layer)] },
        { "Config": blob(config), "RepoTags": [], "Layers": [blob(layer)] },
    ]);
    let two = two.to_string();
    let parts = [("manifest.json", two.as_bytes()), parts[3], parts[4]];
    fs::write(at("two.tar"), tar(&parts)).unwrap();
    let path = at("two.tar");
    let args = ["push", path.to_str().unwrap(), "--kind", "image", "--ref", "r.example/two:v1"];
    let text = refused(&region, &args);
    assert!(text.contains("2 images without names"), "{text}");
}

#[test]
fn artifacts_and_layers_that_may_be_missing_are_held() {
    let region = region(2, &[]);
    let at = |name: &str| region.folder.path().join(name);
    let mut shelf = Shelf::default();
    let image = shelf.image("app", "amd64");
    let signature = shelf.artifact(&image, "application/vnd.dev.sigstore.bundle.v0.3+json", "signed");
    let chart_config = shelf.put("application/vnd.cncf.helm.config.v1+json", b"{\"name\":\"chart\"}");
    let chart_layer = shelf.put("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart");
    let chart = shelf.manifest(json!({ "config": chart_config, "layers": [chart_layer] }));
    let foreign = shelf.put("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"foreign");
    let config = shelf.document(OCI_CONFIG, &json!({ "architecture": "amd64", "os": "linux" }));
    let plain = shelf.put(LAYER, b"plain");
    let windows = shelf.manifest(json!({ "config": config, "layers": [foreign, plain] }));
    let artifacts = shelf.index(&[signature.clone(), chart.clone()]);
    let empty = shelf.index(&[]);
    shelf.remove(&foreign);
    for (name, root) in
        [("signature", &signature), ("chart", &chart), ("windows", &windows), ("list", &artifacts), ("empty", &empty)]
    {
        shelf.write(&at(name), &[(root, "")]);
        let status = push(&region, &at(name), &["--ref", &format!("r.example/{name}:v1")]);
        assert_eq!((Region::total(&status, "stored"), Region::total(&status, "failed")), (2, 0), "{name}: {status:#}");
        for host in 0..2 {
            let (code, body) = get(mirror(&region, host), &format!("/v2/{name}/manifests/v1"), None).unwrap();
            assert_eq!((code, sha256(body.as_bytes())), (200, digest(root).to_string()), "{name}");
        }
    }
    let path = format!("/v2/windows/blobs/{}", digest(&foreign));
    assert_eq!(get(mirror(&region, 0), &path, None).unwrap().0, 404, "clients ask where the manifest says");
    let held = region.peers[1].stored_digests();
    assert!(held.contains(&sha256(b"chart")) && held.contains(&sha256(b"signed")) && held.contains(&sha256(b"plain")));
}
