//! One content while the store is open: its files, its pieces, its flags.
//!
//! Invariant: a piece is marked only after the disk has the bytes that the manifest says. At a start, the store trusts
//! a folder that the database calls complete, and hashes every other folder.

use crate::erasure::{ErasureCode, ReedSolomonCode};
use crate::errors::BeginError;
use crate::layout::{Layout, OpenFiles, stream_path};
use crate::lock::lock;
use crate::stored_parity::{RackShare, StoredParity, StoredShare};
use crate::tables::Tables;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{DecodeError, Document, decode_exact};
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Hash, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::manifest::Manifest;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// Parity shards kept in memory for one content, until its stripes are decoded.
const PARITY_CACHED_MAX: usize = 64;

/// What the database has of a content. The field numbers are on disk.
#[derive(Clone, Debug, Default, Encode, Decode)]
pub(crate) struct ContentState {
    #[n(0)]
    complete: bool,
    #[n(1)]
    pinned: bool,
    /// The last use, Unix seconds.
    #[n(2)]
    used_at: u64,
    /// When the content became complete, Unix seconds.
    #[n(3)]
    #[cbor(default)]
    completed_at: u64,
    /// The sequence of the newest announcement that named the content.
    #[n(4)]
    #[cbor(default)]
    sequence: u64,
    #[n(5)]
    share: Option<RackShare>,
}

/// Orders the contents of one name. The newest is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age {
    sequence: u64,
    completed_at: u64,
    id: ContentId,
}

/// A parity shard in memory.
pub(crate) struct CachedParity {
    pub(crate) row: usize,
    pub(crate) bytes: Bytes,
}

