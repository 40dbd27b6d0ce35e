//! All tables of a role's database, in a backup and back.
//!
//! Invariant: tables are read in the order that their role asks for, because rows change while they are read. Only rows
//! that the role can read enter a restored database.

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

/// The highest counter that a restore accepts. No role counts this far, and additions to it do not overflow.
pub const COUNTER_MAX: u64 = 1 << 62;

/// Returns the number of a counter's row, big-endian in 8 bytes, if it is one that a role can have reached.
///
/// # Errors
/// Says why the value is no such number.
pub fn counter(value: &[u8]) -> Result<u64, &'static str> {
    let number = value.try_into().map(u64::from_be_bytes).map_err(|_| "a counter has not 8 bytes")?;
    if number > COUNTER_MAX { Err("a counter is higher than any role counts") } else { Ok(number) }
}

/// Checks the table, the key and the value of a row. An error says why the row is not one of the role's.
pub type CheckRow = fn(&str, &[u8], &[u8]) -> Result<(), &'static str>;

/// Changes a database after all its rows are back.
type Finish = Box<dyn FnOnce(&Arc<dyn Database>) -> Result<(), BackupError> + Send>;

struct RestoringTables {
    database: Arc<dyn Database>,
    check: CheckRow,
    finish: Finish,
}

/// Returns the receiver of a backup's rows. It stores rows that pass `check` and refuses others. It calls `finish`
/// after the last row and before the flush to the disk.
pub fn restoring(
    database: Arc<dyn Database>,
    check: CheckRow,
    finish: impl FnOnce(&Arc<dyn Database>) -> Result<(), BackupError> + Send + 'static,
) -> Box<dyn Rows> {
    Box::new(RestoringTables { database, check, finish: Box::new(finish) })
}

impl Rows for RestoringTables {
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        (self.check)(table, key, value).map_err(|why| BackupError::Row { table: table.to_string(), why })?;
        Ok(backup::import_row(&*self.database, table, key, value)?)
    }

    fn finish(self: Box<Self>) -> Result<(), BackupError> {
        let Self { database, finish, .. } = *self;
        finish(&database)?;
        Ok(database.sync()?)
    }
}
