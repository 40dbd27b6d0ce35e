//! The seeder's state in a backup: jobs, sequences, feeds, and on request the payload.
//!
//! Invariant: a restored seeder signs nothing with a sequence that was used before. Sequences follow the clock, and a
//! restored seeder skips those that were reserved before the backup.

use crate::config::SeederConfig;
use crate::jobs::Job;
use shoal_net::admission::system_clock;
use shoal_proto::codec::decode_exact;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::sequence;
use shoal_service::backup::{BackupError, Rows, Writer};
use shoal_store::backup::{RestoreError, RestoringStore};
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

/// The store's table of the seeder's own records.
const STATE: &str = "state";
/// How far ahead of the clock the time of a sequence may be.
const SEQUENCE_AHEAD_MS: u64 = 24 * 3600 * 1000;

/// Checks the records that decide what the seeder signs next. Others are checked when they are read.
fn check_record(key: &[u8], value: &[u8]) -> Result<(), &'static str> {
    let key = std::str::from_utf8(key).map_err(|_| "a key is not UTF-8")?;
    if key.starts_with("sequence/") || key == "feed-ceiling" {
        let sequence = decode_exact::<u64>(value).map_err(|_| "a sequence cannot be read")?;
        let newest = system_clock().saturating_mul(1000).saturating_add(SEQUENCE_AHEAD_MS);
        return if sequence::unix_ms_of(sequence) <= newest {
            Ok(())
        } else {
            Err("a sequence is more than a day ahead of the clock")
        };
    }
    if key.starts_with("job/") {
        return if Job::is_record(value) { Ok(()) } else { Err("a job cannot be read") };
    }
    Ok(())
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
        if table == STATE {
            check_record(key, value).map_err(|why| BackupError::Row { table: table.to_string(), why })?;
        }
        self.0.row(table, key, value).map_err(|error| match error {
            RestoreError::Database(error) => error.into(),
            RestoreError::Row { table } => BackupError::Row { table, why: "a row cannot be read" },
        })
    }

    /// A seeder's files are its feeds and its contents.
    fn check_file(&self, path: &Path) -> Result<(), BackupError> {
        let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
        match parts[..] {
            ["feeds", id] if id.parse::<JobId>().is_ok() => Ok(()),
            ["contents", id, _] if id.parse::<ContentId>().is_ok() => Ok(()),
            _ => Err(BackupError::Malformed("a seeder has no such file")),
        }
    }

    fn finish(self: Box<Self>) -> Result<(), BackupError> {
        Ok(self.0.finish()?)
    }
}
