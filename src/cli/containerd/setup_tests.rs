//! Folders of hosts.toml files as operators have them, and what setup and undo do to them.

use super::files::{FILE_NAME, backup_of};
use super::folders::{Roots, hidden_by, leading_to, names};
use super::hosts_toml::{Flags, Marked, hosts, marked};
use super::setup::{Change, Changed, Wanted, set_up};
use super::undo::undo;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const MIRROR: &str = "http://127.0.0.1:7703";
const REGISTRY: &str = "tlsreg.example:5557";

fn wanted() -> Wanted {
    Wanted { mirror: MIRROR.into(), server: None, resolves_tags: true, force: false }
}

/// Everything in a folder: modes, times and bytes.
type Snapshot = BTreeMap<PathBuf, (u32, Option<(i64, i64)>, Vec<u8>)>;

fn snapshot(dir: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let time = Some((meta.mtime(), meta.mtime_nsec()));
            let entry = if meta.is_symlink() {
                (meta.mode(), time, fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
            } else if meta.is_dir() {
                folders.push(path.clone());
                (meta.mode(), None, Vec::new())
            } else {
                (meta.mode(), time, fs::read(&path).unwrap())
            };
            found.insert(path, entry);
        }
    }
    found
}

/// A folder of hosts.toml files.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// Makes files by their paths. A path with a slash at its end is a folder.
    fn new(files: &[(&str, &str)]) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(lab.dir()).unwrap();
        for (name, text) in files {
            let path = lab.dir().join(name);
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }
        lab
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("certs.d")
    }

    fn roots(&self) -> Roots {
        Roots { dir: self.dir(), all: vec![self.dir()] }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn run(&self, registry: &str, wanted: &Wanted) -> anyhow::Result<Changed> {
        Ok(set_up(&self.roots(), &[registry.to_string()], wanted, false)?.remove(0))
    }

    /// Sets a registry up twice, and checks that the second time changes nothing.
    #[track_caller]
    fn set_up_with(&self, registry: &str, wanted: &Wanted) -> Changed {
        let changed = self.run(registry, wanted).unwrap();
        let once = snapshot(&self.dir());
        assert_eq!(self.run(registry, wanted).unwrap().change, Change::Unchanged);
        assert_eq!(snapshot(&self.dir()), once);
        changed
    }

    #[track_caller]
    fn set_up(&self, registry: &str) -> Changed {
        self.set_up_with(registry, &wanted())
    }

    /// Returns why setup refuses, after a check that it changed nothing.
    #[track_caller]
    fn refused(&self, registry: &str, wanted: &Wanted) -> String {
        let before = snapshot(&self.dir());
        let error = format!("{:#}", self.run(registry, wanted).unwrap_err());
        assert_eq!(snapshot(&self.dir()), before, "{error}");
        error
    }

    /// Undoes all, and checks what happened to each file.
    #[track_caller]
    fn undo(&self, expected: &[Change]) -> Vec<Changed> {
        let before = snapshot(&self.dir());
        undo(&self.dir(), &[], true).unwrap();
        assert_eq!(snapshot(&self.dir()), before, "a dry run");
        let changed = undo(&self.dir(), &[], false).unwrap();
        assert_eq!(changed.iter().map(|changed| changed.change).collect::<Vec<_>>(), expected, "{changed:#?}");
        changed
    }
}

