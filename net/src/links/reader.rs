//! The receiving side of a link: frames in, events out. Payload goes straight into its final buffer.
//!
//! Invariant: memory for a body or part is reserved only after its length was checked. Memory of a part is reserved
//! under the budget of its class, and memory of a manifest only as its bytes arrive.

use super::context::EndpointContext;
use super::error::{LinkError, ProtocolViolation};
use super::event::LinkEvent;
use super::link::Link;
use super::receive_memory::Payload;
use super::trust_exchange;
use bytes::BufMut;
use shoal_proto::announcement::Class;
use shoal_proto::codec::{self, DecodeError};
use shoal_proto::frame::{
    AnnounceFrame, CloseReason, FrameKind, HEADER_BYTES, Header, Part, SLICE_HEADER_BYTES, SliceHeader,
};
use shoal_proto::ids::ContentId;
use shoal_proto::message::Message;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// Announcements of a link at once, and per second afterwards. A neighbour that repairs differences sends up to 1,024
/// at once.
const ANNOUNCEMENTS_AT_ONCE: f64 = 2048.0;
const ANNOUNCEMENTS_PER_S: f64 = 500.0;
/// How often a link that waits for memory looks for parts that hardly grow.
const LOOK_FOR_SLOW: Duration = Duration::from_secs(1);
/// The buffer for bodies keeps at most this capacity between frames, in bytes.
const BODY_BUFFER_KEPT: usize = 16 * 1024;

/// How reading ended.
pub enum ReadEnd {
    /// The other end sent `Bye`.
    Bye(CloseReason),
    /// The connection is gone.
    Lost(LinkError),
    /// The other end broke the protocol.
    Violation(ProtocolViolation),
}

impl From<io::Error> for ReadEnd {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Lost(LinkError::ClosedWithoutBye),
            _ => Self::Lost(LinkError::Io(error)),
        }
    }
}

impl From<DecodeError> for ReadEnd {
    fn from(error: DecodeError) -> Self {
        Self::Violation(error.into())
    }
}

impl From<ProtocolViolation> for ReadEnd {
    fn from(violation: ProtocolViolation) -> Self {
        Self::Violation(violation)
    }
}

/// A part of which some slices have arrived.
struct OpenPart {
    content: ContentId,
    part: Part,
    total: u32,
    filled: u32,
    /// `None` for a part that is not expected. Its bytes are dropped as they arrive.
    payload: Option<Payload>,
}

impl OpenPart {
    /// Checks that `slice` follows the slices before it.
    fn check_next(&self, slice: &SliceHeader) -> Result<(), ProtocolViolation> {
        let SliceHeader { content, part, offset, total } = *slice;
        if (self.content, self.part, self.total, self.filled) != (content, part, total, offset) {
            return Err(ProtocolViolation::PartNotContinued);
        }
        Ok(())
    }
}

/// How many announcements the other end may send now.
struct AnnouncementPace {
    left: f64,
    at: Instant,
}

impl AnnouncementPace {
    /// Counts an announcement. Returns how long to wait before it counts.
    fn pass(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * ANNOUNCEMENTS_PER_S).min(ANNOUNCEMENTS_AT_ONCE) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.left).max(0.0) / ANNOUNCEMENTS_PER_S)
    }
}

/// The receiving side of one link.
pub struct Reader<R> {
    context: Arc<EndpointContext>,
    link: Arc<Link>,
    io: R,
    body: Vec<u8>,
    /// The open part of each class. Slices of one class are never mixed.
    open: [Option<OpenPart>; 4],
    announcements: AnnouncementPace,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(context: Arc<EndpointContext>, link: Arc<Link>, io: R) -> Self {
        let announcements = AnnouncementPace { left: ANNOUNCEMENTS_AT_ONCE, at: Instant::now() };
        Self { context, link, io, body: Vec::new(), open: [const { None }; 4], announcements }
    }

    /// Returns the connection and drops the open parts.
    pub fn into_io(self) -> R {
        self.io
    }

    /// Reads until the link ends.
    pub async fn run(&mut self) -> ReadEnd {
        loop {
            if let Err(end) = self.read_frame().await {
                return end;
            }
        }
    }

