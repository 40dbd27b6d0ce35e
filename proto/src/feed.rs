//! Feeds: named sequences of versions of small content, of which only the latest counts.
//!
//! Invariant: a feed's id follows from its name, so whoever knows the name knows the id and none can take another's.

use crate::announcement::is_content_name;
use crate::ids::JobId;
use minicbor::{Decode, Encode};

/// What makes an announcement one of a feed's versions: it has no job, no reports and no end but the next version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FeedMark {
    /// When it was published, Unix milliseconds.
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

/// The id of the feed with this name. It stands where an announcement names its job.
pub fn feed_id(name: &str) -> JobId {
    let hash = blake3::Hasher::new().update(b"shoal feed ").update(name.as_bytes()).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    JobId(id)
}

/// Whether `name` may name a feed. The last component `events` is where its event stream is read.
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
