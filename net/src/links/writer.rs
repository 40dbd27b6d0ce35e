//! Writes a link's queue: small frames gathered, slices straight from the payload.
//!
//! What is written cannot be overtaken, so a link that is slow is given short slices.
//! Invariant: frames are written whole and in the order the queue gives them; `Bye` is the last.

use super::link::Link;
use super::send_queue::Outgoing;
use super::{LinkEvent, context::EndpointContext};
use bytes::Buf;
use shoal_proto::announcement::Class;
use shoal_proto::frame::{HEADER_BYTES, Part, SLICE_HEADER_BYTES};
use shoal_proto::ids::ContentId;
use shoal_proto::limits::SLICE_BYTES_MAX;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Frames up to this many bytes are gathered before they are written.
const SMALL: usize = 2 * 1024;
/// What is gathered goes out at this length, bytes: one TLS record.
const GATHER: usize = 16 * 1024;

/// What of a slice fits into one TLS record together with what precedes it, bytes.
pub(super) const RECORD_BYTES: usize = 16 * 1024 - HEADER_BYTES - SLICE_HEADER_BYTES;

/// How long a slice may keep what is more urgent waiting.
const SLICE_TIME: Duration = Duration::from_millis(5);
/// The shortest slices, bytes, and the longest: whole TLS records.
const SLICE_MIN: usize = RECORD_BYTES;
const SLICE_MAX: usize = SLICE_BYTES_MAX - HEADER_BYTES - SLICE_HEADER_BYTES;

/// Length of a link's slices, by how fast it takes them.
struct SliceSizer {
    slice: usize,
}

impl SliceSizer {
    /// A slice of `len` bytes was taken after `time`, most of it spent waiting for those before.
    fn took(&mut self, len: usize, time: Duration) {
        let fits = len as u128 * SLICE_TIME.as_micros() / time.as_micros().max(1);
        let fits = usize::try_from(fits).unwrap_or(usize::MAX);
        // Waits vary: half of what was, half of what is.
        self.slice = (self.slice / 2 + fits.min(SLICE_MAX) / 2).clamp(SLICE_MIN, SLICE_MAX);
    }
}

/// Writes until `Bye` is out, or the connection fails.
pub(super) async fn run(
    context: &EndpointContext,
    link: &Link,
    io: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut gathered = Vec::new();
    let mut gathered_parts = Vec::new();
    let mut sizer = SliceSizer { slice: SLICE_MAX };
    loop {
        let class = link.queue.next_slice_class();
        if let Some(wait) = class.and_then(|class| link.limit.must_wait(class)) {
            rest(context, link, io, &mut gathered, &mut gathered_parts, wait).await?;
            continue;
        }
        let pacing = match class {
            Some(class) => pace_bulk(context, link, class),
            None => Pacing::Unlimited,
        };
        if let Pacing::Until(opens) = pacing {
            let wait = tokio::time::sleep_until(opens);
            rest(context, link, io, &mut gathered, &mut gathered_parts, wait).await?;
            continue;
        }
        let (paced, slice) = match pacing {
            Pacing::UpTo(pacing) => (true, pacing.min(sizer.slice)),
            _ => (false, sizer.slice),
        };
        let Some(frame) = link.queue.pop(slice, link.activity.now().as_micros() as u64) else {
            rest(context, link, io, &mut gathered, &mut gathered_parts, std::future::pending()).await?;
            continue;
        };
        let Outgoing { class, head, body, slice, completes, last } = frame;
        let len = head.as_slice().len() + body.len();
        link.limit.sent(class, len);
        if class == Class::Urgent {
            context.urgent.note();
        } else if slice && paced {
            link.pacer().spend(len, link.activity.now());
        }
        count(context, link, len, if slice { body.len() } else { 0 });
        if len <= SMALL {
            gathered.extend_from_slice(head.as_slice());
            gathered.extend_from_slice(&body);
            gathered_parts.extend(completes);
            if gathered.len() >= GATHER || last {
                flush_gathered(context, link, io, &mut gathered, &mut gathered_parts).await?;
            }
        } else {
            flush_gathered(context, link, io, &mut gathered, &mut gathered_parts).await?;
            let began = Instant::now();
            io.write_all_buf(&mut head.as_slice().chain(body)).await?;
            sizer.took(len, began.elapsed());
            if let Some((content, part)) = completes {
                context.emit(LinkEvent::Sent { node: link.node, content, part }).await;
            }
        }
        if last {
            return io.flush().await;
        }
    }
}

/// What the next slice must keep to.
enum Pacing {
    /// Nothing urgent is about, or there is no queue to share.
    Unlimited,
    /// It may go, but have at most so many bytes.
    UpTo(usize),
    /// It may not go yet.
    Until(tokio::time::Instant),
}

fn pace_bulk(context: &EndpointContext, link: &Link, class: Class) -> Pacing {
    if class <= Class::Urgent || !link.limit.through_uplink() || !context.urgent.is_recent() {
        return Pacing::Unlimited;
    }
    let now = link.activity.now();
    let mut pacer = link.pacer();
    if let Some(opens) = pacer.opens_at(now) {
        return Pacing::Until(tokio::time::Instant::now() + (opens - now));
    }
    let (slice, asks) = (pacer.slice(), pacer.asks(now));
    drop(pacer);
    if asks {
        // It goes before the slice, and measures what was there without it.
        link.queue.ping();
    }
    Pacing::UpTo(slice)
}

/// Writes out what was gathered, then waits for `until`, or for something to be queued: it may be more urgent.
async fn rest(
    context: &EndpointContext,
    link: &Link,
    io: &mut (impl AsyncWrite + Unpin),
    gathered: &mut Vec<u8>,
    parts: &mut Vec<(ContentId, Part)>,
    until: impl Future<Output = ()>,
) -> std::io::Result<()> {
    flush_gathered(context, link, io, gathered, parts).await?;
    io.flush().await?;
    tokio::select! {
        () = until => {}
        () = link.queue.wait() => {}
    }
    Ok(())
}

async fn flush_gathered(
    context: &EndpointContext,
    link: &Link,
    io: &mut (impl AsyncWrite + Unpin),
    gathered: &mut Vec<u8>,
    parts: &mut Vec<(ContentId, Part)>,
) -> std::io::Result<()> {
    if gathered.is_empty() {
        return Ok(());
    }
    io.write_all(gathered).await?;
    gathered.clear();
    for (content, part) in parts.drain(..) {
        context.emit(LinkEvent::Sent { node: link.node, content, part }).await;
    }
    Ok(())
}

fn count(context: &EndpointContext, link: &Link, bytes: usize, payload: usize) {
    link.activity.said();
    if payload > 0 {
        link.activity.note_payload();
    }
    for counters in [&link.counters, &context.counters.links] {
        counters.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
        counters.payload_out.fetch_add(payload as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_follow_the_link() {
        let mut sizer = SliceSizer { slice: SLICE_MAX };
        // 1 MB/s: 5 ms take 5 KB, less than the shortest.
        (0..8).for_each(|_| sizer.took(sizer.slice, Duration::from_micros(sizer.slice as u64)));
        assert_eq!(sizer.slice, SLICE_MIN);
        // 10 MB/s.
        (0..16).for_each(|_| sizer.took(sizer.slice, Duration::from_micros(sizer.slice as u64 / 10)));
        assert!((48_000..=52_000).contains(&sizer.slice), "{}", sizer.slice);
        // At once.
        (0..16).for_each(|_| sizer.took(sizer.slice, Duration::ZERO));
        assert!(sizer.slice > SLICE_MAX * 9 / 10, "{}", sizer.slice);
    }
}
