//! Writes a link's queue: small frames gathered, slices straight from the payload.
//!
//! Invariant: frames are written whole and in the order the queue gives them; `Bye` is the last.

use super::link::Link;
use super::queue::Outgoing;
use super::{BulkEvent, shared::Shared};
use bytes::Buf;
use shoal_proto::announcement::Class;
use shoal_proto::frame::Part;
use shoal_proto::ids::ContentId;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Frames up to this many bytes are gathered before they are written.
const SMALL: usize = 2 * 1024;
/// What is gathered goes out at this length, bytes: one TLS record.
const GATHER: usize = 16 * 1024;

/// Writes until `Bye` is out, or the connection fails.
pub(super) async fn run(shared: &Shared, link: &Link, io: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut gathered = Vec::new();
    let mut gathered_parts = Vec::new();
    loop {
        let class = link.queue.next_slice_class();
        if let Some(wait) = class.and_then(|class| link.limit.must_wait(class)) {
            flush_gathered(shared, link, io, &mut gathered, &mut gathered_parts).await?;
            io.flush().await?;
            // Something more urgent may come meanwhile.
            tokio::select! {
                () = wait => {}
                () = link.queue.wait() => {}
            }
            continue;
        }
        let Some(frame) = link.queue.pop() else {
            flush_gathered(shared, link, io, &mut gathered, &mut gathered_parts).await?;
            io.flush().await?;
            link.queue.wait().await;
            continue;
        };
        let Outgoing { head, body, slice, completes, last } = frame;
        let len = head.as_slice().len() + body.len();
        link.limit.sent(class.unwrap_or(Class::Control), len);
        count(shared, link, len, if slice { body.len() } else { 0 });
        if len <= SMALL {
            gathered.extend_from_slice(head.as_slice());
            gathered.extend_from_slice(&body);
            gathered_parts.extend(completes);
            if gathered.len() >= GATHER || last {
                flush_gathered(shared, link, io, &mut gathered, &mut gathered_parts).await?;
            }
        } else {
            flush_gathered(shared, link, io, &mut gathered, &mut gathered_parts).await?;
            io.write_all_buf(&mut head.as_slice().chain(body)).await?;
            if let Some((content, part)) = completes {
                shared.emit(BulkEvent::Sent { node: link.node, content, part }).await;
            }
        }
        if last {
            return io.flush().await;
        }
    }
}

async fn flush_gathered(
    shared: &Shared,
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
        shared.emit(BulkEvent::Sent { node: link.node, content, part }).await;
    }
    Ok(())
}

fn count(shared: &Shared, link: &Link, bytes: usize, payload: usize) {
    for counters in [&link.counters, &shared.counters.links] {
        counters.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
        counters.payload_out.fetch_add(payload as u64, Ordering::Relaxed);
    }
}
