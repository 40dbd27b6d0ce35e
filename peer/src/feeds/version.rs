//! One version of a feed, whole and verified.
//!
//! Invariant: a [`FeedVersion`] and its data never change.

use bytes::Bytes;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::ids::ContentId;
use std::fs::File;
use std::sync::Arc;

/// Where the data of a version is.
#[derive(Clone, Debug)]
pub enum FeedData {
    /// A small version, in memory.
    Memory(Bytes),
    /// A large version, in a file that never changes.
    File(Arc<File>),
    /// A large version that only the store has, as pieces. Seeders have no file of it.
    Store,
}

/// One version of a feed.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are those of the announcement")]
pub struct FeedVersion {
    /// The feed's name.
    pub name: String,
    pub kind: Kind,
    pub sequence: u64,
    pub published_at_ms: u64,
    pub content: ContentId,
    /// Size of the data in bytes.
    pub size: u64,
    pub data: FeedData,
}

impl FeedVersion {
    /// Returns the version that an announcement describes.
    pub fn new(announcement: &Announcement, data: FeedData) -> Self {
        Self {
            name: announcement.name.clone(),
            kind: announcement.kind,
            sequence: announcement.sequence,
            published_at_ms: announcement.feed.map_or(0, |feed| feed.published_at_ms),
            content: announcement.content,
            size: announcement.size,
            data,
        }
    }
}
