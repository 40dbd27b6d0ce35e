//! Feeds: named series of small versions. Only the newest version counts.
//!
//! Invariant: the id of a feed is a hash of its name. No feed can take the id of another. No feed has a name that meets
//! a file or a route of ours.

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
/// The folder of these feeds.
const DESIRED: &str = "desired";
/// The end of the path at which a host streams the versions of a feed.
const EVENTS: &str = "/events";
/// The file that names the version beside a feed's data, in the folder of the feed.
const VERSION_FILE: &str = "version";

/// Returns the id of the feed with this name. An announcement carries it in place of a job.
pub fn feed_id(name: &str) -> JobId {
    let hash = blake3::Hasher::new().update(b"shoal feed ").update(name.as_bytes()).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    JobId(id)
}

/// Whether `name` is a valid name of a feed.
///
/// Three names are ours. `desired` is the folder of desired states. `events` at the end is the route of the event
/// stream. `version` below a name is a file in the folder of that name. A desired state has no file and no reader, so
/// the name of its content is free.
pub fn is_feed_name(name: &str) -> bool {
    if let Some(of) = name.strip_prefix(DESIRED_FEEDS) {
        return is_content_name(name) && is_content_name(of);
    }
    let meets_file = name.split('/').skip(1).any(|part| part == VERSION_FILE);
    is_content_name(name) && name != DESIRED && !name.ends_with(EVENTS) && !meets_file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["gslb/main", "events", "version", "events/x", "version/x", "x/versions", "x/desired"] {
            assert!(is_feed_name(good), "{good}");
        }
        for bad in ["", "gslb/main/events", "a//b", "../x", "a/.hidden", "current", "a/current", "x/version"] {
            assert!(!is_feed_name(bad), "{bad}");
        }
        assert!(!is_feed_name("x/version/y") && !is_feed_name("desired") && !is_feed_name("desired/"));
        for name in ["edge/a", "edge/version", "edge/events", "version"] {
            assert!(is_feed_name(&format!("{DESIRED_FEEDS}{name}")), "a rollout of {name}");
        }
        assert_ne!(feed_id("gslb/main"), feed_id("gslb/other"));
        assert_eq!(feed_id("gslb/main"), feed_id("gslb/main"));
    }
}
