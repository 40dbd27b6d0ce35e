//! Reads a link: frames in, events out, payload straight into its final buffer.
//!
//! Invariant: memory for a body or part is set aside only after its length was checked, and for a part only under its
//! class's budget; for a manifest only as its bytes arrive.

use super::link::Link;
use super::receive_memory::Payload;
use super::{LinkEvent, context::EndpointContext};
use bytes::BufMut;
use shoal_proto::announcement::Class;
use shoal_proto::codec::{self, DecodeError};
use shoal_proto::frame::{
    AnnounceFrame, CloseReason, FrameKind, HEADER_BYTES, Header, Part, SLICE_HEADER_BYTES, SliceHeader,
};
use shoal_proto::ids::ContentId;
use shoal_proto::message::Message;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A buffer for bodies is kept between frames up to this size, bytes.
const SCRATCH_KEPT: usize = 16 * 1024;

/// How reading ended.
pub(super) enum ReadEnd {
    /// The other end said `Bye`.
    Bye(CloseReason),
    /// The connection is gone.
    Lost(String),
    /// The other end broke the protocol.
    Violation(String),
}

impl From<std::io::Error> for ReadEnd {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Lost("closed without a word".into()),
            _ => Self::Lost(error.to_string()),
        }
    }
}

impl From<DecodeError> for ReadEnd {
    fn from(error: DecodeError) -> Self {
        Self::Violation(error.to_string())
    }
}

/// A part half received.
struct Assembly {
    content: ContentId,
    part: Part,
    total: u32,
    filled: u32,
    /// `None`: nobody expects it; its bytes are dropped as they come.
    payload: Option<Payload>,
}

/// The reading side of one link.
pub(super) struct Reader<R> {
    context: Arc<EndpointContext>,
    link: Arc<Link>,
    io: R,
    scratch: Vec<u8>,
    assemblies: [Option<Assembly>; 4],
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(context: Arc<EndpointContext>, link: Arc<Link>, io: R) -> Self {
        Self { context, link, io, scratch: Vec::new(), assemblies: [const { None }; 4] }
    }

    /// The connection again; what was half received is dropped.
    pub(super) fn into_io(self) -> R {
        self.io
    }

