//! What a publisher signs: this content, under this name and version, is for these hosts.
//!
//! Invariant: a decoded announcement names a checked path component as its name and version, so neither can leave the
//! folder it is activated in.

use crate::codec::{DecodeError, DocKind, Document};
use crate::feed::{FeedMark, feed_id, is_feed_name};
use crate::ids::{ContentId, JobId, NodeId};
use crate::limits;
use crate::locality::Selector;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a content is for. Sets its priority on every link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// GSLB decision data: small, urgent, the latest wins.
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

/// Order of urgency on a link: a lower class always goes first.
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

    /// From its number on the wire.
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

impl FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| format!("`{text}` is not a kind: gslb, config, image or blob"))
    }
}

/// One push of one content. Travels down the tree in an [`crate::trust::Envelope`] signed by a publisher.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Announcement {
    /// Names this push.
    #[n(0)]
    pub job: JobId,
    /// The content's manifest by hash.
    #[n(1)]
    pub content: ContentId,
    /// What it is for.
    #[n(2)]
    pub kind: Kind,
    /// Its name, e.g. `edge-config` or `gslb/main`: components joined by `/`, each a checked name.
    #[n(3)]
    pub name: String,
    /// The publisher's label for this version; a single path component.
    #[n(4)]
    pub version: String,
    /// Grows with every push of this name; the latest wins.
    #[n(5)]
    pub sequence: u64,
    /// The hosts it is for.
    #[n(6)]
    pub selector: Selector,
    /// The seeder that roots the lanes.
    #[n(7)]
    pub origin: NodeId,
    /// Length of the encoded manifest, bytes.
    #[n(8)]
    pub manifest_bytes: u64,
    /// Payload bytes.
    #[n(9)]
    pub size: u64,
    /// When it was signed, Unix seconds.
    #[n(10)]
    pub created_at: u64,
    /// When hosts may forget it, Unix seconds.
    #[n(11)]
    pub expires_at: u64,
    /// Set on a version of a feed; then `job` is the feed's id.
    #[n(12)]
    pub feed: Option<FeedMark>,
    /// Only stored: what switches it in is a desired state ([`crate::desired`]), not its arrival.
    #[n(13)]
    #[cbor(default, skip_if = "std::ops::Not::not")]
    pub staged: bool,
    /// What to do with a content that hosts have already; absent in a push.
    #[n(14)]
    pub order: Option<Order>,
}

/// What becomes of a content that hosts have already. Of all announcements of a content the one with the greatest
/// sequence counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Each host keeps its share of the rack's shards.
    #[n(0)]
    Demote,
    /// Every host has it whole again: a push whose content is looked for in the rack first.
    #[n(1)]
    Promote,
}

impl Announcement {
    /// Whether hosts are to keep only their shares of the content.
    pub fn demotes(&self) -> bool {
        self.order == Some(Order::Demote)
    }

    /// Whether manifest and data may travel in the announcement.
    pub fn is_small(&self) -> bool {
        self.size <= limits::INLINE_DATA_BYTES_MAX && self.manifest_bytes <= limits::INLINE_MANIFEST_BYTES_MAX as u64
    }
}

/// Whether `name` may name a content: names joined by `/`, at most 128 bytes.
pub fn is_content_name(name: &str) -> bool {
    name.len() <= limits::NAME_BYTES_MAX && name.split('/').all(is_component)
}

/// Whether a name is in the folder that hosts keep feeds in: no pushed content may be.
pub fn is_reserved(name: &str) -> bool {
    name.split('/').next() == Some("feeds")
}

/// Whether `text` may be a version.
pub fn is_version(text: &str) -> bool {
    is_component(text)
}

fn is_component(text: &str) -> bool {
    // `current` is the link the activation switches.
    crate::locality::is_name(text) && text != "current"
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
        if self.expires_at < self.created_at {
            return Err(DecodeError::invalid("expires_at", "before it was made"));
        }
        if self.feed.is_none() && is_reserved(&self.name) {
            return Err(DecodeError::invalid("name", format!("`{}` is where feeds are", self.name)));
        }
        if self.feed.is_some() {
            if !is_feed_name(&self.name) {
                return Err(DecodeError::invalid("name", format!("`{}` is no feed", self.name)));
            }
            if self.job != feed_id(&self.name) {
                return Err(DecodeError::invalid("job", "not the id of the feed named"));
            }
            if self.size > limits::FEED_BYTES_MAX {
                return Err(DecodeError::invalid("size", format!("{} bytes in a feed", self.size)));
            }
        }
        Ok(())
    }
}
