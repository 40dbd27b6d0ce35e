//! The tracker's state in a backup.
//!
//! Invariant: what must never go back is ahead of all that was given out when a restored tracker starts, however old the
//! backup is.

use crate::config::TrackerConfig;
use shoal_net::admission::system_clock;
use shoal_ops::backup::{BackupError, Rows, Writer};
use shoal_proto::limits::HOSTS_MAX;
use std::io::Write;
use std::path::Path;

/// The table of counters. It is read last: then no row is ahead of it.
const META: &str = "meta";
/// Membership epochs skipped by a restore: more than there can have been since the backup.
const EPOCHS_SKIPPED: u64 = 1 << 32;
/// Indices skipped by a restore: hosts that joined since the backup have them.
const INDICES_SKIPPED: u64 = 1024;

fn fault(error: sled::Error) -> BackupError {
    BackupError::State(format!("the tracker's database: {error}"))
}

/// Opens the database of a state folder.
pub(crate) fn open(dir: &Path) -> Result<sled::Db, sled::Error> {
    sled::Config::new().path(dir).cache_capacity(16 << 20).mode(sled::Mode::LowSpace).open()
}

/// Writes a running tracker's state.
pub(crate) fn write(db: &sled::Db, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    let mut tables: Vec<String> = db
        .tree_names()
        .into_iter()
        .filter(|name| name != b"__sled__default")
        .filter_map(|name| String::from_utf8(name.to_vec()).ok())
        .collect();
    tables.sort_by_key(|name| (name == META, name.clone()));
    for table in tables {
        for row in &db.open_tree(&table).map_err(fault)? {
            let (key, value) = row.map_err(fault)?;
            out.row(&table, &key, &value)?;
        }
    }
    Ok(())
}

/// Writes the state of a tracker that does not run.
pub fn write_offline(config: &TrackerConfig, out: &mut Writer<impl Write>) -> Result<(), BackupError> {
    write(&open(&config.dir).map_err(fault)?, out)
}

struct Restoring(sled::Db);

/// Makes a state folder's tables.
pub fn restoring(dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
    Ok(Box::new(Restoring(open(dir).map_err(fault)?)))
}

impl Rows for Restoring {
    fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
        self.0.open_tree(table).and_then(|tree| tree.insert(key, value)).map_err(fault)?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), BackupError> {
        let meta = self.0.open_tree(META).map_err(fault)?;
        let raise = |key: &str, next: &dyn Fn(u64) -> u64| -> Result<(), BackupError> {
            let bytes = meta.get(key).map_err(fault)?;
            if let Some(former) = bytes.and_then(|bytes| bytes.as_ref().try_into().ok()).map(u64::from_be_bytes) {
                meta.insert(key, &next(former).to_be_bytes()).map_err(fault)?;
            }
            Ok(())
        };
        raise("epoch", &|epoch| epoch + EPOCHS_SKIPPED)?;
        raise("next", &|next| next.max((next + INDICES_SKIPPED).min(u64::from(HOSTS_MAX))))?;
        // A tracker flushes less than once a millisecond.
        raise("sequence", &|sequence| sequence.max(system_clock() * 1000))?;
        self.0.flush().map_err(fault)?;
        Ok(())
    }
}
