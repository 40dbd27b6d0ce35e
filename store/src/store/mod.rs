//! The store: contents by id, each a folder with its manifest and stream files.
//!
//! ```text
//! DIR/index/                   small records (sled)
//! DIR/contents/ID/manifest     the encoded manifest
//! DIR/contents/ID/stream-N     one file a stream, preallocated, pieces at their offsets
//! DIR/contents/ID/parity       parity shards of a demoted content's share, sparse
//! ```
//!
//! No bitmap is kept on disk: what an interrupted fetch left is found by hashing the stream files at restart, at several
//! GiB/s, which also finds what a loss of power garbled. Split by meaning: `content` is one of them while it is open,
//! [`versions`] those that are a feed's, [`errors`] what may go wrong.

mod content;
mod errors;
mod versions;

pub(crate) use content::Content;
use content::unix_now;
pub use errors::{BeginError, FinishError, OpenError, ReadError, SubmitError};
pub use versions::{VERSION_PIECE_BYTES_AVG, inline_manifest};

use crate::images::BlobPlaces;
use crate::ingest::IngestFolder;
use crate::layout::{OpenFiles, stream_path};
use crate::rack_share::StoredShare;
use crate::shard_cache::ShardCache;
use crate::tables::Tables;
use crate::verifier::{self, Work};
use crate::writer;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use shoal_kv::{Change, KvError};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{Document, encode};
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Hash, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::manifest::Manifest;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Work waiting for the thread, items. The payload in it is bounded by whoever receives it.
pub const SUBMIT_QUEUE_MAX: usize = 256;
/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Its folder; made if it is not there.
    pub dir: PathBuf,
    /// Bytes contents may take; no limit but the disk's when `None`.
    pub quota: Option<u64>,
    /// Bytes to leave free on the disk.
    pub min_free: u64,
    /// Bytes of arrived shards kept in memory until they are sent on.
    pub cache_bytes: usize,
    /// Bytes that were verified and wait for the disk, at most; further ones wait before they are verified.
    pub unwritten_bytes: usize,
    /// Long streams are written around the page cache, where the file system can. Faster but on spinning disks, whose
    /// writes the cache puts in order.
    pub direct_io: bool,
}

impl StoreConfig {
    /// In a folder, without quota or reserve, and with little memory: what tools and tests need.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            quota: None,
            min_free: 0,
            cache_bytes: 1 << 20,
            unwritten_bytes: 1 << 20,
            direct_io: true,
        }
    }
}

/// What the store's threads have to say. Told on those threads: do not block for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// The shard's hash is right; it can be read from now on.
    Verified {
        /// The content.
        content: ContentId,
        /// The shard.
        shard: ShardIndex,
        /// What `put` was given.
        token: u64,
    },
    /// The shard's hash is wrong, or there is no such shard; it was dropped.
    Corrupt {
        /// The content.
        content: ContentId,
        /// The shard.
        shard: ShardIndex,
        /// What `put` was given.
        token: u64,
    },
    /// A stripe was decoded as far as possible.
    Rebuilt {
        /// The content.
        content: ContentId,
        /// The stripe.
        stripe: StripeIndex,
        /// The data shards made.
        shards: Vec<ShardIndex>,
    },
    /// A piece could not be written.
    WriteFailed {
        /// The content.
        content: ContentId,
        /// Why.
        error: String,
    },
}

/// A content that can be fetched into.
#[derive(Debug)]
pub struct Begun {
    /// The content.
    pub content: ContentId,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Its shape.
    pub geometry: Geometry,
    /// Pieces that are here.
    pub have: Bitmap,
    /// Payload bytes copied from other contents.
    pub reused: u64,
    /// Contents that had to go.
    pub evicted: Vec<ContentId>,
}

/// A content found at start.
#[derive(Debug)]
pub struct StoredContent {
    /// The content.
    pub content: ContentId,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Its shape.
    pub geometry: Geometry,
    /// Pieces that are here.
    pub have: Bitmap,
    /// It is whole and durable.
    pub complete: bool,
    /// Shares of it that are here beside the whole, or instead of it.
    pub share: Option<StoredShare>,
}

/// Space taken and left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of contents.
    pub used: u64,
    /// Bytes they may take.
    pub quota: Option<u64>,
    /// Bytes free on the disk.
    pub free: u64,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Sink = Box<dyn Fn(StoreEvent) + Send + Sync>;

pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) index: Tables,
    pub(crate) contents: Mutex<BTreeMap<ContentId, Arc<Content>>>,
    pub(crate) blobs: Mutex<BlobPlaces>,
    /// Files that contents being begun share with others, inode and length: their room is taken.
    pub(crate) linked: Mutex<Vec<(u64, u64)>>,
    pub(crate) cache: ShardCache,
    sink: Sink,
    attempts: AtomicU64,
    opened: Arc<OpenFiles>,
    /// Bytes promised to contents that are being begun or taken in.
    pub(crate) promised: Mutex<u64>,
    /// Held while an ingest is taken over: two of one content must not meet.
    adopting: Mutex<()>,
}

impl Inner {
    pub(crate) fn tell(&self, event: StoreEvent) {
        (self.sink)(event);
    }

    pub(crate) fn content(&self, id: &ContentId) -> Option<Arc<Content>> {
        lock(&self.contents).get(id).cloned()
    }

    fn folder(&self, id: &ContentId) -> PathBuf {
        self.config.dir.join("contents").join(id.to_string())
    }

    pub(crate) fn save_state(&self, content: &Content) -> Result<(), KvError> {
        self.index.contents.put(content.id.0, encode(&content.state()))
    }
}

/// A store. Clones share it; the last one to go stops its threads.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    queue: SyncSender<Work>,
    /// Held for its `Drop`.
    _threads: Arc<Threads>,
}

struct Threads {
    queue: SyncSender<Work>,
    /// The one that verifies, then the one that writes, which ends when the first has.
    handles: Option<[JoinHandle<()>; 2]>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        let _ = self.queue.send(Work::Stop);
        for handle in self.handles.take().into_iter().flatten() {
            let _ = handle.join();
        }
    }
}

/// Where a piece with a known hash lies.
#[derive(Encode, Decode)]
pub(crate) struct PiecePlace {
    #[n(0)]
    pub(crate) content: ContentId,
    #[n(1)]
    pub(crate) piece: PieceIndex,
}

pub(crate) fn piece_key(hash: &Hash) -> Vec<u8> {
    hash.0[..16].to_vec()
}

