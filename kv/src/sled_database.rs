//! The embedded database: sled 0.34, with three work-arounds.
//!
//! - A batch holds at most [`BATCH_MAX`] changes, because larger batches make sled take gigabytes of memory.
//! - [`Database::sync`] also flushes the file `db` of the folder, because sled leaves out the disk's own write cache.
//! - [`SledDatabase::open`] waits up to [`LOCK_WAIT`] for the lock, because sled's threads keep the file open for a
//!   moment after the former [`SledDatabase`] is dropped.
//!
//! Invariant: no type of sled appears in a public signature.

use crate::database::{Change, Database, Visitor};
use crate::errors::KvError;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Changes in one batch of sled.
const BATCH_MAX: usize = 100;
/// How long an open waits for the lock of the former owner.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Pause between two attempts to take the lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// The table that sled makes by itself. Shoal never uses it.
const DEFAULT_TABLE: &[u8] = b"__sled__default";

/// How a database is opened.
#[derive(Clone, Copy, Debug)]
pub struct SledOptions {
    /// Sled's page cache, bytes. Sled's own default is 1 GiB.
    pub cache_bytes: u64,
    /// How much a kill may cost of the changes that were not flushed. Sled flushes this often even without changes.
    pub flush_interval: Duration,
}

/// A database in a folder of its own.
pub struct SledDatabase {
    db: sled::Db,
    /// The file that sled writes to. Sled does not offer a flush of the disk's write cache.
    file: PathBuf,
}

impl SledDatabase {
    /// Opens the database of a folder, or creates it.
    ///
    /// # Errors
    /// [`KvError::InUse`] if another owner keeps it open for a second, [`KvError::Open`] for any other fault.
    pub fn open(dir: &Path, options: SledOptions) -> Result<Self, KvError> {
        let flush_ms = u64::try_from(options.flush_interval.as_millis()).unwrap_or(u64::MAX);
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.cache_bytes)
            .flush_every_ms(Some(flush_ms))
            .mode(sled::Mode::LowSpace);
        let began = Instant::now();
        loop {
            let source = match config.open() {
                Ok(db) => return Ok(Self { db, file: dir.join("db") }),
                Err(source) => source,
            };
            if !is_locked(&source) {
                return Err(KvError::Open { dir: dir.to_path_buf(), source: source.into() });
            }
            if began.elapsed() >= LOCK_WAIT {
                return Err(KvError::InUse { dir: dir.to_path_buf(), source: source.into() });
            }
            std::thread::sleep(LOCK_RETRY);
        }
    }

    /// Opens the database of a folder behind the trait, shared.
    ///
    /// # Errors
    /// As [`SledDatabase::open`].
    pub fn open_shared(dir: &Path, options: SledOptions) -> Result<Arc<dyn Database>, KvError> {
        Ok(Arc::new(Self::open(dir, options)?))
    }

    fn tree(&self, table: &str) -> sled::Result<sled::Tree> {
        // Sled keeps open trees in a map of its own, so this is a look-up.
        self.db.open_tree(table)
    }

    fn read<T>(&self, table: &str, read: impl FnOnce(sled::Tree) -> sled::Result<T>) -> Result<T, KvError> {
        let fault = |source: sled::Error| KvError::Read { table: table.to_string(), source: source.into() };
        self.tree(table).and_then(read).map_err(fault)
    }

    fn write(&self, table: &str, write: impl FnOnce(sled::Tree) -> sled::Result<()>) -> Result<(), KvError> {
        let fault = |source: sled::Error| KvError::Write { table: table.to_string(), source: source.into() };
        self.tree(table).and_then(write).map_err(fault)
    }
}

/// Whether an open failed only because another owner has the lock. Sled has no error kind for that, only a text.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

impl Database for SledDatabase {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.read(table, |tree| Ok(tree.get(key)?.map(|value| value.to_vec())))
    }

    fn apply(&self, table: &str, changes: &[Change]) -> Result<(), KvError> {
        self.write(table, |tree| {
            for group in changes.chunks(BATCH_MAX) {
                let mut batch = sled::Batch::default();
                for change in group {
                    match change {
                        Change::Put { key, value } => batch.insert(key.as_slice(), value.as_slice()),
                        Change::Delete { key } => batch.remove(key.as_slice()),
                    }
                }
                tree.apply_batch(batch)?;
            }
            Ok(())
        })
    }

    fn visit(&self, table: &str, prefix: &[u8], each: &mut Visitor<'_>) -> Result<(), KvError> {
        self.read(table, |tree| {
            for row in tree.scan_prefix(prefix) {
                let (key, value) = row?;
                if each(&key, &value).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn count(&self, table: &str) -> Result<usize, KvError> {
        self.read(table, |tree| Ok(tree.len()))
    }

    fn clear(&self, table: &str) -> Result<(), KvError> {
        self.write(table, |tree| tree.clear())
    }

    fn tables(&self) -> Result<Vec<String>, KvError> {
        let names = self.db.tree_names().into_iter().filter(|name| name != DEFAULT_TABLE);
        Ok(names.filter_map(|name| String::from_utf8(name.to_vec()).ok()).collect())
    }

    fn flush(&self) -> Result<(), KvError> {
        self.db.flush().map_err(|source| KvError::Flush(source.into()))?;
        Ok(())
    }

    fn sync(&self) -> Result<(), KvError> {
        self.flush()?;
        let synced = File::open(&self.file).and_then(|file| file.sync_data());
        synced.map_err(|source| KvError::Flush(source.into()))
    }
}
