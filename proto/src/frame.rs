//! The frames of a link: a 16-byte header, then the body.
//!
//! Invariant: a body over the limit of its kind is refused before a byte of the body is read.
//!
//! ```text
//! header        kind u8 | class u8 | reserved u16 = 0 | body length u32 LE | stamp u64 LE, 0 but for Ping and Pong
//! Hello         protocol version u8, then the sender's signed credential
//! Control       one CBOR Message
//! Announce      one CBOR AnnounceFrame
//! Slice         content [32] | index u32 LE | offset u32 LE | total u32 LE | bytes   index: shard, u32::MAX = manifest
//! Ping, Pong    empty; stamp of a Ping: the sender's clock, of its Pong: the receiver's clock less that, us, mod 2^64
//! Bye           a CloseReason byte
//! TrustVersion  version u64 LE of the sender's trust document
//! Trust         a signed trust document
//! ```

use crate::announcement::Class;
use crate::codec::DecodeError;
use crate::ids::{ContentId, ShardIndex};
use crate::limits;
use minicbor::{Decode, Encode};

/// Version of the link protocol, the first byte of a `Hello`.
pub const PROTOCOL_VERSION: u8 = 1;
/// Length of a frame header, bytes.
pub const HEADER_BYTES: usize = 16;
/// Length of the slice header before the payload, bytes.
pub const SLICE_HEADER_BYTES: usize = 44;
/// The index of a slice that carries part of the manifest.
pub const MANIFEST_INDEX: u32 = u32::MAX;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// The first frame in each direction: version and credential.
    Hello = 1,
    /// A [`crate::message::Message`].
    Control = 2,
    /// An [`AnnounceFrame`].
    Announce = 3,
    /// Part of a shard or manifest.
    Slice = 4,
    /// Asks for a `Pong`.
    Ping = 5,
    /// Answers a `Ping`.
    Pong = 6,
    /// The last frame: the reason for the end of the link.
    Bye = 7,
    /// The version of the sender's trust document, after `Hello` and after each change.
    TrustVersion = 8,
    /// A signed trust document that is newer than the receiver's.
    Trust = 9,
}

impl FrameKind {
    fn from_wire(number: u8) -> Option<Self> {
        use FrameKind::*;
        [Hello, Control, Announce, Slice, Ping, Pong, Bye, TrustVersion, Trust]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }

    /// Returns the longest body of this kind, bytes.
    pub fn body_max(self) -> usize {
        match self {
            Self::Hello => limits::CREDENTIAL_BYTES_MAX + 1,
            Self::Control => limits::CONTROL_FRAME_BYTES_MAX,
            Self::Announce => limits::ANNOUNCE_FRAME_BYTES_MAX,
            Self::Slice => limits::SLICE_BYTES_MAX + SLICE_HEADER_BYTES,
            Self::Ping | Self::Pong => 0,
            Self::Bye => 1,
            Self::TrustVersion => 8,
            Self::Trust => limits::TRUST_BYTES_MAX,
        }
    }
}

/// Why a host closes a link: the body of `Bye`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseReason {
    /// The host stops.
    Shutdown = 1,
    /// No traffic for a while.
    Idle = 2,
    /// Both sides dialled. This connection is redundant.
    Duplicate = 3,
    /// The credential is missing or invalid.
    NotAdmitted = 4,
    /// A frame broke the protocol.
    Protocol = 5,
    /// Too many corrupt shards.
    Banned = 6,
    /// Too many links.
    Busy = 7,
}

impl CloseReason {
    /// Returns the reason with this byte on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        use CloseReason::*;
        [Shutdown, Idle, Duplicate, NotAdmitted, Protocol, Banned, Busy]
            .into_iter()
            .find(|reason| *reason as u8 == number)
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shutdown",
            Self::Idle => "idle",
            Self::Duplicate => "duplicate",
            Self::NotAdmitted => "not-admitted",
            Self::Protocol => "protocol",
            Self::Banned => "banned",
            Self::Busy => "busy",
        })
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind of the body.
    pub kind: FrameKind,
    /// The priority class. A receiver assembles one shard per class at a time.
    pub class: Class,
    /// Length of the body, bytes.
    pub body_len: u32,
    /// In a `Ping`, the clock of the sender, microseconds since an arbitrary moment. In its `Pong`, the clock of the
    /// receiver minus that value, modulo 2^64: the one-way delay plus the difference of the clocks. Else 0.
    pub stamp: u64,
}

