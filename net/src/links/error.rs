//! The errors of links.
//!
//! Invariant: an error that ends a link or a dial names its cause, and keeps the cause as its source if it is an error.

use crate::tls::{TlsError, TlsSetupError};
use shoal_proto::codec::DecodeError;
use shoal_proto::frame::{CloseReason, PROTOCOL_VERSION};
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Role, TrustError};
use std::io;
use std::net::SocketAddr;

/// The reason for which a frame was not queued. The frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link's queue of this class is full. Send again after a `Sent` event.
    #[error("send queue of the link is full")]
    Full,
    /// The node has no link, or its link is closing.
    #[error("node has no link")]
    Gone,
    /// The frame is empty or longer than its kind allows.
    #[error("frame is empty or over its limit")]
    Invalid,
}

/// The reason for which a manifest cannot be expected now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpectError {
    /// The expected and received manifests use up the budget. Try again later.
    #[error("memory budget for manifests is used up")]
    Full,
    /// The node has no link.
    #[error("node has no link")]
    Gone,
    /// The manifest is empty, or longer than a manifest or the whole budget may be.
    #[error("manifest is empty or over its limit")]
    Invalid,
}

/// The reason for which an endpoint cannot start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum BindError {
    /// The operating system refuses to listen on an address.
    #[error("cannot listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: io::Error },
    /// The node's key yields no TLS configuration.
    #[error("cannot set up TLS for links: {0}")]
    Tls(#[from] TlsSetupError),
    /// A setting is out of its range.
    #[error("link setting is invalid: {0}")]
    Config(&'static str),
}

/// A rule of the link protocol that the other end broke.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolViolation {
    /// A frame or its body cannot be decoded.
    #[error("frame cannot be decoded: {0}")]
    Malformed(#[from] DecodeError),
    /// A `Hello` arrived on a link that is up.
    #[error("hello twice")]
    RepeatedHello,
    /// A `Bye` carries no known reason.
    #[error("bye without a reason")]
    ByeWithoutReason,
    /// A version of a trust document is not eight bytes.
    #[error("version of a trust document is not eight bytes")]
    VersionWithoutNumber,
    /// A slice has fewer bytes than its own header.
    #[error("slice is shorter than its header")]
    SliceTooShort,
    /// A slice interrupts a part of a more urgent class.
    #[error("a less urgent slice interrupts a part")]
    LessUrgentSlice,
    /// A trust document is not the cluster's.
    #[error("trust document is refused: {0}")]
    InvalidTrust(#[source] TrustError),
    /// The other end sends trust documents that this node has.
    #[error("too many trust documents that are not newer")]
    UselessTrust,
    /// The first slice of a part has an offset above 0.
    #[error("a part begins in its middle")]
    PartStartsLate,
    /// A slice does not follow the slice before it.
    #[error("a slice does not continue its part")]
    PartNotContinued,
}

/// The reason for which this node gave up a link without a `Bye`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AbortReason {
    /// The other end has chosen a newer connection.
    #[error("peer has replaced the link by a newer connection")]
    Replaced,
    /// The other end dialled again and the link answered no ping.
    #[error("link was silent while its peer dialled again")]
    SilentWhileDialled,
    /// A part arrived so slowly that other links waited for its memory.
    #[error("a part arrived too slowly while other links waited for memory")]
    PartTooSlow,
}

/// The reason for which a link ended without a `Bye`.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end closed the connection at the end of a frame.
    #[error("peer closed the connection without a bye")]
    ClosedWithoutBye,
    /// The other end closed the connection within a frame.
    #[error("peer closed the connection in the middle of a frame")]
    ClosedInFrame,
    /// The connection failed.
    #[error("connection failed: {0}")]
    Io(#[source] io::Error),
    /// The other end broke the protocol. It was told so.
    #[error("protocol violation: {0}")]
    Protocol(#[from] ProtocolViolation),
    /// The other end sent nothing for the stated number of seconds, though it was pinged.
    #[error("nothing heard for {0} s")]
    Silent(u64),
    /// A part received no further slice for twice the time after which a silent link is dead.
    #[error("a part stalled after its first slices")]
    PartStalled,
    /// This node gave up the link.
    #[error("{0}")]
    Aborted(AbortReason),
    /// The endpoint shuts down.
    #[error("endpoint is shutting down")]
    ShuttingDown,
}

/// The reason for which this node refuses a connection.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The other end proved this node's own key.
    #[error("peer has this node's own key")]
    OwnKey,
    /// A living link to the node exists.
    #[error("a link is up already")]
    LinkExists,
    /// The endpoint has as many links as it may have.
    #[error("too many links")]
    TooManyLinks,
    /// The first frame is not a `Hello`.
    #[error("expected a hello")]
    ExpectedHello,
    /// The frame after both `Hello` frames is not a `Pong`.
    #[error("expected a pong")]
    ExpectedPong,
    /// The `Hello` has no body.
    #[error("hello is empty")]
    EmptyHello,
    /// The other end speaks another version of the link protocol.
    #[error("peer speaks link protocol {0}, not {PROTOCOL_VERSION}")]
    Version(u8),
    /// A `Bye` carries no known reason.
    #[error("bye without a reason")]
    ByeWithoutReason,
    /// A frame header cannot be decoded.
    #[error("frame cannot be decoded: {0}")]
    Malformed(#[from] DecodeError),
    /// The credential is not valid for the key that TLS has proven.
    #[error("credential is refused: {0}")]
    NotAdmitted(#[from] TrustError),
    /// This node has banned the other one.
    #[error("node is banned")]
    Banned,
    /// Nodes of this role have no links.
    #[error("a {0} has no links: only peers and seeders have")]
    Role(Role),
}

impl Refusal {
    /// Returns the reason that the other end reads in `Bye`.
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Self::OwnKey | Self::NotAdmitted(_) | Self::Role(_) => CloseReason::NotAdmitted,
            Self::Banned => CloseReason::Banned,
            Self::LinkExists => CloseReason::Duplicate,
            Self::TooManyLinks => CloseReason::Busy,
            _ => CloseReason::Protocol,
        }
    }
}

/// The reason for which a dial led to no link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The caller gave no address.
    #[error("no address")]
    NoAddress,
    /// No address led to the node.
    #[error("{}", join(.0))]
    Unreachable(Vec<FailedAddress>),
    /// The node refused the link.
    #[error("peer refused the link: {0}")]
    RefusedByPeer(CloseReason),
    /// The node refused the link as a duplicate, but its own link did not come up in time.
    #[error("peer refused the link as a duplicate of a link that this node does not have")]
    MissingDuplicate,
    /// This node refused the link.
    #[error("link refused: {0}")]
    Refused(#[from] Refusal),
    /// [`super::LinkEndpoint::close`] ended the dial.
    #[error("dial was cancelled")]
    Cancelled,
    /// The endpoint shuts down.
    #[error("endpoint is shutting down")]
    ShuttingDown,
}

fn join(failures: &[FailedAddress]) -> String {
    failures.iter().map(FailedAddress::to_string).collect::<Vec<_>>().join("; ")
}

/// An address that did not lead to the node.
#[derive(Debug, thiserror::Error)]
#[error("{addr}: {error}")]
#[allow(missing_docs, reason = "the names say it")]
pub struct FailedAddress {
    pub addr: SocketAddr,
    #[source]
    pub error: AddressError,
}

/// The reason for which one address did not lead to the node.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No TCP connection came about in time.
    #[error("no answer")]
    NoAnswer,
    /// TLS and `Hello` took too long.
    #[error("no link in time")]
    NoLinkInTime,
    /// The connection failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// TLS failed.
    #[error("TLS failed: {0}")]
    Tls(#[from] TlsError),
    /// Another node answered.
    #[error("peer is {}, not {}", found.short(), expected.short())]
    #[allow(missing_docs, reason = "the names say it")]
    WrongNode { expected: NodeId, found: NodeId },
}