#[test]
fn a_file_is_written_once_and_removed_with_its_folder() {
    let lab = Lab::new(&[]);
    let before = snapshot(&lab.dir());
    let dry = set_up(&lab.roots(), &["registry.example:5000".into()], &wanted(), true).unwrap();
    assert_eq!((dry[0].change, snapshot(&lab.dir())), (Change::Written, before.clone()));
    lab.set_up("registry.example:5000");
    let text = lab.read("registry.example:5000/hosts.toml");
    assert!(text.contains("[host.\"http://127.0.0.1:7703\"]\n  capabilities = [\"pull\", \"resolve\"]"), "{text}");
    assert!(!text.contains("server"), "{text}");
    let digests = Wanted { server: Some("http://10.0.0.1:5000".into()), resolves_tags: false, ..wanted() };
    assert_eq!(lab.set_up_with("registry.example:5000", &digests).change, Change::Written);
    let text = lab.read("registry.example:5000/hosts.toml");
    assert!(text.contains("server = \"http://10.0.0.1:5000\"\n") && !text.contains("resolve"), "{text}");
    lab.undo(&[Change::Removed]);
    assert_eq!(snapshot(&lab.dir()), before, "the folder had no other file");
    assert!(undo(&lab.path("nowhere"), &[], false).unwrap().is_empty());
}

#[test]
fn docker_has_an_address_that_is_not_its_name() {
    let lab = Lab::new(&[]);
    let registries = ["index.docker.io".to_string(), "docker.io".into()];
    assert_eq!(set_up(&lab.roots(), &registries, &wanted(), false).unwrap().len(), 1);
    assert!(lab.read("docker.io/hosts.toml").contains("server = \"https://registry-1.docker.io\"\n"));
}

#[test]
fn certificates_in_the_folder_keep_working() {
    let lab = Lab::new(&[
        ("tlsreg.example:5557/ca.crt", ""),
        ("tlsreg.example:5557/client.cert", ""),
        ("tlsreg.example:5557/client.key", ""),
        ("tlsreg.example:5557/both.cert", ""),
        ("tlsreg.example:5557/old.crt/", ""),
    ]);
    let before = snapshot(&lab.dir());
    lab.set_up(REGISTRY);
    let table: toml::Table = lab.read("tlsreg.example:5557/hosts.toml").parse().unwrap();
    let expected = "ca = ['ca.crt']\nclient = [['both.cert', 'both.cert'], ['client.cert', 'client.key']]\n";
    let expected: toml::Table = expected.parse().unwrap();
    assert_eq!((table.get("ca"), table.get("client")), (expected.get("ca"), expected.get("client")));
    lab.undo(&[Change::Removed]);
    assert_eq!(snapshot(&lab.dir()), before);

    // A file of 1.6 without hosts leaves the certificates in use. An empty file does so in every release.
    for text in ["", "server = \"https://tlsreg.example:5557\"\n"] {
        let lab = Lab::new(&[("tlsreg.example:5557/ca.crt", ""), ("tlsreg.example:5557/hosts.toml", text)]);
        let before = snapshot(&lab.dir());
        lab.set_up(REGISTRY);
        assert!(lab.read("tlsreg.example:5557/hosts.toml").contains("ca = [\"ca.crt\"]\n"));
        lab.undo(&[Change::Restored]);
        assert_eq!(snapshot(&lab.dir()), before);
    }
}

#[test]
fn the_folder_that_containerd_takes_gets_the_mirror() {
    assert_eq!(names("tlsreg.example:5557"), ["tlsreg.example_5557_", "tlsreg.example:5557", "_default"]);
    assert_eq!(names("docker.io"), ["docker.io", "_default"]);
    assert_eq!(names("_default"), ["_default"]);

    let file = ("tlsreg.example_5557_/hosts.toml", "server = \"https://tlsreg.example:5557\"\n");
    let lab = Lab::new(&[file]);
    let before = snapshot(&lab.dir());
    let changed = lab.set_up(REGISTRY);
    assert_eq!(changed.file, lab.path(file.0));
    assert!(!lab.path(REGISTRY).exists());
    let text = lab.read(file.0);
    assert!(text.starts_with(file.1) && hosts(&text) == [MIRROR], "{text}");
    assert_eq!(undo(&lab.dir(), &[REGISTRY.into()], false).unwrap()[0].change, Change::Restored);
    assert_eq!(snapshot(&lab.dir()), before);

    // Both spellings are there: only one is read.
    let lab = Lab::new(&[("tlsreg.example_5557_/", ""), ("tlsreg.example:5557/ca.crt", "")]);
    let changed = lab.set_up(REGISTRY);
    assert_eq!(changed.file, lab.path(file.0));
    assert!(changed.notes.iter().any(|note| note.contains("does not read")), "{changed:?}");
    assert_eq!(leading_to(&lab.dir(), MIRROR), ["tlsreg.example_5557_"]);
    assert_eq!(hidden_by(&lab.dir(), REGISTRY), Some(lab.path("tlsreg.example_5557_")));
    assert_eq!(hidden_by(&lab.dir(), "docker.io"), None);

    // containerd fails at a file in the place of the folder.
    let lab = Lab::new(&[(REGISTRY, "")]);
    assert!(lab.refused(REGISTRY, &wanted()).contains("is not a folder"));
}

