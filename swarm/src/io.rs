//! What goes into the brain (facts, past tense) and what comes out (wishes, imperative).
//!
//! Invariant: neither side carries payload. A shard is its index; its bytes stay with the shell.

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

/// A fact for the brain.
#[derive(Clone, Debug)]
pub enum Input {
    /// Nothing happened but time: the deadline of `poll_timeout` was reached.
    Tick,
    /// The region's membership, whole, at a newer epoch.
    Membership(Arc<Membership>),
    /// An authenticated link to a member is up, whoever dialled.
    LinkUp {
        /// The other end.
        host: HostIndex,
    },
    /// A link is gone. Everything under way on it is lost.
    LinkDown {
        /// The other end.
        host: HostIndex,
        /// What the other end said, if it said anything.
        reason: Option<CloseReason>,
    },
    /// `Connect` did not lead to a link.
    DialFailed {
        /// The host that could not be reached.
        host: HostIndex,
    },
    /// A validated message arrived.
    Message {
        /// Who sent it.
        from: HostIndex,
        /// The message.
        message: Message,
    },
    /// An announcement whose signature, publisher and expiry the shell has checked.
    Announced {
        /// Who sent it; `None` for our own publication or what was on disk at start.
        from: Option<HostIndex>,
        /// Which announcement lane it came down.
        lane: u8,
        /// The announcement.
        announcement: Arc<Announcement>,
        /// Manifest and data came with it and are verified: `ContentReady` with everything follows by itself, and
        /// children on announcement lane 0 may be sent them.
        inline: bool,
    },
    /// The content's manifest is checked, its space reserved, what the disk had is found.
    ContentReady {
        /// The content.
        content: ContentId,
        /// Its shape.
        geometry: Geometry,
        /// Pieces already here.
        have: Bitmap,
    },
    /// This host cannot take the content (bad manifest, no space, unsuitable). Forget about fetching it.
    ContentRefused {
        /// The content.
        content: ContentId,
    },
    /// A manifest arrived and hashes to the content's id: it can be sent on. `ContentReady` follows, or `ContentRefused`.
    ManifestVerified {
        /// The content.
        content: ContentId,
    },
    /// A manifest arrived that does not hash to the content's id.
    ManifestCorrupt {
        /// The content.
        content: ContentId,
        /// Who sent it.
        from: HostIndex,
    },
    /// A shard arrived and its hash is right. It can be sent on from memory at once.
    ShardVerified {
        /// The content.
        content: ContentId,
        /// The shard, data or parity.
        shard: ShardIndex,
        /// Who sent it.
        from: HostIndex,
    },
    /// A shard arrived and its hash is wrong. The shell has dropped it.
    ShardCorrupt {
        /// The content.
        content: ContentId,
        /// The shard it claimed to be.
        shard: ShardIndex,
        /// Who sent it.
        from: HostIndex,
    },
    /// A wished `Rebuild` is done: these data shards are decoded and verified. None when what was here did not do.
    Rebuilt {
        /// The content.
        content: ContentId,
        /// The stripe.
        stripe: StripeIndex,
        /// The shards made.
        shards: Vec<ShardIndex>,
    },
    /// A wished `SendShard` or `SendManifest` was handed to the operating system.
    Sent {
        /// To whom.
        to: HostIndex,
        /// The content.
        content: ContentId,
        /// The shard; `None` for the manifest.
        shard: Option<ShardIndex>,
    },
    /// A piece that should be here cannot be read from the disk any more.
    PieceLost {
        /// The content.
        content: ContentId,
        /// The piece, as a data shard.
        shard: ShardIndex,
    },
    /// At start: a share of the content is on the disk, beside the whole or instead of it.
    ShareFound {
        /// The content.
        content: ContentId,
        /// Its shape.
        geometry: Geometry,
        /// Pieces here.
        have: Bitmap,
        /// Parity shards here, a bit a row.
        parity: BTreeMap<StripeIndex, u32>,
        /// The placements our share of which is here.
        placements: Vec<RackPlacement>,
        /// The whole is not here any more.
        shed: bool,
    },
    /// A wished `MakeShare` is done: our share of the placement is durable.
    ShareMade {
        /// The content.
        content: ContentId,
        /// The placement.
        placement: RackPlacement,
    },
    /// A wished `MakeShare` or `Shed` is not done: the whole is needed here, or the disk failed. The whole is still here.
    ShareRefused {
        /// The content.
        content: ContentId,
    },
    /// A wished `Shed` is done: only our shares of the placements made are here.
    WholeDropped {
        /// The content.
        content: ContentId,
    },
    /// The content was evicted, cancelled or superseded: forget it.
    Removed {
        /// The content.
        content: ContentId,
    },
    /// The announcement's time is over, or it was withdrawn: forget the job. Its content stays.
    Forgotten {
        /// The job.
        job: JobId,
    },
}

