//! Shares of demoted contents: some of the pieces and some of the parity, in place of the whole.
//!
//! Parity lies in a file of its own beside the streams, sparse, each shard at the place it would have if all were there.
//! What is let go is let go by putting sparse copies in the streams' places, since other names may point at the files
//! themselves.
//! Invariant: a share is durable before it counts as made, and the streams are exchanged only after the index says so:
//! whenever the process ends, either the whole is here or every shard of every share made.

use crate::layout::stream_path;
use crate::store::{BeginError, Content, Store, lock};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use shoal_kv::KvError;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, Hash, HostIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::rack_placement::RackPlacement;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Which shares of a content are here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RackShare {
    /// Who we are in the placements.
    #[n(0)]
    pub me: HostIndex,
    /// The placements whose shares are here.
    #[n(1)]
    pub placements: Vec<RackPlacement>,
    /// The whole is gone.
    #[n(2)]
    pub whole_dropped: bool,
}

/// A share as found at start.
#[derive(Clone, Debug)]
pub struct StoredShare {
    /// The share.
    pub share: RackShare,
    /// Parity shards here, a bit a row.
    pub parity: BTreeMap<StripeIndex, u32>,
}

/// Why a share is not made, or the whole not let go. The content is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RackShareError {
    /// No such content, or it is not whole.
    #[error("it is not whole here")]
    NotWhole,
    /// A piece on the disk is not what it was.
    #[error("stripe {0} is damaged on the disk")]
    Damaged(StripeIndex),
    /// There is no room beside what is to go.
    #[error("{0}")]
    Room(BeginError),
    /// The disk failed.
    #[error("disk: {0}")]
    Io(#[from] io::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] KvError),
}

/// Parity of a content that is on the disk.
#[derive(Debug, Default)]
pub(crate) struct StoredParity {
    pub(crate) share: Option<RackShare>,
    /// A bit a row.
    parity: BTreeMap<StripeIndex, u32>,
    /// Where each stripe's parity begins in the file; made when it is first needed.
    offsets: Option<Box<[u64]>>,
}

impl StoredParity {
    fn place(&mut self, content: &Content, stripe: StripeIndex, row: usize) -> u64 {
        let geometry = &content.geometry;
        let offsets = self.offsets.get_or_insert_with(|| {
            let mut end = 0;
            let stripes = (0..geometry.stripe_count()).map(StripeIndex);
            let places = stripes.map(|stripe| {
                let len = u64::from(geometry.parity_len(stripe)) * u64::from(geometry.parity());
                end += len;
                end - len
            });
            places.collect()
        });
        offsets[stripe.index()] + row as u64 * u64::from(geometry.parity_len(stripe))
    }

    fn has(&self, stripe: StripeIndex, row: usize) -> bool {
        self.parity.get(&stripe).is_some_and(|rows| rows >> row & 1 == 1)
    }
}

impl Content {
    fn parity_path(&self) -> PathBuf {
        self.dir.join("parity")
    }

    fn row_of(&self, shard: ShardIndex) -> Option<(StripeIndex, usize)> {
        let (stripe, place) = self.geometry.split(shard).filter(|_| self.geometry.is_parity(shard))?;
        Some((stripe, place as usize - usize::from(self.geometry.data())))
    }

    /// A parity shard that is on the disk.
    pub(crate) fn read_parity(&self, stripe: StripeIndex, row: usize) -> Option<io::Result<Vec<u8>>> {
        let mut kept = lock(&self.kept);
        if !kept.has(stripe, row) {
            return None;
        }
        let at = kept.place(self, stripe, row);
        drop(kept);
        Some(self.read_parity_at(stripe, at))
    }

    fn read_parity_at(&self, stripe: StripeIndex, at: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.geometry.parity_len(stripe) as usize];
        File::open(self.parity_path())?.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Rows of a stripe's parity on the disk.
    pub(crate) fn parity_rows(&self, stripe: StripeIndex) -> Vec<usize> {
        let rows = lock(&self.kept).parity.get(&stripe).copied().unwrap_or(0);
        (0..32).filter(|row| rows >> row & 1 == 1).collect()
    }

    /// Only a share is here.
    pub(crate) fn is_whole_dropped(&self) -> bool {
        lock(&self.kept).share.as_ref().is_some_and(|share| share.whole_dropped)
    }

