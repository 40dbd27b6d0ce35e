//! The tracker's state in a backup.
//!
//! Invariant: what must never go back is ahead of all that was given out when a restored tracker starts, however old the
//! backup is.

use crate::config::TrackerConfig;
use shoal_net::admission::system_clock;
use shoal_proto::limits::HOSTS_MAX;
use shoal_service::backup::{BackupError, Rows, Writer};
use shoal_service::tables;
use std::io::Write;
use std::path::Path;

/// The table of counters. It is read last: then no row is ahead of it.
const META: &str = "meta";
/// Membership epochs skipped by a restore: more than there can have been since the backup.
const EPOCHS_SKIPPED: u64 = 1 << 32;
/// Indices skipped by a restore: hosts that joined since the backup have them.
const INDICES_SKIPPED: u64 = 1024;

/// Opens the database of a state folder.
pub(crate) fn open(dir: &Path) -> Result<sled::Db, sled::Error> {
    sled::Config::new().path(dir).cache_capacity(16 << 20).mode(sled::Mode::LowSpace).open()
}

/// Writes a running tracker's state.
pub(crate) fn write(db: &sled::Db, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    tables::write(db, |name| name == META, out)
}

/// Writes the state of a tracker that does not run.
pub fn write_offline(config: &TrackerConfig, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    write(&open(&config.dir)?, out)
}

/// Makes a state folder's tables.
pub fn restoring(dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
    Ok(tables::restoring(open(dir)?, raise_counters))
}

/// Puts what must never go back ahead of all that can have been given out since the backup.
fn raise_counters(db: &sled::Db) -> Result<(), BackupError> {
    let meta = db.open_tree(META)?;
    let raise = |key: &str, next: &dyn Fn(u64) -> u64| -> Result<(), BackupError> {
        let bytes = meta.get(key)?;
        if let Some(former) = bytes.and_then(|bytes| bytes.as_ref().try_into().ok()).map(u64::from_be_bytes) {
            meta.insert(key, &next(former).to_be_bytes())?;
        }
        Ok(())
    };
    raise("epoch", &|epoch| epoch + EPOCHS_SKIPPED)?;
    raise("next", &|next| next.max((next + INDICES_SKIPPED).min(u64::from(HOSTS_MAX))))?;
    // A tracker flushes less than once a millisecond.
    raise("sequence", &|sequence| sequence.max(system_clock() * 1000))
}
