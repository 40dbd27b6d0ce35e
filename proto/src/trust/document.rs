//! The trust document: who may publish, who may issue credentials, and which nodes are revoked.
//!
//! Invariant: the lists of a decoded document are within the bounds of [`crate::limits`]. Signatures and the chain of
//! roots are the matter of [`super::Trust`].

use super::credential::{Credential, Role};
use super::envelope::Envelope;
use crate::announcement::is_content_name;
use crate::codec::{DecodeError, DocKind, Document};
use crate::feed::DESIRED_FEEDS;
use crate::ids::{ClusterId, NodeId};
use crate::limits;
use crate::locality::{Locality, Selector, is_name};
use minicbor::{Decode, Encode};

/// Returns the id of the cluster with this first root key.
pub fn cluster_of(first_root: &NodeId) -> ClusterId {
    ClusterId(*blake3::hash(first_root.as_bytes()).as_bytes())
}

/// A key that may sign announcements, with its scope.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Publisher {
    /// The key.
    #[n(0)]
    pub key: NodeId,
    /// The publisher may announce these names and the names below them. An empty list stands for all names.
    #[n(1)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::PUBLISHER_NAMES_MAX }, _, _>")]
    pub names: Vec<String>,
    /// The publisher may announce to hosts of this selector. `None` stands for all hosts.
    #[n(2)]
    pub selector: Option<Selector>,
}

impl Publisher {
    /// Returns a publisher of all names to all hosts.
    pub fn unscoped(key: NodeId) -> Self {
        Self { key, names: Vec::new(), selector: None }
    }

    /// Whether the publisher may announce a content or a feed of this name. The feed of the desired states of a name
    /// belongs to that name.
    pub fn may_name(&self, name: &str) -> bool {
        let name = name.strip_prefix(DESIRED_FEEDS).unwrap_or(name);
        self.names.is_empty() || self.names.iter().any(|prefix| is_at_or_below(name, prefix))
    }

    /// Whether the publisher may announce to all hosts of `selector`.
    pub fn may_select(&self, selector: &Selector) -> bool {
        self.selector.as_ref().is_none_or(|own| own.includes(selector))
    }

    fn validate(&self) -> Result<(), DecodeError> {
        if let Some(name) = self.names.iter().find(|name| !is_content_name(name)) {
            return Err(DecodeError::invalid("names of a publisher", format!("`{name}`")));
        }
        match &self.selector {
            Some(selector) if !selector.is_valid() => {
                Err(DecodeError::invalid("selector of a publisher", selector.to_string()))
            }
            _ => Ok(()),
        }
    }
}

fn is_at_or_below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A key that may sign credentials within its mandate, while the root stays offline.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Issuer {
    /// The key.
    #[n(0)]
    pub key: NodeId,
    /// The roles of the nodes.
    #[n(1)]
    #[cbor(decode_with = "crate::codec::at_most::<4, _, _>")]
    pub roles: Vec<Role>,
    /// The nodes are at or below these places, for example `north/site1`. An empty list stands for all places.
    #[n(2)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ISSUER_LOCALITIES_MAX }, _, _>")]
    pub localities: Vec<String>,
    /// The longest validity of a credential, seconds.
    #[n(3)]
    pub valid_max_s: u64,
    /// End of the mandate, Unix seconds. Credentials of the issuer end with the mandate.
    #[n(4)]
    pub not_after: u64,
}

impl Issuer {
    /// Returns what the mandate excludes in a credential at `now`, Unix seconds. `None` means that the mandate covers
    /// the credential.
    pub fn excess_of(&self, credential: &Credential, now: u64) -> Option<&'static str> {
        let Credential { role, locality, not_before, not_after, .. } = credential;
        if !self.roles.contains(role) {
            return Some("role");
        }
        if !self.covers_place(locality) {
            return Some("locality");
        }
        if not_after.saturating_sub(*not_before) > self.valid_max_s {
            return Some("length of validity");
        }
        (now >= self.not_after).then_some("present time")
    }

    fn covers_place(&self, locality: &Locality) -> bool {
        let place = locality.to_string();
        self.localities.is_empty() || self.localities.iter().any(|prefix| is_at_or_below(&place, prefix))
    }

    fn validate(&self) -> Result<(), DecodeError> {
        let is_place = |prefix: &String| prefix.split('/').count() <= 4 && prefix.split('/').all(is_name);
        match self.localities.iter().find(|prefix| !is_place(prefix)) {
            Some(prefix) => Err(DecodeError::invalid("localities of an issuer", format!("`{prefix}`"))),
            None => Ok(()),
        }
    }
}

/// A node whose credentials are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Revocation {
    /// The key of the node.
    #[n(0)]
    pub node: NodeId,
    /// The end of the last credential of the node, Unix seconds. A later document may omit the entry.
    #[n(1)]
    pub until: u64,
}

/// A root's statement of the root that follows it. The former root signs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Succession {
    /// The cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// The root that follows.
    #[n(1)]
    pub next: NodeId,
}

impl Document for Succession {
    const KIND: DocKind = DocKind::Succession;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::SUCCESSION_BYTES_MAX;
}

/// Who may publish, who may issue credentials, and which nodes are revoked. The root signs it. A higher version
/// replaces a lower one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TrustDocument {
    /// The hash of the first root key. It never changes.
    #[n(0)]
    pub cluster: ClusterId,
    /// The public key of the root that signs this document.
    #[n(1)]
    pub root: NodeId,
    /// The chain from the first root to `root`: each former root's signed [`Succession`].
    #[n(2)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::SUCCESSIONS_MAX }, _, _>")]
    pub successions: Vec<Envelope>,
    /// Grows with every change.
    #[n(3)]
    pub version: u64,
    /// The trust epoch. It grows when a publisher is dropped. Sequences of a higher epoch are newer than all sequences
    /// of a lower one.
    #[n(4)]
    pub epoch: u32,
    /// Keys that may sign announcements.
    #[n(5)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::PUBLISHERS_MAX }, _, _>")]
    pub publishers: Vec<Publisher>,
    /// Keys that may sign credentials.
    #[n(6)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::ISSUERS_MAX }, _, _>")]
    pub issuers: Vec<Issuer>,
    /// Nodes whose credentials are void.
    #[n(7)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::REVOKED_MAX }, _, _>")]
    pub revoked: Vec<Revocation>,
}

impl TrustDocument {
    /// Returns the first document of a cluster, with publishers of all names to all hosts.
    pub fn first(root: NodeId, publishers: impl IntoIterator<Item = NodeId>) -> Self {
        Self {
            cluster: cluster_of(&root),
            root,
            successions: Vec::new(),
            version: 1,
            epoch: 1,
            publishers: publishers.into_iter().map(Publisher::unscoped).collect(),
            issuers: Vec::new(),
            revoked: Vec::new(),
        }
    }
}

impl Document for TrustDocument {
    const KIND: DocKind = DocKind::Trust;
    const VERSION: u8 = 2;
    const BYTES_MAX: usize = limits::TRUST_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        if self.epoch > limits::TRUST_EPOCH_MAX {
            return Err(DecodeError::invalid("trust epoch", format!("{} is above the limit", self.epoch)));
        }
        self.publishers.iter().try_for_each(Publisher::validate)?;
        self.issuers.iter().try_for_each(Issuer::validate)
    }
}
