//! The store's thread: checks hashes, decodes stripes, hands pieces to the thread that writes.
//!
//! A dedicated thread costs half the processor time of a pool of blocking tasks. A shard is reported as soon as its hash
//! is right, before it is written: it can be sent on meanwhile, also while the disk stands still.
//! Invariant: a piece reported here and not yet written is in the hot cache.

use crate::store::{Content, Inner, StoreEvent};
use crate::writer::Write;
use bytes::Bytes;
use shoal_proto::ids::{Hash, PieceIndex, ShardIndex, StripeIndex};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

/// Work for the thread.
pub(crate) enum Work {
    /// A shard that arrived.
    Shard { content: Arc<Content>, shard: ShardIndex, payload: Bytes, token: u64 },
    /// A stripe to decode.
    Rebuild { content: Arc<Content>, stripe: StripeIndex },
    /// Tells when everything before is done and written.
    Barrier(SyncSender<()>),
    /// The store closes.
    Stop,
}

pub(crate) fn run(inner: &Inner, queue: &Receiver<Work>, writes: &SyncSender<Write>) {
    let verifier = Verifier { inner, writes };
    for work in queue {
        match work {
            Work::Shard { content, shard, payload, token } => verifier.check(&content, shard, payload, token),
            Work::Rebuild { content, stripe } => verifier.rebuild(&content, stripe),
            Work::Barrier(done) => verifier.write(Write::Barrier(done)),
            Work::Stop => return,
        }
    }
}

struct Verifier<'a> {
    inner: &'a Inner,
    writes: &'a SyncSender<Write>,
}

impl Verifier<'_> {
    fn check(&self, content: &Arc<Content>, shard: ShardIndex, payload: Bytes, token: u64) {
        let expected = content.manifest.shard_hash(&content.geometry, shard);
        if expected != Some(Hash::of(&payload)) {
            self.inner.tell(StoreEvent::Corrupt { content: content.id, shard, token });
            return;
        }
        let verified = StoreEvent::Verified { content: content.id, shard, token };
        match content.geometry.piece_of(shard) {
            Some(piece) if !content.has(piece) => {
                self.inner.cache.insert((content.id, shard), payload.clone());
                self.inner.tell(verified);
                self.write(Write::Piece { content: content.clone(), piece, payload });
            }
            Some(_) => self.inner.tell(verified),
            None => {
                content.keep_parity(shard, payload);
                self.inner.tell(verified);
            }
        }
    }

    /// Waits where too much waits already.
    fn write(&self, write: Write) {
        // The thread ends only after this one.
        let _ = self.writes.send(write);
    }

    /// A piece of ours, written or not yet.
    fn held(&self, content: &Content, piece: PieceIndex) -> Option<Bytes> {
        let key = (content.id, content.geometry.shard_of(piece));
        // The cache first: what leaves it was written before.
        let hot = self.inner.cache.get(&key);
        hot.or_else(|| if content.has(piece) { content.layout.read(piece).ok().map(Bytes::from) } else { None })
    }

    fn rebuild(&self, content: &Arc<Content>, stripe: StripeIndex) {
        let geometry = &content.geometry;
        let first = stripe.0 * u32::from(geometry.data());
        let range = geometry.stripe_pieces(stripe).map(PieceIndex);
        let lens: Vec<usize> = range.clone().map(|piece| geometry.piece_len(piece) as usize).collect();
        let held: Vec<Option<Bytes>> = range.map(|piece| self.held(content, piece)).collect();
        let pieces: Vec<Option<&[u8]>> = held.iter().map(Option::as_deref).collect();
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
                    if content.manifest.piece_hash(piece) == Hash::of(&bytes) {
                        let (shard, payload) = (geometry.shard_of(piece), Bytes::from(bytes));
                        self.inner.cache.insert((content.id, shard), payload.clone());
                        self.write(Write::Piece { content: content.clone(), piece, payload });
                        made.push(shard);
                    }
                }
            }
            Err(error) => tracing::debug!(content = %content.id.short(), %stripe, %error, "cannot rebuild"),
        }
        self.inner.tell(StoreEvent::Rebuilt { content: content.id, stripe, shards: made });
    }
}