impl Header {
    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[0] = self.kind as u8;
        out[1] = self.class as u8;
        out[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        out[8..].copy_from_slice(&self.stamp.to_le_bytes());
        out
    }

    /// Reads a header, refusing unknown kinds and bodies over the limit.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let kind =
            FrameKind::from_wire(bytes[0]).ok_or_else(|| DecodeError::invalid("frame kind", bytes[0].to_string()))?;
        let class =
            Class::from_wire(bytes[1]).ok_or_else(|| DecodeError::invalid("frame class", bytes[1].to_string()))?;
        let stamp = u64::from_le_bytes(bytes[8..].try_into().expect("eight of them"));
        let stamped = matches!(kind, FrameKind::Ping | FrameKind::Pong);
        if bytes[2..4] != [0; 2] || stamp != 0 && !stamped {
            return Err(DecodeError::invalid("frame header", "reserved bytes are not zero"));
        }
        let body_len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        if body_len as usize > kind.body_max() {
            return Err(DecodeError::TooLong { len: body_len as usize, max: kind.body_max() });
        }
        Ok(Self { kind, class, body_len, stamp })
    }
}

/// What a slice is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// A shard of the content.
    Shard(ShardIndex),
    /// The content's manifest.
    Manifest,
}

/// The header before the payload of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceHeader {
    /// The content.
    pub content: ContentId,
    /// The part of the content that the slice belongs to.
    pub part: Part,
    /// Offset of the slice in the part, bytes.
    pub offset: u32,
    /// Length of the whole part, bytes.
    pub total: u32,
}

impl SliceHeader {
    /// The slice header's bytes.
    pub fn to_bytes(self) -> [u8; SLICE_HEADER_BYTES] {
        let index = match self.part {
            Part::Shard(shard) => shard.0,
            Part::Manifest => MANIFEST_INDEX,
        };
        let mut out = [0u8; SLICE_HEADER_BYTES];
        out[..32].copy_from_slice(self.content.as_bytes());
        out[32..36].copy_from_slice(&index.to_le_bytes());
        out[36..40].copy_from_slice(&self.offset.to_le_bytes());
        out[40..].copy_from_slice(&self.total.to_le_bytes());
        out
    }

    /// Reads a slice header, given the length of the payload that follows it.
    pub fn from_bytes(bytes: &[u8; SLICE_HEADER_BYTES], payload_len: usize) -> Result<Self, DecodeError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut content = [0u8; 32];
        content.copy_from_slice(&bytes[..32]);
        let (part, max) = match word(32) {
            MANIFEST_INDEX => (Part::Manifest, limits::MANIFEST_BYTES_MAX as u32),
            shard => (Part::Shard(ShardIndex(shard)), limits::PIECE_BYTES_MAX),
        };
        let (offset, total) = (word(36), word(40));
        if total > max {
            return Err(DecodeError::TooLong { len: total as usize, max: max as usize });
        }
        if payload_len == 0 || u64::from(offset) + payload_len as u64 > u64::from(total) {
            return Err(DecodeError::invalid("slice", "outside its part"));
        }
        Ok(Self { content: ContentId(content), part, offset, total })
    }
}

/// The body of an announce frame.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AnnounceFrame {
    /// The signed [`crate::announcement::Announcement`]'s envelope.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub envelope: Vec<u8>,
    /// The announcement lane (0, 1, ...). Inline manifest and data follow lane 0.
    #[n(1)]
    pub lane: u8,
    /// The encoded manifest, where it travels inline.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub manifest: Option<Vec<u8>>,
    /// All pieces end to end, where they travel inline.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub data: Option<Vec<u8>>,
}
