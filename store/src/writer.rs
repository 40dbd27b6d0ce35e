//! The store's thread: checks hashes, writes pieces, decodes stripes.
//!
//! A dedicated thread with positioned writes costs half the processor time of a pool of blocking tasks. A shard is
//! reported as soon as its hash is right, before it is written: it can be sent on meanwhile.
//! Invariant: a piece is counted as here only once it is written; until then it is in the hot cache.

use crate::store::{Content, Inner, StoreEvent};
use bytes::Bytes;
use shoal_proto::ids::{Hash, PieceIndex, ShardIndex, StripeIndex};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

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

pub(crate) fn run(inner: &Inner, queue: &Receiver<Work>) {
    for work in queue {
        match work {
            Work::Put { content, shard, payload, token } => put(inner, &content, shard, payload, token),
            Work::Rebuild { content, stripe } => rebuild(inner, &content, stripe),
            Work::Barrier(done) => drop(done),
            Work::Stop => return,
        }
    }
}

fn put(inner: &Inner, content: &Content, shard: ShardIndex, payload: Bytes, token: u64) {
    let expected = content.manifest.shard_hash(&content.geometry, shard);
    if expected != Some(Hash::of(&payload)) {
        inner.tell(StoreEvent::Corrupt { content: content.id, shard, token });
        return;
    }
    match content.geometry.piece_of(shard) {
        Some(piece) => {
            let fresh = !content.has(piece);
            if fresh {
                inner.hot().insert((content.id, shard), payload.clone());
            }
            inner.tell(StoreEvent::Verified { content: content.id, shard, token });
            if fresh {
                write(inner, content, piece, &payload);
            }
        }
        None => {
            content.keep_parity(shard, payload);
            inner.tell(StoreEvent::Verified { content: content.id, shard, token });
        }
    }
}

fn write(inner: &Inner, content: &Content, piece: PieceIndex, payload: &[u8]) -> bool {
    match content.layout.write(piece, payload) {
        Ok(()) => {
            content.mark(piece);
            true
        }
        Err(error) => {
            inner.tell(StoreEvent::WriteFailed { content: content.id, error: error.to_string() });
            false
        }
    }
}

fn rebuild(inner: &Inner, content: &Content, stripe: StripeIndex) {
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
                if content.manifest.piece_hash(piece) == Hash::of(&bytes) && write(inner, content, piece, &bytes) {
                    let shard = geometry.shard_of(piece);
                    inner.hot().insert((content.id, shard), bytes.into());
                    made.push(shard);
                }
            }
        }
        Err(error) => tracing::debug!(content = %content.id.short(), %stripe, %error, "cannot rebuild"),
    }
    inner.tell(StoreEvent::Rebuilt { content: content.id, stripe, shards: made });
}