    async fn read_frame(&mut self) -> Result<(), ReadEnd> {
        let mut head = [0; HEADER_BYTES];
        self.io.read_exact(&mut head).await?;
        self.link.activity().note_received();
        let header = Header::from_bytes(&head)?;
        let len = header.body_len as usize;
        if header.class == Class::Urgent {
            self.context.urgent().note();
        }
        self.count(HEADER_BYTES + len, 0);
        match header.kind {
            FrameKind::Slice => self.read_slice(header.class, len).await,
            FrameKind::Control => {
                self.read_body(len).await?;
                let message: Message = codec::decode_exact(&self.body)?;
                message.validate()?;
                self.free_body();
                let bytes = message.memory_bytes(len);
                self.emit(LinkEvent::Message { node: self.link.node(), message }, bytes).await;
                Ok(())
            }
            FrameKind::Announce => {
                self.read_body(len).await?;
                let frame: AnnounceFrame = codec::decode_exact(&self.body)?;
                self.free_body();
                self.wait_for_announcement().await;
                self.emit(LinkEvent::Announce { node: self.link.node(), frame }, len).await;
                Ok(())
            }
            FrameKind::Ping => {
                // The clocks of both ends differ by an unknown constant, so the difference may wrap.
                self.link.queue().pong(self.link.activity().stamp().wrapping_sub(header.stamp));
                Ok(())
            }
            FrameKind::Pong => {
                self.link.on_pong(header.stamp);
                Ok(())
            }
            FrameKind::Bye => {
                self.read_body(len).await?;
                let reason = self.body.first().copied().and_then(CloseReason::from_wire);
                Err(reason.map_or(ProtocolViolation::ByeWithoutReason.into(), ReadEnd::Bye))
            }
            FrameKind::TrustVersion => {
                self.read_body(len).await?;
                let version = self.body.as_slice().try_into().map_err(|_| ProtocolViolation::VersionWithoutNumber)?;
                trust_exchange::on_version(&self.context, &self.link, u64::from_le_bytes(version));
                Ok(())
            }
            FrameKind::Trust => {
                self.read_body(len).await?;
                let document = self.body.clone();
                self.link.activity().pause_reading();
                let handled = trust_exchange::on_document(&self.context, &self.link, document).await;
                self.link.activity().resume_reading();
                Ok(handled?)
            }
            FrameKind::Hello => Err(ProtocolViolation::RepeatedHello.into()),
        }
    }

    /// Reads a body into `self.body`. The header's decoder has checked that `len` is within the limit of its kind.
    async fn read_body(&mut self, len: usize) -> Result<(), ReadEnd> {
        self.free_body();
        self.body.reserve(len);
        append_exactly(&mut self.io, &mut self.body, len, |_| {}).await?;
        self.link.activity().note_received();
        Ok(())
    }

    /// Frees the memory of a large body. Its message may wait for the driver for long.
    fn free_body(&mut self) {
        self.body.clear();
        self.body.shrink_to(BODY_BUFFER_KEPT);
    }

    async fn read_slice(&mut self, class: Class, len: usize) -> Result<(), ReadEnd> {
        let payload_len = len.checked_sub(SLICE_HEADER_BYTES).ok_or(ProtocolViolation::SliceTooShort)?;
        let mut head = [0; SLICE_HEADER_BYTES];
        self.io.read_exact(&mut head).await?;
        let slice = SliceHeader::from_bytes(&head, payload_len)?;
        // A sender never leaves a part for a less urgent one. With this check, links cannot wait for each other's
        // memory in a circle (see `receive_memory.rs`).
        if self.open[..class as usize].iter().any(Option::is_some) {
            return Err(ProtocolViolation::LessUrgentSlice.into());
        }
        self.wait_for_rate(class, len).await;
        let mut open = match self.open[class as usize].take() {
            Some(open) => {
                open.check_next(&slice)?;
                open
            }
            None => self.open_part(class, &slice).await?,
        };
        match &mut open.payload {
            Some(payload) => {
                let count = |bytes| self.link.on_part_bytes(class, bytes);
                append_exactly(&mut self.io, payload.buffer(), payload_len, count).await?;
            }
            None => {
                discard(&mut self.io, payload_len).await?;
                self.context.counters().add_unexpected(payload_len);
            }
        }
        open.filled += payload_len as u32;
        self.count(0, payload_len);
        self.link.activity().note_received();
        self.link.activity().note_payload();
        let whole = open.filled >= open.total;
        if whole {
            self.link.on_part_ends(class);
        }
        let OpenPart { content, part, .. } = open;
        let mut payload = None;
        if whole {
            payload = open.payload;
        } else {
            self.open[class as usize] = Some(open);
        }
        self.link.activity().note_slice(self.open.iter().flatten().count());
        if let Some(payload) = payload {
            let payload = payload.into_bytes();
            self.emit(LinkEvent::Part { node: self.link.node(), content, part, class, payload }, 0).await;
        }
        Ok(())
    }

