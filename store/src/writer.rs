//! The thread that writes verified pieces, and one that has the disk take them early.
//!
//! The second has the disk take what is in the page cache while the rest still arrives: left to the end, a whole content
//! would wait for the disk at once, on every host at the same moment. Both are apart from verifying, which must go on while the
//! disk stands still: whoever does not forward is taken for gone.
//! Invariant: a piece is counted as here only once it is written; until then it is in the hot cache.

use crate::direct_io::Bounce;
use crate::store::{Content, Inner, StoreEvent};
use bytes::Bytes;
use shoal_proto::ids::PieceIndex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Pieces that wait to be written. Their bytes are bounded by the cache they are in.
const QUEUE: usize = 512;
/// Bytes written before the disk is to take them. More at a time means longer waits at the end, less more waits in between.
const FLUSH_BYTES: usize = 16 * 1024 * 1024;

/// Work for the thread.
pub(crate) enum Write {
    /// A piece that is right, and in the hot cache.
    Piece { content: Arc<Content>, piece: PieceIndex, payload: Bytes },
    /// Tells when everything before is written.
    Barrier(SyncSender<()>),
}

/// What the disk is to take: a content's stream.
type Flush = (Arc<Content>, usize);

/// Starts the thread. It writes what it was given and ends when the queue's other end is dropped.
pub(crate) fn start(inner: &Arc<Inner>) -> io::Result<(SyncSender<Write>, JoinHandle<()>)> {
    let (queue, work) = sync_channel(QUEUE);
    let inner = inner.clone();
    let thread = std::thread::Builder::new().name("store-write".into()).spawn(move || run(&inner, &work))?;
    Ok((queue, thread))
}

fn run(inner: &Inner, queue: &Receiver<Write>) {
    // One waits while one runs: with a slow disk they grow instead of queueing.
    let (flushes, due) = sync_channel::<Flush>(1);
    // Moved in, so that the sender goes before the flusher is waited for.
    std::thread::scope(move |scope| {
        let flusher = std::thread::Builder::new().name("store-flush".into());
        if let Err(error) = flusher.spawn_scoped(scope, move || flush(&due)) {
            tracing::warn!(%error, "no thread to write out early; contents are flushed when they are complete");
        }
        let mut bounce = Bounce::default();
        // Bytes in the page cache that no flush was asked for.
        let mut unflushed = 0;
        for write in queue {
            let (content, piece, payload) = match write {
                Write::Piece { content, piece, payload } => (content, piece, payload),
                Write::Barrier(done) => {
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
                        if flushes.try_send((content, stream)).is_ok() {
                            unflushed = 0;
                        }
                    }
                }
                Err(error) => {
                    inner.tell(StoreEvent::WriteFailed { content: content.id, error: error.to_string() });
                }
            }
            inner.cache.written(&key, payload.len());
        }
    });
}

fn flush(due: &Receiver<Flush>) {
    for (content, stream) in due {
        if let Err(error) = content.layout.flush(stream) {
            // The kernel tells each error once: completing must not miss it.
            tracing::warn!(content = %content.id.short(), %error, "cannot write out");
            content.write_failed.store(true, Ordering::Release);
        }
    }
}
