//! Names of ours never meet names of users, a version has one content, and what is gone is not offered.

use crate::{SHOAL, current, directory, ends_with};
use serde_json::Value;
use shoal_testkit::{Region, Setup, noise, until};
use std::fs;
use std::path::Path;
use std::process::Output;

fn push(region: &Region, path: &Path, name: &str, version: &str, more: &[&str]) -> Output {
    let args = ["push", path.to_str().unwrap(), "--name", name, "--version", version, "--to", "all"];
    region.cli(&[&args[..], more].concat())
}

/// The names of all entries of a host's folder of a name.
fn entries(region: &Region, peer: usize, name: &str) -> Vec<String> {
    let folder = region.peers[peer].dir().join("content").join(name);
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_version_called_versions_is_a_version_like_any_other() {
    let mut region = Region::start(SHOAL, 1, 1);
    let source = directory(&region, "source", b"1");
    fs::write(source.join(".shoal-mine"), "a file of the customer").unwrap();
    for version in ["1", "versions", "versions.new", "new-1"] {
        fs::write(source.join("f"), version).unwrap();
        ends_with(0, &push(&region, &source, "edge/cfg", version, &["--wait"]));
        assert_eq!(current(&region, 0, "edge/cfg").as_deref(), Some(version));
        region.peers[0].restart();
        region.wait_up(1);
        let mine = region.peers[0].dir().join("content/edge/cfg").join(version).join(".shoal-mine");
        assert!(mine.exists(), "a restart removed a file of version {version}");
    }
    // The newest two versions stay, and the list of versions knows them.
    assert_eq!(entries(&region, 0, "edge/cfg"), [".shoal-versions", "current", "new-1", "versions.new"]);
}

#[test]
fn names_of_ours_are_refused_with_the_reason() {
    let region = Region::start(SHOAL, 1, 1);
    let source = directory(&region, "source", b"1");
    let refused = |name: &str, version: &str, why: &str| {
        let output = push(&region, &source, name, version, &["--wait"]);
        let text = ends_with(1, &output);
        assert!(text.contains(why), "{name}@{version}: {text}");
        let what = format!("{name}@{version}");
        let text = ends_with(1, &region.cli(&["rollout", &what, source.to_str().unwrap(), "--to", "all"]));
        assert!(text.contains("invalid") || text.contains("refused"), "{what}: {text}");
    };
    for name in ["feeds", "feeds/x", "current", "edge/current", "current/edge", ".shoal-x", "edge/.shoal-versions"] {
        refused(name, "1", "invalid content name");
    }
    for version in ["current", ".shoal-versions", ".shoal-1"] {
        refused("edge/a", version, "invalid version");
    }
    // On the hosts the name of a content is a folder, whose entries are its versions.
    ends_with(0, &push(&region, &source, "edge/a", "1", &["--wait"]));
    for name in ["edge/a/b", "edge"] {
        let text = ends_with(1, &push(&region, &source, name, "1", &["--wait"]));
        assert!(text.contains("conflicts with the name `edge/a`"), "{text}");
    }

    let data = region.folder.path().join("data");
    fs::write(&data, "data").unwrap();
    let publish = |feed: &str| region.cli(&["feed", "publish", feed, data.to_str().unwrap()]);
    for feed in ["x", "x/versions", "version", "version/x"] {
        ends_with(0, &publish(feed));
    }
    for feed in ["x/version", "x/version/y", "x/current", "x/events", "desired", "desired/edge/a"] {
        let text = ends_with(1, &publish(feed));
        assert!(text.contains("version refused"), "{feed}: {text}");
    }
    let content = region.peers[0].dir().join("content/feeds");
    for feed in ["x", "x/versions", "version", "version/x"] {
        until(&format!("readers have {feed}"), || {
            let described = fs::read(content.join(feed).join("version")).ok()?;
            let described: Value = serde_json::from_slice(&described).ok()?;
            (described["feed"] == feed && fs::read(content.join(feed).join("current")).ok()? == b"data").then_some(())
        });
    }
    // The names of contents are free, also where a feed of ours is named after them.
    for name in ["edge/version", "edge/events"] {
        let what = format!("{name}@1");
        let args = ["rollout", &what, source.to_str().unwrap(), "--to", "all", "--soak", "0s", "--wait"];
        ends_with(0, &region.cli(&args));
        assert_eq!(current(&region, 0, name).as_deref(), Some("1"), "{name}");
    }
    assert!(!content.join("desired").exists(), "desired states are not for readers");
}

#[test]
fn one_version_never_has_two_contents_unless_it_is_replaced() {
    let mut region = Region::start(SHOAL, 1, 1);
    let source = directory(&region, "source", b"first");
    let file = |region: &Region| fs::read(region.peers[0].dir().join("content/edge/cfg/current/f")).unwrap();
    let wait = ["--kind", "config", "--wait"];
    ends_with(0, &push(&region, &source, "edge/cfg", "42", &wait));
    ends_with(0, &push(&region, &source, "edge/cfg", "42", &wait));
    fs::write(source.join("f"), "second").unwrap();
    // The seeder remembers versions for longer than its process.
    region.seeder.restart();
    region.wait_up(1);
    let text = ends_with(1, &push(&region, &source, "edge/cfg", "42", &wait));
    assert!(text.contains("version 42 of edge/cfg has another content") && text.contains("--replace"), "{text}");
    assert_eq!(file(&region), b"first");
    let rollout = |more: &[&str]| {
        let args = ["rollout", "edge/cfg@42", source.to_str().unwrap(), "--to", "all", "--soak", "0s", "--wait"];
        region.cli(&[&args[..], more].concat())
    };
    let text = ends_with(3, &rollout(&[]));
    assert!(text.contains("has another content") && text.contains("--replace"), "{text}");
    assert_eq!(file(&region), b"first");
    ends_with(0, &push(&region, &source, "edge/cfg", "43", &wait));
    ends_with(0, &push(&region, &source, "edge/cfg", "42", &[&wait[..], &["--replace"]].concat()));
    assert_eq!(file(&region), b"second");
    fs::write(source.join("f"), "third").unwrap();
    ends_with(0, &rollout(&["--replace"]));
    assert_eq!(file(&region), b"third");
}

#[test]
fn a_version_that_is_gone_everywhere_is_refused_and_not_listed() {
    let small = |_: usize| vec!["keep_versions=1".to_string(), "node.quota=4 MB".to_string()];
    let region = Setup::new(SHOAL, 1, 2).seeder(&["node.quota=4 MB"]).peers(small).start();
    let source = directory(&region, "source", b"");
    for version in 1..=6 {
        fs::write(source.join("f"), noise(1_000_000, version)).unwrap();
        ends_with(0, &push(&region, &source, "edge/cfg", &version.to_string(), &["--kind", "config", "--wait"]));
    }
    let listed = region.cli_json(&["ls", "--json"]).unwrap();
    let listed = listed.to_string();
    assert!(listed.contains("\"version\":\"6\"") && !listed.contains("\"version\":\"1\""), "{listed}");
    let text = ends_with(1, &region.cli(&["promote", "edge/cfg@1", "--wait"]));
    assert!(text.contains("no longer has the content of edge/cfg@1"), "{text}");
    let args = ["rollout", "edge/cfg@1", "--to", "all", "--wait", "--timeout", "50s"];
    let text = ends_with(3, &region.cli(&args));
    assert!(text.contains("version 1 is not here any more") && text.contains("its path"), "{text}");
    // The name is free again.
    fs::write(source.join("f"), noise(1_000_000, 7)).unwrap();
    ends_with(0, &push(&region, &source, "edge/cfg", "7", &["--kind", "config", "--wait"]));
}
