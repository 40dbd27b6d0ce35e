//! How a store is opened, and what its threads report.
//!
//! Invariant: nothing here depends on another part of the store.

use shoal_proto::ids::{ContentId, ShardIndex, StripeIndex};
use std::path::PathBuf;

/// Jobs that wait for the verifying thread. The sender bounds the payload in them.
pub const SUBMIT_QUEUE_MAX: usize = 256;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The store's folder. The store creates it.
    pub dir: PathBuf,
    /// Bytes that contents may take. `None` leaves only the limit of the disk.
    pub quota: Option<u64>,
    /// Bytes that stay free on the disk.
    pub min_free: u64,
    /// Bytes of recent shards in memory, until they are forwarded.
    pub cache_bytes: usize,
    /// Bytes of verified pieces that may wait for the disk. Further pieces wait before they are verified.
    pub unwritten_bytes: usize,
    /// Write long streams around the page cache, where the file system can. This is faster except on spinning disks,
    /// where the page cache sorts the writes.
    pub direct_io: bool,
}

impl StoreConfig {
    /// Returns a configuration without quota and reserve and with 1 MiB per buffer, which tools and tests need.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            quota: None,
            min_free: 0,
            cache_bytes: 1 << 20,
            unwritten_bytes: 1 << 20,
            direct_io: true,
        }
    }
}

/// What the store's threads report. They call the sink themselves, so the sink must not block for long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "`token` is the number that `submit_shard` got; the other fields say it")]
pub enum StoreEvent {
    /// The shard's hash is right. The shard can be read from now on.
    Verified { content: ContentId, shard: ShardIndex, token: u64 },
    /// The shard's hash is wrong, or the content has no such shard. The store dropped it.
    Corrupt { content: ContentId, shard: ShardIndex, token: u64 },
    /// A stripe was decoded as far as its shards allow. `shards` are the new data shards.
    Rebuilt { content: ContentId, stripe: StripeIndex, shards: Vec<ShardIndex> },
    /// A verified piece could not be written. `error` is the text of the operating system.
    WriteFailed { content: ContentId, error: String },
}

/// The receiver of events.
pub type EventSink = Box<dyn Fn(StoreEvent) + Send + Sync>;

/// Space taken and left, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of contents. Files that contents share count once.
    pub used: u64,
    /// Bytes that contents may take.
    pub quota: Option<u64>,
    /// Bytes free on the disk.
    pub free: u64,
}
