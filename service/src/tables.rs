//! All tables of a role's database, in a backup and back.
//!
//! Invariant: tables are read in the order that their role asks for, because rows change while they are read.

use crate::backup::{BackupError, Rows, Writer};
use shoal_kv::{Database, backup};
use std::io::Write;
use std::sync::Arc;

/// Writes every row of a database, which may be in use. Tables of the lowest rank come first, then by name.
///
/// # Errors
/// [`BackupError`] if the database or `out` fails.
pub fn write<R: Ord>(
    database: &dyn Database,
    rank: impl Fn(&str) -> R,
    out: &mut Writer<impl Write>,
) -> Result<(), BackupError> {
    backup::export(database, rank, |table, key, value| Ok(out.row(table, key, value)?))
}

/// Changes a database after all its rows are back.
type Finish = Box<dyn FnOnce(&Arc<dyn Database>) -> Result<(), BackupError> + Send>;

struct RestoringTables {
    database: Arc<dyn Database>,
    finish: Finish,
}

/// Returns the receiver of a backup's rows. It calls `finish` after the last row and before the flush to the disk.
pub fn restoring(
    database: Arc<dyn Database>,
    finish: impl FnOnce(&Arc<dyn Database>) -> Result<(), BackupError> + Send + 'static,
) -> Box<dyn Rows> {
    Box::new(RestoringTables { database, finish: Box::new(finish) })
}

impl Rows for RestoringTables {
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        Ok(backup::import_row(&*self.database, table, key, value)?)
    }

    fn finish(self: Box<Self>) -> Result<(), BackupError> {
        let Self { database, finish } = *self;
        finish(&database)?;
        Ok(database.sync()?)
    }
}
