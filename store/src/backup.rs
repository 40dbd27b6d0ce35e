//! The store's small records and files, for a backup and back.
//!
//! Invariant: rows of contents and pieces are exported only along with the contents they describe.

use crate::content::ContentState;
use crate::inner::Inner;
use crate::layout::stream_path;
use crate::local_dedup::PiecePlace;
use crate::tables::Tables;
use shoal_kv::KvError;
use shoal_proto::codec::{Document, decode_exact};
use shoal_proto::trust::Envelope;
use std::path::{Path, PathBuf};

impl Inner {
    /// Calls `each` for the table, the key and the value of every row.
    pub(crate) fn export<E: From<KvError>>(
        &self,
        with_contents: bool,
        mut each: impl FnMut(&str, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let tables = &self.tables;
        let all = [&tables.state, &tables.jobs, &tables.contents, &tables.pieces];
        for table in all.into_iter().take(if with_contents { 4 } else { 2 }) {
            for row in table.scan([])? {
                each(table.name(), &row.key, &row.value)?;
            }
        }
        Ok(())
    }

    /// Returns the files of every whole content, within the store's folder.
    pub(crate) fn export_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for content in self.contents().into_iter().filter(|content| content.pieces_missing() == 0) {
            let folder = Path::new("contents").join(content.id.to_string());
            files.extend((0..content.manifest.streams.len()).map(|stream| stream_path(&folder, stream)));
            // Last, as everywhere: a folder without a manifest is not a content.
            files.push(folder.join("manifest"));
        }
        files
    }
}

/// Why a row of a backup is not restored.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RestoreError {
    #[error("a row of table `{table}` cannot be read")]
    Row { table: String },
    #[error(transparent)]
    Database(#[from] KvError),
}

/// Writes the rows of a backup to a new store.
pub struct RestoringStore {
    tables: Tables,
}

impl RestoringStore {
    /// Creates the tables in a folder that has none.
    ///
    /// # Errors
    /// [`KvError`] if the folder cannot be used.
    pub fn open(dir: &Path) -> Result<Self, KvError> {
        Ok(Self { tables: Tables::open(dir)? })
    }

    /// Adds a row. Ignores rows of tables that this version does not have.
    ///
    /// # Errors
    /// [`RestoreError`] if the store cannot read the row, or the database fails.
    pub fn row(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), RestoreError> {
        let Some(table) = self.tables.by_name(table) else { return Ok(()) };
        let is_known = match table.name() {
            "contents" => key.len() == 32 && decode_exact::<ContentState>(value).is_ok(),
            "pieces" => key.len() == 16 && decode_exact::<PiecePlace>(value).is_ok(),
            "jobs" => key.len() == 16 && Envelope::from_bytes(value).is_ok(),
            // The role checks its own records.
            _ => std::str::from_utf8(key).is_ok(),
        };
        if !is_known {
            return Err(RestoreError::Row { table: table.name().to_string() });
        }
        Ok(table.put(key, value)?)
    }

    /// Returns once all rows survive a loss of power.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn finish(self) -> Result<(), KvError> {
        self.tables.sync()
    }
}
