//! The store's small records and files, for a backup and back.
//!
//! Invariant: rows of contents and pieces are given only along with the contents they speak of.

use crate::store::Store;
use crate::tables::Tables;
use shoal_kv::KvError;
use std::path::{Path, PathBuf};

impl Store {
    /// Every row, table by table; of contents and pieces only when `contents`.
    pub fn export<E: From<KvError>>(
        &self,
        contents: bool,
        mut each: impl FnMut(&str, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let index = &self.inner.index;
        let tables = [&index.state, &index.jobs, &index.contents, &index.pieces];
        for table in tables.into_iter().take(if contents { 4 } else { 2 }) {
            for row in table.scan([])? {
                each(table.name(), &row.key, &row.value)?;
            }
        }
        Ok(())
    }

    /// The files of every content that is whole, within the store's folder.
    pub fn export_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for record in self.contents().into_iter().filter(|record| self.is_whole(&record.content)) {
            let folder = Path::new("contents").join(record.content.to_string());
            let streams = (0..record.manifest.streams.len()).map(|stream| crate::layout::stream_path(&folder, stream));
            files.extend(streams);
            // Last, as ever: a folder without one is no content.
            files.push(folder.join("manifest"));
        }
        files
    }
}

/// Makes a store's records from rows.
pub struct Import {
    index: Tables,
}

impl Import {
    /// In a folder that has none.
    pub fn open(dir: &Path) -> Result<Self, KvError> {
        Ok(Self { index: Tables::open(dir)? })
    }

    /// One row; those of tables that are no longer there are left out.
    pub fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        match self.index.by_name(table) {
            Some(table) => table.put(key, value),
            None => Ok(()),
        }
    }

    /// Returns once all of it survives a loss of power.
    pub fn finish(self) -> Result<(), KvError> {
        self.index.sync()
    }
}
