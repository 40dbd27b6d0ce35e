//! Round trips of an archive, and archives that are damaged.
//!
//! Invariant: each test works in a folder of its own.

use super::archive::MAGIC;
use super::{BackupError, Restored, Rows, Secret, SecretFile, offline, restore, save};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Rows as text, for comparison.
struct RowTexts(Arc<Mutex<Vec<String>>>);

impl Rows for RowTexts {
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        self.0.lock().unwrap().push(format!("{table} {key:?} {value:?}"));
        Ok(())
    }

    fn check_file(&self, path: &Path) -> Result<(), BackupError> {
        let is_ours = path.starts_with("sub");
        is_ours.then_some(()).ok_or(BackupError::Malformed("no such file"))
    }

    fn finish(self: Box<Self>) -> Result<(), BackupError> {
        Ok(())
    }
}

fn archive(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir.join("state/sub")).unwrap();
    fs::write(dir.join("state/sub/file"), vec![7; 700_000]).unwrap();
    fs::write(dir.join("key"), b"secret").unwrap();
    let folder = dir.join("state");
    let (input, thread) = offline("hub", false, move |writer| {
        writer.row("jobs", b"key", b"value")?;
        writer.file(&folder, Path::new("sub/file"))?;
        writer.file(&folder, Path::new("sub/gone"))?;
        Ok(())
    })
    .unwrap();
    let out = dir.join("archive");
    let saved = save(input, &out, &[SecretFile { name: "key", path: dir.join("key") }]).unwrap();
    thread.join().unwrap().unwrap();
    assert_eq!(saved.head.role, "hub");
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    out
}

#[test]
fn a_backup_is_restored_completely() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let rows = Arc::<Mutex<Vec<String>>>::default();
    let into = dir.path().join("into");
    let open = |_: &Path| -> Result<Box<dyn Rows>, BackupError> { Ok(Box::new(RowTexts(rows.clone()))) };
    let Restored { secrets, .. } = restore(&archive, "hub", &into, false, open).unwrap();
    assert_eq!(secrets, [Secret { name: "key".to_string(), body: b"secret".to_vec() }]);
    assert_eq!(rows.lock().unwrap().len(), 1);
    assert_eq!(fs::read(into.join("sub/file")).unwrap(), vec![7; 700_000]);
    // A folder that is not empty is kept, and with `force` it is moved aside.
    assert!(matches!(restore(&archive, "hub", &into, false, open), Err(BackupError::InTheWay(_))));
    restore(&archive, "hub", &into, true, open).unwrap();
    let aside = fs::read_dir(dir.path()).unwrap().flatten();
    assert!(aside.into_iter().any(|item| item.file_name().to_string_lossy().starts_with("into.before-")));
    assert!(matches!(restore(&archive, "tracker", &into, true, open), Err(BackupError::Malformed(_))));
}

#[test]
fn a_damaged_archive_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let whole = fs::read(&archive).unwrap();
    let into = dir.path().join("into");
    let refused = |bytes: &[u8]| {
        fs::write(&archive, bytes).unwrap();
        let open = |_: &Path| -> Result<Box<dyn Rows>, BackupError> { panic!("nothing is opened") };
        let error = restore(&archive, "hub", &into, true, open).map(|_| ()).unwrap_err();
        assert!(matches!(error, BackupError::Damaged(_) | BackupError::Malformed(_)), "{error}");
        assert!(!into.exists());
    };
    for cut in [0, 5, MAGIC.len(), 40, 90, 400_000, whole.len() - 1] {
        refused(&whole[..cut]);
    }
    for at in [3, 20, 60, 80, 120, 300_000, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        refused(&bytes);
    }
}
