//! Messages between two hosts on a link, without payload.
//!
//! Invariant: messages carry sets and ranges, never one fact per piece. Each has a bound in [`crate::limits`].

use crate::bitmap::Bitmap;
use crate::codec::DecodeError;
use crate::feed::FeedRow;
use crate::ids::{ContentId, JobId, LaneIndex, ShardIndex};
use crate::limits;
use crate::membership::Member;
use crate::rack_placement::RackPlacement;
use minicbor::{Decode, Encode};

/// A set of lanes, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct LaneSet(#[n(0)] pub u64);

impl LaneSet {
    /// No lane.
    pub const NONE: Self = Self(0);

    /// The first `lanes` lanes.
    pub fn first(lanes: u8) -> Self {
        if lanes >= 64 { Self(u64::MAX) } else { Self((1 << lanes) - 1) }
    }

    fn bit(lane: LaneIndex) -> u64 {
        1u64.checked_shl(u32::from(lane.0)).unwrap_or(0)
    }

    /// Whether `lane` is in the set. A lane past the 64th never is.
    pub fn contains(self, lane: LaneIndex) -> bool {
        self.0 & Self::bit(lane) != 0
    }

    /// Adds `lane`. A lane past the 64th is ignored.
    pub fn insert(&mut self, lane: LaneIndex) {
        self.0 |= Self::bit(lane);
    }

    /// Removes `lane`.
    pub fn remove(&mut self, lane: LaneIndex) {
        self.0 &= !Self::bit(lane);
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Lanes in ascending order.
    pub fn iter(self) -> impl Iterator<Item = LaneIndex> {
        (0..64u8).map(LaneIndex).filter(move |lane| self.contains(*lane))
    }
}

/// A message between two hosts. Announcements, manifests and shards travel in frames of their own
/// ([`crate::frame::FrameKind`]), because they carry payload.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs, reason = "a field without a comment says all in its name")]
pub enum Message {
    /// Child to parent: push the shards of these lanes as they arrive. It replaces an earlier subscription of the same
    /// lanes.
    #[n(0)]
    Subscribe {
        #[n(0)]
        content: ContentId,
        /// The lanes wanted from this parent.
        #[n(1)]
        lanes: LaneSet,
        /// Pieces that the child has, over the whole content.
        #[n(2)]
        have: Bitmap,
    },
    /// Child to parent: stop these lanes.
    #[n(1)]
    Unsubscribe {
        #[n(0)]
        content: ContentId,
        /// The lanes no longer wanted.
        #[n(1)]
        lanes: LaneSet,
    },
    /// Child to parent: these pieces came from elsewhere. The parent does not push them.
    #[n(2)]
    Received {
        #[n(0)]
        content: ContentId,
        #[n(1)]
        pieces: Bitmap,
    },
    /// The sender has every piece.
    #[n(3)]
    Done {
        #[n(0)]
        content: ContentId,
    },
    /// A request for single shards of any lane, for repair.
    #[n(4)]
    Want {
        #[n(0)]
        content: ContentId,
        /// Shards, data or parity; at most [`limits::WANT_SHARDS_MAX`].
        #[n(1)]
        shards: Vec<ShardIndex>,
    },
    /// The answer to a `Want` for shards that the host cannot send.
    #[n(5)]
    Unavailable {
        #[n(0)]
        content: ContentId,
        /// Shards of the `Want` that the host does not send.
        #[n(1)]
        shards: Vec<ShardIndex>,
    },
    /// A request for the manifest.
    #[n(6)]
    WantManifest {
        #[n(0)]
        content: ContentId,
    },
    /// The sender does not serve this content: the manifest or the content is missing, or it arrives too slowly. It
    /// ends all subscriptions to the content.
    #[n(7)]
    NotServed {
        #[n(0)]
        content: ContentId,
    },
    /// Anti-entropy: the jobs that the sender knows, as the hash of the sorted list, or as the list too.
    #[n(8)]
    Digest {
        /// BLAKE3 (first 8 bytes, big-endian) of the sorted job ids.
        #[n(0)]
        hash: u64,
        /// The ids, after a hash that differed. At most [`limits::DIGEST_JOBS_MAX`], the newest.
        #[n(1)]
        jobs: Option<Vec<JobId>>,
    },
    /// The progress of the sender in a demotion, or in its reversal by a promotion.
    #[n(11)]
    Demotion {
        #[n(0)]
        content: ContentId,
        #[n(1)]
        job: JobId,
        /// The stage of the sender.
        #[n(2)]
        stage: DemotionStage,
        /// The placement of the shards, empty where it does not matter.
        #[n(3)]
        placement: RackPlacement,
        /// Whether the receiver answers with its own stage.
        #[n(4)]
        ask: bool,
    },
    /// A host that lost its state asks for the hosts of its rack.
    #[n(12)]
    WantRackPeers,
    /// The answer: the hosts of the rack and the seeders, from the last membership of the sender.
    #[n(13)]
    RackPeers {
        /// The rows, at most [`limits::RACK_PEERS_MAX`].
        #[n(0)]
        rows: Vec<Member>,
    },
    /// A request for announcements.
    #[n(9)]
    WantAnnounce {
        /// The jobs, at most [`limits::DIGEST_JOBS_MAX`].
        #[n(0)]
        jobs: Vec<JobId>,
    },
    /// Anti-entropy: the newest versions of feeds that the sender has.
    #[n(10)]
    Feeds {
        /// The feeds, at most [`limits::FEEDS_MAX`].
        #[n(0)]
        rows: Vec<FeedRow>,
    },
}

/// The stage of a host in a demotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum DemotionStage {
    /// The rack share is durable. The whole content is still there.
    #[n(0)]
    ShareReady,
    /// Only the rack share is there.
    #[n(1)]
    ShareOnly,
    /// The host has nothing of the content, or keeps it whole.
    #[n(2)]
    NotParticipating,
}

