//! Keys and signed envelopes.
//!
//! Invariant: the secret half of a key leaves this module only through [`Keypair::seed`].

use super::error::TrustError;
use crate::codec::{DecodeError, DocKind, Document};
use crate::ids::NodeId;
use crate::limits;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use minicbor::{Decode, Encode};
use std::fmt;

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