impl Store {
    /// Opens or creates. What an earlier process left unfinished is hashed now.
    pub fn open(config: StoreConfig, sink: Sink) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { dir: config.dir.clone(), source };
        let folder = config.dir.join("contents");
        fs::create_dir_all(&folder).map_err(io)?;
        let index = Tables::open(&config.dir)?;
        let opened = Arc::new(OpenFiles::new(config.direct_io));
        let mut contents = BTreeMap::new();
        for item in fs::read_dir(&folder).map_err(io)? {
            let path = item.map_err(io)?.path();
            match Content::load(&path, &index, &opened) {
                Ok(Some(content)) => {
                    contents.insert(content.id, Arc::new(content));
                }
                Ok(None) => {
                    tracing::info!(path = %path.display(), "removed what an interrupted start left");
                    fs::remove_dir_all(&path).map_err(io)?;
                }
                // It may be whole: somebody has to look.
                Err(error) => tracing::error!(path = %path.display(), %error, "cannot open a content; left alone"),
            }
        }
        let inner = Arc::new(Inner {
            cache: ShardCache::new(config.cache_bytes, config.unwritten_bytes),
            config,
            index,
            blobs: Mutex::new(BlobPlaces::of(contents.values())),
            contents: Mutex::new(contents),
            linked: Mutex::default(),
            sink,
            attempts: AtomicU64::new(0),
            opened,
            promised: Mutex::default(),
            adopting: Mutex::default(),
        });
        let (queue, work) = sync_channel(SUBMIT_QUEUE_MAX);
        let start = || {
            let (writes, writer) = writer::start(&inner)?;
            let inner = inner.clone();
            let verify = std::thread::Builder::new().name("store".into());
            let verifier = verify.spawn(move || verifier::run(&inner, &work, &writes))?;
            Ok([verifier, writer])
        };
        let threads = start().map_err(|source| OpenError::Io { dir: inner.config.dir.clone(), source })?;
        Ok(Self { inner, _threads: Arc::new(Threads { queue: queue.clone(), handles: Some(threads) }), queue })
    }

    /// What is here, in order of id.
    pub fn contents(&self) -> Vec<StoredContent> {
        let record = |content: &Arc<Content>| StoredContent {
            content: content.id,
            manifest: content.manifest.clone(),
            geometry: content.geometry.clone(),
            have: lock(&content.have).clone(),
            complete: content.is_complete(),
            share: content.found_share(),
        };
        lock(&self.inner.contents).values().map(record).collect()
    }

    /// How many contents are here, whole or not.
    pub fn count(&self) -> usize {
        lock(&self.inner.contents).len()
    }

    /// Makes room and reserves it, takes over what other contents share. Blocks while it copies. A content that is here
    /// already is given as it is.
    pub fn begin(&self, manifest_bytes: &[u8]) -> Result<Begun, BeginError> {
        self.begin_as(manifest_bytes, None)
    }

    /// `version`: it is a feed's, and this is the former one.
    fn begin_as(&self, manifest_bytes: &[u8], version: Option<Option<ContentId>>) -> Result<Begun, BeginError> {
        let id = Manifest::id(manifest_bytes);
        if let Some(content) = self.inner.content(&id) {
            return Ok(self.begun(&content, 0, Vec::new()));
        }
        let manifest = Arc::new(Manifest::from_bytes(manifest_bytes)?);
        let dir = self.inner.folder(&id);
        let begun = (|| {
            fs::create_dir_all(&dir)?;
            let content = Content::new(&dir, id, manifest, &self.inner.opened)?;
            let linked = self.link_blobs(&content);
            let need = content.geometry.bytes() - linked.bytes() + manifest_bytes.len() as u64;
            let (_promise, evicted) = self.make_space(need)?;
            content.layout.hold().map_err(|error| would_not_fit(error, need, self.usage().free))?;
            content.unindexed.store(version.is_some(), Ordering::Relaxed);
            // The manifest comes last: a folder without one is an attempt that did not get this far.
            write_manifest(&dir, manifest_bytes, version.is_none())?;
            let reused = match version {
                None => linked.bytes() + self.copy_known_pieces(&content)?,
                Some(former) => former.map_or(Ok(0), |former| self.copy_pieces_from(&content, &former))?,
            };
            if version.is_none() {
                self.inner.save_state(&content)?;
            }
            let content = Arc::new(content);
            lock(&self.inner.contents).insert(id, content.clone());
            Ok(self.begun(&content, reused, evicted))
        })();
        begun.inspect_err(|_: &BeginError| {
            let _ = fs::remove_dir_all(&dir);
        })
    }

    fn begun(&self, content: &Content, reused: u64, evicted: Vec<ContentId>) -> Begun {
        Begun {
            content: content.id,
            manifest: content.manifest.clone(),
            geometry: content.geometry.clone(),
            have: lock(&content.have).clone(),
            reused,
            evicted,
        }
    }

    /// Hands a shard to the store's thread. `token` comes back in the event.
    pub fn submit_shard(
        &self,
        id: &ContentId,
        shard: ShardIndex,
        payload: Bytes,
        token: u64,
    ) -> Result<(), SubmitError> {
        let Some(content) = self.inner.content(id) else { return Err(SubmitError::Unknown) };
        match self.queue.try_send(Work::Shard { content, shard, payload, token }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(Work::Shard { payload, .. })) => Err(SubmitError::Full(payload)),
            Err(_) => Err(SubmitError::Unknown),
        }
    }

    /// Writes all of a content's pieces, given end to end. Pieces that do not fit their hash are left out. Blocks.
    pub fn write_all_pieces(&self, id: &ContentId, data: &[u8]) -> Result<(), ReadError> {
        let content = self.inner.content(id).ok_or(ReadError::NotHere)?;
        let mut at = 0;
        for piece in (0..content.geometry.piece_count()).map(PieceIndex) {
            let len = content.geometry.piece_len(piece) as usize;
            let Some(bytes) = data.get(at..at + len) else { return Err(ReadError::NotHere) };
            at += len;
            if !content.has(piece) && Hash::of(bytes) == content.manifest.piece_hash(piece) {
                content.layout.write(piece, bytes)?;
                content.mark(piece);
            }
        }
        Ok(())
    }

    /// How far into a block of the disk a shard's first byte lies, bytes: what begins there in memory is written without a
    /// copy. 0 where that does not matter.
    pub fn block_offset(&self, id: &ContentId, shard: ShardIndex) -> usize {
        let Some(content) = self.inner.content(id) else { return 0 };
        content.geometry.piece_of(shard).map_or(0, |piece| content.layout.block_offset(piece))
    }

    /// Asks the store's thread to decode a stripe from the pieces and parity shards that are here.
    pub fn rebuild(&self, id: &ContentId, stripe: StripeIndex) {
        if let Some(content) = self.inner.content(id) {
            // Waits where the queue is full: rebuilding is rare.
            let _ = self.queue.send(Work::Rebuild { content, stripe });
        }
    }

    /// A shard that arrived a moment ago, without touching the disk.
    pub fn read_cached(&self, id: &ContentId, shard: ShardIndex) -> Option<Bytes> {
        self.inner.cache.get(&(*id, shard))
    }

    /// Nobody is to be sent this shard any more: it needs no memory once it is written.
    pub fn release_from_cache(&self, id: &ContentId, shard: ShardIndex) {
        self.inner.cache.release(&(*id, shard));
    }

    /// A shard's bytes. A parity shard is made from its stripe. Blocks.
    pub fn read(&self, id: &ContentId, shard: ShardIndex) -> Result<Bytes, ReadError> {
        if let Some(bytes) = self.read_cached(id, shard) {
            return Ok(bytes);
        }
        let content = self.inner.content(id).ok_or(ReadError::NotHere)?;
        if let Some(piece) = content.geometry.piece_of(shard) {
            let read = if content.has(piece) { content.layout.read(piece)? } else { Vec::new() };
            // Looked at again: the whole may have been let go meanwhile.
            return if content.has(piece) { Ok(read.into()) } else { Err(ReadError::NotHere) };
        }
        if let Some(kept) = Self::kept_parity(&content, shard) {
            return Ok(kept?);
        }
        let (stripe, place) = content.geometry.split(shard).ok_or(ReadError::NotHere)?;
        let mut pieces = Vec::new();
        for piece in content.geometry.stripe_pieces(stripe).map(PieceIndex) {
            if !content.has(piece) {
                return Err(ReadError::NotHere);
            }
            pieces.push(content.layout.read(piece)?);
        }
        let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        Ok(content.codec.parity(place as usize - usize::from(content.geometry.data()), &refs).into())
    }

    /// The encoded manifest. Blocks.
    pub fn read_manifest(&self, id: &ContentId) -> Result<Bytes, ReadError> {
        let content = self.inner.content(id).ok_or(ReadError::NotHere)?;
        Ok(fs::read(content.dir.join("manifest"))?.into())
    }

    /// A content's manifest.
    pub fn manifest(&self, id: &ContentId) -> Option<Arc<Manifest>> {
        Some(self.inner.content(id)?.manifest.clone())
    }

    /// How many pieces of a content are here; `None` when it is not known.
    pub fn pieces_stored(&self, id: &ContentId) -> Option<u32> {
        self.inner.content(id).map(|content| lock(&content.have).count())
    }

    /// Whether a content is whole and durable.
    pub fn is_complete(&self, id: &ContentId) -> bool {
        self.inner.content(id).is_some_and(|content| content.is_complete())
    }

    /// Where a stream of a complete content lies. The file is shared with the store: link or copy it, never write to it.
    pub fn stream_path(&self, id: &ContentId, stream: usize) -> PathBuf {
        stream_path(&self.inner.folder(id), stream)
    }

    /// Makes a content durable and marks it complete. Blocks until the disk has it.
    pub fn finish(&self, id: &ContentId) -> Result<(), FinishError> {
        let content = self.inner.content(id).ok_or(FinishError::Unknown)?;
        if content.is_complete() {
            return Ok(());
        }
        self.flush_queue();
        let missing = content.geometry.piece_count() - lock(&content.have).count();
        if missing > 0 {
            return Err(FinishError::Incomplete(missing));
        }
        if content.write_failed.load(Ordering::Acquire) {
            return Err(FinishError::Io(io::Error::other("what was written could not be written out")));
        }
        content.layout.sync()?;
        File::open(&content.dir)?.sync_all()?;
        self.complete(&content)
    }

    fn complete(&self, content: &Content) -> Result<(), FinishError> {
        content.complete.store(true, Ordering::Release);
        content.layout.release();
        content.drop_share();
        content.touch();
        content.completed_at.store(unix_now(), Ordering::Relaxed);
        self.inner.save_state(content)?;
        lock(&self.inner.blobs).add(content);
        let places = (0..content.geometry.piece_count()).map(PieceIndex).map(|piece| {
            let key = piece_key(&content.manifest.piece_hash(piece));
            Change::set(key, Some(encode(&PiecePlace { content: content.id, piece })))
        });
        self.inner.index.pieces.apply(&places.collect::<Vec<_>>())?;
        self.inner.index.sync()?;
        Ok(())
    }

    /// A folder for an ingest to write into, on the store's disk.
    pub(crate) fn ingest_folder(&self) -> io::Result<IngestFolder> {
        let attempt = self.inner.attempts.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.config.dir.join("contents").join(format!("ingest-{attempt}"));
        fs::create_dir_all(&path)?;
        Ok(IngestFolder { path })
    }

    /// Takes over a finished ingest. If the content is here and complete, the new copy is dropped.
    pub(crate) fn adopt(&self, id: ContentId, folder: &Path, manifest: Arc<Manifest>) -> Result<(), FinishError> {
        let _alone = lock(&self.inner.adopting);
        if self.is_complete(&id) {
            return Ok(());
        }
        let into = self.inner.folder(&id);
        if into.exists() {
            self.remove(&id)?;
        }
        fs::rename(folder, &into)?;
        let content = Content::new(&into, id, manifest, &self.inner.opened).map_err(|error| match error {
            BeginError::Io(error) => FinishError::Io(error),
            other => FinishError::Io(io::Error::other(other.to_string())),
        })?;
        *lock(&content.have) = Bitmap::full(content.geometry.piece_count());
        content.layout.sync()?;
        File::open(&into)?.sync_all()?;
        if let Some(parent) = into.parent() {
            File::open(parent)?.sync_all()?;
        }
        self.complete(&content)?;
        lock(&self.inner.contents).insert(id, Arc::new(content));
        Ok(())
    }

    /// Deletes a content.
    pub fn remove(&self, id: &ContentId) -> Result<(), KvError> {
        let Some(content) = lock(&self.inner.contents).remove(id) else { return Ok(()) };
        self.inner.cache.forget(id);
        content.layout.release();
        lock(&self.inner.blobs).remove(&content);
        if !content.unindexed.load(Ordering::Relaxed) {
            self.reassign_pieces(&content)?;
            self.inner.index.contents.delete(id.0)?;
        }
        // The manifest goes first: without it the folder is rubbish at the next start, whatever else is left.
        let _ = fs::remove_file(content.dir.join("manifest"));
        if let Err(error) = fs::remove_dir_all(&content.dir) {
            tracing::warn!(content = %id.short(), %error, "cannot delete a content's folder");
        }
        Ok(())
    }

    /// Keeps a content from eviction, or lets it go.
    pub fn pin(&self, id: &ContentId, pinned: bool) -> Result<(), KvError> {
        let Some(content) = self.inner.content(id) else { return Ok(()) };
        content.pinned.store(pinned, Ordering::Relaxed);
        self.inner.save_state(&content)
    }

    /// Whether a content is kept from eviction.
    pub fn is_pinned(&self, id: &ContentId) -> bool {
        self.inner.content(id).is_some_and(|content| content.pinned.load(Ordering::Relaxed))
    }

    /// Rehashes a content; gives the pieces that are bad. They count as missing from now on.
    pub fn scrub(&self, id: &ContentId) -> Vec<PieceIndex> {
        let Some(content) = self.inner.content(id) else { return Vec::new() };
        let held: Vec<u32> = lock(&content.have).iter().collect();
        let bad: Vec<PieceIndex> = held
            .into_iter()
            .map(PieceIndex)
            .filter(|piece| {
                content.layout.read(*piece).map(|bytes| Hash::of(&bytes)).ok()
                    != Some(content.manifest.piece_hash(*piece))
            })
            .collect();
        for piece in &bad {
            lock(&content.have).unset(piece.0);
            content.complete.store(false, Ordering::Release);
        }
        bad
    }
}

fn would_not_fit(error: io::Error, need: u64, room: u64) -> BeginError {
    match error.kind() {
        io::ErrorKind::StorageFull => BeginError::WouldNotFit { need, room },
        _ => error.into(),
    }
}

fn write_manifest(dir: &Path, bytes: &[u8], durably: bool) -> io::Result<()> {
    let mut file = File::create(dir.join("manifest"))?;
    file.write_all(bytes)?;
    if durably { file.sync_data() } else { Ok(()) }
}
