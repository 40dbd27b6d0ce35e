//! Configurations of containerd as operators have them, and what shoal says of them.

use super::advice::{Note, notes};
use super::config::{CERTS_DIR, ContainerdConfig, Reading};
use super::release::Release;
use std::fs;
use std::path::{Path, PathBuf};

const RELEASES: [Option<Release>; 5] = [None, release(1, 6), release(1, 7), release(2, 0), release(2, 4)];

const fn release(major: u32, minor: u32) -> Option<Release> {
    Some(Release { major, minor })
}

/// A folder with configurations.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// Makes files by their names. The first one is the configuration.
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { folder }
    }

    fn one(text: &str) -> Self {
        Self::new(&[("config.toml", text)])
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    fn read(&self, dir: Option<&str>, release: Option<Release>) -> (Reading, Vec<Note>) {
        let config = ContainerdConfig::read(&self.file());
        let reading = config.reading(dir.map(Path::new), release);
        let notes = notes(&config, &reading);
        (reading, notes)
    }

    /// Whether CRI reads the usual folder, by release.
    fn is_read(&self) -> [Option<bool>; 5] {
        RELEASES.map(|release| self.read(Some(CERTS_DIR), release).0.is_read)
    }

    /// Returns the one note.
    #[track_caller]
    fn note(&self, dir: &str, release: Option<Release>) -> Note {
        let (_, notes) = self.read(Some(dir), release);
        assert_eq!(notes.len(), 1, "{notes:#?}");
        notes.into_iter().next().unwrap()
    }
}

/// Returns a section with one line.
fn section(version: &str, plugin: &str, line: &str) -> String {
    format!("{version}\n[plugins.\"{plugin}\".registry]\n  {line}\n")
}

const CRI: &str = "io.containerd.grpc.v1.cri";
const IMAGES: &str = "io.containerd.cri.v1.images";
const SET: &str = "config_path = \"/etc/containerd/certs.d\"";

#[test]
fn each_version_of_the_file_has_its_own_section() {
    let (yes, no) = (Some(true), Some(false));
    let of = |version: &str, plugin: &str| Lab::one(&section(version, plugin, SET)).is_read();
    // The releases: unknown, 1.6, 1.7, 2.0, 2.4.
    assert_eq!(of("version = 2", CRI), [yes; 5]);
    assert_eq!(of("version = 1", "cri"), [yes; 5]);
    assert_eq!(of("", "cri"), [yes; 5]);
    assert_eq!(of("version = 3", IMAGES), [yes; 5], "containerd 1.x does not start with it");
    assert_eq!(of("version = 4", IMAGES), [yes; 5]);
    assert_eq!(of("version = 2", IMAGES), [None, no, no, yes, yes]);
    assert_eq!(of("version = 3", CRI), [no; 5]);
    assert_eq!(of("", CRI), [None, no, no, yes, yes]);

    let (reading, notes) = Lab::one(&section("version = 3", CRI, SET)).read(None, release(2, 4));
    assert_eq!(reading.roots.dir, Path::new(CERTS_DIR));
    assert!(notes[0].found.starts_with("line 3 of ") && notes[0].found.contains(CRI), "{notes:?}");
    assert!(notes[0].remedy.contains("[plugins.\"io.containerd.cri.v1.images\".registry]"), "{notes:?}");

    let (reading, notes) = Lab::one(&section("version = 2", CRI, SET)).read(None, None);
    assert_eq!((reading.line().unwrap().number, notes), (3, vec![]));
}

