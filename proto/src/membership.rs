//! The membership of a region: one row per host, and the updates that carry changes.
//!
//! Invariant: an update applies only to the epoch that it names. Two hosts at the same epoch hold the same rows, except
//! rows that a host refuses because their credentials are not valid there.

use crate::codec::DecodeError;
use crate::ids::{Epoch, HostIndex, NodeId};
use crate::limits;
use crate::locality::{Labels, Locality, validate_labels};
use crate::trust::{ClaimError, Credential, Role};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;

/// The liveness of a host at the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Connected and beating.
    #[n(0)]
    Up,
    /// Without beats. Plans leave the host out at once, and the tracker removes it only after a grace period.
    #[n(1)]
    Away,
}

/// One host of the region.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Member {
    /// Position in the roster.
    #[n(0)]
    pub index: HostIndex,
    /// Public key.
    #[n(1)]
    pub node: NodeId,
    /// Peer or seeder.
    #[n(2)]
    pub role: Role,
    /// Locality, from the credential.
    #[n(3)]
    pub locality: Locality,
    /// Labels, from the credential.
    #[n(4)]
    pub labels: Labels,
    /// Addresses for links.
    #[n(5)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ADDRS_MAX }, _, _>")]
    pub addrs: Vec<SocketAddr>,
    /// Weight among its rack peers. 100 is the default. A host of weight 0 owns no lane.
    #[n(6)]
    pub weight: u16,
    /// Declared rate of the rack's uplink, or of a seeder's own link, Mbit/s. 0 means not declared.
    #[n(7)]
    pub uplink_mbit: u32,
    /// Liveness at the tracker.
    #[n(8)]
    pub presence: Presence,
    /// The host's signed credential. Empty in a delta whose receiver has it already.
    #[n(9)]
    #[cbor(with = "crate::codec::shared_bytes")]
    pub credential: Arc<[u8]>,
}

/// Why a row does not fit the credential in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// A field differs from the credential.
    #[error("the {0} is not the credential's")]
    Differs(&'static str),
    /// The row claims more than the credential covers.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// A change of membership.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MembershipUpdate {
    /// The epoch after the update.
    #[n(0)]
    pub epoch: Epoch,
    /// The epoch before the update. `None` means that the update replaces all rows.
    #[n(1)]
    pub base: Option<Epoch>,
    /// New and changed rows. In a delta, a row has its credential only if the credential is newer than `base`.
    #[n(2)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::HOSTS_MAX as usize }, _, _>")]
    pub upserts: Vec<Member>,
    /// Removed rows.
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
    /// Checks the row against the checked credential in it.
    ///
    /// # Errors
    ///
    /// [`RowError`] with the first field that the credential does not cover.
    pub fn check_against(&self, credential: &Credential) -> Result<(), RowError> {
        let Credential { node, role, locality, labels, .. } = credential;
        let same = [
            (self.node == *node, "key"),
            (self.role == *role, "role"),
            (self.locality == *locality, "locality"),
            (self.labels == *labels, "list of labels"),
        ];
        if let Some((_, field)) = same.into_iter().find(|(is_same, _)| !is_same) {
            return Err(RowError::Differs(field));
        }
        Ok(credential.check_claims(self.weight, &self.addrs)?)
    }

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
        let len = self.credential.len();
        if len > limits::CREDENTIAL_BYTES_MAX {
            return Err(DecodeError::TooLong { len, max: limits::CREDENTIAL_BYTES_MAX });
        }
        validate_labels(&self.labels)
    }
}
