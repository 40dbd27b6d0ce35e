//! Images from a real registry to racks, layers and pieces that versions share, and registries that misbehave.

use serde_json::Value;
use shoal_testkit::Program;
use shoal_testkit::fake_registry::{Ending, FakeRegistry, Received, Reply, serve};
use shoal_testkit::http::get;
use shoal_testkit::oci::{Image, Layer, OCI_MANIFEST, Packing, sha256, skopeo, tar, write_index};
use shoal_testkit::region::ADDR;
use shoal_testkit::registry::Registry;
use shoal_testkit::{Region, Setup, noise, own_loopback, until};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const SHOAL: Program = shoal_testkit::program!();

const NAME: &str = "registry.example:5000";

fn plain(tar: Vec<u8>) -> Layer {
    Layer { tar, packing: Packing::Plain }
}

/// A compressed layer of one file of noise.
fn packed(name: &str, len: usize, seed: u64) -> Layer {
    Layer { tar: tar(&[(name, &noise(len, seed))]), packing: Packing::Gzip }
}

/// A region whose seeder reaches `registry.example:5000` at this address.
fn region(racks: usize, hosts: usize, addr: &str) -> Region {
    region_with(racks, hosts, addr, &[])
}

/// The same with further settings of the seeder.
fn region_with(racks: usize, hosts: usize, addr: &str, seeder: &[&str]) -> Region {
    let mut region = Setup::new(SHOAL, racks, hosts).seeder(seeder).start();
    let settings = format!("{{plain_http=true,url='http://{addr}'}}");
    region.seeder.configure(&format!("registries={{'{NAME}'={settings}}}"));
    region.seeder.restart();
    region.wait_up(racks * hosts);
    region
}