#[test]
fn a_new_folder_repeats_what_default_does() {
    let site = "server = 'https://site.example'\nca = 'site.crt'\n\n[host.'https://cache.example']\n  \
                client = [['c.cert', '/etc/c.key']]\n";
    let lab = Lab::new(&[("_default/hosts.toml", site)]);
    let before = snapshot(&lab.dir());
    let changed = lab.set_up("docker.io");
    assert!(changed.notes.iter().any(|note| note.contains("_default")), "{changed:?}");
    let text = lab.read("docker.io/hosts.toml");
    assert_eq!(hosts(&text), [MIRROR, "https://cache.example"]);
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["server"].as_str(), Some("https://site.example"));
    assert_eq!(table["ca"].as_str(), Some("../_default/site.crt"));
    let client = table["host"]["https://cache.example"]["client"].to_string();
    assert!(client.contains("../_default/c.cert") && client.contains("\"/etc/c.key\""), "{client}");

    // `_default` gets the mirror too. The other file still has it once.
    lab.set_up("_default");
    lab.set_up("docker.io");
    assert_eq!(hosts(&lab.read("docker.io/hosts.toml")), [MIRROR, "https://cache.example"]);
    lab.undo(&[Change::Restored, Change::Removed]);
    assert_eq!(snapshot(&lab.dir()), before);

    // With --force nothing is repeated.
    lab.set_up_with("docker.io", &Wanted { force: true, ..wanted() });
    assert_eq!(hosts(&lab.read("docker.io/hosts.toml")), [MIRROR]);

    // `_default` with certificates alone.
    let lab = Lab::new(&[("_default/site.crt", "")]);
    lab.set_up("a.example");
    assert!(lab.read("a.example/hosts.toml").contains("ca = [\"../_default/site.crt\"]\n"));
    // A certificate that arrives in the new folder takes the place of those of `_default`.
    fs::write(lab.path("a.example/own.crt"), "").unwrap();
    lab.set_up("a.example");
    assert!(lab.read("a.example/hosts.toml").contains("ca = [\"own.crt\"]\n"));
}

#[test]
fn the_folders_of_other_roots_count() {
    let lab = Lab::new(&[("b/tlsreg.example:5557/ca.crt", ""), ("a/", "")]);
    let root = |name: &str| lab.path(name);
    let roots = |dir: &str| Roots { dir: root(dir), all: vec![root("a"), root("b")] };
    // The second root has certificates, which a new folder in the first root hides.
    set_up(&roots("a"), &[REGISTRY.into()], &wanted(), false).unwrap();
    let ca = root("b").join(REGISTRY).join("ca.crt");
    let text = lab.read("a/tlsreg.example:5557/hosts.toml");
    assert!(text.contains(&format!("ca = [\"{}\"]\n", ca.display())), "{text}");
    // What is written to the second root would not be read.
    let error = set_up(&roots("b"), &[REGISTRY.into()], &wanted(), false).unwrap_err().to_string();
    assert!(error.contains("--hosts-dir") && error.contains(&root("a").display().to_string()), "{error}");
}

/// A file as sites have it.
const OF_A_SITE: &str = "\
# Managed by the site. Do not touch.

