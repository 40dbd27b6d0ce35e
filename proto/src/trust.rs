//! Trust: keys, signed envelopes, credentials, and the trust document of the cluster.
//!
//! Invariant: a caller reaches the payload of an [`Envelope`] only through a check of its signature.

use crate::codec::{DecodeError, DocKind, Document};
use crate::ids::{ClusterId, NodeId};
use crate::limits;
use crate::locality::Locality;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An Ed25519 key pair of a node, a publisher or the root of the cluster.
#[derive(Clone)]
pub struct Keypair {
    key: SigningKey,
}

impl Keypair {
    /// Returns the pair of the 32 secret bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(&seed) }
    }

    /// Returns the 32 secret bytes. They belong only in a file of mode 0600.
    pub fn seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The public key.
    pub fn node(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({})", self.node().short())
    }
}

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
}

/// A signed document. The signature covers the kind of the document, so no document passes for another kind.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Envelope {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    payload: Vec<u8>,
    #[n(1)]
    signer: NodeId,
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    signature: [u8; 64],
}

impl Document for Envelope {
    const KIND: DocKind = DocKind::Envelope;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::HUB_BODY_BYTES_MAX;
}

fn signed_bytes(kind: DocKind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend_from_slice(b"shoal signed ");
    out.push(kind as u8);
    out.extend_from_slice(payload);
    out
}

impl Envelope {
    /// Signs `document` with `keys`.
    pub fn seal<D: Document>(document: &D, keys: &Keypair) -> Self {
        let payload = document.to_bytes();
        let signature = keys.key.sign(&signed_bytes(D::KIND, &payload)).to_bytes();
        Self { payload, signer: keys.node(), signature }
    }

    /// Returns the claimed signer. The claim is unverified until [`Envelope::open`] succeeds.
    pub fn signer(&self) -> NodeId {
        self.signer
    }

    /// Checks the signature and decodes the document. The caller checks whether the signer may sign it.
    ///
    /// # Errors
    ///
    /// [`TrustError::BadSignature`], or [`TrustError::Decode`] for a payload that is not a valid `D`.
    pub fn open<D: Document>(&self) -> Result<D, TrustError> {
        // The check of the length comes first, so that a stranger cannot make the host hash more than a document.
        if self.payload.len() > D::BYTES_MAX {
            return Err(DecodeError::TooLong { len: self.payload.len(), max: D::BYTES_MAX }.into());
        }
        let bad = TrustError::BadSignature(self.signer);
        let Ok(key) = VerifyingKey::from_bytes(self.signer.as_bytes()) else { return Err(bad) };
        let signature = Signature::from_bytes(&self.signature);
        if key.verify_strict(&signed_bytes(D::KIND, &self.payload), &signature).is_err() {
            return Err(bad);
        }
        Ok(D::from_bytes(&self.payload)?)
    }
}

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

/// The root's signed statement of a node's key, role and locality. A node shows it first on every link.
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
}

impl Document for Credential {
    const KIND: DocKind = DocKind::Credential;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::CREDENTIAL_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        if !self.locality.is_valid() {
            return Err(DecodeError::invalid("locality", self.locality.to_string()));
        }
        if self.not_before >= self.not_after {
            return Err(DecodeError::invalid("validity", "ends before it begins"));
        }
        Ok(())
    }
}

/// The list of publishers and revoked nodes, signed by the root key. A higher version replaces a lower one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TrustDocument {
    /// The public key of the root.
    #[n(0)]
    pub root: NodeId,
    /// Grows with every change.
    #[n(1)]
    pub version: u64,
    /// Keys that may sign announcements.
    #[n(2)]
    pub publishers: Vec<NodeId>,
    /// Nodes whose credentials are void.
    #[n(3)]
    pub revoked: Vec<NodeId>,
}

impl Document for TrustDocument {
    const KIND: DocKind = DocKind::Trust;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::TRUST_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        if self.publishers.len() > limits::PUBLISHERS_MAX {
            return Err(DecodeError::invalid("publishers", format!("more than {}", limits::PUBLISHERS_MAX)));
        }
        Ok(())
    }
}

/// A checked trust document. Only this type turns signatures into permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    document: TrustDocument,
}

impl Trust {
    /// Opens the envelope of a trust document. The root key in the document signs it, so the file itself is the anchor.
    /// `pinned` is the cluster id of the configuration, if it has one.
    ///
    /// # Errors
    ///
    /// [`TrustError::Decode`], [`TrustError::BadSignature`], [`TrustError::UntrustedSigner`] if another key signed, or
    /// [`TrustError::OtherCluster`] if `pinned` differs.
    pub fn open(envelope: &[u8], pinned: Option<ClusterId>) -> Result<Self, TrustError> {
        if envelope.len() > limits::TRUST_BYTES_MAX {
            return Err(DecodeError::TooLong { len: envelope.len(), max: limits::TRUST_BYTES_MAX }.into());
        }
        let envelope = Envelope::from_bytes(envelope)?;
        let document: TrustDocument = envelope.open()?;
        if envelope.signer() != document.root {
            return Err(TrustError::UntrustedSigner(envelope.signer()));
        }
        let trust = Self { document };
        match pinned {
            Some(cluster) if cluster != trust.cluster() => Err(TrustError::OtherCluster),
            _ => Ok(trust),
        }
    }

    /// Returns the id of the cluster.
    pub fn cluster(&self) -> ClusterId {
        cluster_of(&self.document.root)
    }

    /// The document.
    pub fn document(&self) -> &TrustDocument {
        &self.document
    }

    /// Checks a credential at `now` (Unix seconds). `shown_by` is the key of the connection.
    ///
    /// # Errors
    ///
    /// The [`TrustError`] of the first check that fails: signer, cluster, key, validity, revocation.
    pub fn admit(&self, credential: &[u8], shown_by: NodeId, now: u64) -> Result<Credential, TrustError> {
        if credential.len() > limits::CREDENTIAL_BYTES_MAX {
            let len = credential.len();
            return Err(DecodeError::TooLong { len, max: limits::CREDENTIAL_BYTES_MAX }.into());
        }
        let envelope = Envelope::from_bytes(credential)?;
        if envelope.signer() != self.document.root {
            return Err(TrustError::UntrustedSigner(envelope.signer()));
        }
        let credential: Credential = envelope.open()?;
        if credential.cluster != self.cluster() {
            return Err(TrustError::OtherCluster);
        }
        if credential.node != shown_by {
            return Err(TrustError::NotYours { owner: credential.node, shown_by });
        }
        let Credential { not_before, not_after, .. } = credential;
        if !(not_before..not_after).contains(&now) {
            return Err(TrustError::Expired { not_before, not_after, now });
        }
        if self.document.revoked.contains(&shown_by) {
            return Err(TrustError::Revoked(shown_by));
        }
        Ok(credential)
    }

    /// Opens a document that only a publisher may sign.
    ///
    /// # Errors
    ///
    /// [`TrustError::UntrustedSigner`] for another key, else as [`Envelope::open`].
    pub fn open_published<D: Document>(&self, envelope: &Envelope) -> Result<D, TrustError> {
        if !self.document.publishers.contains(&envelope.signer()) {
            return Err(TrustError::UntrustedSigner(envelope.signer()));
        }
        envelope.open()
    }
}

/// Returns the id of the cluster with this root key.
pub fn cluster_of(root: &NodeId) -> ClusterId {
    ClusterId(*blake3::hash(root.as_bytes()).as_bytes())
}
