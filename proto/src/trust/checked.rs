//! The checked trust document: the only part that turns signatures into permissions.
//!
//! Invariant: a [`Trust`] exists only if a chain of signatures leads from the first root to the document.

use super::credential::Credential;
use super::document::{Issuer, Publisher, Succession, TrustDocument, cluster_of};
use super::envelope::Envelope;
use super::error::TrustError;
use super::token::JoinToken;
use crate::announcement::Announcement;
use crate::codec::{DecodeError, Document};
use crate::ids::{ClusterId, NodeId};
use crate::limits;
use crate::locality::Selector;
use crate::sequence;
use std::ops::Deref;
use std::sync::Arc;

/// A document that only a publisher may sign.
pub trait Published: Document {
    /// The name that the document is about.
    fn name(&self) -> &str;
    /// The hosts that the document is for.
    fn selector(&self) -> &Selector;
}

impl Published for Announcement {
    fn name(&self) -> &str {
        &self.name
    }

    fn selector(&self) -> &Selector {
        &self.selector
    }
}

/// An admitted credential, with the key that signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    credential: Credential,
    signer: NodeId,
}

impl Deref for Admitted {
    type Target = Credential;
    fn deref(&self) -> &Credential {
        &self.credential
    }
}

/// A checked trust document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    document: TrustDocument,
    /// The keys of all roots, the first root first.
    roots: Vec<NodeId>,
    bytes: Arc<[u8]>,
}

impl Trust {
    /// Opens the envelope of a trust document. The chain of roots in the document signs it, so the file itself is the
    /// anchor. `pinned` is the expected cluster, if the caller knows it.
    ///
    /// # Errors
    ///
    /// [`TrustError::Decode`], [`TrustError::BadSignature`], [`TrustError::UntrustedSigner`] if another key than the
    /// root signed, [`TrustError::BrokenChain`], or [`TrustError::OtherCluster`] if `pinned` differs.
    pub fn open(bytes: &[u8], pinned: Option<ClusterId>) -> Result<Self, TrustError> {
        if bytes.len() > limits::TRUST_BYTES_MAX {
            return Err(DecodeError::TooLong { len: bytes.len(), max: limits::TRUST_BYTES_MAX }.into());
        }
        let envelope = Envelope::from_bytes(bytes)?;
        let document: TrustDocument = envelope.open()?;
        if envelope.signer() != document.root {
            return Err(TrustError::UntrustedSigner(envelope.signer()));
        }
        if pinned.is_some_and(|cluster| cluster != document.cluster) {
            return Err(TrustError::OtherCluster);
        }
        let roots = chain_of(&document)?;
        Ok(Self { document, roots, bytes: bytes.into() })
    }

    /// Opens a document that may replace this one.
    ///
    /// # Errors
    ///
    /// As [`Trust::open`]. [`TrustError::NotNewer`] if the version does not grow. [`TrustError::NotContinued`] if the
    /// chain of roots does not continue this document's chain, or the trust epoch falls.
    pub fn open_newer(&self, bytes: &[u8]) -> Result<Self, TrustError> {
        let newer = Self::open(bytes, Some(self.cluster()))?;
        // A former root, stolen or not, cannot lead a host to another successor than the one it knows.
        if !newer.roots.starts_with(&self.roots) {
            return Err(TrustError::NotContinued("chain of roots"));
        }
        let (found, in_force) = (newer.document.version, self.document.version);
        if found <= in_force {
            return Err(TrustError::NotNewer { found, in_force });
        }
        if newer.document.epoch < self.document.epoch {
            return Err(TrustError::NotContinued("trust epoch"));
        }
        Ok(newer)
    }

    /// Returns the id of the cluster.
    pub fn cluster(&self) -> ClusterId {
        self.document.cluster
    }

    /// Returns the version of the document.
    pub fn version(&self) -> u64 {
        self.document.version
    }

    /// Returns the trust epoch.
    pub fn epoch(&self) -> u32 {
        self.document.epoch
    }

    /// The document.
    pub fn document(&self) -> &TrustDocument {
        &self.document
    }

    /// The signed document, as it travels.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// Returns the publisher with this key.
    pub fn publisher(&self, key: &NodeId) -> Option<&Publisher> {
        self.document.publishers.iter().find(|publisher| publisher.key == *key)
    }

    /// Whether the document revokes a node.
    pub fn is_revoked(&self, node: &NodeId) -> bool {
        self.document.revoked.iter().any(|row| row.node == *node)
    }

    /// Checks a credential at `now` (Unix seconds). `shown_by` is the key of the connection.
    ///
    /// # Errors
    ///
    /// The [`TrustError`] of the first check that fails: signer, key, cluster, validity, revocation, mandate.
    pub fn admit(&self, credential: &[u8], shown_by: NodeId, now: u64) -> Result<Admitted, TrustError> {
        if credential.len() > limits::CREDENTIAL_BYTES_MAX {
            let len = credential.len();
            return Err(DecodeError::TooLong { len, max: limits::CREDENTIAL_BYTES_MAX }.into());
        }
        let envelope = Envelope::from_bytes(credential)?;
        let signer = envelope.signer();
        if signer != self.document.root && self.document.issuers.iter().all(|issuer| issuer.key != signer) {
            return Err(TrustError::UntrustedSigner(signer));
        }
        let credential: Credential = envelope.open()?;
        if credential.node != shown_by {
            return Err(TrustError::NotYours { owner: credential.node, shown_by });
        }
        let admitted = Admitted { credential, signer };
        self.check_again(&admitted, now)?;
        Ok(admitted)
    }

