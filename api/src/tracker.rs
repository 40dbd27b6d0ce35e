//! The tracker's hosts and jobs.
//!
//! Invariant: the tracker folds reports per rack before it answers, so an answer grows with racks, not with hosts'
//! reports.

use serde::{Deserialize, Serialize};
use shoal_proto::control::RackRollup;
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::locality::Labels;
use shoal_proto::membership::Presence;
use std::net::SocketAddr;

/// A host of the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TrackerHost {
    /// The host's roster index.
    #[cfg_attr(feature = "schema", schemars(with = "u32"))]
    pub index: HostIndex,
    /// The host's public key.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::NodeId"))]
    pub node: NodeId,
    /// The host's locality.
    pub host: String,
    /// `peer` or `seeder`.
    pub role: String,
    /// Whether the tracker sees the host.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Presence"))]
    pub presence: Presence,
    /// Labels of the host's credential.
    #[cfg_attr(feature = "schema", schemars(with = "std::collections::BTreeMap<String, String>"))]
    pub labels: Labels,
    /// Addresses at which the host accepts links.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub addrs: Vec<SocketAddr>,
    /// Whether a second host tried to join with this host's key or at its locality within the last 10 minutes.
    #[serde(default)]
    pub duplicate: bool,
    /// Milliseconds since the host's last beat. Absent when the host is not connected.
    pub silent_ms: Option<u64>,
}

/// A job, folded per rack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TrackerJob {
    #[allow(missing_docs, reason = "the type says it")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::JobId"))]
    pub job: JobId,
    /// Name of the content.
    pub name: String,
    /// Version of the name.
    pub version: String,
    /// Racks in order of name.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<crate::schemas::RackRollup>"))]
    pub racks: Vec<RackRollup>,
}