/// Runs a command with `--wait --json`; returns every status that it printed, in order.
fn follow(region: &Region, args: &[&str]) -> Vec<Value> {
    let output = region.cli(&[args, &["--to", "all", "--wait", "--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|row: &Value| row["phase"].is_string())
        .collect()
}

/// Prewarms an image; returns the last status.
fn prewarm(region: &Region, image: &str) -> Value {
    follow(region, &["prewarm", &format!("{NAME}/{image}")]).pop().unwrap()
}

/// The error of a prewarm that must fail.
fn refused(region: &Region, args: &[&str]) -> String {
    let output = region.cli(&[&["prewarm"], args, &["--to", "all", "--wait"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Bytes that each rack imported for a job.
fn imports(status: &Value) -> Vec<u64> {
    let of = |rack: &Value| ["site", "region", "seeder"].iter().map(|tier| rack["tiers"][tier].as_u64().unwrap()).sum();
    status["racks"].as_array().unwrap().iter().map(of).collect()
}

fn assert_everywhere(region: &Region, image: &Image) {
    for process in region.peers.iter().chain([&region.seeder]) {
        let stored = process.stored_digests();
        let missing: Vec<String> = image.digests().into_iter().filter(|digest| !stored.contains(digest)).collect();
        assert!(missing.is_empty(), "{} lacks {missing:?}", process.name);
    }
}

#[test]
fn a_registry_serves_each_blob_once_and_versions_share_common_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(&folder.path().join("registry"));
    let region = region(2, 2, &registry.addr);
    let mut files: Vec<(String, Vec<u8>)> = (0..20).map(|at| (format!("usr/lib/f{at}"), noise(2 << 20, at))).collect();
    let base = |files: &[(String, Vec<u8>)]| {
        let rows: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        plain(tar(&rows))
    };
    let first = Image::new(&[base(&files), packed("opt/runtime", 9 << 20, 100), packed("app", 1 << 20, 101)]);
    registry.put(&first, &folder.path().join("v1"), "lab/app:v1");
    let statuses = follow(&region, &["prewarm", &format!("{NAME}/lab/app:v1")]);
    let phases: Vec<&str> = statuses.iter().map(|status| status["phase"].as_str().unwrap()).collect();
    assert!(phases.contains(&"pulling") && phases.ends_with(&["done"]), "{phases:?}");
    let status = statuses.last().unwrap();
    assert_eq!(
        (Region::total(status, "stored"), &status["name"]),
        (4, &format!("{NAME}/lab/app/v1").replace(':', "_").into())
    );
    for rack in imports(status) {
        assert!(
            rack as f64 <= 1.03 * first.size() as f64,
            "a rack imported {rack} bytes of an image of {}",
            first.size()
        );
    }
    assert!(status["seeder_sent"].as_u64().unwrap() as f64 <= 1.05 * first.size() as f64, "{status:#}");
    assert_everywhere(&region, &first);

    let second = Image::new(&[base(&files), packed("opt/runtime", 9 << 20, 100), packed("app", 3 << 20, 102)]);
    registry.put(&second, &folder.path().join("v2"), "lab/app:v2");
    let status = prewarm(&region, "lab/app:v2");
    let new = second.beyond(&first);
    for rack in imports(&status) {
        assert!(rack as f64 <= 1.03 * new as f64, "a rack imported {rack} bytes, {new} are new");
    }
    assert_everywhere(&region, &second);

    // 1 MiB changes in each of two files, which is 5 % of the layer.
    for (at, seed) in [(3, 200), (11, 201)] {
        files[at].1[300_000..300_000 + (1 << 20)].copy_from_slice(&noise(1 << 20, seed));
    }
    let third = Image::new(&[base(&files), packed("opt/runtime", 9 << 20, 100), packed("app", 3 << 20, 102)]);
    registry.put(&third, &folder.path().join("v3"), "lab/app:v3");
    let status = prewarm(&region, "lab/app:v3");
    for rack in imports(&status) {
        assert!(rack as f64 <= 1.2 * f64::from(2 << 20), "a rack imported {rack} bytes, {} changed", 2 << 20);
    }
    assert_everywhere(&region, &third);

    let served = registry.requested_by_shoal();
    let layers: BTreeSet<String> =
        [&first, &second, &third].iter().flat_map(|image| image.blobs.keys().cloned()).collect();
    let asked: BTreeSet<String> = served.keys().cloned().collect();
    assert_eq!(asked, layers);
    assert!(served.values().all(|count| *count == 1), "{served:?}");

    // The pulls leave only what the store holds.
    assert_eq!(fs::read_dir(region.seeder.dir().join("state/pulls")).unwrap().count(), 0);
    let again = prewarm(&region, "lab/app:v3");
    assert!(imports(&again).iter().all(|rack| *rack == 0), "{again:#}");
    assert_eq!(registry.requested_by_shoal(), served);
}

/// Layers made of parts of this program, of which 5 % change in two of twenty files. The bytes that a rack imports then
/// depend on how far the compressor spreads a change. Prints the table of `docs/BENCHMARKS.md`.
#[test]
#[allow(clippy::print_stdout, reason = "the test prints a table")]
fn the_compressor_decides_how_much_of_a_changed_layer_moves() {
    const FILE: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(&folder.path().join("registry"));
    let region = region(1, 2, &registry.addr);
    let program = fs::read(SHOAL.path()).unwrap();
    let mut files: Vec<(String, Vec<u8>)> =
        program.chunks_exact(FILE).take(20).enumerate().map(|(at, part)| (format!("f{at}"), part.to_vec())).collect();
    assert_eq!(files.len(), 20);
    let archive = |files: &[(String, Vec<u8>)]| {
        tar(&files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect::<Vec<_>>())
    };
    let before = archive(&files);
    for at in [7, 13] {
        files[at].1[..FILE / 2].copy_from_slice(&noise(FILE / 2, at as u64));
    }
    let after = archive(&files);
    let all = [Packing::Plain, Packing::Gzip, Packing::GzipRsyncable, Packing::Zstd];
    for packing in all {
        let name = format!("{packing:?}").to_lowercase();
        let [first, second] = [&before, &after].map(|tar| Image::new(&[Layer { tar: tar.clone(), packing }]));
        for (tag, image) in [("v1", &first), ("v2", &second)] {
            registry.put(image, &folder.path().join(format!("{name}-{tag}")), &format!("lab/{name}:{tag}"));
        }
        prewarm(&region, &format!("lab/{name}:v1"));
        let moved = imports(&prewarm(&region, &format!("lab/{name}:v2")))[0];
        assert_everywhere(&region, &second);
        let size = second.size();
        println!("{name}: {moved} of {size} bytes, {:.2} of the change", moved as f64 / FILE as f64);
        assert!(moved as f64 <= 1.03 * size as f64, "{name}: {moved} of {size}");
        // Gzip and zstd may spread a change to the end of the layer.
        match packing {
            Packing::Plain => assert!(moved < size / 4, "{name}: {moved} of {size}"),
            Packing::GzipRsyncable => assert!(moved < size / 2, "{name}: {moved} of {size}"),
            Packing::Gzip | Packing::Zstd => {}
        }
    }
}

#[test]
fn a_demoted_image_comes_back_without_the_uplink() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(&folder.path().join("registry"));
    // Any two of a rack's four hosts together store a whole version.
    let region = region_with(2, 4, &registry.addr, &["data_shards=2", "parity_shards=2"]);
    let base = packed("base", 1 << 20, 1);
    let images = [1u64, 2].map(|at| Image::new(&[base.clone(), packed("app", 8 << 20, at + 10)]));
    for (at, image) in images.iter().enumerate() {
        let tag = format!("v{}", at + 1);
        registry.put(image, &folder.path().join(&tag), &format!("lab/app:{tag}"));
    }
    let first = prewarm(&region, "lab/app:v1");
    prewarm(&region, "lab/app:v2");
    let what = format!("{}@{}", first["name"].as_str().unwrap(), first["version"].as_str().unwrap());
    let used = |region: &Region| region.peers.iter().map(|peer| peer.metric("shoal_store_used_bytes")).sum::<u64>();
    let before = used(&region);
    let output = region.cli(&["demote", &what, "--wait", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    until("the hosts have removed the first version", || (used(&region) < before - 8 * (2 << 20)).then_some(()));
    let again = prewarm(&region, "lab/app:v1");
    assert_eq!((&again["phase"], Region::total(&again, "stored")), (&"done".into(), 8), "{again:#}");
    assert!(imports(&again).iter().all(|rack| *rack == 0), "{again:#}");
    images.iter().for_each(|image| assert_everywhere(&region, image));
    assert!(registry.requested_by_shoal().values().all(|count| *count == 1), "{:?}", registry.requested_by_shoal());
}

#[test]
fn images_pulled_at_the_same_time_share_common_layers() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(&folder.path().join("registry"));
    let region = region(2, 2, &registry.addr);
    let base = packed("base", 12 << 20, 1);
    let images = [1u64, 2, 3].map(|at| Image::new(&[base.clone(), packed("app", 1 << 20, at + 10)]));
    let names = [1, 2, 3].map(|at| format!("{NAME}/lab/app{at}:v1"));
    for (at, image) in images.iter().enumerate() {
        registry.put(image, &folder.path().join(format!("{at}")), &format!("lab/app{}:v1", at + 1));
    }
    let args = ["prewarm", &names[0], &names[1], &names[2]];
    let statuses = follow(&region, &args);
    let last = |at: usize| {
        let name = format!("registry.example_5000/lab/app{}/v1", at + 1);
        statuses.iter().rfind(|status| status["name"] == *name).unwrap()
    };
    // The first image brings the base layer, and the others only their own layers.
    let all = images[0].size() + images[1].beyond(&images[0]) + images[2].beyond(&images[0]);
    for rack in 0..2 {
        let came: u64 = (0..3).map(|at| imports(last(at))[rack]).sum();
        assert!(came as f64 <= 1.03 * all as f64, "a rack imported {came} bytes, the images have {all}");
    }
    images.iter().for_each(|image| assert_everywhere(&region, image));
    assert!(registry.requested_by_shoal().values().all(|count| *count == 1), "{:?}", registry.requested_by_shoal());
}

#[test]
fn a_dry_run_lists_the_blobs_and_pulls_none() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(&folder.path().join("registry"));
    let region = region(1, 2, &registry.addr);
    let (base, app) = (packed("base", 1 << 20, 1), packed("app", 300_000, 2));
    registry.put(&Image::new(std::slice::from_ref(&base)), &folder.path().join("v1"), "lab/app:v1");
    let second = Image::new(&[base, app]);
    registry.put(&second, &folder.path().join("v2"), "lab/app:v2");
    prewarm(&region, "lab/app:v1");
    let served = registry.requested_by_shoal();
    let args = ["prewarm", &format!("{NAME}/lab/app:v2"), "--to", "all", "--dry-run"];
    let resolved = region.cli_json(&[&args[..], &["--json"]].concat()).unwrap();
    assert_eq!((&resolved["root"], &resolved["hosts"]), (&sha256(&second.manifest).into(), &2.into()));
    let held = |digest: &str| {
        resolved["blobs"].as_array().unwrap().iter().find(|blob| blob["digest"] == digest).unwrap()["stored"].clone()
    };
    assert_eq!((held(&second.layers[0]), held(&second.layers[1])), (true.into(), false.into()));
    let text = String::from_utf8_lossy(&region.cli(&args).stdout).into_owned();
    assert!(text.contains("for 2 hosts") && text.contains(&second.layers[1]), "{text}");
    assert_eq!(registry.requested_by_shoal(), served, "the dry run pulled a blob");
    assert_eq!(region.cli_json(&["status", "--json"]).unwrap().as_array().unwrap().len(), 1, "the dry run made a job");
}

#[test]
fn platforms_are_chosen_and_docker_images_are_images_too() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(&folder.path().join("registry"));
    let region = region(1, 1, &registry.addr);
    let base = packed("base", 500_000, 1);
    let (amd, arm) =
        (Image::new(&[base.clone(), packed("amd", 200_000, 2)]), Image::new(&[base, packed("arm", 200_000, 3)]));
    let layout = folder.path().join("multi");
    let index = write_index(&layout, &[(&amd, "amd64"), (&arm, "arm64")]);
    let copy = |more: &[&str], name: &str| {
        let (from, to) = (format!("oci:{}:it", layout.display()), format!("docker://{}/{name}", registry.addr));
        skopeo(&[&["copy", "-q", "--dest-tls-verify=false"], more, &[&*from, &*to]].concat());
    };
    copy(&["--all", "--preserve-digests"], "lab/multi:v1");
    let image = format!("{NAME}/lab/multi:v1");
    follow(&region, &["prewarm", &image, "--platform", "linux/arm64"]);
    assert_everywhere(&region, &arm);
    let held = region.peers[0].stored_digests();
    assert!(held.contains(&sha256(&index)), "the index is missing, which containerd requests by tag");
    assert!(!held.contains(&amd.layers[1]) && !registry.requested_by_shoal().contains_key(&amd.layers[1]));
    let text = refused(&region, &[&image, "--platform", "linux/riscv64"]);
    assert!(text.contains("no platform linux/riscv64") && text.contains("linux/amd64, linux/arm64"), "{text}");
    let all = follow(&region, &["prewarm", &image, "--platform", "all"]).pop().unwrap();
    assert_everywhere(&region, &amd);
    assert!(imports(&all)[0] < 300_000, "more than the other platform's own layer moved: {:?}", imports(&all));
    assert!(registry.requested_by_shoal().values().all(|count| *count == 1), "{:?}", registry.requested_by_shoal());

    // Docker's media types with the same layers.
    copy(&["--format", "v2s2", "--override-arch", "amd64"], "lab/docker:v1");
    let status = prewarm(&region, "lab/docker:v1");
    assert!(imports(&status)[0] < 10_000, "layers that hosts have were moved: {:?}", imports(&status));
    assert!(registry.requested_by_shoal().values().all(|count| *count == 1), "{:?}", registry.requested_by_shoal());
}

#[test]
fn layouts_and_saved_archives_are_taken_in() {
    let region = Setup::new(SHOAL, 1, 2).peers(|_| vec![format!("mirror.listen='{}:0'", ADDR)]).start();
    let folder = region.folder.path();
    let image = Image::new(&[plain(tar(&[("bin/tool", &noise(700_000, 1))])), packed("etc/x", 100_000, 2)]);
    let layout = folder.join("layout");
    image.write(&layout, "v1");
    let path = |name: &str| folder.join(name).display().to_string();
    let push = |path: &str, more: &[&str]| follow(&region, &[&["push", path, "--kind", "image"], more].concat());
    let status = push(&path("layout"), &["--ref", &format!("{NAME}/lab/app:v1")]).pop().unwrap();
    assert_eq!((&status["name"], &status["version"]), (&"registry.example_5000/lab/app/v1".into(), &"v1".into()));
    assert_everywhere(&region, &image);

    // A signature is found by the image that it signs, once hosts have the signature.
    let mirror = region.peers[1].addrs["mirror"].as_str().unwrap();
    let referrers = format!("/v2/lab/app/referrers/{}?ns={NAME}", sha256(&image.manifest));
    assert_eq!(get(mirror, &referrers, None).unwrap().0, 404, "a mirror without signatures must answer 404");
    let signature = Image::new(&[plain(tar(&[("signature", b"it is well")]))]).with_subject(&image);
    signature.write(&folder.join("signature"), "v1");
    push(&path("signature"), &["--ref", &format!("{NAME}/lab/app:signed")]);
    let (code, body) = get(mirror, &referrers, None).unwrap();
    let found: Value = serde_json::from_str(&body).unwrap();
    let row = &found["manifests"][0];
    assert_eq!((code, found["manifests"].as_array().map(Vec::len)), (200, Some(1)), "{body}");
    assert_eq!((&row["digest"], &row["size"]), (&sha256(&signature.manifest).into(), &signature.manifest.len().into()));
    assert_eq!(row["artifactType"], "application/vnd.oci.image.config.v1+json");

    // The same layout in an archive is the same content, so no payload moves.
    let tarred =
        std::process::Command::new("tar").args(["-C", &path("layout"), "-cf", &path("layout.tar"), "."]).status();
    assert!(tarred.unwrap().success());
    let again = push(&path("layout.tar"), &["--ref", &format!("{NAME}/lab/app:v1")]).pop().unwrap();
    assert_eq!(again["content"], status["content"]);

    // An archive as `docker save` writes it: plain layers without a manifest.
    let (from, to) =
        (format!("oci:{}:v1", layout.display()), format!("docker-archive:{}:{NAME}/lab/app:saved", path("saved.tar")));
    skopeo(&["copy", "-q", &from, &to]);
    let saved = push(&path("saved.tar"), &[]).pop().unwrap();
    assert_eq!(saved["name"], "registry.example_5000/lab/app/saved");
    let layers = [tar(&[("bin/tool", &noise(700_000, 1))]), tar(&[("etc/x", &noise(100_000, 2))])];
    for peer in &region.peers {
        let stored = peer.stored_digests();
        assert!(layers.iter().all(|layer| stored.contains(&sha256(layer))), "{} lacks a layer", peer.name);
    }
    for rack in imports(&saved) {
        assert!(rack < 150_000, "a rack imported {rack} bytes although it had the plain layer");
    }

    for (args, words) in [
        (&["push", &path("layout"), "--kind", "image"][..], "--ref"),
        (&["push", &path("saved.tar"), "--kind", "image", "--ref", "r.example/other:1"], "no image r.example/other:1"),
        (&["push", &path("layout/index.json"), "--kind", "image"], "neither an OCI layout"),
        (&["push", &path("layout"), "--kind", "image", "--ref", "../x"], "invalid image name"),
        (&["push", &path("layout"), "--to", "all"], "--name"),
    ] {
        let output = region.cli(&[args, if args.contains(&"--to") { &[] } else { &["--to", "all"] }].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(words), "{args:?}: {text}");
    }
    // A layer whose bytes do not match its digest.
    let other = Image::new(&[plain(tar(&[("bin/other", &noise(700_000, 3))]))]);
    let damaged = folder.join("damaged");
    other.write(&damaged, "v1");
    let blob = damaged.join("blobs/sha256").join(&other.layers[0][7..]);
    fs::write(&blob, tar(&[("bin/other", &noise(700_000, 4))])).unwrap();
    let args = ["push", &path("damaged"), "--kind", "image", "--ref", "r.example/d:1", "--to", "all", "--wait"];
    let text = String::from_utf8_lossy(&region.cli(&args).stderr).into_owned();
    assert!(text.contains(&other.layers[0]) && text.contains("its bytes are those of"), "{text}");
}

#[test]
fn a_pull_resumes_after_a_killed_seeder() {
    let image = Image::new(&[plain(tar(&[("data", &noise(8 << 20, 1))]))]);
    let (layer, whole) = (image.layers[0].clone(), image.blobs[&image.layers[0]].len());
    let served = image.clone();
    let fake = FakeRegistry::start(move |seen, number| {
        let mut reply = serve(&served, seen);
        if seen.path.ends_with(&served.layers[0]) && number == 1 {
            reply = reply.truncated(5 << 20, Ending::Silence);
        }
        reply
    });
    let mut region = region(1, 1, &fake.addr);
    let job =
        region.cli_json(&["prewarm", &format!("{NAME}/lab/app:v1"), "--to", "all", "--json"]).unwrap()["job"].clone();
    let job = job.as_str().unwrap().to_string();
    until("a part of the layer is on the disk", || {
        let part = region.seeder.dir().join(format!("state/pulls/{}.part", &layer[7..]));
        (fs::metadata(part).ok()?.len() >= 4 << 20).then_some(())
    });
    assert_eq!(region.status(&job)["phase"], "pulling");
    region.seeder.kill();
    region.seeder.start();
    until("the host has the image", || (Region::total(&region.status(&job), "stored") == 1).then_some(()));
    assert_everywhere(&region, &image);
    let asked: Vec<Option<String>> = fake
        .received()
        .into_iter()
        .filter(|seen| seen.path.ends_with(&layer))
        .map(|seen| seen.headers.get("range").cloned())
        .collect();
    let from = |range: &Option<String>| {
        range.as_ref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())
    };
    assert_eq!((asked.len(), &asked[0]), (2, &None), "{asked:?}");
    assert!(from(&asked[1]).is_some_and(|from| (4 << 20..whole).contains(&from)), "{asked:?}");
}

/// Repositories of the misbehaving registry from which a pull succeeds in the end. See [`misbehave`].
const MENDED: [&str; 7] = ["hiccup", "cuts", "rangeless", "locked", "token", "elsewhere", "fine"];

/// One image for each repository, because the seeder does not pull a stored image again.
fn images() -> BTreeMap<String, Image> {
    let all = MENDED.iter().chain(&["liar", "long", "short"]).enumerate();
    all.map(|(at, name)| (name.to_string(), Image::new(&[packed("app", 400_000, at as u64)]))).collect()
}

const WORDS: &str = r#"{"errors":[{"code":"SAD","message":"its own words"}]}"#;

fn misbehave(images: &BTreeMap<String, Image>, seen: &Received, number: usize) -> Reply {
    let path = &seen.path;
    let repository = path.split("/v2/").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let shown = seen.headers.get("authorization").map_or("", String::as_str);
    if let Some(query) = path.strip_prefix("/auth?") {
        let right = shown == "Basic dXNlcjpwYXNz" && query.contains("scope=repository%3Atoken%2Fapp%3Apull");
        return if right { Reply::new(200, r#"{"token":"good"}"#) } else { Reply::new(401, WORDS) };
    }
    let image = images.get(if repository == "cdn" { "elsewhere" } else { repository });
    let is_layer = image.is_some_and(|image| path.ends_with(&image.layers[0]));
    let layer = || image.map(|image| image.blobs[&image.layers[0]].clone()).unwrap_or_default();
    let ask = |challenge: &str| Reply::new(401, WORDS).with("www-authenticate", challenge);
    match repository {
        "forbidden" => Reply::new(403, WORDS),
        "broken" => Reply::new(500, WORDS),
        "busy" => Reply::new(429, WORDS).with("retry-after", "0"),
        "huge" => Reply::new(200, vec![b' '; 8 << 20]).with("content-type", OCI_MANIFEST),
        "old" => {
            Reply::new(200, "{}").with("content-type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
        }
        "garbled" => Reply::new(200, "{\"config\":").with("content-type", OCI_MANIFEST),
        "circle" => Reply::new(307, "").with("location", path),
        "wrongkey" => ask("Basic realm=\"x\""),
        "locked" if shown != "Basic dXNlcjpwYXNz" => ask("Basic realm=\"x\""),
        "token" if shown != "Bearer good" => {
            ask(&format!("Bearer realm=\"http://{}/auth\",service=\"it\"", seen.headers["host"]))
        }
        "hiccup" if number == 1 => Reply::new(if is_layer { 500 } else { 429 }, WORDS).with("retry-after", "1"),
        "elsewhere" if is_layer => Reply::new(307, "").with("location", &path.replace("elsewhere", "cdn")),
        // The seeder must not send its password to the host that serves downloads.
        "cdn" if !shown.is_empty() && seen.headers["host"].starts_with("localhost") => Reply::new(400, "a password"),
        // Breaks off three times, each time a little later.
        "cuts" if is_layer && number <= 3 => reply(images, seen).truncated(100_000, Ending::Cut),
        // Breaks off once and does not support ranges.
        "rangeless" if is_layer && number == 1 => Reply::new(200, layer()).truncated(150_000, Ending::Cut),
        "rangeless" if is_layer => Reply::new(200, layer()),
        "liar" if is_layer => {
            let mut bytes = layer();
            bytes[1000] ^= 1;
            Reply::new(200, bytes)
        }
        "long" if is_layer => Reply::new(200, [layer(), vec![0]].concat()),
        "short" if is_layer => Reply::new(200, layer()[1..].to_vec()),
        _ => reply(images, seen),
    }
}

fn reply(images: &BTreeMap<String, Image>, seen: &Received) -> Reply {
    let repository = seen.path.split('/').nth(2).unwrap_or_default();
    images
        .get(if repository == "cdn" { "elsewhere" } else { repository })
        .map_or_else(|| Reply::new(404, WORDS), |image| serve(image, seen))
}

#[test]
fn registries_that_misbehave_have_clear_outcomes() {
    let images = images();
    let served = images.clone();
    let fake = FakeRegistry::start(move |seen, number| misbehave(&served, seen, number));
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("docker.json");
    fs::write(&credentials, format!(r#"{{"auths":{{"{NAME}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#)).unwrap();
    let mut region = Region::start(SHOAL, 1, 1);
    let plain = |name: &str, addr: &str| format!("'{name}'={{plain_http=true,url='http://{addr}'}}");
    let rows = [plain(NAME, &fake.addr), plain("stranger.example", &fake.addr), plain("dead.example", "127.0.0.1:1")];
    region.seeder.configure(&format!("registries={{{}}}", rows.join(",")));
    region.seeder.configure(&format!("docker_config='{}'", credentials.display()));
    region.seeder.configure("pull_patience=2s");
    region.seeder.restart();
    region.wait_up(1);
    for repository in MENDED {
        let status = prewarm(&region, &format!("{repository}/app:v1"));
        assert_eq!(status["phase"], "done", "{repository}");
        assert_everywhere(&region, &images[repository]);
    }
    // A registry on this machine that no setting describes is used without TLS, as other clients do.
    let undescribed = follow(&region, &["prewarm", &format!("{}/fine/app:v1", fake.addr)]).pop().unwrap();
    assert_eq!(undescribed["phase"], "done");
    let named = format!("{NAME}/fine/app@sha256:{}", "0".repeat(64));
    let digest = |name: &str| images[name].layers[0].clone();
    let table: [(&str, Vec<String>); 17] = [
        ("away/app:v1", vec!["has no away/app:v1 (404)".into(), "SAD its own words".into()]),
        ("forbidden/app:v1", vec!["denies access to forbidden/app:v1 (403)".into(), "its own words".into()]),
        ("broken/app:v1", vec!["answered 500".into(), "its own words".into()]),
        ("busy/app:v1", vec!["answered 429".into()]),
        ("wrongkey/app:v1", vec!["(401)".into(), "refuses the credentials in docker_config".into()]),
        ("stranger.example/locked/app:v1", vec!["(401)".into(), "needs a user and a password".into()]),
        ("stranger.example/token/app:v1", vec!["(401)".into(), "needs credentials".into()]),
        ("dead.example/app:v1", vec!["cannot reach http://127.0.0.1:1/v2/app/manifests/v1".into()]),
        ("huge/app:v1", vec!["exceeds 4194304 bytes".into()]),
        ("old/app:v1", vec!["v1+prettyjws".into(), "neither an OCI nor a Docker".into()]),
        ("garbled/app:v1", vec!["cannot be read".into()]),
        ("circle/app:v1", vec!["redirects more than 5 times".into()]),
        ("liar/app:v1", vec![digest("liar"), "sent bytes with the digest".into()]),
        ("long/app:v1", vec![digest("long"), "longer than".into()]),
        ("short/app:v1", vec![digest("short"), "ended blob".into()]),
        (&named, vec!["for sha256:0000".into()]),
        ("../app:v1", vec!["invalid image name".into()]),
    ];
    for (image, words) in &table {
        let full = if image.contains("example") { image.to_string() } else { format!("{NAME}/{image}") };
        let text = refused(&region, &[&full]);
        assert!(words.iter().all(|word| text.contains(word)), "{image}: {text}");
        // A dry run fails with the same error, unless only the blobs show it.
        if !["liar", "long", "short"].iter().any(|name| image.starts_with(name))
            && !image.starts_with("busy")
            && !image.starts_with("broken")
        {
            let dry = region.cli(&["prewarm", &full, "--to", "all", "--dry-run"]);
            let text = String::from_utf8_lossy(&dry.stderr).into_owned();
            assert!(!dry.status.success() && words.iter().all(|word| text.contains(word)), "{image}: {text}");
        }
    }
    let s390x = ["prewarm", &format!("{NAME}/fine/app:v1"), "--to", "all", "--platform", "linux"];
    let text = String::from_utf8_lossy(&region.cli(&s390x).stderr).into_owned();
    assert!(text.contains("write os/arch"), "{text}");
    // Failed pulls left no files.
    let contents = fs::read_dir(region.seeder.dir().join("state/contents")).unwrap().count();
    assert_eq!(contents, MENDED.len() + 1, "one image has two names");
}

#[test]
fn a_registry_with_its_own_certificate_is_trusted_by_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let addr = own_loopback();
    let own = rcgen::generate_simple_self_signed(vec![addr.to_string()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&certificate, own.cert.pem()).unwrap();
    fs::write(&key, own.key_pair.serialize_pem()).unwrap();
    let tls = format!("tls: {{certificate: '{}', key: '{}'}}", certificate.display(), key.display());
    let registry = Registry::start_with(addr, &folder.path().join("registry"), &tls);
    let image = Image::new(&[packed("app", 400_000, 1)]);
    registry.put(&image, &folder.path().join("v1"), "lab/app:v1");
    let mut region = Region::start(SHOAL, 1, 1);
    let name = format!("{}/lab/app:v1", registry.addr);
    let text = refused(&region, &[&name]);
    assert!(text.contains("certificate") && text.contains("ca"), "{text}");
    region.seeder.configure(&format!("registries={{'{}'={{ca='{}'}}}}", registry.addr, certificate.display()));
    region.seeder.restart();
    region.wait_up(1);
    let status = follow(&region, &["prewarm", &name]).pop().unwrap();
    assert_eq!(status["phase"], "done");
    assert_everywhere(&region, &image);
}

#[test]
fn a_pulled_image_is_warmed_in_batches() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(&folder.path().join("registry"));
    let region = region(1, 3, &registry.addr);
    let image = Image::new(&[packed("app", 1 << 20, 1)]);
    registry.put(&image, &folder.path().join("v1"), "lab/app:v1");
    let args = ["prewarm", &format!("{NAME}/lab/app:v1"), "--batch", "1,100%", "--soak", "300ms"];
    let statuses = follow(&region, &args);
    let last = statuses.last().unwrap();
    assert_eq!((&last["phase"], &last["tally"]["active"]), (&"done".into(), &3.into()), "{last:#}");
    assert!(
        statuses.iter().any(|view| view["batch"] == 1 && view["tally"]["active"] == 1),
        "the first batch was more than one host: {statuses:#?}"
    );
    assert_everywhere(&region, &image);
}
