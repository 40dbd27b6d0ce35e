//! Feeds: named series of small versions. Only the newest version counts.
//!
//! Invariant: the id of a feed is a hash of its name. No feed can take the id of another.

use crate::ids::JobId;
use crate::names::is_content_name;
use minicbor::{Decode, Encode};

/// Marks an announcement as a version of a feed. Such a version has no job and no reports. The next version ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FeedMark {
    /// Time of publication, Unix milliseconds.
    #[n(0)]
    pub published_at_ms: u64,
}

/// The version of a feed that a host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FeedRow {
    /// The feed.
    #[n(0)]
    pub feed: JobId,
    /// The newest version's sequence.
    #[n(1)]
    pub sequence: u64,
}

/// Feeds below this name carry desired states.
pub(crate) const DESIRED_FEEDS: &str = "desired/";

/// Returns the id of the feed with this name. An announcement carries it in place of a job.
pub fn feed_id(name: &str) -> JobId {
    let hash = blake3::Hasher::new().update(b"shoal feed ").update(name.as_bytes()).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    JobId(id)
}

/// Whether `name` is a valid name of a feed. The last component `events` is reserved for the event stream.
pub fn is_feed_name(name: &str) -> bool {
    is_content_name(name) && name.split('/').all(|part| !part.starts_with('.')) && !name.ends_with("/events")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(is_feed_name("gslb/main"));
        assert!(is_feed_name("events"));
        for bad in ["", "gslb/main/events", "a//b", "../x", "a/.hidden", "current"] {
            assert!(!is_feed_name(bad), "{bad}");
        }
        assert_ne!(feed_id("gslb/main"), feed_id("gslb/other"));
        assert_eq!(feed_id("gslb/main"), feed_id("gslb/main"));
    }
}
