//! The hub's state in a backup, and back.
//!
//! Invariant: an archive has no job that is older than the flush sequences in the archive say. After a restore,
//! trackers therefore report everything again that the archive lacks.

use crate::config::HubConfig;
use crate::tables::{self, SEQUENCES};
use shoal_kv::Database;
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
    Ok(archive::restoring(tables::open(dir)?, |_| Ok(())))
}
