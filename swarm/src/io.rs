//! What goes into the core (inputs: facts, in the past tense) and what comes out (outputs: requests, in the
//! imperative).
//!
//! Owns: [`Input`], [`Output`] and [`Notice`], all plain data.
//! Invariant: neither side carries payload. A shard is its index, and its bytes stay with the driver.

use crate::membership::Membership;
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::frame::CloseReason;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, HostIndex, JobId, LaneIndex, ShardIndex, StripeIndex};
use shoal_proto::message::Message;
use shoal_proto::rack_placement::RackPlacement;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How an announcement travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// Down an announcement lane, by number. Manifests and inline data follow lane 0.
    Lane(u8),
    /// Outside the lanes: a neighbour requested it, the disk had it, or two lists were compared.
    AntiEntropy,
}

impl Via {
    /// How the wire names [`Via::AntiEntropy`].
    const ANTI_ENTROPY_ON_WIRE: u8 = u8::MAX;

    /// Returns the lane of an announcement frame.
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Lane(number) => number,
            Self::AntiEntropy => Self::ANTI_ENTROPY_ON_WIRE,
        }
    }

    /// Reads the lane of an announcement frame. Every value is valid.
    pub fn from_wire(lane: u8) -> Self {
        if lane == Self::ANTI_ENTROPY_ON_WIRE { Self::AntiEntropy } else { Self::Lane(lane) }
    }
}

/// A fact for the core.
#[allow(missing_docs, reason = "fields are named by their type; the variants say what is not obvious")]
#[derive(Clone, Debug)]
pub enum Input {
    /// Only time has passed: the deadline of `poll_timeout` was reached.
    Tick,
    /// The region's whole membership, at a newer epoch.
    Membership(Arc<Membership>),
    /// An authenticated link to a member is up. Either end may have dialled.
    LinkUp { host: HostIndex },
    /// A link is down. Everything under way on it is lost. `reason` is what the other end said, if anything.
    LinkDown { host: HostIndex, reason: Option<CloseReason> },
    /// A `Connect` did not lead to a link.
    DialFailed { host: HostIndex },
    /// A validated message arrived.
    Message { from: HostIndex, message: Message },
    /// An announcement whose signature, publisher and expiry the driver has checked.
    ///
    /// `from` is `None` for our own publication and for what was on disk at start. With `inline`, manifest and data
    /// came with it and are verified. A `ContentReady` with every piece follows. Children on lane 0 may get them.
    Announced { from: Option<HostIndex>, via: Via, announcement: Arc<Announcement>, inline: bool },
    /// An announcement arrived that no key signed, so its sender made it or did not check it.
    AnnouncementCorrupt { from: HostIndex },
    /// The content's manifest is checked, its space is reserved, and `have` are the pieces that the disk has.
    ContentReady { content: ContentId, geometry: Geometry, have: Bitmap },
    /// This host cannot take the content: its manifest is invalid, space is missing, or it does not suit the host. Of a
    /// content that the core does not know: its announcement was refused.
    ContentRefused { content: ContentId },
    /// A manifest that hashes to the content's id arrived and can be sent on. `ContentReady` or `ContentRefused`
    /// follows.
    ManifestVerified { content: ContentId },
    /// A manifest arrived that does not hash to the content's id.
    ManifestCorrupt { content: ContentId, from: HostIndex },
    /// A shard arrived and its hash is right. It can be sent on from memory at once.
    ShardVerified { content: ContentId, shard: ShardIndex, from: HostIndex },
    /// A shard arrived and its hash is wrong. The driver has dropped it.
    ShardCorrupt { content: ContentId, shard: ShardIndex, from: HostIndex },
    /// A `Rebuild` is done: these data shards are decoded and verified. None if the shards that were here did not
    /// suffice.
    Rebuilt { content: ContentId, stripe: StripeIndex, shards: Vec<ShardIndex> },
    /// A `SendShard`, or a `SendManifest` without `shard`, was handed to the operating system.
    Sent { to: HostIndex, content: ContentId, shard: Option<ShardIndex> },
    /// A piece that should be here cannot be read from the disk any more. `shard` is its data shard.
    PieceLost { content: ContentId, shard: ShardIndex },
    /// At start: a rack share of the content is on the disk, beside the whole content or, with `share_only`, without
    /// it.
    ///
    /// `parity` has a bit for each row. `placements` are those whose rack shares are here.
    ShareFound {
        content: ContentId,
        geometry: Geometry,
        have: Bitmap,
        parity: BTreeMap<StripeIndex, u32>,
        placements: Vec<RackPlacement>,
        share_only: bool,
    },
    /// A `MakeShare` is done: our rack share of the placement is durable.
    ShareMade { content: ContentId, placement: RackPlacement },
    /// A `MakeShare` or `DropWhole` is not done, because the whole content is needed here or the disk failed.
    ShareRefused { content: ContentId },
    /// A `DropWhole` is done: only our rack shares of the placements made are here.
    WholeDropped { content: ContentId },
    /// The content was evicted, cancelled or superseded: forget it.
    Removed { content: ContentId },
    /// The announcement expired or was withdrawn: forget the job. Its content stays.
    Forgotten { job: JobId },
}