    /// Reads until the link ends.
    pub(super) async fn run(&mut self) -> ReadEnd {
        loop {
            match self.frame().await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    async fn frame(&mut self) -> Result<(), ReadEnd> {
        let mut head = [0; HEADER_BYTES];
        self.io.read_exact(&mut head).await?;
        self.link.activity.heard();
        let header = Header::from_bytes(&head)?;
        let len = header.body_len as usize;
        if header.class == Class::Urgent {
            self.context.urgent.note();
        }
        self.count(HEADER_BYTES + len, 0);
        match header.kind {
            FrameKind::Slice => self.slice(header.class, len).await,
            FrameKind::Control => {
                self.body(len).await?;
                let message: Message = codec::decode_exact(&self.scratch)?;
                message.validate()?;
                self.emit(LinkEvent::Message { node: self.link.node, message }).await;
                Ok(())
            }
            FrameKind::Announce => {
                self.body(len).await?;
                let frame: AnnounceFrame = codec::decode_exact(&self.scratch)?;
                self.emit(LinkEvent::Announce { node: self.link.node, frame }).await;
                Ok(())
            }
            FrameKind::Ping => {
                let now = self.link.activity.now().as_micros() as u64;
                self.link.queue.pong(now.wrapping_sub(header.stamp));
                Ok(())
            }
            FrameKind::Pong => {
                self.link.pacer().answer(header.stamp, self.link.activity.now());
                self.link.answered.notify_waiters();
                Ok(())
            }
            FrameKind::Bye => {
                self.body(len).await?;
                let reason = self.scratch.first().copied().and_then(CloseReason::from_wire);
                Err(reason.map_or(ReadEnd::Violation("bye without a reason".into()), ReadEnd::Bye))
            }
            FrameKind::Hello => Err(ReadEnd::Violation("hello twice".into())),
        }
    }

    /// Reads a body into `scratch`; `len` is within its kind's limit.
    async fn body(&mut self, len: usize) -> Result<(), ReadEnd> {
        self.scratch.clear();
        self.scratch.shrink_to(SCRATCH_KEPT);
        self.scratch.reserve(len);
        fill(&mut self.io, &mut self.scratch, len).await?;
        self.link.activity.heard();
        Ok(())
    }

    async fn slice(&mut self, class: Class, len: usize) -> Result<(), ReadEnd> {
        let Some(payload_len) = len.checked_sub(SLICE_HEADER_BYTES) else {
            return Err(ReadEnd::Violation("slice shorter than its header".into()));
        };
        let mut head = [0; SLICE_HEADER_BYTES];
        self.io.read_exact(&mut head).await?;
        let slice = SliceHeader::from_bytes(&head, payload_len)?;
        // A sender never leaves a part for a less urgent one. Held to that, links cannot wait for each other's memory
        // in a ring.
        if self.assemblies[..class as usize].iter().any(Option::is_some) {
            return Err(ReadEnd::Violation("a less urgent slice inside a part".into()));
        }
        self.keep_to_rate(class, len).await;
        let mut assembly = match self.assemblies[class as usize].take() {
            Some(open) => continue_part(open, &slice)?,
            None => self.open_part(class, &slice).await?,
        };
        match &mut assembly.payload {
            Some(payload) => fill(&mut self.io, payload.buffer(), payload_len).await?,
            None => {
                skip(&mut self.io, payload_len).await?;
                self.context.counters.unexpected.fetch_add(payload_len as u64, Ordering::Relaxed);
            }
        }
        assembly.filled += payload_len as u32;
        self.count(0, payload_len);
        self.link.activity.heard();
        self.link.activity.note_payload();
        if assembly.filled < assembly.total {
            self.assemblies[class as usize] = Some(assembly);
            self.link.activity.slice_heard(self.open_parts());
            return Ok(());
        }
        self.link.activity.slice_heard(self.open_parts());
        let Assembly { content, part, payload, .. } = assembly;
        if let Some(payload) = payload {
            let payload = payload.into_bytes();
            self.emit(LinkEvent::Part { node: self.link.node, content, part, class, payload }).await;
        }
        Ok(())
    }

    /// Leaves the payload unread for as long as the rate asks for: the sender's window fills up, and it waits.
    async fn keep_to_rate(&mut self, class: Class, len: usize) {
        let mut blocked = false;
        while let Some(wait) = self.link.limit.must_wait_in(class) {
            if !std::mem::replace(&mut blocked, true) {
                self.link.activity.block();
            }
            wait.await;
        }
        if blocked {
            self.link.activity.unblock();
        }
        self.link.limit.received(class, len);
    }

    /// The first slice of a part: finds room for all of it, waiting for room if need be.
    async fn open_part(&mut self, class: Class, slice: &SliceHeader) -> Result<Assembly, ReadEnd> {
        if slice.offset != 0 {
            return Err(ReadEnd::Violation("a part begins in its middle".into()));
        }
        let SliceHeader { content, part, total, .. } = *slice;
        let pool = &self.context.pool;
        let payload = match part {
            // The buffer begins empty and grows with what arrives, at most doubling.
            Part::Manifest => {
                self.link.take_expected(content, total).map(|expected| Payload::new(pool, Vec::new(), expected.permit))
            }
            Part::Shard(shard) => {
                let budget = self.context.budgets.class(class).clone();
                let permit = match budget.clone().try_acquire_many_owned(total) {
                    Ok(permit) => permit,
                    Err(_) => {
                        self.link.activity.block();
                        let permit = budget.acquire_many_owned(total).await;
                        self.link.activity.unblock();
                        permit.map_err(|_| ReadEnd::Lost("shutting down".into()))?
                    }
                };
                let block_offset = self.context.config.block_offset.as_ref();
                let offset = block_offset.map_or(0, |offset| offset(&content, shard));
                Some(Payload::new(pool, pool.take(total as usize, offset), permit))
            }
        };
        Ok(Assembly { content, part, total, filled: 0, payload })
    }

    fn open_parts(&self) -> usize {
        self.assemblies.iter().flatten().count()
    }

    async fn emit(&mut self, event: LinkEvent) {
        if let Err(event) = self.context.try_emit(event) {
            self.link.activity.block();
            self.context.emit(*event).await;
            self.link.activity.unblock();
        }
    }

    fn count(&self, bytes: usize, payload: usize) {
        for counters in [&self.link.counters, &self.context.counters.links] {
            counters.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
            counters.payload_in.fetch_add(payload as u64, Ordering::Relaxed);
        }
    }
}

fn continue_part(open: Assembly, slice: &SliceHeader) -> Result<Assembly, ReadEnd> {
    let SliceHeader { content, part, offset, total } = *slice;
    if (open.content, open.part, open.total, open.filled) != (content, part, total, offset) {
        return Err(ReadEnd::Violation("a slice does not continue its part".into()));
    }
    Ok(open)
}

/// Appends exactly `len` bytes to `buffer`, without zeroing it first.
async fn fill(io: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, len: usize) -> Result<(), ReadEnd> {
    buffer.reserve(len);
    let mut rest = buffer.limit(len);
    while rest.has_remaining_mut() {
        if io.read_buf(&mut rest).await? == 0 {
            return Err(ReadEnd::Lost("closed in the middle of a frame".into()));
        }
    }
    Ok(())
}

async fn skip(io: &mut (impl AsyncRead + Unpin), len: usize) -> Result<(), ReadEnd> {
    let mut sink = [0u8; 4096];
    let mut rest = len;
    while rest > 0 {
        let n = rest.min(sink.len());
        io.read_exact(&mut sink[..n]).await?;
        rest -= n;
    }
    Ok(())
}
