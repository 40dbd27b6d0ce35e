//! The frames that wait on one link, by urgency.
//!
//! Invariant: a slice of a class leaves only while nothing of a more urgent class waits. Parts of one class leave one
//! after the other.

use super::error::SendError;
use super::event::{FeedKey, OutFrame};
use bytes::Bytes;
use shoal_proto::announcement::Class;
use shoal_proto::codec;
use shoal_proto::frame::{CloseReason, FrameKind, HEADER_BYTES, Header, Part, SLICE_HEADER_BYTES, SliceHeader};
use shoal_proto::ids::ContentId;
use shoal_proto::limits;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Versions of a feed that wait on a link before a newer version replaces the last of them. Over a short stall readers
/// get every version. A link that stalls for long keeps only a few.
const FEED_VERSIONS_WAITING_MAX: usize = 4;
/// Bytes of messages and announcements that wait on a link.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One part of one content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartId {
    pub(super) content: ContentId,
    pub(super) part: Part,
}

/// A frame to be written: its head, and a body that may be empty.
pub struct Outgoing {
    pub(super) class: Class,
    pub(super) head: Head,
    pub(super) body: Bytes,
    /// Whether the body is payload.
    pub(super) is_slice: bool,
    /// The part whose last slice this is.
    pub(super) completes: Option<PartId>,
    /// Set for `Bye`. Nothing may follow.
    pub(super) last: bool,
}

impl Outgoing {
    fn without_payload(kind: FrameKind, class: Class, stamp: u64, body: Bytes) -> Self {
        let head = Head::of_frame(kind, class, body.len(), stamp);
        Self { class, head, body, is_slice: false, completes: None, last: false }
    }

    /// Returns the bytes of head and body.
    pub fn len(&self) -> usize {
        self.head.len + self.body.len()
    }
}

/// The bytes before the payload of a frame: the frame header, and the slice header of a slice.
pub struct Head {
    bytes: [u8; HEADER_BYTES + SLICE_HEADER_BYTES],
    len: usize,
}

impl Head {
    fn of_frame(kind: FrameKind, class: Class, body_len: usize, stamp: u64) -> Self {
        let mut bytes = [0; HEADER_BYTES + SLICE_HEADER_BYTES];
        let header = Header { kind, class, body_len: body_len as u32, stamp };
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        Self { bytes, len: HEADER_BYTES }
    }

