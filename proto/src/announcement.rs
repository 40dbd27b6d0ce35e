//! The announcement: the document in which a publisher assigns a content, under a name and version, to hosts.
//!
//! Invariant: the name and version of a decoded announcement are checked path components. Neither can leave the folder
//! of activated contents.

use crate::codec::{DecodeError, DocKind, Document};
use crate::feed::{FeedMark, feed_id, is_feed_name};
use crate::ids::{ContentId, JobId, NodeId};
use crate::limits;
use crate::locality::Selector;
pub use crate::names::{is_content_name, is_reserved, is_version};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How hosts treat a content. The kind sets the priority class on every link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// GSLB decision data: small and urgent. Only the newest version counts.
    #[n(0)]
    Gslb,
    /// A service's configuration.
    #[n(1)]
    Config,
    /// A container image.
    #[n(2)]
    Image,
    /// Anything else.
    #[n(3)]
    Blob,
}

impl Kind {
    /// All kinds, most urgent first.
    pub const ALL: [Self; 4] = [Self::Gslb, Self::Config, Self::Image, Self::Blob];
}

/// Priority class on a link. A frame of a lower class always leaves first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Link control: subscriptions, wants, announcements.
    Control = 0,
    /// GSLB data.
    Urgent = 1,
    /// Configuration.
    Normal = 2,
    /// Images and blobs.
    Bulk = 3,
}

impl Class {
    /// All classes, most urgent first.
    pub const ALL: [Self; 4] = [Self::Control, Self::Urgent, Self::Normal, Self::Bulk];

    /// Returns the class with this number on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl From<Kind> for Class {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Gslb => Self::Urgent,
            Kind::Config => Self::Normal,
            Kind::Image | Kind::Blob => Self::Bulk,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gslb => "gslb",
            Self::Config => "config",
            Self::Image => "image",
            Self::Blob => "blob",
        })
    }
}

/// A text that is not a kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid kind `{0}`: use gslb, config, image or blob")]
pub struct ParseKindError(String);

impl FromStr for Kind {
    type Err = ParseKindError;
    fn from_str(text: &str) -> Result<Self, ParseKindError> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| ParseKindError(text.to_string()))
    }
}

/// One job. The announcement travels down the lanes in a [`crate::trust::Envelope`] that a publisher signed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Announcement {
    /// The job that this announcement starts.
    #[n(0)]
    pub job: JobId,
    /// The hash of the manifest.
    #[n(1)]
    pub content: ContentId,
    /// Sets the priority class and the activation.
    #[n(2)]
    pub kind: Kind,
    /// The name, for example `edge-config` or `gslb/main`: checked components joined by `/`.
    #[n(3)]
    pub name: String,
    /// The publisher's label for this version, a single path component.
    #[n(4)]
    pub version: String,
    /// Orders the versions of the name. It grows with every announcement of the name.
    #[n(5)]
    pub sequence: u64,
    /// The hosts it is for.
    #[n(6)]
    pub selector: Selector,
    /// The seeder that is the root of the lanes.
    #[n(7)]
    pub origin: NodeId,
    /// Length of the encoded manifest, bytes.
    #[n(8)]
    pub manifest_bytes: u64,
    /// Payload bytes.
    #[n(9)]
    pub size: u64,
    /// Time of the signature, Unix seconds.
    #[n(10)]
    pub created_at: u64,
    /// Hosts may forget the announcement after this time, Unix seconds.
    #[n(11)]
    pub expires_at: u64,
    /// Present in a version of a feed. Then `job` is the id of the feed.
    #[n(12)]
    pub feed: Option<FeedMark>,
    /// Hosts store the version and do not switch to it. A desired state ([`crate::desired`]) switches it later.
    #[n(13)]
    #[cbor(default, skip_if = "std::ops::Not::not")]
    pub staged: bool,
    /// What hosts do with a content that they have. Absent in a push.
    #[n(14)]
    pub order: Option<Order>,
}

/// What hosts do with a content that they have. Of all announcements of a content, the one with the greatest sequence
/// counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Each host keeps its rack share only.
    #[n(0)]
    Demote,
    /// Every host restores the whole content, from rack shares first.
    #[n(1)]
    Promote,
}

impl Announcement {
    /// Whether hosts keep only their rack shares of the content.
    pub fn demotes(&self) -> bool {
        self.order == Some(Order::Demote)
    }

    /// Whether the manifest and the data may travel inline.
    pub fn is_small(&self) -> bool {
        self.size <= limits::INLINE_DATA_BYTES_MAX && self.manifest_bytes <= limits::INLINE_MANIFEST_BYTES_MAX as u64
    }
}

impl Document for Announcement {
    const KIND: DocKind = DocKind::Announcement;
    const VERSION: u8 = 1;
    const BYTES_MAX: usize = limits::ANNOUNCEMENT_BYTES_MAX;

    fn validate(&self) -> Result<(), DecodeError> {
        if !is_content_name(&self.name) {
            return Err(DecodeError::invalid("name", format!("`{}`", self.name)));
        }
        if !is_version(&self.version) {
            return Err(DecodeError::invalid("version", format!("`{}`", self.version)));
        }
        if !self.selector.is_valid() {
            return Err(DecodeError::invalid("selector", self.selector.to_string()));
        }
        if self.manifest_bytes > limits::MANIFEST_BYTES_MAX as u64 {
            return Err(DecodeError::invalid("manifest_bytes", self.manifest_bytes.to_string()));
        }
        if self.size > u64::from(limits::PIECES_MAX) * u64::from(limits::PIECE_BYTES_MAX) {
            return Err(DecodeError::invalid("size", self.size.to_string()));
        }
        match self.expires_at.checked_sub(self.created_at) {
            None => return Err(DecodeError::invalid("expires_at", "before created_at")),
            Some(lifetime) if lifetime > limits::ANNOUNCEMENT_LIFETIME_MAX_S => {
                return Err(DecodeError::invalid("expires_at", "more than 366 days after created_at"));
            }
            Some(_) => {}
        }
        if self.feed.is_none() && is_reserved(&self.name) {
            return Err(DecodeError::invalid("name", format!("`{}` lies in the folder of feeds", self.name)));
        }
        if self.feed.is_some() {
            if !is_feed_name(&self.name) {
                return Err(DecodeError::invalid("name", format!("`{}` is not a valid name of a feed", self.name)));
            }
            if self.job != feed_id(&self.name) {
                return Err(DecodeError::invalid("job", "not the id of the named feed"));
            }
            if self.size > limits::FEED_BYTES_MAX {
                return Err(DecodeError::invalid("size", format!("{} bytes in a feed", self.size)));
            }
        }
        Ok(())
    }
}
