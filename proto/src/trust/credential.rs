//! Roles, and the credential that states what a node is.
//!
//! Invariant: the lists of a decoded credential are within the bounds of [`crate::limits`].

use crate::codec::{DecodeError, DocKind, Document};
use crate::ids::{ClusterId, NodeId};
use crate::limits;
use crate::locality::{Labels, Locality, validate_labels};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Stores, relays, verifies, activates.
    #[n(0)]
    Peer,
    /// Ingests contents and is the root of the lanes.
    #[n(1)]
    Seeder,
    /// Keeps the membership and folds reports.
    #[n(2)]
    Tracker,
    /// Keeps completion reports.
    #[n(3)]
    Hub,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "peer",
            Self::Seeder => "seeder",
            Self::Tracker => "tracker",
            Self::Hub => "hub",
        })
    }
}

/// A text that is not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid role `{0}`: use peer, seeder, tracker or hub")]
pub struct ParseRoleError(String);

impl FromStr for Role {
    type Err = ParseRoleError;
    fn from_str(text: &str) -> Result<Self, ParseRoleError> {
        [Self::Peer, Self::Seeder, Self::Tracker, Self::Hub]
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| ParseRoleError(text.to_string()))
    }
}

/// A range of addresses, for example `10.1.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AddressRange {
    /// The first address of the range.
    #[n(0)]
    pub addr: IpAddr,
    /// The number of leading bits that all addresses of the range share.
    #[n(1)]
    pub prefix: u8,
}

impl AddressRange {
    /// Whether the address is in the range.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                self.has_prefix_of(own.to_bits().into(), other.to_bits().into(), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => self.has_prefix_of(own.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }

    fn has_prefix_of(&self, own: u128, other: u128, bits: u32) -> bool {
        let host_bits = bits.saturating_sub(u32::from(self.prefix));
        (own ^ other).checked_shr(host_bits).unwrap_or(0) == 0
    }

    fn is_valid(&self) -> bool {
        let bits = if self.addr.is_ipv4() { 32 } else { 128 };
        self.prefix <= bits && self.addr.to_canonical() == self.addr
    }
}

/// A text that is not a range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid address range `{0}`: use an address and a prefix length, as in 10.1.0.0/16")]
pub struct ParseAddressRangeError(String);

impl FromStr for AddressRange {
    type Err = ParseAddressRangeError;
    fn from_str(text: &str) -> Result<Self, ParseAddressRangeError> {
        let error = || ParseAddressRangeError(text.to_string());
        let (addr, prefix) = text.split_once('/').ok_or_else(error)?;
        let addr = addr.parse().map_err(|_| error())?;
        let range = Self { addr, prefix: prefix.parse().map_err(|_| error())? };
        if range.is_valid() { Ok(range) } else { Err(error()) }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// The signed statement of what a node is and may say of itself. The root or an issuer signs it. A node shows it first
/// on every link.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Credential {
    /// The cluster of the node.
    #[n(0)]
    pub cluster: ClusterId,
    /// The key of the node.
    #[n(1)]
    pub node: NodeId,
    /// The only role that the node may have.
    #[n(2)]
    pub role: Role,
    /// The place of the node.
    #[n(3)]
    pub locality: Locality,
    /// Start of validity, Unix seconds.
    #[n(4)]
    pub not_before: u64,
    /// End of validity, Unix seconds.
    #[n(5)]
    pub not_after: u64,
    /// The labels that selectors see.
    #[n(6)]
    pub labels: Labels,
    /// The greatest weight that the node may announce.
    #[n(7)]
    pub weight_max: u16,
    /// Addresses that the node may announce. An empty list stands for all but loopback, link-local and multicast
    /// addresses.
    #[n(8)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ADDRESS_RANGES_MAX }, _, _>")]
    pub addresses: Vec<AddressRange>,
}

impl Credential {
    /// The weight of a host that is like its rack peers.
    pub const WEIGHT_DEFAULT: u16 = 100;
}

impl Document for Credential {
    const KIND: DocKind = DocKind::Credential;
    const VERSION: u8 = 2;
    const BYTES_MAX: usize = limits::CREDENTIAL_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        if !self.locality.is_valid() {
            return Err(DecodeError::invalid("locality", self.locality.to_string()));
        }
        if self.not_before >= self.not_after {
            return Err(DecodeError::invalid("validity", "ends before it begins"));
        }
        if self.addresses.len() > limits::ADDRESS_RANGES_MAX {
            return Err(DecodeError::invalid("addresses", format!("more than {}", limits::ADDRESS_RANGES_MAX)));
        }
        if let Some(range) = self.addresses.iter().find(|range| !range.is_valid()) {
            return Err(DecodeError::invalid("addresses", range.to_string()));
        }
        validate_labels(&self.labels)
    }
}
