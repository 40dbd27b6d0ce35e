//! What waits to be sent on one link, by urgency.
//!
//! Invariant: a slice of a class is handed out only while nothing of a more urgent class waits, and parts of one class
//! go one after the other.

use super::{OutFrame, SendError};
use bytes::Bytes;
use shoal_proto::announcement::Class;
use shoal_proto::codec;
use shoal_proto::frame::{CloseReason, FrameKind, HEADER_BYTES, Header, Part, SLICE_HEADER_BYTES, SliceHeader};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::limits;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Versions of a feed that wait on a link before a newer one takes the place of the last: over a stall of a moment
/// readers see all, a link that is stuck keeps few.
const LATEST_WAITING: usize = 4;
/// Bytes of messages and announcements queued on a link.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A frame ready to be written: its head, and a body that may be empty.
pub(super) struct Outgoing {
    /// Its urgency.
    pub(super) class: Class,
    /// Header, and slice header if it is one.
    pub(super) head: Head,
    /// What follows.
    pub(super) body: Bytes,
    /// Whether the body is payload.
    pub(super) slice: bool,
    /// This was the last slice of that part.
    pub(super) completes: Option<(ContentId, Part)>,
    /// Whether it is the `Bye`: nothing may follow.
    pub(super) last: bool,
}

/// The bytes before a frame's payload.
pub(super) struct Head {
    bytes: [u8; HEADER_BYTES + SLICE_HEADER_BYTES],
    len: usize,
}

impl Head {
    fn frame(kind: FrameKind, class: Class, body_len: usize, stamp: u64) -> Self {
        let mut bytes = [0; HEADER_BYTES + SLICE_HEADER_BYTES];
        let header = Header { kind, class, body_len: body_len as u32, stamp };
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        Self { bytes, len: HEADER_BYTES }
    }

