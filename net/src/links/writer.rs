//! The sending side of a link: small frames are gathered, slices go straight from the payload.
//!
//! A written slice cannot be overtaken, so a slow link gets short slices.
//! Invariant: frames are written whole and in the order of the queue, and `Bye` is the last.

use super::context::EndpointContext;
use super::event::LinkEvent;
use super::link::Link;
use super::send_queue::{Outgoing, PartId};
use super::sizes::{RECORD_BYTES, RECORD_PAYLOAD_BYTES, SLICE_PAYLOAD_BYTES_MAX};
use bytes::Buf;
use shoal_proto::announcement::Class;
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Frames of at most this many bytes are gathered before they are written.
const GATHERED_FRAME_BYTES_MAX: usize = 2 * 1024;

/// The longest time for which one slice may delay more urgent frames.
const SLICE_TIME: Duration = Duration::from_millis(5);

/// Chooses the length of slices by the speed at which the link takes them.
struct SliceSizer {
    /// Payload bytes of the next slice.
    bytes: usize,
}

impl SliceSizer {
    fn new() -> Self {
        Self { bytes: SLICE_PAYLOAD_BYTES_MAX }
    }

    /// Notes that the link took a slice of `len` bytes in `time`. Most of the time passes while earlier slices leave.
    fn on_taken(&mut self, len: usize, time: Duration) {
        let fits = len as u128 * SLICE_TIME.as_micros() / time.as_micros().max(1);
        let fits = usize::try_from(fits).unwrap_or(usize::MAX);
        // Times vary, so the new length is the mean of the former one and of what fits now.
        let mean = self.bytes / 2 + fits.min(SLICE_PAYLOAD_BYTES_MAX) / 2;
        self.bytes = mean.clamp(RECORD_PAYLOAD_BYTES, SLICE_PAYLOAD_BYTES_MAX);
    }
}

/// What LEDBAT allows the next slice.
enum Pacing {
    /// No urgent traffic is recent, or the link does not pass the uplink.
    Unlimited,
    /// A slice of at most this many bytes may go.
    UpTo(usize),
    /// No slice may go before this time.
    Until(tokio::time::Instant),
}

/// Asks LEDBAT about the next slice of `class`, and measures the queue's delay when that is due.
fn pace_bulk(context: &EndpointContext, link: &Link, class: Class) -> Pacing {
    if class <= Class::Urgent || !link.limiter().passes_uplink() || !context.urgent().is_recent() {
        return Pacing::Unlimited;
    }
    let now = link.activity().now();
    let mut ledbat = link.ledbat();
    if let Some(opens) = ledbat.opens_at(now) {
        return Pacing::Until(tokio::time::Instant::now() + (opens - now));
    }
    let (slice, ping) = (ledbat.slice_bytes(), ledbat.take_ping_due(now));
    drop(ledbat);
    if ping {
        // The ping goes before the slice, so it measures the queue without the slice.
        link.queue().ping();
    }
    Pacing::UpTo(slice)
}

/// Writes until `Bye` is written or the connection fails.
pub async fn run(context: &EndpointContext, link: &Link, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let sizer = SliceSizer::new();
    Writer { context, link, io, gathered: Vec::new(), gathered_parts: Vec::new(), sizer }.run().await
}