#[test]
fn nothing_is_read_without_the_setting() {
    let no = Some(false);
    let none = Lab::new(&[]);
    assert_eq!(none.is_read(), [no; 5]);
    let note = none.note(CERTS_DIR, release(1, 7));
    assert!(note.found.contains("does not exist") && note.remedy.contains("version = 2"), "{note:?}");
    let (reading, _) = none.read(None, release(2, 4));
    assert_eq!(reading.roots.dir, Path::new(CERTS_DIR));
    assert_eq!(reading.roots.all, [CERTS_DIR, "/etc/docker/certs.d"].map(PathBuf::from));
    assert_eq!(none.read(None, release(1, 7)).0.roots.all, [PathBuf::from(CERTS_DIR)]);

    // The default is a list, and the transfer service takes a list for the name of one folder.
    let note = Lab::one("version = 3\n").note(CERTS_DIR, release(2, 4));
    assert!(note.found.contains("transfer service") && !note.is_failure, "{note:?}");
    assert!(note.remedy.contains("config_path = \"/etc/containerd/certs.d\" in [plugins."), "{note:?}");
    let note = Lab::one("version = 3\n").note(CERTS_DIR, release(2, 1));
    assert!(note.found.contains("2.0 and 2.1"), "{note:?}");
    let note = Lab::one("version = 2\n").note(CERTS_DIR, None);
    assert!(note.found.contains("1.x") && note.found.contains("2.x"), "{note:?}");
    let local = format!("version = 3\n[plugins.\"{IMAGES}\"]\n  use_local_image_pull = true\n");
    assert_eq!(Lab::one(&local).is_read(), [Some(true), Some(true), Some(true), no, Some(true)]);
    let note = Lab::one(&local).note("/etc/other", release(2, 4));
    assert!(note.found.contains("not /etc/other"), "{note:?}");
    // An empty setting is none.
    assert_eq!(Lab::one(&section("version = 2", CRI, "config_path = ''")).is_read(), [no; 5]);
}

#[test]
fn a_list_has_several_folders() {
    let lab = Lab::one(&section("version = 2", CRI, "config_path = '/etc/site:/etc/containerd/certs.d'"));
    let (yes, no) = (Some(true), Some(false));
    assert_eq!(lab.is_read(), [None, yes, yes, yes, no]);
    let (reading, _) = lab.read(None, release(1, 7));
    assert_eq!(reading.roots.dir, Path::new("/etc/site"));
    assert_eq!(reading.roots.all, ["/etc/site", CERTS_DIR].map(PathBuf::from));
    assert!(lab.note(CERTS_DIR, release(2, 4)).found.contains("several folders"));
    let note = lab.note("/etc/other", release(1, 7));
    assert!(note.found.contains("line 3 of ") && note.remedy.contains("--hosts-dir /etc/site"), "{note:?}");
    let (reading, _) = lab.read(Some("/etc/other"), release(1, 7));
    assert_eq!(reading.roots.all, [PathBuf::from("/etc/other")], "containerd does not read it beside others");
}

#[test]
fn mirrors_in_the_configuration_are_named_with_their_line() {
    let mirrors = format!(
        "version = 2\n[plugins.\"{CRI}\".registry.mirrors.\"docker.io\"]\n  endpoint = [\"https://m.example\"]\n"
    );
    let lab = Lab::one(&mirrors);
    assert_eq!(lab.is_read(), [Some(false); 5]);
    for release in RELEASES {
        let note = lab.note(CERTS_DIR, release);
        assert!(note.found.starts_with("line 2 of ") && note.found.contains("registry.mirrors"), "{note:?}");
        // The setting beside the mirrors would stop the CRI plugin.
        assert!(!note.is_failure && note.remedy.contains("Only after that, set config_path"), "{note:?}");
    }
    let both = format!("{mirrors}[plugins.\"{CRI}\".registry]\n  {SET}\n");
    for release in RELEASES {
        let note = Lab::one(&both).note(CERTS_DIR, release);
        assert!(note.is_failure && note.found.contains("line 5 of "), "{note:?}");
        assert!(!note.remedy.contains("set config_path"), "{note:?}");
    }
    // An empty table is none.
    let empty = section("version = 2", CRI, SET) + &format!("[plugins.\"{CRI}\".registry.mirrors]\n");
    assert_eq!(Lab::one(&empty).is_read(), [Some(true); 5]);
}