/// A wish of the brain. The shell carries it out, and reports what came of it as an [`Input`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bring a link to this member up; answer with `LinkUp` or `DialFailed`.
    Connect {
        /// The member.
        host: HostIndex,
    },
    /// Close the link; `LinkDown` follows.
    Disconnect {
        /// The other end.
        host: HostIndex,
        /// What to tell it.
        reason: CloseReason,
    },
    /// Send a message.
    Send {
        /// To whom.
        to: HostIndex,
        /// The message.
        message: Message,
    },
    /// Send the job's signed announcement.
    SendAnnounce {
        /// To whom.
        to: HostIndex,
        /// The job.
        job: JobId,
        /// Which announcement lane it goes down.
        lane: u8,
        /// With manifest and data, when they are small and here; of a feed the newest version that is, announced or not.
        inline: bool,
    },
    /// Send a shard; answer with `Sent` once the operating system has it. At most
    /// [`crate::node::LINK_WINDOW_SHARDS`] of a class are outstanding on a link. A parity shard is made from the stripe's pieces.
    SendShard {
        /// To whom.
        to: HostIndex,
        /// The content.
        content: ContentId,
        /// The shard.
        shard: ShardIndex,
        /// Its urgency.
        class: Class,
    },
    /// Send the content's manifest; answer with `Sent`.
    SendManifest {
        /// To whom.
        to: HostIndex,
        /// The content.
        content: ContentId,
        /// Its urgency.
        class: Class,
    },
    /// Decode the stripe's missing pieces: k of its shards are here. Answer with `Rebuilt`.
    Rebuild {
        /// The content.
        content: ContentId,
        /// The stripe.
        stripe: StripeIndex,
    },
    /// Every piece is here and verified: make it durable and activate it.
    Complete {
        /// The content.
        content: ContentId,
    },
    /// The content is demoted, and not whole here: drop what was fetched of it.
    DropPartial {
        /// The content.
        content: ContentId,
        /// The demotion's job.
        job: JobId,
    },
    /// Make our share of this placement durable, beside the whole and beside former shares. Answer with `ShareMade` or
    /// `ShareRefused`.
    MakeShare {
        /// The content.
        content: ContentId,
        /// How the shards are dealt.
        placement: RackPlacement,
    },
    /// Let go of everything but our shares of the placements made. Answer with `Shed` or `ShareRefused`.
    DropWhole {
        /// The content.
        content: ContentId,
    },
    /// Reserve space for the rest of a content of which a share is here: it is about to come. Where there is none, say
    /// `ContentRefused`.
    ReserveRest {
        /// The content.
        content: ContentId,
    },
    /// The whole stays: shares made of it are of no use.
    KeepWhole {
        /// The content.
        content: ContentId,
    },
    /// A newer version made this one pointless before it was complete: drop what was fetched.
    Abandon {
        /// The content.
        content: ContentId,
    },
    /// Something an operator may want to know.
    Notice(Notice),
}

/// Events for logs and counters. Nothing depends on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A parent lagged or was lost; its lanes go elsewhere for a while.
    Avoided {
        /// The host.
        host: HostIndex,
        /// Why.
        why: AvoidReason,
    },
    /// What a lane imports comes too late: it takes a way around the hosts it came from.
    Detour {
        /// The content.
        content: ContentId,
        /// The lane, or all that came from there.
        lane: Option<LaneIndex>,
        /// Whom it goes around: one of them when it is a whole rack.
        around: HostIndex,
    },
    /// A host sent bad shards and is shut out for a while.
    Banned {
        /// The host.
        host: HostIndex,
    },
    /// The rack's shares do not make a content whole again: its lanes bring the rest.
    RackLost {
        /// The content.
        content: ContentId,
        /// Pieces still missing then.
        missing: u32,
    },
    /// Shards were asked for outside their lanes.
    Repair {
        /// The content.
        content: ContentId,
        /// Whom we asked.
        from: HostIndex,
        /// How many shards.
        shards: u32,
    },
}

/// Why a host is not used as a parent for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AvoidReason {
    /// Its link was lost or could not be made.
    Unreachable,
    /// Its lanes fell behind the others.
    Slow,
    /// It does not have, or will not serve, what it should.
    Useless,
}
