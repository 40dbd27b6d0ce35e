//! The store's thread: checks hashes, writes pieces, decodes stripes.
//!
//! A dedicated thread with positioned writes costs half the processor time of a pool of blocking tasks. A shard is
//! reported as soon as its hash is right, before it is written: it can be sent on meanwhile.
//! A second thread has the disk take what was written while the rest still arrives: left to the end, a whole content would
//! wait for the disk at once, on every host at the same moment.
//! Invariant: a piece is counted as here only once it is written; until then it is in the hot cache.

use crate::store::{Content, Inner, StoreEvent};
use bytes::Bytes;
use shoal_proto::ids::{Hash, PieceIndex, ShardIndex, StripeIndex};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes written before the disk is to take them. More at a time means longer waits at the end, less more waits in between.
const FLUSH_BYTES: usize = 16 * 1024 * 1024;

/// Work for the thread.
pub(crate) enum Work {
    /// A shard that arrived.
    Put { content: Arc<Content>, shard: ShardIndex, payload: Bytes, token: u64 },
    /// A stripe to decode.
    Rebuild { content: Arc<Content>, stripe: StripeIndex },
    /// Tells when everything before is done.
    Barrier(SyncSender<()>),
    /// The store closes.
    Stop,
}

/// What the disk is to take: a content's stream.
type Flush = (Arc<Content>, usize);

/// The thread's own.
struct Writer<'a> {
    inner: &'a Inner,
    flushes: SyncSender<Flush>,
    /// Bytes written that no flush was asked for.
    unflushed: usize,
}

pub(crate) fn run(inner: &Inner, queue: &Receiver<Work>) {
    // One waits while one runs: with a slow disk they grow instead of queueing.
    let (flushes, due) = sync_channel::<Flush>(1);
    std::thread::scope(|scope| {
        let flusher = std::thread::Builder::new().name("store-flush".into());
        if let Err(error) = flusher.spawn_scoped(scope, move || flush(&due)) {
            tracing::warn!(%error, "no thread to write out early; contents are flushed when they are complete");
        }
        let mut writer = Writer { inner, flushes, unflushed: 0 };
        for work in queue {
            match work {
                Work::Put { content, shard, payload, token } => writer.put(&content, shard, payload, token),
                Work::Rebuild { content, stripe } => writer.rebuild(&content, stripe),
                Work::Barrier(done) => drop(done),
                Work::Stop => return,
            }
        }
    });
}

fn flush(due: &Receiver<Flush>) {
    for (content, stream) in due {
        if let Err(error) = content.layout.flush(stream) {
            // The kernel tells each error once: completing must not miss it.
            tracing::warn!(content = %content.id.short(), %error, "cannot write out");
            content.spoilt.store(true, Ordering::Release);
        }
    }
}

impl Writer<'_> {
    fn put(&mut self, content: &Arc<Content>, shard: ShardIndex, payload: Bytes, token: u64) {
        let expected = content.manifest.shard_hash(&content.geometry, shard);
        if expected != Some(Hash::of(&payload)) {
            self.inner.tell(StoreEvent::Corrupt { content: content.id, shard, token });
            return;
        }
        match content.geometry.piece_of(shard) {
            Some(piece) => {
                let fresh = !content.has(piece);
                if fresh {
                    self.inner.hot().insert((content.id, shard), payload.clone());
                }
                self.inner.tell(StoreEvent::Verified { content: content.id, shard, token });
                if fresh {
                    self.write(content, piece, &payload);
                }
            }
            None => {
                content.keep_parity(shard, payload);
                self.inner.tell(StoreEvent::Verified { content: content.id, shard, token });
            }
        }
    }

    fn write(&mut self, content: &Arc<Content>, piece: PieceIndex, payload: &[u8]) -> bool {
        match content.layout.write(piece, payload) {
            Ok(()) => {
                content.mark(piece);
                self.unflushed += payload.len();
                if self.unflushed >= FLUSH_BYTES
                    && self.flushes.try_send((content.clone(), content.layout.stream_of(piece))).is_ok()
                {
                    self.unflushed = 0;
                }
                true
            }
            Err(error) => {
                self.inner.tell(StoreEvent::WriteFailed { content: content.id, error: error.to_string() });
                false
            }
        }
    }

    fn rebuild(&mut self, content: &Arc<Content>, stripe: StripeIndex) {
        let geometry = &content.geometry;
        let first = stripe.0 * u32::from(geometry.data());
        let range = geometry.stripe_pieces(stripe);
        let lens: Vec<usize> = range.clone().map(|piece| geometry.piece_len(PieceIndex(piece)) as usize).collect();
        let held: Vec<Option<Vec<u8>>> = range
            .map(PieceIndex)
            .map(|piece| if content.has(piece) { content.layout.read(piece).ok() } else { None })
            .collect();
        let pieces: Vec<Option<&[u8]>> = held.iter().map(|piece| piece.as_deref()).collect();
        let mut parity = content.take_parity(stripe);
        for row in content.parity_rows(stripe) {
            if parity.iter().all(|(other, _)| *other != row)
                && let Some(Ok(bytes)) = content.read_parity(stripe, row)
            {
                parity.push((row, bytes.into()));
            }
        }
        let rows: Vec<(usize, &[u8])> = parity.iter().map(|(row, bytes)| (*row, &bytes[..])).collect();
        let mut made = Vec::new();
        match content.codec.rebuild(&lens, &pieces, &rows) {
            Ok(rebuilt) => {
                for (place, bytes) in rebuilt {
                    let piece = PieceIndex(first + place as u32);
                    // All inputs were verified, so this fails only if a piece on the disk was changed since.
                    if content.manifest.piece_hash(piece) == Hash::of(&bytes) && self.write(content, piece, &bytes) {
                        let shard = geometry.shard_of(piece);
                        self.inner.hot().insert((content.id, shard), bytes.into());
                        made.push(shard);
                    }
                }
            }
            Err(error) => tracing::debug!(content = %content.id.short(), %stripe, %error, "cannot rebuild"),
        }
        self.inner.tell(StoreEvent::Rebuilt { content: content.id, stripe, shards: made });
    }
}
