//! The hub's state in a backup.
//!
//! Invariant: no job is newer than the flush sequences in an archive say, so that after a restore trackers tell again what
//! is not in it.

use crate::config::HubConfig;
use crate::ledger::open_db;
use shoal_service::backup::{BackupError, Rows, Writer};
use shoal_service::tables;
use std::io::Write;
use std::path::Path;

/// Read first: what a flush brought meanwhile is then told again.
const SEQUENCES: &str = "sequences";

/// Writes a running hub's state.
pub(crate) fn write(db: &sled::Db, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    tables::write(db, |name| name != SEQUENCES, out)
}

/// Writes the state of a hub that does not run.
pub fn write_offline(config: &HubConfig, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    write(&open_db(&config.dir)?, out)
}

/// Makes a state folder's tables.
pub fn restoring(dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
    Ok(tables::restoring(open_db(dir)?, |_| Ok(())))
}
