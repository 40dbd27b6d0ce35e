//! The store's small records and files, for a backup and back.
//!
//! Invariant: rows of contents and pieces are given only along with the contents they speak of.

use crate::index::{Index, IndexError, SledIndex, Tree};
use crate::store::Store;
use std::path::{Path, PathBuf};

impl Store {
    /// Every row, table by table; of contents and pieces only when `contents`.
    pub fn export<E: From<IndexError>>(
        &self,
        contents: bool,
        mut each: impl FnMut(&str, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let tables = [Tree::State, Tree::Jobs, Tree::Contents, Tree::Pieces];
        for table in tables.into_iter().take(if contents { 4 } else { 2 }) {
            for (key, value) in self.inner.index.scan(table, &[])? {
                each(table.name(), &key, &value)?;
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
    index: SledIndex,
}

impl Import {
    /// In a folder that has none.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        Ok(Self { index: SledIndex::open(&dir.join("index"))? })
    }

    /// One row; those of tables that are no longer there are left out.
    pub fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), IndexError> {
        match Tree::ALL.into_iter().find(|tree| tree.name() == table) {
            Some(tree) => self.index.apply(tree, vec![(key.to_vec(), Some(value.to_vec()))]),
            None => Ok(()),
        }
    }

    /// Returns once all of it survives a loss of power.
    pub fn finish(self) -> Result<(), IndexError> {
        self.index.sync()
    }
}
