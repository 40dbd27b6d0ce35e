//! All tables of a database, for a backup and back.
//!
//! Invariant: tables are read in the order that the role asks for, because rows change while they are read. A counter
//! of other rows must be older than these rows in one role and newer in another.

use crate::database::{Change, Database};
use crate::errors::KvError;
use std::ops::ControlFlow;

/// Calls `each` for the table, the key and the value of every row. Tables of the lowest rank come first, then by name.
/// The database may be in use.
///
/// # Errors
/// The first error of `each` or of the database.
pub fn export<R: Ord, E: From<KvError>>(
    database: &dyn Database,
    rank: impl Fn(&str) -> R,
    mut each: impl FnMut(&str, &[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut tables = database.tables()?;
    tables.sort_by_cached_key(|name| (rank(name), name.clone()));
    for table in &tables {
        let mut result = Ok(());
        database.visit(table, &[], &mut |key, value| {
            result = each(table, key, value);
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
    }
    Ok(())
}

/// Inserts one row of a backup. The caller ends with [`Database::sync`].
///
/// # Errors
/// As [`Database::apply`].
pub fn import_row(database: &dyn Database, table: &str, key: &[u8], value: &[u8]) -> Result<(), KvError> {
    database.apply(table, &[Change::Put { key: key.to_vec(), value: value.to_vec() }])
}
