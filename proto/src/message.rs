//! What two hosts tell each other on a bulk link, payload apart.
//!
//! Invariant: messages carry sets and ranges, never one fact a piece; each has a bound in [`crate::limits`].

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

    /// Whether `lane` is in. A lane past the 64th never is.
    pub fn contains(self, lane: LaneIndex) -> bool {
        self.0 & Self::bit(lane) != 0
    }

    /// Adds `lane`; one past the 64th is ignored.
    pub fn insert(&mut self, lane: LaneIndex) {
        self.0 |= Self::bit(lane);
    }

    /// Removes `lane`.
    pub fn remove(&mut self, lane: LaneIndex) {
        self.0 &= !Self::bit(lane);
    }

    /// Whether no lane is in.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Lanes in ascending order.
    pub fn iter(self) -> impl Iterator<Item = LaneIndex> {
        (0..64u8).map(LaneIndex).filter(move |lane| self.contains(*lane))
    }
}

/// A message between two hosts. Announcements, manifests and shards travel in frames of their own
/// ([`crate::frame::FrameKind`]) because they carry payload.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// "Push me these lanes of this content as you get them; I have these pieces." Replaces an earlier subscription of
    /// the same lanes.
    #[n(0)]
    Subscribe {
        /// The content.
        #[n(0)]
        content: ContentId,
        /// The lanes wanted from this parent.
        #[n(1)]
        lanes: LaneSet,
        /// Pieces the child has, over the whole content.
        #[n(2)]
        have: Bitmap,
    },
    /// "Stop pushing me these lanes."
    #[n(1)]
    Unsubscribe {
        /// The content.
        #[n(0)]
        content: ContentId,
        /// The lanes no longer wanted.
        #[n(1)]
        lanes: LaneSet,
    },
    /// "I got these pieces elsewhere; do not push them." Over the whole content.
    #[n(2)]
    Received {
        /// The content.
        #[n(0)]
        content: ContentId,
        /// The pieces.
        #[n(1)]
        pieces: Bitmap,
    },
    /// "I have every piece."
    #[n(3)]
    Done {
        /// The content.
        #[n(0)]
        content: ContentId,
    },
    /// "Send me these shards, whatever their lane": repair.
    #[n(4)]
    Want {
        /// The content.
        #[n(0)]
        content: ContentId,
        /// Shards, data or parity; at most [`limits::WANT_SHARDS_MAX`].
        #[n(1)]
        shards: Vec<ShardIndex>,
    },
    /// "I cannot send you these": the answer to a `Want` for what the asked host does not hold.
    #[n(5)]
    Unavailable {
        /// The content.
        #[n(0)]
        content: ContentId,
        /// The shards of the `Want` that will not come.
        #[n(1)]
        shards: Vec<ShardIndex>,
    },
    /// "Send me this content's manifest."
    #[n(6)]
    WantManifest {
        /// The content.
        #[n(0)]
        content: ContentId,
    },
    /// "I do not have that manifest", "that content is not here", or "it comes to me too slowly to be had from me":
    /// subscriptions to it are void too.
    #[n(7)]
    NotServed {
        /// The content.
        #[n(0)]
        content: ContentId,
    },
    /// "These are the jobs I know": anti-entropy. Either only the hash of the sorted list, or the list as well.
    #[n(8)]
    Digest {
        /// BLAKE3 (first 8 bytes, big-endian) of the sorted job ids.
        #[n(0)]
        hash: u64,
        /// The ids, when the other's hash differed; at most [`limits::DIGEST_JOBS_MAX`], newest.
        #[n(1)]
        jobs: Option<Vec<JobId>>,
    },
    /// "So far am I with a demotion, or with undoing one."
    #[n(11)]
    Demotion {
        /// The content.
        #[n(0)]
        content: ContentId,
        /// The demotion's job.
        #[n(1)]
        job: JobId,
        /// How far.
        #[n(2)]
        stage: DemotionStage,
        /// How the shards are dealt that this is about; empty where it does not matter.
        #[n(3)]
        placement: RackPlacement,
        /// "And how far are you?"
        #[n(4)]
        ask: bool,
    },
    /// "I have lost everything: who is in our rack?"
    #[n(12)]
    WantRackPeers,
    /// "These are, and the seeders", as the tracker told the sender.
    #[n(13)]
    RackPeers {
        /// The rows; at most [`limits::RACK_PEERS_MAX`].
        #[n(0)]
        rows: Vec<Member>,
    },
    /// "Send me these announcements."
    #[n(9)]
    WantAnnounce {
        /// The jobs; at most [`limits::DIGEST_JOBS_MAX`].
        #[n(0)]
        jobs: Vec<JobId>,
    },
    /// "These are the versions of feeds I know": anti-entropy.
    #[n(10)]
    Feeds {
        /// The feeds; at most [`limits::FEEDS_MAX`].
        #[n(0)]
        rows: Vec<FeedRow>,
    },
}

/// How far a host is with a demotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum DemotionStage {
    /// It has its share durable, and still the whole.
    #[n(0)]
    ShareReady,
    /// It has its share only.
    #[n(1)]
    ShareOnly,
    /// It takes no part: it has nothing of the content, or keeps it whole.
    #[n(2)]
    NotParticipating,
}

impl Message {
    /// Checks the bounds. Called on every message received.
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
