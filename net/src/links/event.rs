//! What a driver hears from its links, and what it can send on them.
//!
//! Invariant: every length and bound of an event's message, announcement or part is checked. Signatures of
//! announcements and hashes of parts are not.

use super::error::{DialError, LinkError};
use bytes::Bytes;
use shoal_proto::announcement::Class;
use shoal_proto::codec;
use shoal_proto::frame::{AnnounceFrame, CloseReason, Part};
use shoal_proto::ids::{ContentId, JobId, NodeId};
use shoal_proto::message::Message;
use shoal_proto::trust::Admitted;
use std::net::SocketAddr;
use std::sync::Arc;

/// What happened on the links of an endpoint.
#[derive(Debug)]
#[allow(missing_docs, reason = "`node` is the other end of the link, and the other fields carry their types' names")]
pub enum LinkEvent {
    /// A link is up. Both ends have admitted each other.
    LinkUp {
        node: NodeId,
        credential: Arc<Admitted>,
        remote: SocketAddr,
        /// Whether this node dialled.
        dialled: bool,
    },
    /// A link is gone, with everything that was queued or received in part. Both fields are empty if this node closed
    /// the link.
    LinkDown {
        node: NodeId,
        /// The reason in the other end's `Bye`.
        reason: Option<CloseReason>,
        error: Option<LinkError>,
    },
    /// [`super::LinkEndpoint::dial`] did not lead to a link.
    DialFailed { node: NodeId, error: DialError },
    /// A message arrived. Its bounds are checked.
    Message { node: NodeId, message: Message },
    /// An announcement arrived. Its signature is not checked yet.
    Announce { node: NodeId, frame: AnnounceFrame },
    /// A whole shard or manifest arrived. Its hash is not checked yet.
    Part {
        node: NodeId,
        content: ContentId,
        part: Part,
        class: Class,
        /// The bytes count against the receive budget until the last clone is dropped.
        payload: Bytes,
    },
    /// The operating system has taken a queued part.
    Sent { node: NodeId, content: ContentId, part: Part },
}

/// A feed on one announcement lane. A queued version may be replaced by a newer one with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct FeedKey {
    pub job: JobId,
    pub lane: u8,
}

/// What a driver can send.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum OutFrame {
    Message(Message),
    /// The result of [`encode_announce`]. All children share one encoding.
    Announce(Bytes),
    /// An announcement of a feed's version, of which only the newest counts. If several versions wait already, this
    /// version replaces the last of them.
    Latest {
        key: FeedKey,
        /// The result of [`encode_announce`].
        body: Bytes,
    },
    /// A shard or manifest. [`LinkEvent::Sent`] follows. The payload is not copied.
    Part {
        content: ContentId,
        part: Part,
        class: Class,
        payload: Bytes,
    },
}

/// Encodes an announcement for [`OutFrame::Announce`].
pub fn encode_announce(frame: &AnnounceFrame) -> Bytes {
    codec::encode(frame).into()
}