    fn parity_bytes(&self) -> u64 {
        let rows = |(stripe, rows): (&StripeIndex, &u32)| {
            u64::from(self.geometry.parity_len(*stripe)) * u64::from(rows.count_ones())
        };
        lock(&self.kept).parity.iter().map(rows).sum()
    }

    fn piece_bytes(&self, pieces: &Bitmap) -> u64 {
        pieces.iter().map(|piece| u64::from(self.geometry.piece_len(PieceIndex(piece)))).sum()
    }

    /// The content is whole again: its shares go.
    pub(crate) fn drop_share(&self) {
        let mut kept = lock(&self.kept);
        (kept.share, kept.parity) = (None, BTreeMap::new());
        drop(kept);
        // Also what a share left that was not made to its end.
        let _gone = fs::remove_file(self.parity_path());
        self.extra.store(0, Ordering::Relaxed);
    }

    fn dealt(&self, share: &RackShare) -> Vec<ShardIndex> {
        share.placements.iter().flat_map(|placement| placement.share(&self.geometry, share.me)).collect()
    }

    /// Finds out at start what is here of a share the index tells of.
    pub(crate) fn load_share(&self, share: RackShare) -> io::Result<()> {
        let unfinished = |stream: usize| self.dir.join(format!("stream-{stream}.share"));
        for stream in 0..self.manifest.streams.len() {
            let copy = unfinished(stream);
            if share.whole_dropped && copy.exists() {
                fs::rename(copy, stream_path(&self.dir, stream))?;
            } else if !share.whole_dropped {
                let _none = fs::remove_file(copy);
            }
        }
        for shard in self.dealt(&share) {
            match (self.row_of(shard), self.geometry.piece_of(shard)) {
                (Some((stripe, row)), _) => {
                    let at = lock(&self.kept).place(self, stripe, row);
                    let right = self
                        .read_parity_at(stripe, at)
                        .is_ok_and(|bytes| self.manifest.shard_hash(&self.geometry, shard) == Some(Hash::of(&bytes)));
                    if right {
                        *lock(&self.kept).parity.entry(stripe).or_default() |= 1 << row;
                    }
                }
                (None, Some(piece)) if share.whole_dropped => self.recover_piece(piece),
                _ => {}
            }
        }
        let pieces = if share.whole_dropped { self.piece_bytes(&lock(&self.have)) } else { 0 };
        self.extra.store(pieces + self.parity_bytes(), Ordering::Relaxed);
        lock(&self.kept).share = Some(share);
        Ok(())
    }

    /// The share as the driver wants to know it.
    pub(crate) fn found_share(&self) -> Option<StoredShare> {
        let kept = lock(&self.kept);
        Some(StoredShare { share: kept.share.clone()?, parity: kept.parity.clone() })
    }
}

impl Store {
    /// Makes our share of a placement durable beside the whole and beside earlier shares. Blocks while it codes and writes.
    pub fn make_share(&self, id: &ContentId, me: HostIndex, placement: &RackPlacement) -> Result<(), RackShareError> {
        let content = self.inner.content(id).filter(|content| content.is_complete()).ok_or(RackShareError::NotWhole)?;
        let _alone = lock(&content.sharing);
        let rows = placement.share(&content.geometry, me).filter_map(|shard| content.row_of(shard));
        let fresh: Vec<(StripeIndex, usize)> = {
            let kept = lock(&content.kept);
            rows.filter(|(stripe, row)| !kept.has(*stripe, *row)).collect()
        };
        let need = fresh.iter().map(|(stripe, _)| u64::from(content.geometry.parity_len(*stripe))).sum();
        let _room = self.reserve_if_free(need).map_err(RackShareError::Room)?;
        let path = content.parity_path();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        for group in fresh.chunk_by(|a, b| a.0 == b.0) {
            let stripe = group[0].0;
            let pieces = content.geometry.stripe_pieces(stripe).map(|piece| content.layout.read(PieceIndex(piece)));
            let pieces = pieces.collect::<io::Result<Vec<_>>>()?;
            let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            for (_, row) in group {
                let bytes = content.codec.parity(*row, &refs);
                let shard = content.geometry.shard_at(stripe, u32::from(content.geometry.data()) + *row as u32);
                if content.manifest.shard_hash(&content.geometry, shard) != Some(Hash::of(&bytes)) {
                    return Err(RackShareError::Damaged(stripe));
                }
                let at = lock(&content.kept).place(&content, stripe, *row);
                file.write_all_at(&bytes, at)?;
            }
        }
        file.sync_data()?;
        File::open(&content.dir)?.sync_all()?;
        let mut kept = lock(&content.kept);
        for (stripe, row) in fresh {
            *kept.parity.entry(stripe).or_default() |= 1 << row;
        }
        let share = kept.share.get_or_insert_with(RackShare::default);
        if share.me != me {
            *share = RackShare { me, ..RackShare::default() };
        }
        if !share.placements.contains(placement) {
            share.placements.push(placement.clone());
        }
        drop(kept);
        content.extra.fetch_add(need, Ordering::Relaxed);
        self.inner.save_state(&content)?;
        self.inner.index.sync()?;
        Ok(())
    }

