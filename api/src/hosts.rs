//! Hosts of a region, as the seeder knows them.
//!
//! Invariant: an index belongs to one host for ever.

use serde::{Deserialize, Serialize};
use shoal_proto::ids::{HostIndex, NodeId};
use shoal_proto::locality::Labels;
use shoal_proto::membership::Presence;
use std::net::SocketAddr;

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Host {
    /// The host's roster index.
    #[cfg_attr(feature = "schema", schemars(with = "u32"))]
    pub index: HostIndex,
    /// The host's public key, which `shoal cluster revoke` takes.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::NodeId"))]
    pub node: NodeId,
    /// The host's locality.
    pub host: String,
    /// `peer` or `seeder`.
    pub role: String,
    /// Whether the tracker sees the host.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Presence"))]
    pub presence: Presence,
    /// Whether a second host tried to join with this host's key or at its locality within the last 10 minutes.
    #[serde(default)]
    pub duplicate: bool,
    /// Labels of the host's credential.
    #[cfg_attr(feature = "schema", schemars(with = "std::collections::BTreeMap<String, String>"))]
    pub labels: Labels,
    /// Addresses at which the host accepts links.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub addrs: Vec<SocketAddr>,
}
