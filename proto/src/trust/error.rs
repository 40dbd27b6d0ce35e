//! Why a signed document is refused.

use super::credential::Role;
use crate::codec::DecodeError;
use crate::ids::NodeId;

/// Why a signed document is refused.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The bytes are not a valid document.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The signature does not match the bytes.
    #[error("bad signature by {}", .0.short())]
    BadSignature(NodeId),
    /// The signer may not sign this document.
    #[error("signed by {}, which is not trusted for this", .0.short())]
    UntrustedSigner(NodeId),
    /// The document belongs to another cluster.
    #[error("belongs to another cluster")]
    OtherCluster,
    /// The time of the check is outside the validity.
    #[error("valid from {not_before} to {not_after} (Unix seconds), now is {now}")]
    Expired {
        /// Start of validity, Unix seconds.
        not_before: u64,
        /// End of validity, Unix seconds.
        not_after: u64,
        /// The time of the check, Unix seconds.
        now: u64,
    },
    /// The trust document revokes the node.
    #[error("{} is revoked", .0.short())]
    Revoked(NodeId),
    /// The credential belongs to another node.
    #[error("credential of {} shown by {}", .owner.short(), .shown_by.short())]
    NotYours {
        /// The node of the credential.
        owner: NodeId,
        /// The node of the connection.
        shown_by: NodeId,
    },
    /// The role may not do this.
    #[error("a {0} may not do this")]
    WrongRole(Role),
    /// The issuer that signed the credential may not sign such a credential.
    #[error("issuer {} may not sign this credential: its mandate excludes the {}", .issuer.short(), .excess)]
    OutsideMandate {
        /// The key of the issuer.
        issuer: NodeId,
        /// What the mandate excludes.
        excess: &'static str,
    },
    /// The publisher that signed the announcement may not announce it.
    #[error("publisher {} may not announce this: its scope excludes the {}", .publisher.short(), .excess)]
    OutsideScope {
        /// The key of the publisher.
        publisher: NodeId,
        /// What the scope excludes.
        excess: &'static str,
    },
    /// The trust document in force is newer, or equally new and different.
    #[error("trust document version {found} is not newer than version {in_force}, which is in force")]
    NotNewer {
        /// The version of the refused document.
        found: u64,
        /// The version in force.
        in_force: u64,
    },
    /// The sequence belongs to a later trust epoch. The newest trust document has not arrived yet.
    #[error("its trust epoch is {found}, and the trust document in force has epoch {in_force}")]
    LaterEpoch {
        /// The epoch of the sequence.
        found: u32,
        /// The epoch in force.
        in_force: u32,
    },
    /// The sequence or the time of the signature is ahead of the clock.
    #[error("it is {ahead_s} s ahead of this host's clock; check the clocks of this host and of the seeder")]
    AheadOfClock {
        /// Seconds ahead of the clock.
        ahead_s: u64,
    },
    /// The chain of roots does not lead from the first root to the root that signed.
    #[error("the chain of roots is broken at link {0}")]
    BrokenChain(usize),
    /// The chain of roots leaves the chain that is in force, or the trust epoch falls.
    #[error("does not continue the trust document in force: the {0} differs")]
    NotContinued(&'static str),
}
