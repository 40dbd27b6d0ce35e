//! The seeder's state in a backup: jobs, sequences, feeds, and on request the payload.
//!
//! Invariant: a restored seeder signs nothing with a sequence that was used before. Sequences follow the clock, and a
//! restored seeder skips those that were reserved before the backup.

use crate::config::SeederConfig;
use shoal_service::backup::{BackupError, Rows, Writer};
use shoal_store::backup::RestoringStore;
use shoal_store::{Store, StoreConfig};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes a seeder's state: its records, the versions of feeds in its folder, and with `contents` the payload.
pub(crate) fn write(
    store: &Store,
    dir: &Path,
    contents: bool,
    out: &mut Writer<impl Write>,
) -> Result<(), BackupError> {
    store.export::<BackupError>(contents, |table, key, value| Ok(out.row(table, key, value)?))?;
    for item in std::fs::read_dir(dir.join("feeds"))? {
        let name = item?.file_name();
        if !name.to_string_lossy().starts_with('.') {
            out.file(dir, &Path::new("feeds").join(name))?;
        }
    }
    for path in if contents { store.export_files() } else { Vec::<PathBuf>::new() } {
        out.file(dir, &path)?;
    }
    Ok(())
}

/// Writes the state of a seeder that is not running.
///
/// # Errors
/// Returns an error if the store cannot be opened or read, or the backup cannot be written.
pub fn write_offline(config: &SeederConfig, contents: bool, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    let store = Store::open(StoreConfig::new(&config.dir), Box::new(|_| ()))
        .map_err(|error| BackupError::State(error.to_string()))?;
    write(&store, &config.dir, contents, out)
}

/// Rows on their way into a new store.
struct RestoredRows(RestoringStore);

/// Returns where the rows of a backup go, to restore the records of a state folder.
///
/// # Errors
/// Returns an error if the folder cannot be created or is in use.
pub fn restoring(dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
    Ok(Box::new(RestoredRows(RestoringStore::open(dir)?)))
}

impl Rows for RestoredRows {
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        Ok(self.0.row(table, key, value)?)
    }

    fn finish(self: Box<Self>) -> Result<(), BackupError> {
        Ok(self.0.finish()?)
    }
}