struct Writer<'a, W> {
    context: &'a EndpointContext,
    link: &'a Link,
    io: &'a mut W,
    /// Small frames that wait for a full TLS record.
    gathered: Vec<u8>,
    /// Parts whose last slice is in `gathered`.
    gathered_parts: Vec<PartId>,
    sizer: SliceSizer,
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    async fn run(mut self) -> io::Result<()> {
        let (context, link) = (self.context, self.link);
        loop {
            let class = link.queue().next_slice_class();
            if let Some(wait) = class.and_then(|class| link.limiter().send_wait(class)) {
                self.flush_and_wait(wait).await?;
                continue;
            }
            let slice_max = match class.map_or(Pacing::Unlimited, |class| pace_bulk(context, link, class)) {
                Pacing::Until(opens) => {
                    self.flush_and_wait(tokio::time::sleep_until(opens)).await?;
                    continue;
                }
                Pacing::UpTo(bytes) => SliceMax { bytes: bytes.min(self.sizer.bytes), paced: true },
                Pacing::Unlimited => SliceMax { bytes: self.sizer.bytes, paced: false },
            };
            let Some(frame) = link.queue().pop(slice_max.bytes, link.activity().stamp()) else {
                self.flush_and_wait(std::future::pending()).await?;
                continue;
            };
            self.account(&frame, slice_max.paced);
            let last = frame.last;
            self.write(frame).await?;
            if last {
                return self.io.flush().await;
            }
        }
    }

    fn account(&self, frame: &Outgoing, paced: bool) {
        let len = frame.len();
        let payload = if frame.is_slice { frame.body.len() } else { 0 };
        self.link.limiter().note_sent(frame.class, len);
        if frame.class == Class::Urgent {
            self.context.urgent().note();
        } else if frame.is_slice && paced {
            self.link.ledbat().on_sent(len, self.link.activity().now());
        }
        self.link.activity().note_sent();
        if payload > 0 {
            self.link.activity().note_payload();
        }
        self.link.counters().add_out(len, payload);
        self.context.counters().links().add_out(len, payload);
    }

    async fn write(&mut self, frame: Outgoing) -> io::Result<()> {
        let len = frame.len();
        let Outgoing { head, body, completes, last, .. } = frame;
        if len <= GATHERED_FRAME_BYTES_MAX {
            self.gathered.extend_from_slice(head.as_slice());
            self.gathered.extend_from_slice(&body);
            self.gathered_parts.extend(completes);
            if self.gathered.len() >= RECORD_BYTES || last {
                self.flush_gathered().await?;
            }
            return Ok(());
        }
        self.flush_gathered().await?;
        let start = Instant::now();
        self.io.write_all_buf(&mut head.as_slice().chain(body)).await?;
        self.sizer.on_taken(len, start.elapsed());
        if let Some(part) = completes {
            self.emit_sent(part).await;
        }
        Ok(())
    }

    /// Writes out what is gathered. Then waits for `until` or for a new frame, which may be more urgent.
    async fn flush_and_wait(&mut self, until: impl Future<Output = ()>) -> io::Result<()> {
        self.flush_gathered().await?;
        self.io.flush().await?;
        tokio::select! {
            () = until => {}
            () = self.link.queue().until_pushed() => {}
        }
        Ok(())
    }

    async fn flush_gathered(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        self.io.write_all(&self.gathered).await?;
        self.gathered.clear();
        for part in std::mem::take(&mut self.gathered_parts) {
            self.emit_sent(part).await;
        }
        Ok(())
    }

    async fn emit_sent(&mut self, PartId { content, part }: PartId) {
        self.context.emit(LinkEvent::Sent { node: self.link.node(), content, part }).await;
    }
}

/// The longest payload of the next slice.
struct SliceMax {
    bytes: usize,
    /// Whether LEDBAT counts the slice.
    paced: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_follow_the_speed_of_the_link() {
        let mut sizer = SliceSizer::new();
        // 1 MB/s: 5 ms take 5 KB, which is less than the shortest slice.
        (0..8).for_each(|_| sizer.on_taken(sizer.bytes, Duration::from_micros(sizer.bytes as u64)));
        assert_eq!(sizer.bytes, RECORD_PAYLOAD_BYTES);
        // 10 MB/s.
        (0..16).for_each(|_| sizer.on_taken(sizer.bytes, Duration::from_micros(sizer.bytes as u64 / 10)));
        assert!((48_000..=52_000).contains(&sizer.bytes), "{}", sizer.bytes);
        // At once.
        (0..16).for_each(|_| sizer.on_taken(sizer.bytes, Duration::ZERO));
        assert!(sizer.bytes > SLICE_PAYLOAD_BYTES_MAX * 9 / 10, "{}", sizer.bytes);
    }
}
