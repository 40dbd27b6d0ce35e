//! Small records: which contents are complete, which jobs named them, where a piece with a given hash lies, and the
//! role's own state. Behind a trait, since the embedded database is the part most likely to be exchanged.
//!
//! Invariant: everything in here can be rebuilt from the manifests and pieces on disk, or heard again from others.

use std::path::Path;
use std::time::{Duration, Instant};

/// Groups of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// Content id to its state.
    Contents,
    /// Content id and job id to the signed announcement.
    Jobs,
    /// First 16 bytes of a piece's hash to where it lies.
    Pieces,
    /// The role's own records.
    State,
}

impl Tree {
    pub(crate) const ALL: [Self; 4] = [Self::Contents, Self::Jobs, Self::Pieces, Self::State];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Contents => "contents",
            Self::Jobs => "jobs",
            Self::Pieces => "pieces",
            Self::State => "state",
        }
    }
}

/// The database failed.
#[derive(Debug, thiserror::Error)]
#[error("index: {0}")]
pub struct IndexError(String);

impl From<sled::Error> for IndexError {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

/// Keys and values.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;
/// A change: a value to set, or `None` to delete.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// A map of small records on disk.
pub trait Index: Send + Sync {
    /// One record.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;
    /// Applies changes, in order.
    fn apply(&self, tree: Tree, changes: Vec<Change>) -> Result<(), IndexError>;
    /// Records whose key begins with `prefix`, in order.
    fn scan(&self, tree: Tree, prefix: &[u8]) -> Result<Rows, IndexError>;
    /// Returns once all earlier changes survive a loss of power.
    fn sync(&self) -> Result<(), IndexError>;
}

/// Larger batches make sled take gigabytes.
const BATCH_MAX: usize = 100;
/// Sled's page cache, bytes. Its default is 1 GiB.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// How much a kill may cost of what was not synced, milliseconds. Sled syncs its file this often even where nothing changed.
const FLUSH_EVERY_MS: u64 = 1000;

/// How long a former owner may take to let go: sled's threads keep the file a moment longer than its database.
const LET_GO: Duration = Duration::from_secs(1);

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

/// The index in a sled database.
pub struct SledIndex {
    db: sled::Db,
    trees: Vec<sled::Tree>,
    file: std::path::PathBuf,
}

impl SledIndex {
    /// Opens or creates.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .mode(sled::Mode::LowSpace);
        let began = Instant::now();
        let db = loop {
            match config.open() {
                Err(error) if is_locked(&error) && began.elapsed() < LET_GO => std::thread::sleep(LET_GO / 50),
                opened => break opened?,
            }
        };
        let trees = Tree::ALL.into_iter().map(|tree| db.open_tree(tree.name())).collect::<Result<_, _>>()?;
        Ok(Self { db, trees, file: dir.join("db") })
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        &self.trees[tree as usize]
    }
}

impl Index for SledIndex {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.tree(tree).get(key)?.map(|value| value.to_vec()))
    }

    fn apply(&self, tree: Tree, changes: Vec<Change>) -> Result<(), IndexError> {
        for group in changes.chunks(BATCH_MAX) {
            let mut batch = sled::Batch::default();
            for (key, value) in group {
                match value {
                    Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                    None => batch.remove(key.as_slice()),
                }
            }
            self.tree(tree).apply_batch(batch)?;
        }
        Ok(())
    }

    fn scan(&self, tree: Tree, prefix: &[u8]) -> Result<Rows, IndexError> {
        self.tree(tree)
            .scan_prefix(prefix)
            .map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(IndexError::from))
            .collect()
    }

    fn sync(&self) -> Result<(), IndexError> {
        self.db.flush()?;
        // Sled's flush survives a kill, not a power cut: it leaves out the disk's own cache.
        let synced = std::fs::File::open(&self.file).and_then(|file| file.sync_data());
        synced.map_err(|error| IndexError(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_owner_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let former = SledIndex::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| SledIndex::open(dir.path()));
            drop(former);
            let next = next.join().unwrap();
            assert!(next.is_ok());
            let refused = SledIndex::open(dir.path()).err().unwrap().to_string();
            assert!(refused.contains("could not acquire lock"), "{refused}");
        });
    }
}
