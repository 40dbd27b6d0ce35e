//! The trust document in force, and the key for the next one.
//!
//! Invariant: no type here has a secret key.

use serde::{Deserialize, Serialize};
use shoal_proto::ids::NodeId;

/// Which trust document is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TrustInForce {
    /// The version of the document.
    pub version: u64,
    /// The trust epoch.
    pub epoch: u32,
}

/// Until when a node's credential counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CredentialInForce {
    /// The end, Unix seconds.
    pub not_after: u64,
}

/// The key with which a seeder will sign when a trust document names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NextPublisher {
    /// The public key.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::NodeId"))]
    pub key: NodeId,
}