    /// Checks again a credential that was admitted before, perhaps under an older document.
    ///
    /// # Errors
    ///
    /// Fails if the credential has expired, its node is revoked, its signer may not sign it, or the cluster differs.
    pub fn check_again(&self, admitted: &Admitted, now: u64) -> Result<(), TrustError> {
        let Credential { cluster, node, not_before, not_after, .. } = admitted.credential;
        if cluster != self.cluster() {
            return Err(TrustError::OtherCluster);
        }
        if !(not_before..not_after).contains(&now) {
            return Err(TrustError::Expired { not_before, not_after, now });
        }
        if self.is_revoked(&node) {
            return Err(TrustError::Revoked(node));
        }
        self.check_mandate(admitted.signer, &admitted.credential, now)
    }

    /// Checks whether a key may sign a credential now.
    ///
    /// # Errors
    ///
    /// [`TrustError::UntrustedSigner`] for a key that is neither the root nor an issuer, [`TrustError::OutsideMandate`]
    /// for a credential that the issuer may not sign.
    pub fn check_mandate(&self, signer: NodeId, credential: &Credential, now: u64) -> Result<(), TrustError> {
        if signer == self.document.root {
            return Ok(());
        }
        let issuer = self.issuer(&signer).ok_or(TrustError::UntrustedSigner(signer))?;
        match issuer.excess_of(credential, now) {
            Some(excess) => Err(TrustError::OutsideMandate { issuer: signer, excess }),
            None => Ok(()),
        }
    }

    /// Returns the issuer with this key.
    pub fn issuer(&self, key: &NodeId) -> Option<&Issuer> {
        self.document.issuers.iter().find(|issuer| issuer.key == *key)
    }

    /// Opens a join token. The caller checks its time, its uses, and each credential against the signer's mandate.
    ///
    /// # Errors
    ///
    /// [`TrustError::UntrustedSigner`] if neither the root nor an issuer signed it, [`TrustError::OtherCluster`], else
    /// as [`Envelope::open`].
    pub fn open_token(&self, envelope: &Envelope) -> Result<JoinToken, TrustError> {
        let signer = envelope.signer();
        if signer != self.document.root && self.issuer(&signer).is_none() {
            return Err(TrustError::UntrustedSigner(signer));
        }
        let token: JoinToken = envelope.open()?;
        if token.cluster != self.cluster() { Err(TrustError::OtherCluster) } else { Ok(token) }
    }

    /// Opens a document that only a publisher may sign, within the scope of the publisher.
    ///
    /// # Errors
    ///
    /// [`TrustError::UntrustedSigner`] for another key, [`TrustError::OutsideScope`] for another name or selector,
    /// else as [`Envelope::open`].
    pub fn open_published<D: Published>(&self, envelope: &Envelope) -> Result<D, TrustError> {
        let key = envelope.signer();
        let publisher = self.publisher(&key).ok_or(TrustError::UntrustedSigner(key))?;
        let document: D = envelope.open()?;
        if !publisher.may_name(document.name()) {
            return Err(TrustError::OutsideScope { publisher: key, excess: "name" });
        }
        if !publisher.may_select(document.selector()) {
            return Err(TrustError::OutsideScope { publisher: key, excess: "selector" });
        }
        Ok(document)
    }

    /// Opens an announcement that arrives at `now`, Unix seconds.
    ///
    /// # Errors
    ///
    /// As [`Trust::open_published`]. [`TrustError::LaterEpoch`] for a sequence of an epoch after this document's.
    /// [`TrustError::AheadOfClock`] for a sequence or a signature more than [`limits::CLOCK_SKEW_MAX_S`] after `now`.
    pub fn open_announcement(&self, envelope: &Envelope, now: u64) -> Result<Announcement, TrustError> {
        let announcement = self.open_published(envelope)?;
        check_time(&announcement, self.document.epoch, now)?;
        Ok(announcement)
    }
}

/// Checks the sequence and the time of the signature at `now`, Unix seconds.
fn check_time(announcement: &Announcement, epoch: u32, now: u64) -> Result<(), TrustError> {
    let found = sequence::epoch_of(announcement.sequence);
    if found > epoch {
        return Err(TrustError::LaterEpoch { found, in_force: epoch });
    }
    let signed_at = announcement.created_at.max(sequence::unix_ms_of(announcement.sequence) / 1000);
    let ahead_s = signed_at.saturating_sub(now);
    if ahead_s > limits::CLOCK_SKEW_MAX_S { Err(TrustError::AheadOfClock { ahead_s }) } else { Ok(()) }
}

/// Returns all roots, the first one first, after a check of each signature.
fn chain_of(document: &TrustDocument) -> Result<Vec<NodeId>, TrustError> {
    let first = document.successions.first().map_or(document.root, Envelope::signer);
    if cluster_of(&first) != document.cluster {
        return Err(TrustError::BrokenChain(0));
    }
    let mut roots = vec![first];
    for (at, envelope) in document.successions.iter().enumerate() {
        let broken = TrustError::BrokenChain(at);
        if roots.last() != Some(&envelope.signer()) {
            return Err(broken);
        }
        let succession: Succession = envelope.open()?;
        // A root that comes back would make a former, perhaps stolen, key the root again.
        if succession.cluster != document.cluster || roots.contains(&succession.next) {
            return Err(broken);
        }
        roots.push(succession.next);
    }
    if roots.last() != Some(&document.root) {
        return Err(TrustError::BrokenChain(document.successions.len()));
    }
    Ok(roots)
}
