//! Crates: which crate may use which, and circles between the modules of one crate.

use crate::files::{File, root, rust, with_ending};
use crate::none;
use crate::ratchet::CIRCLES;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Which of our crates each crate may use. `shoal` itself may use all shipped crates.
const EDGES: [(&str, &[&str]); 16] = [
    ("proto", &[]),
    ("swarm", &["proto"]),
    ("api", &["proto"]),
    ("kv", &[]),
    ("store", &["proto", "kv"]),
    ("tls-records", &[]),
    ("net", &["proto", "tls-records"]),
    ("service", &["api", "proto", "kv"]),
    ("sim", &["proto", "swarm"]),
    ("tracker", &["api", "proto", "swarm", "net", "service", "kv"]),
    ("containerd", &["proto"]),
    ("peer", &["api", "proto", "swarm", "net", "store", "service", "containerd"]),
    ("seeder", &["api", "peer", "proto", "swarm", "net", "store", "service"]),
    ("hub", &["api", "proto", "net", "service", "kv"]),
    ("testkit", &[]),
    ("lab", &["proto", "service", "sim", "testkit"]),
];

/// Crates for tests and developers. Other crates may have them only as development dependencies.
const FOR_DEVELOPERS: [&str; 2] = ["testkit", "lab"];

/// The names of our crates in a manifest: those it ships with, and those its tests use.
fn dependencies(manifest: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let (mut shipped, mut dev, mut section) = (BTreeSet::new(), BTreeSet::new(), "");
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let Some(used) = line.strip_prefix("shoal-").and_then(|rest| rest.split(['.', ' ']).next()) else { continue };
        if section == "[dev-dependencies]" {
            dev.insert(used)
        } else {
            shipped.insert(used)
        };
    }
    (shipped, dev)
}

#[test]
fn crates_depend_only_on_those_below() {
    let mut broken = Vec::new();
    for (name, below) in EDGES {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let (shipped, dev) = dependencies(&manifest);
        let dev = dev.into_iter().filter(|used| *used != "testkit" && *used != name);
        broken.extend(
            shipped
                .into_iter()
                .chain(dev)
                .filter(|used| !below.contains(used))
                .map(|used| format!("{name} uses {used}")),
        );
    }
    none("a crate uses one it may not", broken);
}

#[test]
fn no_shipped_crate_depends_on_those_for_developers() {
    let mut broken = Vec::new();
    for file in with_ending(&["Cargo.toml"]) {
        let folder = file.path.parent().unwrap_or(Path::new(""));
        if FOR_DEVELOPERS.iter().any(|name| folder == Path::new(name)) || folder.ends_with("fuzz") {
            continue;
        }
        // The table of the workspace only names the crates' folders.
        let text = file.text.replace(" = { path = ", "_path ");
        let (shipped, _) = dependencies(&text);
        let used = shipped.into_iter().filter(|used| FOR_DEVELOPERS.contains(used));
        broken.extend(used.map(|used| format!("{} uses {used}", file.name())));
    }
    none("a shipped crate uses one for developers", broken);
}

#[test]
fn every_module_says_what_it_is() {
    let silent = rust().into_iter().filter(|file| !file.text.starts_with("//!"));
    none("begin with `//!`", silent.map(|file| file.name()).collect());
    for (name, _) in EDGES {
        let text = fs::read_to_string(root().join(name).join("src/lib.rs")).unwrap();
        let is_map = text.contains("Where to look:") && text.contains("Invariant:");
        assert!(is_map, "{name}/src/lib.rs lacks `Where to look:` or `Invariant:`");
    }
}

/// The imports between the top-level modules of one crate.
#[derive(Default)]
struct Imports {
    /// Module by name, with the modules it names and one place for each.
    edges: BTreeMap<String, BTreeMap<String, String>>,
}

/// The path of a file below its `src/`, as module names. The crate's root is empty.
fn module_path(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> = file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let last = parts.pop().unwrap_or_default();
    match last.as_str() {
        "mod.rs" | "lib.rs" | "main.rs" => {}
        name => parts.push(name.trim_end_matches(".rs").to_string()),
    }
    parts
}

