//! A version of a feed, whole and verified.
//!
//! Invariant: a [`FeedVersion`] and its data never change.

use bytes::Bytes;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::ids::ContentId;
use std::fs::File;
use std::sync::Arc;

/// Where a version's data is.
#[derive(Clone, Debug)]
pub enum FeedData {
    /// In memory.
    Memory(Bytes),
    /// In a file that nobody changes any more.
    File(Arc<File>),
    /// Only in the store, as pieces.
    Store,
}

/// A version of a feed, whole and verified.
#[derive(Clone, Debug)]
pub struct FeedVersion {
    /// The feed's name.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Grows with every version.
    pub sequence: u64,
    /// When it was published, Unix milliseconds.
    pub published_at_ms: u64,
    /// The content.
    pub content: ContentId,
    /// Payload bytes.
    pub size: u64,
    /// The payload.
    pub data: FeedData,
}

impl FeedVersion {
    /// Of an announcement, with its data.
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
