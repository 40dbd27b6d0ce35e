//! The hub's state in a backup.
//!
//! Invariant: no job is newer than the flush sequences in an archive say, so that after a restore trackers tell again what
//! is not in it.

use crate::config::HubConfig;
use crate::ledger::open_db;
use shoal_ops::backup::{BackupError, Rows, Writer};
use std::io::Write;
use std::path::Path;

/// Read first: what a flush brought meanwhile is then told again.
const SEQUENCES: &str = "sequences";

fn fault(error: sled::Error) -> BackupError {
    BackupError::State(format!("the hub's database: {error}"))
}

/// Writes a running hub's state.
pub(crate) fn write(db: &sled::Db, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    let mut tables: Vec<String> = db
        .tree_names()
        .into_iter()
        .filter(|name| name != b"__sled__default")
        .filter_map(|name| String::from_utf8(name.to_vec()).ok())
        .collect();
    tables.sort_by_key(|name| (name != SEQUENCES, name.clone()));
    for table in tables {
        for row in &db.open_tree(&table).map_err(fault)? {
            let (key, value) = row.map_err(fault)?;
            out.row(&table, &key, &value)?;
        }
    }
    Ok(())
}

/// Writes the state of a hub that does not run.
pub fn write_offline(config: &HubConfig, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    write(&open_db(&config.dir).map_err(fault)?, out)
}

struct Restoring(sled::Db);

/// Makes a state folder's tables.
pub fn restoring(dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
    Ok(Box::new(Restoring(open_db(dir).map_err(fault)?)))
}

impl Rows for Restoring {
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        self.0.open_tree(table).and_then(|tree| tree.insert(key, value)).map_err(fault)?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), BackupError> {
        self.0.flush().map_err(fault)?;
        Ok(())
    }
}
