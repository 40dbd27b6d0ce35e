//! The repository's own rules: who may depend on whom, sizes, words, leftovers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may use. `shoal` itself may use all.
const EDGES: [(&str, &[&str]); 13] = [
    ("proto", &[]),
    ("swarm", &["proto"]),
    ("api", &["proto"]),
    ("kv", &[]),
    ("store", &["proto", "kv"]),
    ("net", &["proto"]),
    ("service", &["api", "kv"]),
    ("sim", &["proto", "swarm"]),
    ("tracker", &["api", "proto", "swarm", "net", "service", "kv"]),
    ("containerd", &[]),
    ("peer", &["api", "proto", "swarm", "net", "store", "service", "containerd"]),
    ("seeder", &["api", "peer", "proto", "swarm", "net", "store", "service"]),
    ("hub", &["api", "proto", "service", "kv"]),
];

/// Names of the standard library that hold a word we use otherwise.
const STD_NAMES: [&str; 4] = [".chunks(", ".chunk_by(", "chunks_exact", "chunk_size"];

/// Longest file, lines without its inline tests.
const LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of ours with one of these endings.
fn files(endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).unwrap() {
            let path = item.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_path_buf(), text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn rust() -> Vec<(PathBuf, String)> {
    // This file names what it forbids.
    files(&[".rs"]).into_iter().filter(|(path, _)| path != Path::new("tests/tidy.rs")).collect()
}

/// Fails with every place that breaks a rule.
fn none(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(number, line)| (number + 1, line))
}

/// The file without its inline test module.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests {").map_or(text, |cut| &text[..cut])
}

#[test]
fn crates_depend_only_on_those_below() {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.into_iter().collect();
    let mut broken = Vec::new();
    for (name, below) in &allowed {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for line in manifest.lines() {
            let Some(used) = line.strip_prefix("shoal-").and_then(|rest| rest.split(['.', ' ']).next()) else {
                continue;
            };
            if !below.contains(&used) {
                broken.push(format!("{name} uses {used}"));
            }
        }
    }
    none("a crate uses one it may not", broken);
}

#[test]
fn files_stay_readable() {
    let long = rust().into_iter().filter_map(|(path, text)| {
        let count = without_tests(&text).lines().count();
        (count > LINES_MAX).then(|| format!("{}: {count} lines", path.display()))
    });
    none("split by meaning", long.collect());
}

#[test]
fn every_module_says_what_it_is() {
    let silent = rust().into_iter().filter(|(_, text)| !text.starts_with("//!"));
    none("begin with `//!`", silent.map(|(path, _)| path.display().to_string()).collect());
    for (name, _) in EDGES {
        let text = fs::read_to_string(root().join(name).join("src/lib.rs")).unwrap();
        assert!(text.contains("Where to look:") && text.contains("Invariant:"), "{name}/src/lib.rs is no map");
    }
}

#[test]
fn words_mean_one_thing() {
    let mut broken = Vec::new();
    for (path, text) in rust() {
        for (number, line) in lines(&text) {
            let lower = STD_NAMES.iter().fold(line.to_lowercase(), |line, name| line.replace(name, ""));
            if lower.contains("chunk") {
                broken.push(format!("{}:{number}: a piece is not a chunk", path.display()));
            }
            if line.contains("Swarm") && !path.starts_with("net") {
                broken.push(format!("{}:{number}: `Swarm` is libp2p's, and lives in net", path.display()));
            }
        }
    }
    none("words", broken);
}

#[test]
fn nothing_is_left_lying_about() {
    let forbidden = ["#[ignore", "todo!(", "unimplemented!(", "FIXME", "XXX", "allow(dead_code)", "allow(unused"];
    let mut broken = Vec::new();
    for (path, text) in rust() {
        for (number, line) in lines(&text) {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{}:{number}: {word}", path.display()));
            }
        }
    }
    none("leftovers", broken);
}

#[test]
fn nothing_tells_of_a_machine() {
    let forbidden =
        [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["crates", ".io"], ["pypi", ".org"]].map(|p| p.concat());
    let mut broken = Vec::new();
    for (path, text) in files(&[".rs", ".md", ".toml", ".service", ".sh"]) {
        for (number, line) in lines(&text) {
            for word in forbidden.iter().filter(|word| line.contains(word.as_str())) {
                broken.push(format!("{}:{number}: {word}", path.display()));
            }
        }
    }
    none("paths and hosts of one machine", broken);
}
