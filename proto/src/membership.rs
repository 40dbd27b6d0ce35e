//! Who is in the region: one row a host, and the updates that carry changes.
//!
//! Invariant: an update applies only on top of the epoch it names, so two hosts at one epoch hold the same rows.

use crate::codec::DecodeError;
use crate::ids::{Epoch, HostIndex, NodeId};
use crate::limits;
use crate::locality::{Labels, Locality, validate_labels};
use crate::trust::Role;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// How the tracker sees a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Connected and beating.
    #[n(0)]
    Up,
    /// Lost from sight: routed around at once, forgotten only after the grace period.
    #[n(1)]
    Away,
}

/// One host of the region.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Member {
    /// Its place in the roster.
    #[n(0)]
    pub index: HostIndex,
    /// Its key.
    #[n(1)]
    pub node: NodeId,
    /// Peer or seeder.
    #[n(2)]
    pub role: Role,
    /// Where it is.
    #[n(3)]
    pub locality: Locality,
    /// What its operator calls it.
    #[n(4)]
    pub labels: Labels,
    /// Where it listens for bulk links.
    #[n(5)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ADDRS_MAX }, _, _>")]
    pub addrs: Vec<SocketAddr>,
    /// Its share of the rack's relaying, relative to its mates; 100 is ordinary, 0 owns nothing.
    #[n(6)]
    pub weight: u16,
    /// Declared rate of its rack's uplink (a seeder's own link), Mbit/s; 0 when not declared.
    #[n(7)]
    pub uplink_mbit: u32,
    /// How the tracker sees it.
    #[n(8)]
    pub presence: Presence,
}

/// A change of membership.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MembershipUpdate {
    /// The epoch this leads to.
    #[n(0)]
    pub epoch: Epoch,
    /// The epoch it applies to; `None` replaces everything.
    #[n(1)]
    pub base: Option<Epoch>,
    /// Rows new or changed.
    #[n(2)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::HOSTS_MAX as usize }, _, _>")]
    pub upserts: Vec<Member>,
    /// Rows gone.
    #[n(3)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::HOSTS_MAX as usize }, _, _>")]
    pub removed: Vec<HostIndex>,
}

impl MembershipUpdate {
    /// Checks what the type system cannot.
    pub fn validate(&self) -> Result<(), DecodeError> {
        if self.base.is_some_and(|base| base >= self.epoch) {
            return Err(DecodeError::invalid("epoch", "does not grow"));
        }
        self.upserts.iter().try_for_each(Member::validate)
    }
}

impl Member {
    /// Checks the bounds.
    pub(crate) fn validate(&self) -> Result<(), DecodeError> {
        if self.index.0 >= limits::HOSTS_MAX {
            return Err(DecodeError::invalid("index", self.index.to_string()));
        }
        if !self.locality.is_valid() {
            return Err(DecodeError::invalid("locality", self.locality.to_string()));
        }
        if self.addrs.len() > limits::ADDRS_MAX {
            return Err(DecodeError::invalid("addrs", "too many"));
        }
        validate_labels(&self.labels)
    }
}