    /// Leaves the payload unread for as long as the rate limits ask for. The sender's TCP window fills up, so the
    /// sender waits.
    async fn wait_for_rate(&mut self, class: Class, len: usize) {
        let mut paused = None;
        while let Some(wait) = self.link.limiter().receive_wait(class) {
            if paused.is_none() {
                paused = Some(self.pause_reading());
            }
            wait.await;
        }
        if let Some(began) = paused {
            self.resume_reading(began);
        }
        self.link.limiter().note_received(class, len);
    }

    fn pause_reading(&self) -> Instant {
        self.link.activity().pause_reading();
        Instant::now()
    }

    fn resume_reading(&self, paused: Instant) {
        self.link.activity().resume_reading();
        self.link.on_pause(paused.elapsed());
    }

    /// Leaves the link unread while its announcements come faster than they may.
    async fn wait_for_announcement(&mut self) {
        let wait = self.announcements.pass(Instant::now());
        if !wait.is_zero() {
            // The other end causes this pause, so its open parts grow old meanwhile. No wait is longer than 2 ms.
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits for memory for a shard. Meanwhile links end, one at a time, whose parts hold memory and hardly grow.
    async fn wait_for_memory(&mut self, class: Class, total: u32) -> Result<OwnedSemaphorePermit, ReadEnd> {
        let budget = self.context.budgets().class(class).clone();
        let acquired = budget.acquire_many_owned(total);
        tokio::pin!(acquired);
        loop {
            tokio::select! {
                permit = &mut acquired => return permit.map_err(|_| ReadEnd::Lost(LinkError::ShuttingDown)),
                () = tokio::time::sleep(LOOK_FOR_SLOW) => self.context.end_slowest_part(class),
            }
        }
    }

    /// Opens the part of a first slice. Waits for memory for all of the part.
    async fn open_part(&mut self, class: Class, slice: &SliceHeader) -> Result<OpenPart, ReadEnd> {
        if slice.offset != 0 {
            return Err(ProtocolViolation::PartStartsLate.into());
        }
        let SliceHeader { content, part, total, .. } = *slice;
        let pool = self.context.pool().clone();
        let payload = match part {
            // The buffer starts empty and at most doubles as bytes arrive. A manifest may have 256 MiB.
            Part::Manifest => {
                let expected = self.link.take_expected(content, total);
                expected.map(|expected| Payload::new(&pool, Vec::new(), expected.into_permit()))
            }
            Part::Shard(_) if !self.link.expects_shard(&content, total) => None,
            Part::Shard(shard) => {
                let budget = self.context.budgets().class(class);
                let permit = match budget.clone().try_acquire_many_owned(total) {
                    Ok(permit) => permit,
                    Err(_) => {
                        let paused = self.pause_reading();
                        let permit = self.wait_for_memory(class, total).await;
                        self.resume_reading(paused);
                        permit?
                    }
                };
                let block_offset = self.context.config().block_offset.as_ref();
                let offset = block_offset.map_or(0, |block_offset| block_offset(&content, shard));
                Some(Payload::new(&pool, pool.take(total as usize, offset), permit))
            }
        };
        if payload.is_some() {
            self.link.on_part_begins(class, total);
        }
        Ok(OpenPart { content, part, total, filled: 0, payload })
    }

    async fn emit(&mut self, event: LinkEvent, bytes: usize) {
        if let Err(event) = self.context.try_emit(event, bytes) {
            let paused = self.pause_reading();
            self.context.emit_body(*event, bytes).await;
            self.resume_reading(paused);
        }
    }

    fn count(&self, bytes: usize, payload: usize) {
        self.link.counters().add_in(bytes, payload);
        self.context.counters().links().add_in(bytes, payload);
    }
}

/// Appends exactly `len` bytes to `buffer`, without zeroing its memory first. Calls `count` with each number of bytes.
async fn append_exactly(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    len: usize,
    count: impl Fn(usize),
) -> Result<(), ReadEnd> {
    buffer.reserve(len);
    let mut rest = buffer.limit(len);
    while rest.has_remaining_mut() {
        match io.read_buf(&mut rest).await? {
            0 => return Err(ReadEnd::Lost(LinkError::ClosedInFrame)),
            bytes => count(bytes),
        }
    }
    Ok(())
}

async fn discard(io: &mut (impl AsyncRead + Unpin), len: usize) -> Result<(), ReadEnd> {
    let mut sink = [0u8; 4096];
    let mut rest = len;
    while rest > 0 {
        let step = rest.min(sink.len());
        io.read_exact(&mut sink[..step]).await?;
        rest -= step;
    }
    Ok(())
}

/// Reads and drops bytes until the other end closes the connection.
pub async fn discard_until_closed(io: &mut (impl AsyncRead + Unpin)) {
    let mut sink = [0u8; 4096];
    while !matches!(io.read(&mut sink).await, Ok(0) | Err(_)) {}
}
