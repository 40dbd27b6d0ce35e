//! The thread that writes verified pieces, and the thread that flushes them to the disk early.
//!
//! The flusher writes out the page cache while the rest of a content arrives. Otherwise every host would wait for its
//! disk at the same moment, at the end of a push. Both threads are apart from the verifier, which must go on while the
//! disk stalls: other hosts avoid a host that does not forward.
//! Invariant: a piece counts as stored only after it is written. Until then it is in the shard cache.

use crate::config::StoreEvent;
use crate::content::Content;
use crate::direct_io::BounceBuffer;
use crate::inner::Inner;
use bytes::Bytes;
use shoal_proto::ids::PieceIndex;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Pieces that wait to be written. The shard cache bounds their bytes.
const WRITE_QUEUE_MAX: usize = 512;
/// Bytes in the page cache before a flush. A larger value makes the flush at the end longer, a smaller one makes more
/// flushes in between.
const FLUSH_BYTES: usize = 16 * 1024 * 1024;

/// Work for the writing thread.
pub(crate) enum WriteJob {
    /// A verified piece, which is in the shard cache.
    Piece { content: Arc<Content>, piece: PieceIndex, payload: Bytes },
    /// Dropped once everything before it is written.
    Barrier(SyncSender<()>),
}

/// A stream to flush.
struct FlushJob {
    content: Arc<Content>,
    stream: usize,
}

/// Starts the writing thread. It ends when the queue's sender is dropped and the queue is empty.
pub(crate) fn start(inner: &Arc<Inner>) -> io::Result<(SyncSender<WriteJob>, JoinHandle<()>)> {
    let (queue, jobs) = sync_channel(WRITE_QUEUE_MAX);
    let inner = inner.clone();
    let thread = std::thread::Builder::new().name("store-write".into()).spawn(move || run(&inner, &jobs))?;
    Ok((queue, thread))
}

fn run(inner: &Inner, queue: &Receiver<WriteJob>) {
    // One flush runs and one waits. With a slow disk flushes become larger instead of more.
    let (flushes, due) = sync_channel::<FlushJob>(1);
    // `move` puts the sender into the closure, so that it is dropped before the scope waits for the flusher.
    std::thread::scope(move |scope| {
        let flusher = std::thread::Builder::new().name("store-flush".into());
        if let Err(error) = flusher.spawn_scoped(scope, move || flush(&due)) {
            tracing::warn!(%error, "cannot start the flushing thread; each content is flushed at its end");
        }
        let mut bounce = BounceBuffer::default();
        // Bytes in the page cache that no flush covers.
        let mut unflushed = 0;
        for job in queue {
            let (content, piece, payload) = match job {
                WriteJob::Piece { content, piece, payload } => (content, piece, payload),
                WriteJob::Barrier(done) => {
                    drop(done);
                    continue;
                }
            };
            let key = (content.id, content.geometry.shard_of(piece));
            match content.layout.write_direct(piece, &payload, &mut bounce) {
                Ok(cached) => {
                    content.mark(piece);
                    unflushed += cached;
                    if unflushed >= FLUSH_BYTES {
                        let stream = content.layout.stream_of(piece);
                        if flushes.try_send(FlushJob { content, stream }).is_ok() {
                            unflushed = 0;
                        }
                    }
                }
                Err(error) => {
                    inner.report(StoreEvent::WriteFailed { content: content.id, error: error.to_string() });
                }
            }
            inner.cache.on_written(&key, payload.len());
        }
    });
}

fn flush(due: &Receiver<FlushJob>) {
    for FlushJob { content, stream } in due {
        if let Err(error) = content.layout.sync_stream(stream) {
            // The kernel reports each error once, so the final sync would not see this one.
            tracing::warn!(content = %content.id.short(), %error, "cannot flush a stream to the disk");
            content.set_write_failed();
        }
    }
}
