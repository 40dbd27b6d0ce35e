//! The hub's state in a backup, and back.
//!
//! Invariant: an archive has no job that is older than the flush sequences in the archive say. After a restore,
//! trackers therefore report everything again that the archive lacks.

use crate::config::HubConfig;
use crate::tables::{self, JOBS, ROSTER, SEQUENCES, TOKENS};
use shoal_kv::Database;
use shoal_proto::codec::decode_exact;
use shoal_proto::locality::{Locality, is_name};
use shoal_proto::report::JobFlush;
use shoal_service::backup::{BackupError, Rows, Writer};
use shoal_service::tables as archive;
use std::io::Write;
use std::path::Path;

/// Writes a running hub's state. Sequences come first, so that a flush that arrives meanwhile is reported again.
pub(crate) fn write(database: &dyn Database, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    archive::write(database, |name| name != SEQUENCES, out)
}

/// Writes the state of a hub that does not run.
///
/// # Errors
/// [`BackupError`] if the database or `out` fails.
pub fn write_offline(config: &HubConfig, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    write(&*tables::open(&config.dir)?, out)
}

/// Returns the receiver of a backup's rows for a new state folder.
///
/// # Errors
/// [`BackupError`] if the folder cannot be used.
pub fn restoring(dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
    Ok(archive::restoring(tables::open(dir)?, check_row, |_| Ok(())))
}

/// The keys are those that the ledger makes.
fn check_row(table: &str, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
    match table {
        SEQUENCES if key.len() == 32 => archive::counter(value).map(drop),
        ROSTER if key.len() > 5 && key[key.len() - 5] == 0 => {
            decode_exact::<Locality>(value).map(drop).map_err(|_| "a locality cannot be read")
        }
        JOBS if key.len() > 49 && key[key.len() - 33] == 0 => match decode_exact::<JobFlush>(value) {
            Ok(job) if job.job.0 == key[..16] => Ok(()),
            Ok(_) => Err("a job is stored under the key of another"),
            Err(_) => Err("a job cannot be read"),
        },
        TOKENS if std::str::from_utf8(key).is_ok_and(is_name) => {
            serde_json::from_slice::<serde_json::Value>(value).map(drop).map_err(|_| "a token cannot be read")
        }
        SEQUENCES | ROSTER | JOBS | TOKENS => Err("a key has another form"),
        _ => Err("a hub has no such table"),
    }
}