    /// Lets go of everything but the shares made; gives the bytes that are left. Blocks.
    pub fn drop_whole(&self, id: &ContentId) -> Result<u64, RackShareError> {
        let content = self.inner.content(id).ok_or(RackShareError::NotWhole)?;
        let _alone = lock(&content.sharing);
        let share = lock(&content.kept).share.clone().ok_or(RackShareError::NotWhole)?;
        if !content.is_complete() && !share.whole_dropped {
            return Err(RackShareError::NotWhole);
        }
        let mut pieces = content.geometry.no_pieces();
        for piece in content.dealt(&share).into_iter().filter_map(|shard| content.geometry.piece_of(shard)) {
            // After a promotion that was taken back, some may be missing.
            if content.has(piece) {
                pieces.set(piece.0);
            }
        }
        let bytes = content.piece_bytes(&pieces);
        let room = self.reserve_if_free(bytes).map_err(RackShareError::Room)?;
        let copies = content.layout.copy_sparse(&pieces, "share")?;
        drop(room);
        content.complete.store(false, Ordering::Release);
        *lock(&content.have) = pieces;
        self.inner.cache.forget(id);
        lock(&self.inner.blobs).remove(&content);
        if let Some(share) = &mut lock(&content.kept).share {
            share.whole_dropped = true;
        }
        self.inner.save_state(&content)?;
        self.inner.index.sync()?;
        content.layout.release();
        for (copy, stream) in copies {
            fs::rename(copy, stream)?;
        }
        File::open(&content.dir)?.sync_all()?;
        content.layout.release();
        let left = bytes + content.parity_bytes();
        content.extra.store(left, Ordering::Relaxed);
        Ok(left)
    }

    /// Reserves what is missing of a content of which only a share is here: it is about to become whole. Gives the contents
    /// that had to go.
    pub fn reserve_rest(&self, id: &ContentId) -> Result<Vec<ContentId>, BeginError> {
        let Some(content) = self.inner.content(id).filter(|content| content.is_whole_dropped()) else {
            return Ok(Vec::new());
        };
        let _alone = lock(&content.sharing);
        let all = content.geometry.bytes() + content.parity_bytes();
        let need = all.saturating_sub(content.extra.load(Ordering::Relaxed));
        let (_room, evicted) = self.make_space_keeping(need, Some(id))?;
        content.layout.reserve()?;
        content.extra.store(all, Ordering::Relaxed);
        Ok(evicted)
    }

    /// The whole stays: shares made of it go.
    pub fn discard_share(&self, id: &ContentId) -> Result<(), KvError> {
        let Some(content) = self.inner.content(id).filter(|content| content.is_complete()) else { return Ok(()) };
        let _alone = lock(&content.sharing);
        content.drop_share();
        self.inner.save_state(&content)
    }

    /// Which shares of a content are here.
    pub fn rack_share(&self, id: &ContentId) -> Option<StoredShare> {
        self.inner.content(id)?.found_share()
    }

    /// A parity shard that is on the disk as part of a share.
    pub(crate) fn kept_parity(content: &Content, shard: ShardIndex) -> Option<io::Result<Bytes>> {
        let (stripe, row) = content.row_of(shard)?;
        content.read_parity(stripe, row).map(|read| read.map(Bytes::from))
    }
}