#[test]
fn certificates_in_the_configuration_are_named_with_their_line() {
    let tls =
        format!("version = 2\n[plugins.\"{CRI}\".registry.configs.\"a.example\".tls]\n  ca_file = '/etc/a.crt'\n");
    let note = Lab::one(&tls).note(CERTS_DIR, release(1, 6));
    assert!(note.found.starts_with("line 2 of ") && !note.is_failure, "{note:?}");
    assert!(note.remedy.contains("ca and client") && note.remedy.contains("Only after that"), "{note:?}");
    let both = format!("{tls}[plugins.\"{CRI}\".registry]\n  {SET}\n");
    assert!(Lab::one(&both).note(CERTS_DIR, release(1, 7)).is_failure);
    let note = Lab::one(&both).note(CERTS_DIR, release(2, 4));
    assert!(!note.is_failure && note.found.contains("ignores"), "{note:?}");
    // Credentials there are no hindrance.
    let auth = format!("version = 2\n[plugins.\"{CRI}\".registry.configs.\"a.example\".auth]\n  username = 'x'\n");
    let both = format!("{auth}[plugins.\"{CRI}\".registry]\n  {SET}\n");
    assert_eq!(Lab::one(&both).read(Some(CERTS_DIR), release(1, 7)).1, vec![]);
}

#[test]
fn imports_are_followed() {
    let set = section("version = 2", CRI, SET);
    let main = "version = 2\nimports = ['conf.d/*.toml']\n";
    let lab = Lab::new(&[
        ("config.toml", main),
        ("conf.d/10-cni.toml", "version = 2\n"),
        ("conf.d/20-registry.toml", set.as_str()),
    ]);
    assert_eq!(lab.is_read(), [Some(true); 5]);
    let (reading, _) = lab.read(None, None);
    assert!(reading.line().unwrap().file.ends_with("conf.d/20-registry.toml"));

    // containerd 1.x takes the whole plugin from the last file that has it, and 2.x takes key by key.
    let cni = format!("version = 2\n[plugins.\"{CRI}\".cni]\n  bin_dir = '/opt'\n");
    let lab = Lab::new(&[("config.toml", main), ("conf.d/a.toml", set.as_str()), ("conf.d/b.toml", cni.as_str())]);
    let (yes, no) = (Some(true), Some(false));
    assert_eq!(lab.is_read(), [None, no, no, yes, yes]);

    // Files that import each other.
    let circle = format!("imports = ['config.toml', './b.toml']\n{set}");
    let lab = Lab::new(&[("config.toml", circle.as_str()), ("b.toml", "imports = ['config.toml', 'b.toml']\n")]);
    assert_eq!(lab.is_read(), [yes; 5]);

    // A file that is missing, and one that cannot be read.
    for (name, text) in [("other.toml", "version = 2\n"), ("b.toml", "version = \n")] {
        let main = format!("imports = ['b.toml']\n{set}");
        let lab = Lab::new(&[("config.toml", main.as_str()), (name, text)]);
        let (reading, notes) = lab.read(Some(CERTS_DIR), release(1, 7));
        assert_eq!(reading.is_read, None);
        assert!(notes[0].found.contains("b.toml"), "{notes:?}");
    }
}

#[test]
fn configurations_are_bounded() {
    let lab = Lab::new(&[]);
    for number in 0..100 {
        fs::write(lab.folder.path().join(format!("{number}.toml")), format!("imports = ['{}.toml']\n", number + 1))
            .unwrap();
    }
    fs::write(lab.file(), "imports = ['0.toml']\n").unwrap();
    let (reading, notes) = lab.read(Some(CERTS_DIR), None);
    assert_eq!(reading.is_read, None);
    assert!(notes[0].found.contains("more than"), "{notes:?}");
    fs::write(lab.file(), "#".repeat(2 << 20)).unwrap();
    let (_, notes) = lab.read(Some(CERTS_DIR), None);
    assert!(notes[0].found.contains("longer than"), "{notes:?}");
    fs::write(lab.file(), b"# \xff\n").unwrap();
    let (_, notes) = lab.read(Some(CERTS_DIR), None);
    assert!(notes[0].found.contains("UTF-8"), "{notes:?}");
}
