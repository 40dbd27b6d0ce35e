//! Backups that an attacker made. The hash at the end is no signature, so every archive here is well-formed.

use crate::SHOAL;
use shoal_service::backup::{Head, Writer};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Writes an archive and restores it. Returns the error's text, or `None` after a success.
    fn restore(&self, role: &str, fill: impl FnOnce(&mut Writer<File>)) -> Option<String> {
        let archive = self.dir.path().join("archive");
        let head = Head { role: role.into(), created_at: 1, contents: false };
        let mut writer = Writer::new(File::create(&archive).unwrap(), &head).unwrap();
        fill(&mut writer);
        writer.finish().unwrap();
        let at = self.dir.path().join("into");
        let _ = fs::remove_dir_all(&at); // only a success leaves it
        let dir = format!("dir='{}'", at.join("state").display());
        let mut args = vec!["restore", "--role", role, "--set", &dir, "--from", archive.to_str().unwrap()];
        if role == "seeder" {
            args.extend(["--set", "node.trackers=['tracker.example:7710']"]);
        }
        let output = SHOAL.run(&args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success()).then_some(error)
    }

    /// What a restore left, except of folders.
    fn left(&self) -> Vec<PathBuf> {
        let found = fs::read_dir(self.dir.path().join("into")).into_iter().flatten().flatten();
        found.map(|item| item.path()).collect()
    }

    fn refused(&self, role: &str, what: &str, fill: impl FnOnce(&mut Writer<File>)) {
        let error = self.restore(role, fill).unwrap_or_else(|| panic!("{role}: {what} is restored"));
        assert!(error.contains("backup") && !error.contains("panicked"), "{role}: {what}: {error}");
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "{role}: {what} leaves something");
    }
}

#[test]
fn rows_of_garbage_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    let tables = [
        (
            "tracker",
            &["meta", "indices", "rows", "jobs", "reports", "versions", "spool", "x", "", "__sled__default"][..],
        ),
        ("hub", &["sequences", "roster", "jobs", "x", "", "__sled__default"]),
        ("seeder", &["contents", "pieces", "jobs"]),
    ];
    for (role, tables) in tables {
        for table in tables {
            for (key, value) in [(3, 9), (0, 0), (4, 0), (8, 8), (16, 40), (20, 3), (32, 4), (32, 8), (60, 70)] {
                // A key of 32 and a value of 4 or 8 bytes is what some tables hold. All bits set is never right.
                let (key, value) = (vec![0xff; key], vec![0xff; value]);
                bench.refused(role, &format!("{table} {}/{}", key.len(), value.len()), |writer| {
                    writer.row(table, &key, &value).unwrap();
                });
            }
        }
    }
}

#[test]
fn counters_out_of_range_are_refused() {
    let bench = Bench::new();
    for key in ["epoch", "next", "sequence"] {
        for number in [u64::MAX, u64::MAX - 1000, u64::MAX - (1 << 32), 1 << 63, (1 << 62) + 1] {
            bench.refused("tracker", &format!("{key} {number}"), |writer| {
                writer.row("meta", key.as_bytes(), &number.to_be_bytes()).unwrap();
            });
        }
        assert_eq!(bench.restore("tracker", |w| w.row("meta", key.as_bytes(), &7u64.to_be_bytes()).unwrap()), None);
    }
    bench.refused("tracker", "an index without a counter", |writer| {
        writer.row("indices", &[7; 32], &5u32.to_be_bytes()).unwrap();
    });
    bench.refused("tracker", "one index twice", |writer| {
        writer.row("indices", &[7; 32], &5u32.to_be_bytes()).unwrap();
        writer.row("indices", &[8; 32], &5u32.to_be_bytes()).unwrap();
        writer.row("meta", b"next", &6u64.to_be_bytes()).unwrap();
    });
    // CBOR of 2^64-1 and of the year 2100 in milliseconds.
    for value in [vec![0x1b, 255, 255, 255, 255, 255, 255, 255, 255], vec![0x1b, 0, 0, 3, 0xbb, 0x2c, 0xc3, 0xd8, 0]] {
        for key in ["feed-ceiling", "sequence/files/edge/web"] {
            bench.refused("seeder", key, |writer| writer.row("state", key.as_bytes(), &value).unwrap());
        }
    }
    assert_eq!(bench.restore("seeder", |w| w.row("state", b"feed-ceiling", &[7]).unwrap()), None);
}

#[test]
fn files_that_no_role_has_are_refused() {
    let bench = Bench::new();
    let source = bench.dir.path().join("source");
    let id = "00".repeat(32);
    for path in
        ["conf", "db", "x/y", "backup.sock", "index/db", "activations.jsonl", &format!("contents/{id}/../../outside")]
    {
        let at = source.join(Path::new(path).components().as_path());
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::create_dir_all(source.join(format!("contents/{id}"))).unwrap();
        fs::write(&at, "evil").unwrap();
        for role in ["tracker", "hub", "seeder"] {
            bench.refused(role, path, |writer| writer.file(&source, Path::new(path)).unwrap());
        }
    }
    assert!(!bench.dir.path().join("outside").exists());
}

/// A restore with secrets from an archive without any fails before it changes anything.
#[test]
fn a_restore_that_lacks_secrets_changes_nothing() {
    let bench = Bench::new();
    let archive = bench.dir.path().join("archive");
    let head = Head { role: "hub".into(), created_at: 1, contents: false };
    Writer::new(File::create(&archive).unwrap(), &head).unwrap().finish().unwrap();
    let at = bench.dir.path().join("into");
    let (dir, trust) = (format!("dir='{}'", at.join("state").display()), format!("trust='{}'", at.join("t").display()));
    let args = ["restore", "--role", "hub", "--set", &dir, "--set", &trust, "--secrets", "--from"];
    let output = SHOAL.run(&[&args[..], &[archive.to_str().unwrap()]].concat());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no secrets"));
    assert!(bench.left().is_empty());
}
