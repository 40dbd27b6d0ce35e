//! The hub's tables on disk.
//!
//! Invariant: a name here never changes, because folders of earlier runs and backups use it.

use shoal_kv::{Database, KvError, SledDatabase, SledOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Tracker to the sequence of its newest flush.
pub(crate) const SEQUENCES: &str = "sequences";
/// Region and roster index to locality.
pub(crate) const ROSTER: &str = "roster";
/// Job id, region and tracker to [`shoal_proto::report::JobFlush`].
pub(crate) const JOBS: &str = "jobs";
/// Name of a token to its record, which has only a hash of the secret.
pub(crate) const TOKENS: &str = "tokens";

const OPTIONS: SledOptions = SledOptions { cache_bytes: 32 << 20, flush_interval: Duration::from_millis(500) };

/// Opens the database of a state folder, or creates it.
///
/// # Errors
/// As [`SledDatabase::open`].
pub(crate) fn open(dir: &Path) -> Result<Arc<dyn Database>, KvError> {
    SledDatabase::open_shared(dir, OPTIONS)
}