/// The first names of all paths that begin with `prefix`, also of those in braces.
fn first_names(text: &str, prefix: &str) -> Vec<String> {
    let ident = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        // `shoal_crate::` and `super::super::` are other prefixes.
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        if !rest.starts_with('{') {
            names.push(ident(rest));
            continue;
        }
        let (mut depth, mut start) = (0, true);
        for (place, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                _ if c.is_alphabetic() && depth == 1 && start => {
                    names.push(ident(&rest[place..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// What the crate's root exports: names of items by the module they come from.
fn exports(root: &str) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for statement in without_comments(root).split(';') {
        let Some((_, path)) = statement.split_once("pub use ") else { continue };
        let Some((module, items)) = path.trim().split_once("::") else { continue };
        let module = module.trim_start_matches("crate::").to_string();
        for item in items.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|item| !item.is_empty()) {
            exports.insert(item.to_string(), module.clone());
        }
    }
    exports
}

impl Imports {
    fn of(files: &[&File], src: &Path) -> Self {
        let paths: Vec<(Vec<String>, &&File)> =
            files.iter().map(|file| (module_path(file.path.strip_prefix(src).unwrap()), file)).collect();
        let modules: BTreeSet<&String> = paths.iter().filter_map(|(path, _)| path.first()).collect();
        let root = paths.iter().find(|(path, _)| path.is_empty()).map_or("", |(_, file)| &file.text);
        let exports = exports(root);
        let mut imports = Self::default();
        for (path, file) in &paths {
            let Some(from) = path.first() else { continue };
            let text = without_comments(file.without_tests());
            let above = "super::".repeat(path.len());
            for name in first_names(&text, "crate::").into_iter().chain(first_names(&text, &above)) {
                let to = if modules.contains(&name) { Some(&name) } else { exports.get(&name) };
                if let Some(to) = to.filter(|to| *to != from && modules.contains(to)) {
                    imports.edges.entry(from.clone()).or_default().insert(to.clone(), file.name());
                }
            }
        }
        imports
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(at) = open.pop() {
            for next in self.edges.get(at).into_iter().flat_map(BTreeMap::keys) {
                if next == to {
                    return true;
                }
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        false
    }

    /// The modules that import each other in a circle, each with those of its circle that it imports.
    fn circles(&self) -> Vec<String> {
        let in_circle = self.edges.keys().filter(|module| self.reaches(module, module));
        let describe = |module: &String| {
            let back = self.edges[module].iter().filter(|(to, _)| self.reaches(to, module));
            let back: Vec<String> = back.map(|(to, place)| format!("{to} ({place})")).collect();
            format!("{module} imports {}", back.join(", "))
        };
        in_circle.map(describe).collect()
    }
}

#[test]
fn modules_import_each_other_in_no_circle() {
    // Test modules may use their subject and each other.
    let files = rust();
    let mut circles = Vec::new();
    let names = EDGES.iter().map(|(name, _)| *name).chain([""]);
    for name in names {
        let src = Path::new(name).join("src");
        let own: Vec<&File> = files.iter().filter(|file| file.path.starts_with(&src) && file.is_shipped()).collect();
        let found = Imports::of(&own, &src).circles();
        circles.extend(found.into_iter().map(|row| format!("{}: {row}", src.display())));
    }
    CIRCLES.check(circles.len() as f64, &circles);
}

#[test]
fn circles_are_found() {
    let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
    let files = [
        file("x/src/lib.rs", "mod a; mod b; mod c; pub use b::{Thing, Other};"),
        file("x/src/a/mod.rs", "use crate::{Thing, c::deep::Name};"),
        file("x/src/b.rs", "use super::c::Name;"),
        file("x/src/c/deep.rs", "use super::super::a::Name; // crate::b::Nothing"),
    ];
    let own: Vec<&File> = files.iter().collect();
    let imports = Imports::of(&own, Path::new("x/src"));
    let names: Vec<(&str, Vec<&str>)> =
        imports.edges.iter().map(|(from, to)| (from.as_str(), to.keys().map(String::as_str).collect())).collect();
    assert_eq!(names, [("a", vec!["b", "c"]), ("b", vec!["c"]), ("c", vec!["a"])]);
    assert_eq!(imports.circles().len(), 3);
}