server = \"https://tlsreg.example:5557\" # the registry
ca = [
  \"ca.crt\",
]

# The cache of the site.
[host.\"https://cache.example\"]
  capabilities = [\"pull\", \"resolve\"]
  skip_verify = true
  override_path = true
  [host.\"https://cache.example\".header]
    x-site = [\"lon1\"]

[host.\"http://second.example:5000\"]
  client = [
    [\"a.cert\", \"a.key\"],
  ]
";

#[test]
fn files_of_others_are_merged_and_restored_byte_for_byte() {
    let carriage_returns = OF_A_SITE.replace('\n', "\r\n");
    let texts = [
        OF_A_SITE,
        OF_A_SITE.trim_end(),
        carriage_returns.as_str(),
        "server = \"https://x.example\"",
        "# nothing\n",
        "\n",
    ];
    for text in texts {
        let lab = Lab::new(&[("tlsreg.example:5557/hosts.toml", text), ("tlsreg.example:5557/ca.crt", "")]);
        let path = lab.path("tlsreg.example:5557/hosts.toml");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let (before, number) = (snapshot(&lab.dir()), fs::metadata(&path).unwrap().ino());
        lab.set_up(REGISTRY);
        let merged = lab.read("tlsreg.example:5557/hosts.toml");
        assert_eq!(Marked::parse(&merged).rest(), text);
        assert_eq!(hosts(&merged)[0], MIRROR, "{merged}");
        assert_eq!(hosts(&merged)[1..], hosts(text));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(backup_of(&path)).unwrap(), text);
        // Another mirror takes the place of the first one. The backup stays.
        lab.set_up_with(REGISTRY, &Wanted { mirror: "http://127.0.0.1:7799".into(), ..wanted() });
        assert_eq!(hosts(&lab.read("tlsreg.example:5557/hosts.toml")).len(), hosts(&merged).len());
        lab.undo(&[Change::Restored]);
        assert_eq!(snapshot(&lab.dir()), before);
        assert_eq!(fs::metadata(&path).unwrap().ino(), number, "it is the same file");
    }
}

#[test]
fn a_comment_above_the_first_host_stays_with_it() {
    let lab = Lab::new(&[("tlsreg.example:5557/hosts.toml", OF_A_SITE)]);
    lab.set_up(REGISTRY);
    let text = lab.read("tlsreg.example:5557/hosts.toml");
    assert!(text.contains("# shoal end\n# The cache of the site.\n[host."), "{text}");
    assert!(text.starts_with("# Managed by the site."), "{text}");
}

#[test]
fn a_link_is_restored_as_a_link() {
    let lab = Lab::new(&[("shared.toml", OF_A_SITE), ("tlsreg.example:5557/", "")]);
    symlink("../shared.toml", lab.path("tlsreg.example:5557/hosts.toml")).unwrap();
    let before = snapshot(&lab.dir());
    lab.set_up(REGISTRY);
    assert_eq!(lab.read("shared.toml"), OF_A_SITE, "other folders may use it");
    lab.undo(&[Change::Restored]);
    assert_eq!(snapshot(&lab.dir()), before);
    fs::remove_file(lab.path("shared.toml")).unwrap();
    assert!(lab.refused(REGISTRY, &wanted()).contains("does not exist"));
    lab.undo(&[]);
}

#[test]
fn changes_after_setup_stay() {
    let name = "tlsreg.example:5557/hosts.toml";
    let lab = Lab::new(&[(name, OF_A_SITE)]);
    let append = |text: &str| fs::write(lab.path(name), lab.read(name) + text).unwrap();
    lab.set_up(REGISTRY);
    append("# A later line.\n");
    let changed = lab.undo(&[Change::LinesRemoved]).remove(0);
    assert!(changed.notes.iter().any(|note| note.contains("before-shoal")), "{changed:?}");
    assert_eq!(lab.read(name), format!("{OF_A_SITE}# A later line.\n"));
    assert_eq!(fs::read_to_string(backup_of(&lab.path(name))).unwrap(), OF_A_SITE);

    // A setup after the change restores to the changed file.
    lab.set_up(REGISTRY);
    append("# One more.\n");
    lab.set_up_with(REGISTRY, &Wanted { resolves_tags: false, ..wanted() });
    lab.undo(&[Change::Restored]);
    assert_eq!(lab.read(name), format!("{OF_A_SITE}# A later line.\n# One more.\n"));

    // Lines beside those of a new file.
    let lab = Lab::new(&[]);
    lab.set_up(REGISTRY);
    let name = lab.path(name);
    let text = fs::read_to_string(&name).unwrap();
    fs::write(&name, format!("{text}\n[host.\"https://later.example\"]\n")).unwrap();
    lab.set_up_with(REGISTRY, &Wanted { resolves_tags: false, ..wanted() });
    lab.undo(&[Change::LinesRemoved]);
    assert_eq!(fs::read_to_string(&name).unwrap(), "\n[host.\"https://later.example\"]\n");
}

#[test]
fn changed_lines_of_shoal_are_not_lost() {
    let name = "tlsreg.example:5557/hosts.toml";
    for (from, to) in
        [("\"pull\", \"resolve\"", "\"pull\""), ("# shoal end\n", ""), ("# shoal end\n", "# shoal end\n# shoal end\n")]
    {
        let lab = Lab::new(&[]);
        lab.set_up(REGISTRY);
        lab.set_up("b.example");
        let changed = lab.read(name).replacen(from, to, 1);
        fs::write(lab.path(name), &changed).unwrap();
        assert!(lab.refused(REGISTRY, &wanted()).contains("were changed"));
        lab.undo(&[Change::Removed, Change::Kept]);
        assert_eq!(lab.read(name), changed);
        lab.set_up_with(REGISTRY, &Wanted { force: true, ..wanted() });
        lab.undo(&[Change::Restored]);
        assert_eq!(lab.read(name), changed);
    }
}

#[test]
fn files_of_others_do_not_stop_undo() {
    let lab = Lab::new(&[("folder/hosts.toml/x", ""), ("note", ""), ("foreign/hosts.toml", OF_A_SITE), ("empty/", "")]);
    fs::create_dir(lab.path("a.example")).unwrap();
    fs::write(lab.path("a.example/hosts.toml"), b"# sch\xf6n\n").unwrap();
    let before = snapshot(&lab.dir());
    lab.set_up("b.example");
    lab.undo(&[Change::Removed]);
    assert_eq!(snapshot(&lab.dir()), before);
    // Text around lines of shoal that is no longer UTF-8.
    lab.set_up("b.example");
    lab.set_up("c.example");
    let mut bytes = fs::read(lab.path("b.example/hosts.toml")).unwrap();
    bytes.extend(b"# sch\xf6n\n");
    fs::write(lab.path("b.example/hosts.toml"), &bytes).unwrap();
    lab.undo(&[Change::Kept, Change::Removed]);
    assert_eq!(fs::read(lab.path("b.example/hosts.toml")).unwrap(), bytes);
}

#[test]
fn force_replaces_files_and_undo_brings_them_back() {
    let force = Wanted { force: true, server: Some("http://10.0.0.1:5000".into()), ..wanted() };
    let texts: [&[u8]; 4] = [OF_A_SITE.as_bytes(), b"server = \n", b"# sch\xf6n\n", b"host = { 'https://a' = {} }\n"];
    for text in texts {
        let lab = Lab::new(&[("tlsreg.example:5557/ca.crt", "")]);
        fs::write(lab.path("tlsreg.example:5557/hosts.toml"), text).unwrap();
        let before = snapshot(&lab.dir());
        if text != OF_A_SITE.as_bytes() {
            assert!(lab.refused(REGISTRY, &wanted()).contains("--force"));
        }
        lab.set_up_with(REGISTRY, &force);
        let written = lab.read("tlsreg.example:5557/hosts.toml");
        assert!(written.contains("ca = [\"ca.crt\"]") && hosts(&written) == [MIRROR], "{written}");
        lab.undo(&[Change::Restored]);
        assert_eq!(snapshot(&lab.dir()), before);
    }
    // A merged file is replaced as well, and what was there before both comes back.
    let lab = Lab::new(&[("tlsreg.example:5557/hosts.toml", OF_A_SITE)]);
    let before = snapshot(&lab.dir());
    lab.set_up(REGISTRY);
    lab.set_up_with(REGISTRY, &force);
    assert_eq!(hosts(&lab.read("tlsreg.example:5557/hosts.toml")), [MIRROR]);
    lab.undo(&[Change::Restored]);
    assert_eq!(snapshot(&lab.dir()), before);
}

#[test]
fn the_server_of_a_file_is_not_overridden() {
    let lab =
        Lab::new(&[("tlsreg.example:5557/hosts.toml", OF_A_SITE), ("b.example/hosts.toml", "[host.'https://c']\n")]);
    let server = |url: &str| Wanted { server: Some(url.into()), ..wanted() };
    assert!(lab.refused(REGISTRY, &server("http://10.0.0.1:5000")).contains("leave out --server"));
    lab.set_up_with(REGISTRY, &server("https://tlsreg.example:5557"));
    lab.set_up_with("b.example", &server("http://10.0.0.1:5000"));
    let text = lab.read("b.example/hosts.toml");
    assert_eq!(text.parse::<toml::Table>().unwrap()["server"].as_str(), Some("http://10.0.0.1:5000"));
    lab.undo(&[Change::Restored, Change::Restored]);
}

#[test]
fn a_mirror_that_an_operator_wrote_is_left_alone() {
    let text = "[host.\"http://127.0.0.1:7703/\"]\n";
    for (text, is_first) in [(text.to_string(), true), (format!("[host.\"https://a\"]\n{text}"), false)] {
        let lab = Lab::new(&[("a.example/hosts.toml", text.as_str())]);
        let changed = lab.run("a.example", &wanted()).unwrap();
        assert_eq!((changed.change, lab.read("a.example/hosts.toml")), (Change::Unchanged, text));
        assert_eq!(changed.notes[0].contains("Another host"), !is_first, "{changed:?}");
        lab.undo(&[]);
    }
}

#[test]
fn malicious_names_are_refused() {
    let lab = Lab::new(&[]);
    for registry in ["../x", "a/b", "", ".", "..", "a\nb", "registry.example:port"] {
        assert!(lab.refused(registry, &wanted()).contains("invalid registry"), "{registry}");
        assert!(undo(&lab.dir(), &[registry.into()], false).is_err(), "{registry}");
    }
    for url in ["127.0.0.1:7703", "http://a\"]", "http://a/b", "ftp://a"] {
        let wanted = Wanted { server: Some(url.into()), ..wanted() };
        assert!(lab.refused("_default", &wanted).contains("invalid URL"), "{url}");
    }
}

#[test]
fn nothing_is_written_if_one_registry_fails() {
    let lab = Lab::new(&[("bad.example/hosts.toml", "server = \n")]);
    let before = snapshot(&lab.dir());
    let registries = ["good.example".to_string(), "bad.example".into()];
    assert!(set_up(&lab.roots(), &registries, &wanted(), false).is_err());
    assert_eq!(snapshot(&lab.dir()), before);
}

#[test]
fn blocks_are_found_and_removed_exactly() {
    let flags = Flags { has_line_feed: true, ..Flags::default() };
    let text = format!("a = 1{}{}", marked("b = 2\n", flags), marked("c = 3\n", flags));
    let parsed = Marked::parse(&text);
    assert!(!parsed.is_foreign() && !parsed.is_edited());
    assert_eq!(parsed.rest(), "a = 1");
    for broken in ["# shoal begin x: y\n", "# shoal end\n", "# shoal begin \n# shoal begin \n# shoal end\n"] {
        let parsed = Marked::parse(broken);
        assert!(parsed.is_edited() && !parsed.is_foreign(), "{broken}");
    }
    assert!(Marked::parse("# shoal\n").is_foreign());
}

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn once_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    /// A file of parts in random number. One in ten is broken.
    fn file(&mut self) -> String {
        let heads =
            ["# of the site\n", "server = \"https://up.example\"\n", "ca = 'ca.crt'\n", "\r\n", "skip_verify = true\n"];
        let tables = [
            "[header]\nx = \"y\"\n",
            "# a\n[host.\"https://a.example\"]\n  capabilities = [\"pull\"]\n",
            "[host.'http://b.example:5000'.header]\n  x = [\"y\"]\n\n",
            "  [ host . 'https://c.example' ]\nclient = [\n  ['a', '/b'],\n]\n",
        ];
        let mut text: String = heads.into_iter().chain(tables).filter(|_| self.once_in(2)).collect();
        if self.once_in(5) {
            text.truncate(text.trim_end().len());
        }
        if self.once_in(10) {
            text.push_str("\nbroken = \n");
        }
        text
    }

    fn fill(&mut self, dir: &Path) {
        for name in ["docker.io", "registry.example:5000", "registry.example_5000_", "_default", "a.example"] {
            if self.once_in(2) {
                continue;
            }
            let folder = dir.join(name);
            fs::create_dir(&folder).unwrap();
            for certificate in ["ca.crt", "b.cert", "b.key", "c.cert"] {
                if self.once_in(3) {
                    fs::write(folder.join(certificate), certificate).unwrap();
                }
            }
            if !self.once_in(3) {
                let path = folder.join(FILE_NAME);
                fs::write(&path, self.file()).unwrap();
                let mode = [0o600, 0o640, 0o644][self.roll(3) as usize];
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
        }
        fs::create_dir(dir.join("of.others")).unwrap();
        fs::write(dir.join("of.others").join(FILE_NAME), b"# sch\xf6n\n").unwrap();
    }
}

/// Setup twice is setup once, and undo restores any folder exactly.
#[test]
fn any_folder_is_restored_exactly() {
    let mut done = 0;
    for seed in 1..400 {
        let mut dice = Dice(seed);
        let lab = Lab::new(&[]);
        dice.fill(&lab.dir());
        let all = ["docker.io", "registry.example:5000", "_default", "a.example"];
        let registries: Vec<String> = all.into_iter().filter(|_| dice.once_in(2)).map(String::from).collect();
        let server = dice.once_in(6).then(|| "http://10.0.0.1:5000".to_string());
        let wanted = Wanted { server, resolves_tags: dice.once_in(2), force: dice.once_in(3), ..wanted() };
        let before = snapshot(&lab.dir());
        let Ok(changed) = set_up(&lab.roots(), &registries, &wanted, false) else {
            assert_eq!(snapshot(&lab.dir()), before, "seed {seed}: a refusal");
            continue;
        };
        done += changed.len();
        let once = snapshot(&lab.dir());
        for Changed { file, .. } in &changed {
            let text = fs::read_to_string(file).unwrap();
            assert_eq!(hosts(&text).first().map(String::as_str), Some(MIRROR), "seed {seed}: {text}");
        }
        let again = set_up(&lab.roots(), &registries, &wanted, false).unwrap();
        assert!(again.iter().all(|changed| changed.change == Change::Unchanged), "seed {seed}: {again:#?}");
        assert_eq!(snapshot(&lab.dir()), once, "seed {seed}: twice");
        let undone = undo(&lab.dir(), &[], false).unwrap();
        assert_eq!(undone.len(), changed.len(), "seed {seed}: {undone:#?}");
        assert_eq!(snapshot(&lab.dir()), before, "seed {seed}: {undone:#?}");
    }
    assert!(done > 200, "{done} files were set up");
}
