//! A database's tables in a backup.
//!
//! Invariant: tables are read in the order their role asks for, as they change meanwhile: what counts the rows of others is
//! to be behind them in one role and ahead of them in another.

use crate::backup::{BackupError, Rows, Writer};
use std::io::Write;

/// Writes every row of a database that may be in use, table by table: those of the lowest rank first, then by name.
pub fn write<R: Ord>(db: &sled::Db, rank: impl Fn(&str) -> R, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    let names = db.tree_names().into_iter().filter(|name| name != b"__sled__default");
    let mut tables: Vec<String> = names.filter_map(|name| String::from_utf8(name.to_vec()).ok()).collect();
    tables.sort_by_cached_key(|name| (rank(name), name.clone()));
    for table in tables {
        for row in &db.open_tree(&table)? {
            let (key, value) = row?;
            out.row(&table, &key, &value)?;
        }
    }
    Ok(())
}

/// What to do with a database once all its rows are back.
type Finish = Box<dyn FnOnce(&sled::Db) -> Result<(), BackupError> + Send>;

struct Restoring {
    db: sled::Db,
    finish: Finish,
}

/// Makes a database's tables anew; `finish` has the last word before they are flushed.
pub fn restoring(
    db: sled::Db,
    finish: impl FnOnce(&sled::Db) -> Result<(), BackupError> + Send + 'static,
) -> Box<dyn Rows> {
    Box::new(Restoring { db, finish: Box::new(finish) })
}

impl Rows for Restoring {
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        self.db.open_tree(table)?.insert(key, value)?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), BackupError> {
        let Self { db, finish } = *self;
        finish(&db)?;
        db.flush()?;
        Ok(())
    }
}
