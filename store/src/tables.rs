//! The store's tables of small records.
//!
//! Invariant: everything in the tables can be rebuilt from the manifests and pieces on disk, or learned again from
//! other hosts.

use shoal_kv::{Database, KvError, SledDatabase, SledOptions, Table};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const OPTIONS: SledOptions = SledOptions { cache_bytes: 8 << 20, flush_interval: Duration::from_secs(1) };

/// The tables. Their names never change, because folders of earlier runs and backups use them.
#[derive(Clone)]
pub(crate) struct Tables {
    /// Content id to its state.
    pub(crate) contents: Table,
    /// Job id to the signed announcement.
    pub(crate) jobs: Table,
    /// First 16 bytes of a piece's hash to the place of the piece.
    pub(crate) pieces: Table,
    /// The role's own records.
    pub(crate) state: Table,
}

impl Tables {
    /// Opens the tables of a store's folder, or creates them.
    pub(crate) fn open(dir: &Path) -> Result<Self, KvError> {
        let database: Arc<dyn Database> = SledDatabase::open_shared(&dir.join("index"), OPTIONS)?;
        let table = |name| Table::new(&database, name);
        Ok(Self { contents: table("contents"), jobs: table("jobs"), pieces: table("pieces"), state: table("state") })
    }

    /// Returns the table with this name in a backup. `None` for tables of earlier versions.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Table> {
        [&self.contents, &self.jobs, &self.pieces, &self.state].into_iter().find(|table| table.name() == name)
    }

    /// Returns once all changes so far survive a loss of power.
    pub(crate) fn sync(&self) -> Result<(), KvError> {
        // A sync covers the whole database, whichever table it is called on.
        self.state.sync()
    }
}
