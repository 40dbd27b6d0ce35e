//! The thread that checks hashes, decodes stripes, and hands pieces to the writing thread.
//!
//! One thread of its own takes half the processor time of a pool of blocking tasks. It reports a shard as soon as the
//! hash is right, before the write, so that the host forwards the shard even while the disk stalls.
//! Invariant: a piece that was reported and is not yet written is in the shard cache.

use crate::config::StoreEvent;
use crate::content::{CachedParity, Content};
use crate::erasure::{ParityRow, RebuiltPiece};
use crate::inner::Inner;
use crate::writer::WriteJob;
use bytes::Bytes;
use shoal_proto::ids::{Hash, PieceIndex, ShardIndex, StripeIndex};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

/// Work for the verifying thread.
pub(crate) enum VerifyJob {
    /// A shard that arrived. `token` comes back in the event.
    Shard { content: Arc<Content>, shard: ShardIndex, payload: Bytes, token: u64 },
    /// A stripe to decode.
    Rebuild { content: Arc<Content>, stripe: StripeIndex },
    /// Dropped once everything before it is verified and written.
    Barrier(SyncSender<()>),
    /// The store closes.
    Stop,
}

pub(crate) fn run(inner: &Inner, queue: &Receiver<VerifyJob>, writes: &SyncSender<WriteJob>) {
    let verifier = Verifier { inner, writes };
    for job in queue {
        match job {
            VerifyJob::Shard { content, shard, payload, token } => verifier.check(&content, shard, payload, token),
            VerifyJob::Rebuild { content, stripe } => verifier.rebuild(&content, stripe),
            VerifyJob::Barrier(done) => verifier.write(WriteJob::Barrier(done)),
            VerifyJob::Stop => return,
        }
    }
}

struct Verifier<'a> {
    inner: &'a Inner,
    writes: &'a SyncSender<WriteJob>,
}

impl Verifier<'_> {
    fn check(&self, content: &Arc<Content>, shard: ShardIndex, payload: Bytes, token: u64) {
        let expected = content.manifest.shard_hash(&content.geometry, shard);
        if expected != Some(Hash::of(&payload)) {
            self.inner.report(StoreEvent::Corrupt { content: content.id, shard, token });
            return;
        }
        let verified = StoreEvent::Verified { content: content.id, shard, token };
        match content.geometry.piece_of(shard) {
            Some(piece) if !content.has(piece) => {
                self.inner.cache.insert((content.id, shard), payload.clone());
                self.inner.report(verified);
                self.write(WriteJob::Piece { content: content.clone(), piece, payload });
            }
            Some(_) => self.inner.report(verified),
            None => {
                content.cache_parity(shard, payload);
                self.inner.report(verified);
            }
        }
    }

    /// Hands work to the writing thread. Waits while that thread's queue is full.
    fn write(&self, job: WriteJob) {
        let _ = self.writes.send(job); // the writing thread ends only after this one
    }

    /// Returns a piece of the content, written or not.
    fn stored_piece(&self, content: &Content, piece: PieceIndex) -> Option<Bytes> {
        let key = (content.id, content.geometry.shard_of(piece));
        // The cache comes first: a piece leaves the cache only after it is on the disk.
        let cached = self.inner.cache.get(&key);
        cached.or_else(|| if content.has(piece) { content.layout.read(piece).ok().map(Bytes::from) } else { None })
    }

    fn rebuild(&self, content: &Arc<Content>, stripe: StripeIndex) {
        let geometry = &content.geometry;
        let range = geometry.stripe_pieces(stripe).map(PieceIndex);
        let lens: Vec<usize> = range.clone().map(|piece| geometry.piece_len(piece) as usize).collect();
        let stored: Vec<Option<Bytes>> = range.map(|piece| self.stored_piece(content, piece)).collect();
        let pieces: Vec<Option<&[u8]>> = stored.iter().map(Option::as_deref).collect();
        let mut parity = content.take_cached_parity(stripe);
        // The table's lock ends here, because `read_parity` takes it again.
        let stored_rows = content.stored_parity().rows_of(stripe);
        for row in stored_rows {
            if parity.iter().all(|other| other.row != row)
                && let Some(Ok(bytes)) = content.read_parity(stripe, row)
            {
                parity.push(CachedParity { row, bytes: bytes.into() });
            }
        }
        let rows: Vec<ParityRow<'_>> =
            parity.iter().map(|parity| ParityRow { row: parity.row, bytes: &parity.bytes }).collect();
        let mut shards = Vec::new();
        match content.code.rebuild(&lens, &pieces, &rows) {
            Ok(rebuilt) => {
                let first = stripe.0 * u32::from(geometry.data());
                for RebuiltPiece { place, bytes } in rebuilt {
                    let piece = PieceIndex(first + place as u32);
                    // All inputs were verified, so this differs only if a piece on the disk changed afterwards.
                    if content.manifest.piece_hash(piece) == Hash::of(&bytes) {
                        let (shard, payload) = (geometry.shard_of(piece), Bytes::from(bytes));
                        self.inner.cache.insert((content.id, shard), payload.clone());
                        self.write(WriteJob::Piece { content: content.clone(), piece, payload });
                        shards.push(shard);
                    }
                }
            }
            Err(error) => tracing::debug!(content = %content.id.short(), %stripe, %error, "cannot rebuild a stripe"),
        }
        self.inner.report(StoreEvent::Rebuilt { content: content.id, stripe, shards });
    }
}
