//! Feeds, as peers and seeders serve them.
//!
//! Invariant: a feed's sequence only grows.

use crate::units::Span;
use serde::{Deserialize, Serialize};
use shoal_proto::announcement::Kind;
use shoal_proto::ids::ContentId;

/// The answer to a publication: the version is durable at the seeder, and hosts are being informed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VersionPublished {
    /// The feed's name.
    pub feed: String,
    /// The version's sequence.
    pub sequence: u64,
}

/// Query parameters of a publication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PublishQuery {
    /// How hosts treat the feed. Default `gslb`.
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::schemas::Kind>"))]
    pub kind: Option<Kind>,
    /// Selectors, separated by `;`. Default: all hosts.
    pub to: Option<String>,
}

/// The newest version of a feed on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FeedStatus {
    /// The feed's name.
    pub feed: String,
    /// How hosts treat the feed.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Kind"))]
    pub kind: Kind,
    /// Sequence of the version that readers receive.
    pub sequence: u64,
    /// Payload bytes of that version.
    pub size: u64,
    /// Content of that version.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::ContentId"))]
    pub content: ContentId,
    /// When that version was published, Unix milliseconds.
    pub published_at_ms: u64,
    /// Milliseconds since that version was published.
    pub age_ms: u64,
    /// Milliseconds since a neighbour last mentioned the feed. Absent when none has since the start.
    pub unseen_ms: Option<u64>,
    /// The newest announced sequence. It exceeds `sequence` while that version is on its way.
    pub announced: u64,
}

/// A version that the node refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RefusedVersion {
    /// The feed's name in the announcement.
    pub feed: String,
    /// The sequence in the announcement.
    pub sequence: u64,
    /// Why the node refused the version.
    pub why: String,
    /// When, Unix milliseconds.
    pub at_ms: u64,
}

/// All feeds of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FeedListing {
    /// Feeds in order of name.
    pub feeds: Vec<FeedStatus>,
    /// Recently refused versions.
    pub refused: Vec<RefusedVersion>,
}

/// A version in a stream of versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FeedVersion {
    /// The feed's name.
    pub feed: String,
    /// The version's sequence.
    pub sequence: u64,
    /// When the version was published, Unix milliseconds.
    pub published_at_ms: u64,
    /// Payload bytes.
    pub size: u64,
    /// The payload, if it is UTF-8 of at most 64 KiB. Otherwise the reader fetches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Query parameters of a read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReadQuery {
    /// How long to wait for a newer version, at most `60s`.
    pub wait: Option<Span>,
    /// The reader has this sequence and needs a newer one.
    pub after: Option<u64>,
    /// Of a stream: JSON lines instead of server-sent events.
    #[serde(default)]
    pub lines: bool,
}
