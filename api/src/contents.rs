//! Contents, rollouts and the state of one node, as a peer or a seeder serves them.
//!
//! Invariant: a content is complete when `have` equals `total` and `total` is not 0.

use serde::{Deserialize, Serialize};
use shoal_proto::announcement::Kind;
use shoal_proto::ids::ContentId;
use shoal_proto::report::TierBytes;

/// A content in the node's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ContentStatus {
    #[allow(missing_docs, reason = "the type says it")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::ContentId"))]
    pub content: ContentId,
    /// Pieces that the node has verified.
    pub have: u32,
    /// Pieces in all. 0 while the node does not know the manifest.
    pub total: u32,
    /// Payload bytes.
    pub size: u64,
    /// Versions that are this content.
    pub names: Vec<ContentName>,
    /// Payload bytes received, by the tier of their source.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::TierBytes"))]
    pub tiers: TierBytes,
    /// Payload bytes sent to other hosts.
    pub sent: u64,
    /// The store has only this host's rack share of the content.
    pub demoted: bool,
}

/// A version that is a content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the names say it")]
pub struct ContentName {
    pub name: String,
    pub version: String,
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Kind"))]
    pub kind: Kind,
}

/// A peer in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PeerStatus {
    /// The host's locality.
    pub host: String,
    /// Contents in the store.
    pub contents: usize,
    /// Contents of which pieces are missing.
    pub incomplete: usize,
    /// Hosts in the membership.
    pub members: usize,
    /// Bytes that the store uses.
    pub used_bytes: u64,
    /// Bytes that the store may still use.
    pub free_bytes: u64,
}
