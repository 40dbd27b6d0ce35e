//! A content as the store has it while it runs: what is here of it, and what the index is to know.
//!
//! Invariant: a piece is marked only once its bytes are what the manifest says; a folder found at a start is believed
//! where the index calls it complete, and hashed where it does not.

use super::{BeginError, lock};
use crate::erasure::{ErasureCode, ReedSolomonCode};
use crate::layout::{Layout, OpenFiles};
use crate::rack_share::{RackShare, StoredParity};
use crate::tables::Tables;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{DecodeError, Document, decode_exact};
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Hash, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::manifest::Manifest;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// Parity shards kept in memory for one content.
const PARITY_KEPT: usize = 64;

/// What the index holds of a content.
#[derive(Clone, Debug, Default, Encode, Decode)]
pub(super) struct State {
    #[n(0)]
    complete: bool,
    #[n(1)]
    pinned: bool,
    #[n(2)]
    used_at: u64,
    /// When it became whole, Unix seconds.
    #[n(3)]
    #[cbor(default)]
    completed_at: u64,
    /// Of the newest announcement that named it.
    #[n(4)]
    #[cbor(default)]
    sequence: u64,
    /// Shares of it that are here.
    #[n(5)]
    share: Option<RackShare>,
}

/// A content, open.
pub(crate) struct Content {
    pub(crate) id: ContentId,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) geometry: Geometry,
    pub(crate) layout: Layout,
    pub(crate) codec: Box<dyn ErasureCode>,
    pub(crate) dir: PathBuf,
    /// A feed's version: not in the index.
    pub(super) unindexed: AtomicBool,
    pub(crate) have: Mutex<Bitmap>,
    parity: Mutex<BTreeMap<(StripeIndex, usize), Bytes>>,
    /// Parity on the disk.
    pub(crate) kept: Mutex<StoredParity>,
    /// Held while shares are made or dropped.
    pub(crate) sharing: Mutex<()>,
    pub(crate) complete: AtomicBool,
    /// Something written could not be written out: what is on the disk is not to be trusted.
    pub(crate) write_failed: AtomicBool,
    pub(crate) pinned: AtomicBool,
    pub(crate) used_at: AtomicU64,
    pub(super) completed_at: AtomicU64,
    pub(crate) sequence: AtomicU64,
    /// Bytes on the disk beside whole streams: of shares.
    pub(crate) extra: AtomicU64,
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Content {
    pub(super) fn new(
        dir: &Path,
        id: ContentId,
        manifest: Arc<Manifest>,
        opened: &Arc<OpenFiles>,
    ) -> Result<Self, BeginError> {
        let geometry = manifest.geometry(&id)?;
        let layout = Layout::new(dir, &manifest, &geometry, opened.clone());
        let codec = ReedSolomonCode::new(usize::from(geometry.data()), usize::from(geometry.parity()))
            .map_err(|error| DecodeError::invalid("stripe", error.to_string()))?;
        Ok(Self {
            id,
            have: Mutex::new(geometry.no_pieces()),
            extra: AtomicU64::new(0),
            manifest,
            geometry,
            layout,
            codec: Box::new(codec),
            dir: dir.to_path_buf(),
            unindexed: AtomicBool::new(false),
            parity: Mutex::default(),
            kept: Mutex::default(),
            sharing: Mutex::default(),
            complete: AtomicBool::new(false),
            write_failed: AtomicBool::new(false),
            pinned: AtomicBool::new(false),
            used_at: AtomicU64::new(unix_now()),
            completed_at: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
        })
    }

    /// A content's folder as found at start; `None` if it is no content, or one whose manifest was never finished.
    pub(super) fn load(dir: &Path, index: &Tables, opened: &Arc<OpenFiles>) -> Result<Option<Self>, BeginError> {
        let id = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(id) = id else { return Ok(None) };
        let bytes = match fs::read(dir.join("manifest")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        if Manifest::id(&bytes) != id {
            return Ok(None);
        }
        let content = Self::new(dir, id, Arc::new(Manifest::from_bytes(&bytes)?), opened)?;
        let state = index.contents.get(id.as_bytes())?;
        let state: State = state.and_then(|row| decode_exact(&row).ok()).unwrap_or_default();
        content.pinned.store(state.pinned, Ordering::Relaxed);
        content.used_at.store(state.used_at, Ordering::Relaxed);
        content.completed_at.store(state.completed_at, Ordering::Relaxed);
        content.sequence.store(state.sequence, Ordering::Relaxed);
        match state.share {
            Some(share) => content.load_share(share)?,
            None => content.drop_share(),
        }
        if content.is_whole_dropped() {
            return Ok(Some(content));
        }
        if state.complete && content.layout.is_there() {
            content.complete.store(true, Ordering::Release);
            *lock(&content.have) = Bitmap::full(content.geometry.piece_count());
        } else {
            content.layout.hold()?;
            content.recover();
        }
        Ok(Some(content))
    }

    pub(crate) fn has(&self, piece: PieceIndex) -> bool {
        lock(&self.have).get(piece.0)
    }

    pub(crate) fn mark(&self, piece: PieceIndex) {
        lock(&self.have).set(piece.0);
    }

    pub(crate) fn keep_parity(&self, shard: ShardIndex, bytes: Bytes) {
        let Some((stripe, place)) = self.geometry.split(shard) else { return };
        let row = place as usize - usize::from(self.geometry.data());
        let mut parity = lock(&self.parity);
        if parity.len() < PARITY_KEPT {
            parity.insert((stripe, row), bytes);
        }
    }

    pub(crate) fn take_parity(&self, stripe: StripeIndex) -> Vec<(usize, Bytes)> {
        let mut parity = lock(&self.parity);
        let rows: Vec<usize> = parity.range((stripe, 0)..=(stripe, usize::MAX)).map(|((_, row), _)| *row).collect();
        rows.into_iter().filter_map(|row| Some((row, parity.remove(&(stripe, row))?))).collect()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether it may be evicted.
    pub(crate) fn may_go(&self) -> bool {
        (self.is_complete() || self.is_whole_dropped()) && !self.pinned.load(Ordering::Relaxed)
    }

    pub(super) fn state(&self) -> State {
        State {
            complete: self.is_complete(),
            pinned: self.pinned.load(Ordering::Relaxed),
            used_at: self.used_at.load(Ordering::Relaxed),
            completed_at: self.completed_at.load(Ordering::Relaxed),
            sequence: self.sequence.load(Ordering::Relaxed),
            share: lock(&self.kept).share.clone(),
        }
    }

    pub(crate) fn touch(&self) {
        self.used_at.store(unix_now(), Ordering::Relaxed);
    }

    /// Orders the contents of one name: the newest is the greatest.
    pub(crate) fn age(&self) -> (u64, u64, ContentId) {
        (self.sequence.load(Ordering::Relaxed), self.completed_at.load(Ordering::Relaxed), self.id)
    }

    /// Finds out by hashing which pieces are on the disk.
    fn recover(&self) {
        (0..self.geometry.piece_count()).map(PieceIndex).for_each(|piece| self.recover_piece(piece));
    }

    pub(crate) fn recover_piece(&self, piece: PieceIndex) {
        if self.layout.read(piece).is_ok_and(|bytes| Hash::of(&bytes) == self.manifest.piece_hash(piece)) {
            self.mark(piece);
        }
    }
}