/// A request of the core. The driver carries it out and reports the result as an [`Input`].
#[allow(missing_docs, reason = "fields are named by their type; the variants say what is not obvious")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bring a link to this member up. `LinkUp` or `DialFailed` follows.
    Connect { host: HostIndex },
    /// Close the link and tell the other end why. `LinkDown` follows.
    Disconnect { host: HostIndex, reason: CloseReason },
    /// Send a message.
    Send { to: HostIndex, message: Message },
    /// Send the job's signed announcement.
    ///
    /// With `inline`, manifest and data go along, where they are small and here. Of a feed, the driver sends the newest
    /// version that it has in full.
    SendAnnounce { to: HostIndex, job: JobId, via: Via, inline: bool },
    /// Send a shard. `Sent` follows once the operating system has it.
    ///
    /// At most [`crate::node::LINK_WINDOW_SHARDS`] of a class are outstanding on a link. A parity shard is made from
    /// the stripe's pieces.
    SendShard { to: HostIndex, content: ContentId, shard: ShardIndex, class: Class },
    /// Send the content's manifest. `Sent` follows.
    SendManifest { to: HostIndex, content: ContentId, class: Class },
    /// Drop the shard from memory once it is durable: no child waits for it, and its stripe needs no decoding.
    ReleaseShard { content: ContentId, shard: ShardIndex },
    /// Decode the stripe's missing pieces: k of its shards are here. `Rebuilt` follows.
    Rebuild { content: ContentId, stripe: StripeIndex },
    /// Every piece is here and verified: make the content durable and activate it.
    Complete { content: ContentId },
    /// The content is demoted and not whole here: drop what was fetched of it. `job` is the demotion.
    DropPartial { content: ContentId, job: JobId },
    /// Make our rack share of this placement durable, beside the whole and former rack shares. `ShareMade` or
    /// `ShareRefused` follows.
    MakeShare { content: ContentId, placement: RackPlacement },
    /// Drop everything but our rack shares of the placements made. `WholeDropped` or `ShareRefused` follows.
    DropWhole { content: ContentId },
    /// Reserve space for the rest of a demoted content: it is about to come. `ContentRefused` follows if there is none.
    ReserveRest { content: ContentId },
    /// The whole content stays: drop the rack shares made of it.
    KeepWhole { content: ContentId },
    /// A newer version superseded this one before it was complete: drop what was fetched.
    Abandon { content: ContentId },
    /// An event that an operator may want to know.
    Notice(Notice),
}

/// Events for logs and counters. No decision depends on them.
#[allow(missing_docs, reason = "fields are named by their type; the variants say what is not obvious")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A host is avoided: its lanes come from other hosts for a while.
    Avoided { host: HostIndex, why: AvoidReason },
    /// An imported lane was silent and takes a path around `around`.
    ///
    /// Without `lane`, all that came from a rack was silent, and `around` is one of its hosts.
    Reroute { content: ContentId, lane: Option<LaneIndex>, around: HostIndex },
    /// A host sent bad shards and is banned.
    Banned { host: HostIndex },
    /// The rack shares do not make a content whole, and its lanes bring the `missing` pieces.
    RackLost { content: ContentId, missing: u32 },
    /// Shards were requested from a host outside their lanes.
    Repair { content: ContentId, from: HostIndex, shards: u32 },
    /// A verified shard of `bytes` arrived that was here already.
    Duplicate { content: ContentId, from: HostIndex, bytes: u32 },
}

/// Why a host is not used as a parent for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AvoidReason {
    /// Its link was lost or could not be made.
    Unreachable,
    /// It is a straggler.
    Slow,
    /// It does not have, or will not serve, what it should.
    Useless,
}