    fn of_slice(class: Class, slice: SliceHeader, payload_len: usize) -> Self {
        let mut head = Self::of_frame(FrameKind::Slice, class, SLICE_HEADER_BYTES + payload_len, 0);
        head.bytes[HEADER_BYTES..].copy_from_slice(&slice.to_bytes());
        head.len = HEADER_BYTES + SLICE_HEADER_BYTES;
        head
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

struct QueuedMessage {
    kind: FrameKind,
    /// Set for a feed's version. A newer version with the same key may replace it.
    key: Option<FeedKey>,
    body: Bytes,
}

struct QueuedPart {
    id: PartId,
    payload: Bytes,
    /// Bytes of the payload that have left.
    offset: usize,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<QueuedMessage>,
    message_bytes: usize,
    /// One queue for each class.
    parts: [VecDeque<QueuedPart>; 4],
    ping: bool,
    /// The stamp of the `Pong` to send.
    pong: Option<u64>,
    closing: Option<CloseReason>,
    bye_sent: bool,
}

/// The frames that wait on one link.
pub struct SendQueue {
    waiting: Mutex<Waiting>,
    pushed: Notify,
    closed: CancellationToken,
    messages_max: usize,
    parts_max: usize,
}

impl SendQueue {
    pub fn new(messages_max: usize, parts_max: usize) -> Self {
        let (waiting, pushed, closed) = (Mutex::default(), Notify::new(), CancellationToken::new());
        Self { waiting, pushed, closed, messages_max, parts_max }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame or refuses it.
    pub fn push(&self, frame: OutFrame) -> Result<(), SendError> {
        match frame {
            OutFrame::Message(message) => {
                message.validate().map_err(|_| SendError::Invalid)?;
                self.push_message(FrameKind::Control, None, codec::encode(&message).into())
            }
            OutFrame::Announce(body) => self.push_message(FrameKind::Announce, None, body),
            OutFrame::Latest { key, body } => self.push_message(FrameKind::Announce, Some(key), body),
            OutFrame::Part { content, part, class, payload } => {
                self.push_part(PartId { content, part }, class, payload)
            }
        }
    }

    /// Queues the version of the trust document in force.
    pub fn push_trust_version(&self, version: u64) -> Result<(), SendError> {
        self.push_message(FrameKind::TrustVersion, None, Bytes::copy_from_slice(&version.to_le_bytes()))
    }

    /// Queues a trust document.
    pub fn push_trust(&self, document: Bytes) -> Result<(), SendError> {
        self.push_message(FrameKind::Trust, None, document)
    }

    fn push_message(&self, kind: FrameKind, key: Option<FeedKey>, body: Bytes) -> Result<(), SendError> {
        if body.is_empty() || body.len() > kind.body_max() {
            return Err(SendError::Invalid);
        }
        let mut waiting = self.waiting();
        if waiting.closing.is_some() {
            return Err(SendError::Gone);
        }
        let Waiting { messages, message_bytes, .. } = &mut *waiting;
        let count = messages.len();
        let mut same_feed = messages.iter_mut().filter(|message| key.is_some() && message.key == key);
        // The version to replace. In a full queue one waiting version is enough for that.
        let replaced = match count >= self.messages_max {
            true => same_feed.next_back(),
            false => same_feed.nth(FEED_VERSIONS_WAITING_MAX - 1),
        };
        let freed = replaced.as_ref().map_or(0, |message| message.body.len());
        let full = replaced.is_none() && count >= self.messages_max;
        if full || *message_bytes - freed + body.len() > MESSAGE_BYTES_MAX {
            return Err(SendError::Full);
        }
        *message_bytes = *message_bytes - freed + body.len();
        match replaced {
            Some(message) => message.body = body,
            None => messages.push_back(QueuedMessage { kind, key, body }),
        }
        drop(waiting);
        self.pushed.notify_one();
        Ok(())
    }

    fn push_part(&self, id: PartId, class: Class, payload: Bytes) -> Result<(), SendError> {
        let max = match id.part {
            Part::Shard(_) => limits::PIECE_BYTES_MAX as usize,
            Part::Manifest => limits::MANIFEST_BYTES_MAX,
        };
        if payload.is_empty() || payload.len() > max {
            return Err(SendError::Invalid);
        }
        let mut waiting = self.waiting();
        if waiting.closing.is_some() {
            return Err(SendError::Gone);
        }
        let parts = &mut waiting.parts[class as usize];
        if parts.len() >= self.parts_max {
            return Err(SendError::Full);
        }
        parts.push_back(QueuedPart { id, payload, offset: 0 });
        drop(waiting);
        self.pushed.notify_one();
        Ok(())
    }

    /// Queues a `Ping`. Several pings before the next frame count as one.
    pub fn ping(&self) {
        self.waiting().ping = true;
        self.pushed.notify_one();
    }

    /// Queues a `Pong` with this stamp. It replaces a `Pong` that has not left.
    pub fn pong(&self, stamp: u64) {
        self.waiting().pong = Some(stamp);
        self.pushed.notify_one();
    }

    /// Refuses further frames, drops the parts, and queues `Bye`. Messages still leave if the host shuts down, and are
    /// dropped otherwise. Returns whether this was the first call.
    pub fn close(&self, reason: CloseReason) -> bool {
        let mut waiting = self.waiting();
        if waiting.closing.is_some() {
            return false;
        }
        waiting.closing = Some(reason);
        let parts = std::mem::take(&mut waiting.parts);
        let mut messages = VecDeque::new();
        if reason != CloseReason::Shutdown {
            std::mem::swap(&mut messages, &mut waiting.messages);
        }
        drop(waiting);
        // Owners of payload run code of their own when they are dropped, so the lock must be free.
        drop((parts, messages));
        self.closed.cancel();
        self.pushed.notify_one();
        true
    }

    /// Returns the class of the next frame if the next frame is a slice.
    pub fn next_slice_class(&self) -> Option<Class> {
        let waiting = self.waiting();
        if waiting.pong.is_some() || waiting.ping || !waiting.messages.is_empty() || waiting.closing.is_some() {
            return None;
        }
        Class::ALL.into_iter().find(|class| !waiting.parts[*class as usize].is_empty())
    }

    /// Takes the next frame. A slice has at most `slice_max` bytes of payload. A `Ping` is stamped with `now`.
    pub fn pop(&self, slice_max: usize, now: u64) -> Option<Outgoing> {
        let mut waiting = self.waiting();
        let small = |kind, stamp, body| Outgoing::without_payload(kind, Class::Control, stamp, body);
        if let Some(stamp) = waiting.pong.take() {
            return Some(small(FrameKind::Pong, stamp, Bytes::new()));
        }
        if std::mem::take(&mut waiting.ping) {
            return Some(small(FrameKind::Ping, now, Bytes::new()));
        }
        if let Some(QueuedMessage { kind, key, body }) = waiting.messages.pop_front() {
            waiting.message_bytes -= body.len();
            // Only urgent feeds use keys.
            let class = if key.is_some() { Class::Urgent } else { Class::Control };
            return Some(Outgoing::without_payload(kind, class, 0, body));
        }
        if let Some(reason) = waiting.closing {
            if std::mem::replace(&mut waiting.bye_sent, true) {
                return None;
            }
            let bye = small(FrameKind::Bye, 0, Bytes::copy_from_slice(&[reason as u8]));
            return Some(Outgoing { last: true, ..bye });
        }
        Class::ALL.into_iter().find_map(|class| next_slice(&mut waiting.parts[class as usize], class, slice_max))
    }

    /// Returns once [`SendQueue::close`] was called.
    pub async fn until_closing(&self) {
        self.closed.cancelled().await;
    }

    /// Returns once a frame may have been pushed.
    pub async fn until_pushed(&self) {
        self.pushed.notified().await;
    }
}

fn next_slice(parts: &mut VecDeque<QueuedPart>, class: Class, len: usize) -> Option<Outgoing> {
    let front = parts.front_mut()?;
    let (offset, total, id) = (front.offset, front.payload.len(), front.id);
    let end = total.min(offset + len.min(limits::SLICE_BYTES_MAX));
    let slice = SliceHeader { content: id.content, part: id.part, offset: offset as u32, total: total as u32 };
    let body = front.payload.slice(offset..end);
    front.offset = end;
    let completes = (end == total).then_some(id);
    if completes.is_some() {
        parts.pop_front();
    }
    let head = Head::of_slice(class, slice, end - offset);
    Some(Outgoing { class, head, body, is_slice: true, completes, last: false })
}