/// An open content.
pub(crate) struct Content {
    pub(crate) id: ContentId,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) geometry: Geometry,
    pub(crate) layout: Layout,
    pub(crate) code: Box<dyn ErasureCode>,
    pub(crate) dir: PathBuf,
    /// Held while shares are made or dropped.
    pub(crate) sharing: Mutex<()>,
    have: Mutex<Bitmap>,
    /// Parity shards that arrived, by stripe and row.
    cached_parity: Mutex<BTreeMap<(StripeIndex, usize), Bytes>>,
    stored_parity: Mutex<StoredParity>,
    /// A version of a feed: the database does not know it.
    unindexed: AtomicBool,
    complete: AtomicBool,
    /// A write-out failed, so the disk may have other bytes than the pieces.
    write_failed: AtomicBool,
    pinned: AtomicBool,
    used_at: AtomicU64,
    completed_at: AtomicU64,
    sequence: AtomicU64,
    /// Bytes that rack shares take beside whole streams.
    share_bytes: AtomicU64,
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Content {
    /// Returns a content without pieces. Its files need not exist yet.
    pub(crate) fn new(
        dir: &Path,
        id: ContentId,
        manifest: Arc<Manifest>,
        opened: &Arc<OpenFiles>,
    ) -> Result<Self, DecodeError> {
        let geometry = manifest.geometry(&id)?;
        let layout = Layout::new(dir, &manifest, &geometry, opened.clone());
        let code = ReedSolomonCode::new(usize::from(geometry.data()), usize::from(geometry.parity()))
            .map_err(|error| DecodeError::invalid("stripe", error.to_string()))?;
        Ok(Self {
            id,
            have: Mutex::new(geometry.no_pieces()),
            manifest,
            geometry,
            layout,
            code: Box::new(code),
            dir: dir.to_path_buf(),
            sharing: Mutex::default(),
            cached_parity: Mutex::default(),
            stored_parity: Mutex::default(),
            unindexed: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            write_failed: AtomicBool::new(false),
            pinned: AtomicBool::new(false),
            used_at: AtomicU64::new(unix_now()),
            completed_at: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            share_bytes: AtomicU64::new(0),
        })
    }

    /// Opens a folder found at a start. Returns `None` if the folder's name or manifest is not that of a content.
    pub(crate) fn load(dir: &Path, tables: &Tables, opened: &Arc<OpenFiles>) -> Result<Option<Self>, BeginError> {
        let id = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(id) = id else { return Ok(None) };
        // The manifest is written last. Without it, the attempt did not get this far.
        let bytes = match fs::read(dir.join("manifest")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        if Manifest::id(&bytes) != id {
            return Ok(None);
        }
        let content = Self::new(dir, id, Arc::new(Manifest::from_bytes(&bytes)?), opened)?;
        let state = tables.contents.get(id.as_bytes())?;
        let state: ContentState = state.and_then(|value| decode_exact(&value).ok()).unwrap_or_default();
        content.pinned.store(state.pinned, Ordering::Relaxed);
        content.used_at.store(state.used_at, Ordering::Relaxed);
        content.completed_at.store(state.completed_at, Ordering::Relaxed);
        content.sequence.store(state.sequence, Ordering::Relaxed);
        match state.share {
            Some(share) => content.load_share(share)?,
            None => content.discard_share(),
        }
        if content.is_whole_dropped() {
            return Ok(Some(content));
        }
        if state.complete && content.layout.files_exist() {
            content.set_have(Bitmap::full(content.geometry.piece_count()));
            content.set_complete(true);
        } else {
            content.layout.create_files()?;
            (0..content.geometry.piece_count()).map(PieceIndex).for_each(|piece| content.recover_piece(piece));
        }
        Ok(Some(content))
    }

    /// Returns what the database should have of the content.
    pub(crate) fn state(&self) -> ContentState {
        ContentState {
            complete: self.is_complete(),
            pinned: self.is_pinned(),
            used_at: self.used_at(),
            completed_at: self.completed_at.load(Ordering::Relaxed),
            sequence: self.sequence.load(Ordering::Relaxed),
            share: lock(&self.stored_parity).share().cloned(),
        }
    }
}

/// Pieces.
impl Content {
    pub(crate) fn has(&self, piece: PieceIndex) -> bool {
        lock(&self.have).get(piece.0)
    }

    pub(crate) fn have(&self) -> Bitmap {
        lock(&self.have).clone()
    }

    pub(crate) fn set_have(&self, have: Bitmap) {
        *lock(&self.have) = have;
    }

    pub(crate) fn pieces_stored(&self) -> u32 {
        lock(&self.have).count()
    }

    pub(crate) fn pieces_missing(&self) -> u32 {
        self.geometry.piece_count() - self.pieces_stored()
    }

    /// Counts a piece as stored. Its bytes on the disk are right.
    pub(crate) fn mark(&self, piece: PieceIndex) {
        lock(&self.have).set(piece.0);
    }

    /// Counts a piece as missing. The content stops being complete.
    pub(crate) fn unmark(&self, piece: PieceIndex) {
        lock(&self.have).unset(piece.0);
        self.set_complete(false);
    }

    /// Returns whether a piece on the disk has the manifest's hash.
    pub(crate) fn is_intact(&self, piece: PieceIndex) -> bool {
        self.layout.read(piece).is_ok_and(|bytes| Hash::of(&bytes) == self.manifest.piece_hash(piece))
    }

    fn recover_piece(&self, piece: PieceIndex) {
        if self.is_intact(piece) {
            self.mark(piece);
        }
    }

    /// Returns the payload bytes of some pieces.
    pub(crate) fn bytes_of(&self, pieces: &Bitmap) -> u64 {
        pieces.iter().map(|piece| u64::from(self.geometry.piece_len(PieceIndex(piece)))).sum()
    }

    /// Keeps a parity shard in memory until its stripe is decoded. Drops it if too many wait.
    pub(crate) fn cache_parity(&self, shard: ShardIndex, bytes: Bytes) {
        let Some((stripe, row)) = self.parity_row(shard) else { return };
        let mut parity = lock(&self.cached_parity);
        if parity.len() < PARITY_CACHED_MAX {
            parity.insert((stripe, row), bytes);
        }
    }

    /// Removes the cached parity rows of a stripe from memory and returns them.
    pub(crate) fn take_cached_parity(&self, stripe: StripeIndex) -> Vec<CachedParity> {
        let mut parity = lock(&self.cached_parity);
        let rows: Vec<usize> = parity.range((stripe, 0)..=(stripe, usize::MAX)).map(|((_, row), _)| *row).collect();
        rows.into_iter().filter_map(|row| Some(CachedParity { row, bytes: parity.remove(&(stripe, row))? })).collect()
    }

    /// Returns the stripe and the parity row of a parity shard.
    pub(crate) fn parity_row(&self, shard: ShardIndex) -> Option<(StripeIndex, usize)> {
        let (stripe, place) = self.geometry.split(shard).filter(|_| self.geometry.is_parity(shard))?;
        Some((stripe, place as usize - usize::from(self.geometry.data())))
    }
}

/// Flags and times.
impl Content {
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Acquire and release order this flag with the bitmap, which another thread reads right after it.
    pub(crate) fn set_complete(&self, complete: bool) {
        self.complete.store(complete, Ordering::Release);
    }

    /// Notes that the content became complete now.
    pub(crate) fn stamp_completed(&self) {
        self.touch();
        self.completed_at.store(unix_now(), Ordering::Relaxed);
    }

    pub(crate) fn is_unindexed(&self) -> bool {
        self.unindexed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unindexed(&self) {
        self.unindexed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_write_failed(&self) -> bool {
        self.write_failed.load(Ordering::Acquire)
    }

    pub(crate) fn set_write_failed(&self) {
        self.write_failed.store(true, Ordering::Release);
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    pub(crate) fn set_pinned(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Relaxed);
    }

    pub(crate) fn used_at(&self) -> u64 {
        self.used_at.load(Ordering::Relaxed)
    }

    /// Notes a use of the content, which delays its eviction.
    pub(crate) fn touch(&self) {
        self.used_at.store(unix_now(), Ordering::Relaxed);
    }

    /// Notes the sequence of an announcement. Lower sequences than before change nothing.
    pub(crate) fn raise_sequence(&self, sequence: u64) {
        self.sequence.fetch_max(sequence, Ordering::Relaxed);
    }

    pub(crate) fn age(&self) -> Age {
        Age {
            sequence: self.sequence.load(Ordering::Relaxed),
            completed_at: self.completed_at.load(Ordering::Relaxed),
            id: self.id,
        }
    }

    /// Returns whether the content may be evicted. Unfinished contents stay.
    pub(crate) fn is_evictable(&self) -> bool {
        (self.is_complete() || self.is_whole_dropped()) && !self.is_pinned()
    }
}

/// Rack shares.
impl Content {
    pub(crate) fn parity_path(&self) -> PathBuf {
        self.dir.join("parity")
    }

    /// Returns the parity file's table. No other lock of the content is taken while it is held.
    pub(crate) fn stored_parity(&self) -> std::sync::MutexGuard<'_, StoredParity> {
        lock(&self.stored_parity)
    }

    /// Returns whether only rack shares of the content are left.
    pub(crate) fn is_whole_dropped(&self) -> bool {
        self.stored_parity().share().is_some_and(|share| share.whole_dropped)
    }

    pub(crate) fn stored_share(&self) -> Option<StoredShare> {
        self.stored_parity().stored_share()
    }

    pub(crate) fn share_bytes(&self) -> u64 {
        self.share_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_share_bytes(&self, bytes: u64) {
        self.share_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_share_bytes(&self, bytes: u64) {
        self.share_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns how many bytes the parity shards on the disk take.
    pub(crate) fn parity_bytes(&self) -> u64 {
        self.stored_parity().bytes(&self.geometry)
    }

    /// Returns the shards that a rack share's placements give to this host.
    pub(crate) fn shards_of(&self, share: &RackShare) -> Vec<ShardIndex> {
        share.placements.iter().flat_map(|placement| placement.share(&self.geometry, share.me)).collect()
    }

    /// Returns the bytes of a parity shard that is on the disk. `None` if it is not.
    pub(crate) fn read_parity(&self, stripe: StripeIndex, row: usize) -> Option<io::Result<Vec<u8>>> {
        let mut parity = self.stored_parity();
        if !parity.has(stripe, row) {
            return None;
        }
        let offset = parity.offset(&self.geometry, stripe, row);
        drop(parity);
        Some(self.read_parity_at(stripe, offset))
    }

    fn read_parity_at(&self, stripe: StripeIndex, offset: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.geometry.parity_len(stripe) as usize];
        File::open(self.parity_path())?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Drops the rack shares, because the content is whole again.
    pub(crate) fn discard_share(&self) {
        self.stored_parity().clear();
        let _ = fs::remove_file(self.parity_path()); // most contents have none; an unfinished share may have left one
        self.set_share_bytes(0);
    }

    /// Finds out at a start which shards are there of a share that the database has.
    fn load_share(&self, share: RackShare) -> io::Result<()> {
        self.finish_stream_exchange(&share)?;
        for shard in self.shards_of(&share) {
            match (self.parity_row(shard), self.geometry.piece_of(shard)) {
                (Some((stripe, row)), _) => {
                    let offset = self.stored_parity().offset(&self.geometry, stripe, row);
                    let expected = self.manifest.shard_hash(&self.geometry, shard);
                    if self.read_parity_at(stripe, offset).is_ok_and(|bytes| expected == Some(Hash::of(&bytes))) {
                        self.stored_parity().mark(stripe, row);
                    }
                }
                (None, Some(piece)) if share.whole_dropped => self.recover_piece(piece),
                _ => {}
            }
        }
        let pieces = if share.whole_dropped { self.bytes_of(&self.have()) } else { 0 };
        self.set_share_bytes(pieces + self.parity_bytes());
        self.stored_parity().set_share(Some(share));
        Ok(())
    }

    /// Finishes or undoes an exchange of streams for sparse copies that a stop interrupted. The database decides which.
    fn finish_stream_exchange(&self, share: &RackShare) -> io::Result<()> {
        for stream in 0..self.manifest.streams.len() {
            let copy = self.dir.join(format!("stream-{stream}.share"));
            if share.whole_dropped && copy.exists() {
                fs::rename(copy, stream_path(&self.dir, stream))?;
            } else if !share.whole_dropped {
                let _ = fs::remove_file(copy); // there is one only if a stop came at the wrong moment
            }
        }
        Ok(())
    }
}