    fn slice(class: Class, slice: SliceHeader, payload_len: usize) -> Self {
        let mut head = Self::frame(FrameKind::Slice, class, SLICE_HEADER_BYTES + payload_len, 0);
        head.bytes[HEADER_BYTES..].copy_from_slice(&slice.to_bytes());
        head.len = HEADER_BYTES + SLICE_HEADER_BYTES;
        head
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

struct QueuedMessage {
    kind: FrameKind,
    /// What it may be replaced by, if anything.
    key: Option<(JobId, u8)>,
    body: Bytes,
}

struct QueuedPart {
    content: ContentId,
    part: Part,
    payload: Bytes,
    offset: usize,
}

#[derive(Default)]
struct State {
    messages: VecDeque<QueuedMessage>,
    message_bytes: usize,
    parts: [VecDeque<QueuedPart>; 4],
    ping: bool,
    /// With the stamp it is to have.
    pong: Option<u64>,
    closing: Option<CloseReason>,
    said_bye: bool,
}

/// One link's queue.
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Notify,
    closed: CancellationToken,
    messages_max: usize,
    parts_max: usize,
}

impl Queue {
    pub(super) fn new(messages_max: usize, parts_max: usize) -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), closed: CancellationToken::new(), messages_max, parts_max }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame, or refuses it.
    pub(super) fn push(&self, frame: OutFrame) -> Result<(), SendError> {
        match frame {
            OutFrame::Message(message) => {
                if message.validate().is_err() {
                    return Err(SendError::Invalid);
                }
                self.push_message(FrameKind::Control, None, codec::encode(&message).into())
            }
            OutFrame::Announce(body) => self.push_message(FrameKind::Announce, None, body),
            OutFrame::Latest { key, body } => self.push_message(FrameKind::Announce, Some(key), body),
            OutFrame::Part { content, part, class, payload } => self.push_part(content, part, class, payload),
        }
    }

    fn push_message(&self, kind: FrameKind, key: Option<(JobId, u8)>, body: Bytes) -> Result<(), SendError> {
        if body.is_empty() || body.len() > kind.body_max() {
            return Err(SendError::Invalid);
        }
        let mut state = self.state();
        if state.closing.is_some() {
            return Err(SendError::Gone);
        }
        let State { messages, message_bytes, .. } = &mut *state;
        let count = messages.len();
        let mut alike = messages.iter_mut().filter(|waiting| key.is_some() && waiting.key == key);
        let former = if count >= self.messages_max { alike.next_back() } else { alike.nth(LATEST_WAITING - 1) };
        let freed = former.as_ref().map_or(0, |waiting| waiting.body.len());
        let full = former.is_none() && count >= self.messages_max;
        if full || *message_bytes - freed + body.len() > MESSAGE_BYTES_MAX {
            return Err(SendError::Full);
        }
        *message_bytes = *message_bytes - freed + body.len();
        match former {
            Some(waiting) => waiting.body = body,
            None => messages.push_back(QueuedMessage { kind, key, body }),
        }
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    fn push_part(&self, content: ContentId, part: Part, class: Class, payload: Bytes) -> Result<(), SendError> {
        let max = match part {
            Part::Shard(_) => limits::PIECE_BYTES_MAX as usize,
            Part::Manifest => limits::MANIFEST_BYTES_MAX,
        };
        if payload.is_empty() || payload.len() > max {
            return Err(SendError::Invalid);
        }
        let mut state = self.state();
        if state.closing.is_some() {
            return Err(SendError::Gone);
        }
        let parts = &mut state.parts[class as usize];
        if parts.len() >= self.parts_max {
            return Err(SendError::Full);
        }
        parts.push_back(QueuedPart { content, part, payload, offset: 0 });
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Has a `Ping` sent.
    pub(super) fn ping(&self) {
        self.state().ping = true;
        self.wake.notify_one();
    }

    /// Has a `Pong` sent, with this stamp.
    pub(super) fn pong(&self, stamp: u64) {
        self.state().pong = Some(stamp);
        self.wake.notify_one();
    }

    /// Takes nothing more; drops what waits (messages go out still when the host shuts down) and has `Bye` sent.
    /// Returns whether it is new.
    pub(super) fn close(&self, reason: CloseReason) -> bool {
        let mut state = self.state();
        if state.closing.is_some() {
            return false;
        }
        state.closing = Some(reason);
        let parts = std::mem::take(&mut state.parts);
        let mut messages = VecDeque::new();
        if reason != CloseReason::Shutdown {
            std::mem::swap(&mut messages, &mut state.messages);
        }
        drop(state);
        // Payload owners run code of their own when dropped: not under the lock.
        drop((parts, messages));
        self.closed.cancel();
        self.wake.notify_one();
        true
    }

    /// The class of what goes next, if that is a slice.
    pub(super) fn next_slice_class(&self) -> Option<Class> {
        let state = self.state();
        if state.pong.is_some() || state.ping || !state.messages.is_empty() || state.closing.is_some() {
            return None;
        }
        Class::ALL.into_iter().find(|class| !state.parts[*class as usize].is_empty())
    }

    /// What goes next, if anything waits; of payload at most `slice` bytes. A `Ping` is stamped with `now`.
    pub(super) fn pop(&self, slice: usize, now: u64) -> Option<Outgoing> {
        let mut state = self.state();
        let plain = |kind, class, stamp, body: Bytes, last| Outgoing {
            class,
            head: Head::frame(kind, class, body.len(), stamp),
            body,
            slice: false,
            completes: None,
            last,
        };
        if let Some(stamp) = state.pong.take() {
            return Some(plain(FrameKind::Pong, Class::Control, stamp, Bytes::new(), false));
        }
        if std::mem::take(&mut state.ping) {
            return Some(plain(FrameKind::Ping, Class::Control, now, Bytes::new(), false));
        }
        if let Some(QueuedMessage { kind, key, body }) = state.messages.pop_front() {
            state.message_bytes -= body.len();
            // Of feeds only the latest counts, and feeds are urgent.
            let class = if key.is_some() { Class::Urgent } else { Class::Control };
            return Some(plain(kind, class, 0, body, false));
        }
        if let Some(reason) = state.closing {
            if std::mem::replace(&mut state.said_bye, true) {
                return None;
            }
            return Some(plain(FrameKind::Bye, Class::Control, 0, Bytes::copy_from_slice(&[reason as u8]), true));
        }
        Class::ALL.into_iter().find_map(|class| next_slice(&mut state.parts[class as usize], class, slice))
    }

    /// Returns once [`Queue::close`] was called.
    pub(super) async fn closing(&self) {
        self.closed.cancelled().await;
    }

    /// Returns once something may wait.
    pub(super) async fn wait(&self) {
        self.wake.notified().await;
    }
}

fn next_slice(parts: &mut VecDeque<QueuedPart>, class: Class, len: usize) -> Option<Outgoing> {
    let front = parts.front_mut()?;
    let (offset, total) = (front.offset, front.payload.len());
    let end = total.min(offset + len.min(limits::SLICE_BYTES_MAX));
    let slice = SliceHeader { content: front.content, part: front.part, offset: offset as u32, total: total as u32 };
    let body = front.payload.slice(offset..end);
    front.offset = end;
    let completes = (end == total).then_some((front.content, front.part));
    if completes.is_some() {
        parts.pop_front();
    }
    Some(Outgoing { class, head: Head::slice(class, slice, end - offset), body, slice: true, completes, last: false })
}
