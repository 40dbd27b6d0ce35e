//! Who may speak and who may publish: keys, signed envelopes, credentials, the cluster's trust document.
//!
//! Invariant: the payload of an [`Envelope`] is reachable only through a check of its signature.

use crate::codec::{DecodeError, DocKind, Document};
use crate::ids::{ClusterId, NodeId};
use crate::limits;
use crate::locality::Locality;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An Ed25519 key pair: a node's, a publisher's or the cluster root's.
#[derive(Clone)]
pub struct Keypair {
    key: SigningKey,
}

impl Keypair {
    /// From the 32 secret bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(&seed) }
    }

    /// The 32 secret bytes. They belong in a file of mode 0600 and nowhere else.
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

/// Why something signed is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not a document at all.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The signature does not fit the bytes.
    #[error("bad signature by {}", .0.short())]
    BadSignature(NodeId),
    /// Signed, but by a key that may not sign this.
    #[error("signed by {}, which is not trusted for this", .0.short())]
    UntrustedSigner(NodeId),
    /// Made for another cluster.
    #[error("belongs to another cluster")]
    OtherCluster,
    /// Not yet or no longer valid.
    #[error("valid from {not_before} to {not_after} (Unix seconds), now is {now}")]
    Expired {
        /// Start of validity, Unix seconds.
        not_before: u64,
        /// End of validity, Unix seconds.
        not_after: u64,
        /// The time of the check, Unix seconds.
        now: u64,
    },
    /// The node's credential was withdrawn.
    #[error("{} is revoked", .0.short())]
    Revoked(NodeId),
    /// The credential is another node's.
    #[error("credential of {} shown by {}", .owner.short(), .shown_by.short())]
    NotYours {
        /// Whom the credential names.
        owner: NodeId,
        /// Who holds the connection.
        shown_by: NodeId,
    },
    /// The role may not do this.
    #[error("a {0} may not do this")]
    WrongRole(Role),
}

/// A signed document. The signature covers a label of the document's kind, so it cannot pass for another kind.
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
    /// Signs `document`.
    pub fn seal<D: Document>(document: &D, keys: &Keypair) -> Self {
        let payload = document.to_bytes();
        let signature = keys.key.sign(&signed_bytes(D::KIND, &payload)).to_bytes();
        Self { payload, signer: keys.node(), signature }
    }

    /// Who claims to have signed. Means nothing until [`Envelope::open`] succeeds.
    pub fn signer(&self) -> NodeId {
        self.signer
    }

    /// Checks the signature and reads the document. Whether `signer` may sign it is the caller's question.
    pub fn open<D: Document>(&self) -> Result<D, TrustError> {
        // A stranger must not make us hash more than the document may be long.
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

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Stores, relays, verifies, activates.
    #[n(0)]
    Peer,
    /// Takes content in and roots the lanes.
    #[n(1)]
    Seeder,
    /// Membership, liveness, folding of reports.
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

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Peer, Self::Seeder, Self::Tracker, Self::Hub]
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| format!("`{text}` is not a role: peer, seeder, tracker or hub"))
    }
}

/// A node's right to take part, signed by the cluster's root key. The first thing shown on every link.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Credential {
    /// The cluster it is for.
    #[n(0)]
    pub cluster: ClusterId,
    /// Whose it is.
    #[n(1)]
    pub node: NodeId,
    /// What the node is.
    #[n(2)]
    pub role: Role,
    /// Where the node is.
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

/// What the cluster trusts, signed by its root key: who may publish, who is shut out. Higher versions replace lower.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TrustDocument {
    /// The cluster's root public key.
    #[n(0)]
    pub root: NodeId,
    /// Grows with every change.
    #[n(1)]
    pub version: u64,
    /// Keys whose announcements are accepted.
    #[n(2)]
    pub publishers: Vec<NodeId>,
    /// Nodes whose credentials are withdrawn.
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

/// A checked trust document: the one place where signatures become permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    document: TrustDocument,
}

impl Trust {
    /// Reads a trust document's envelope. It is signed by the root key it names; the file itself is the anchor, so
    /// `pinned` (a cluster id from the configuration) is checked when given.
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

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        cluster_of(&self.document.root)
    }

    /// The document.
    pub fn document(&self) -> &TrustDocument {
        &self.document
    }

    /// Checks a credential shown by `shown_by` (the key its connection is bound to) at `now` (Unix seconds).
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
    pub fn open_published<D: Document>(&self, envelope: &Envelope) -> Result<D, TrustError> {
        if !self.document.publishers.contains(&envelope.signer()) {
            return Err(TrustError::UntrustedSigner(envelope.signer()));
        }
        envelope.open()
    }
}

/// The id of the cluster with this root key.
pub fn cluster_of(root: &NodeId) -> ClusterId {
    ClusterId(*blake3::hash(root.as_bytes()).as_bytes())
}
