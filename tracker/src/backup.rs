//! The tracker's state in a backup, and back.
//!
//! Invariant: counters that must never go back are ahead of everything that was handed out when a restored tracker
//! starts, however old the backup is.

use crate::config::TrackerConfig;
use crate::tables::{self, EPOCH, META, NEXT_INDEX, SEQUENCE};
use shoal_kv::{Database, Table};
use shoal_net::admission::system_clock;
use shoal_proto::limits::HOSTS_MAX;
use shoal_service::backup::{BackupError, Rows, Writer};
use shoal_service::tables as archive;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Membership epochs that a restore skips. No region changes its membership this often after a backup.
const EPOCHS_SKIPPED: u64 = 1 << 32;
/// Roster indices that a restore skips, because hosts that joined after the backup have them.
const INDICES_SKIPPED: u64 = 1024;

/// Writes a running tracker's state. Counters come last, so that no other row is newer than its counter.
pub(crate) fn write(database: &dyn Database, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    archive::write(database, |name| name == META, out)
}

/// Writes the state of a tracker that does not run.
///
/// # Errors
/// [`BackupError`] if the database or `out` fails.
pub fn write_offline(config: &TrackerConfig, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    write(&*tables::open(&config.dir)?, out)
}

/// Returns the receiver of a backup's rows for a new state folder.
///
/// # Errors
/// [`BackupError`] if the folder cannot be used.
pub fn restoring(dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
    Ok(archive::restoring(tables::open(dir)?, raise_counters))
}

/// Moves each counter ahead of every value that the tracker can have handed out after the backup.
fn raise_counters(database: &Arc<dyn Database>) -> Result<(), BackupError> {
    let meta = Table::new(database, META);
    let raise = |key: &str, next: &dyn Fn(u64) -> u64| -> Result<(), BackupError> {
        if let Some(former) = meta.get_u64(key)? {
            meta.put_u64(key, next(former))?;
        }
        Ok(())
    };
    raise(EPOCH, &|epoch| epoch + EPOCHS_SKIPPED)?;
    raise(NEXT_INDEX, &|next| next.max((next + INDICES_SKIPPED).min(u64::from(HOSTS_MAX))))?;
    // The clock in milliseconds is ahead, because a tracker writes less than one flush per millisecond.
    raise(SEQUENCE, &|sequence| sequence.max(system_clock() * 1000))
}