impl Message {
    /// Returns about how many bytes of memory the message takes, if its encoding has `encoded` bytes. A set of runs
    /// takes much more memory than its encoding.
    pub fn memory_bytes(&self, encoded: usize) -> usize {
        encoded
            + match self {
                Self::Subscribe { have: pieces, .. } | Self::Received { pieces, .. } => pieces.memory_bytes(),
                Self::Want { shards, .. } | Self::Unavailable { shards, .. } => size_of_val(shards.as_slice()),
                Self::Digest { jobs: Some(jobs), .. } | Self::WantAnnounce { jobs } => size_of_val(jobs.as_slice()),
                Self::RackPeers { rows } => size_of_val(rows.as_slice()),
                Self::Feeds { rows } => size_of_val(rows.as_slice()),
                Self::Demotion { placement, .. } => size_of_val(placement.hosts()),
                _ => 0,
            }
    }

    /// Checks the bounds of a received message.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooLong`] for a list over its limit, or the error of an invalid row.
    pub fn validate(&self) -> Result<(), DecodeError> {
        match self {
            Self::Demotion { placement, .. } => return placement.validate(),
            Self::RackPeers { rows } => rows.iter().try_for_each(Member::validate)?,
            _ => {}
        }
        let (len, max) = match self {
            Self::RackPeers { rows } => (rows.len(), limits::RACK_PEERS_MAX),
            Self::Want { shards, .. } | Self::Unavailable { shards, .. } => (shards.len(), limits::WANT_SHARDS_MAX),
            Self::Digest { jobs: Some(jobs), .. } | Self::WantAnnounce { jobs } => {
                (jobs.len(), limits::DIGEST_JOBS_MAX)
            }
            Self::Feeds { rows } => (rows.len(), limits::FEEDS_MAX),
            _ => (0, 0),
        };
        if len > max { Err(DecodeError::TooLong { len, max }) } else { Ok(()) }
    }
}
