//! The tracker's tables on disk and the keys of their counters.
//!
//! Invariant: a name here never changes, because folders of earlier runs and backups use it.

use shoal_kv::{Database, KvError, SledDatabase, SledOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Counters, by the keys below.
pub(crate) const META: &str = "meta";
/// Node id to roster index, for every node that ever joined.
pub(crate) const INDICES: &str = "indices";
/// Roster index to [`shoal_proto::membership::Member`], for hosts of the membership.
pub(crate) const MEMBERS: &str = "rows";
/// Job id to the signed announcement.
pub(crate) const ANNOUNCEMENTS: &str = "jobs";
/// Job id and roster index to the host's report.
pub(crate) const REPORTS: &str = "reports";
/// Roster index and name to the version that the host runs.
pub(crate) const VERSIONS: &str = "versions";
/// Flush sequence to the flush.
pub(crate) const SPOOL: &str = "spool";
/// Key of a join token and key of a host to the host's place.
pub(crate) const TOKENS: &str = "tokens";
/// Locality to the key that has it.
pub(crate) const PLACES: &str = "places";

/// Key in [`META`]: the membership epoch.
pub(crate) const EPOCH: &str = "epoch";
/// Key in [`META`]: the roster index of the next new node.
pub(crate) const NEXT_INDEX: &str = "next";
/// Key in [`META`]: the sequence of the newest flush.
pub(crate) const SEQUENCE: &str = "sequence";

const OPTIONS: SledOptions = SledOptions { cache_bytes: 16 << 20, flush_interval: Duration::from_millis(500) };

/// Opens the database of a state folder, or creates it.
///
/// # Errors
/// As [`SledDatabase::open`].
pub(crate) fn open(dir: &Path) -> Result<Arc<dyn Database>, KvError> {
    SledDatabase::open_shared(dir, OPTIONS)
}
