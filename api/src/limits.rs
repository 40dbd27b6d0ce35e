//! Rate limits of a node's links, as peers and seeders serve them.
//!
//! Invariant: an absent rate changes nothing; `unlimited` lifts a limit.

use crate::units::Rate;
use serde::{Deserialize, Serialize};

/// Rates of all links of a host together, by tier and direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rates {
    /// Sent to other racks, and to or from seeders.
    pub uplink_out: Option<Rate>,
    /// Received from other racks and from seeders.
    pub uplink_in: Option<Rate>,
    /// Sent to rack peers.
    pub rack_out: Option<Rate>,
    /// Received from rack peers.
    pub rack_in: Option<Rate>,
}

/// The limits in force and where they come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LimitsView {
    /// The rates in force.
    pub effective: Rates,
    /// Rates that a request set. They last until the node restarts.
    pub set: Rates,
    /// Rates of the configuration, without windows.
    pub configured: Rates,
    /// Index of the configured window that applies now.
    pub window: Option<usize>,
    /// Rates that NIC yield imposes on bulk traffic. Absent when NIC yield is off.
    #[serde(rename = "yield")]
    pub yielding: Option<YieldView>,
}

/// The state of NIC yield.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct YieldView {
    /// Limit of bulk traffic sent.
    pub bulk_out: Rate,
    /// Limit of bulk traffic received.
    pub bulk_in: Rate,
    /// Rate at which the network card has recently sent, all programs together.
    pub nic_out: Rate,
    /// Rate at which the network card has recently received, all programs together.
    pub nic_in: Rate,
}
