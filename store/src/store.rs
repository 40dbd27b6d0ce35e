//! The public face of the store: every operation, and the threads behind it.
//!
//! ```text
//! DIR/index/                   small records (sled)
//! DIR/contents/ID/manifest     the encoded manifest
//! DIR/contents/ID/stream-N     one file per stream, preallocated, pieces at their offsets
//! DIR/contents/ID/parity       parity shards of rack shares, sparse
//! ```
//!
//! The disk has no bitmap of pieces. At a restart, the store hashes the streams of unfinished contents, at several
//! GiB/s. That also finds pieces that a loss of power damaged.
//! Invariant: this file only delegates. A part of the store never uses the face.

use crate::config::{EventSink, SUBMIT_QUEUE_MAX, StoreConfig, Usage};
use crate::errors::{BeginError, FinishError, OpenError, RackShareError, ReadError, SubmitError};
use crate::fetch::{BeginAs, Begun};
use crate::image_ingest::BlobSource;
use crate::images::{BlobFile, StoredImage};
use crate::ingest::{IngestError, IngestOptions, IngestProgress, Ingested, WalkError};
use crate::inner::Inner;
use crate::layout::stream_path;
use crate::read::StoredContent;
use crate::source::OpenSource;
use crate::space::SpaceReservation;
use crate::stored_parity::StoredShare;
use crate::tables::Tables;
use crate::verifier::{self, VerifyJob};
use crate::writer;
use bytes::Bytes;
use shoal_kv::KvError;
use shoal_proto::ids::{ContentId, HostIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::image::{Digest, ImageBlob, ImageIndex};
use shoal_proto::manifest::Manifest;
use shoal_proto::rack_placement::RackPlacement;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// A store. Clones share it, and the last one to be dropped stops its threads.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    queue: SyncSender<VerifyJob>,
    /// Held for its `Drop`.
    _threads: Arc<Threads>,
}

struct Threads {
    queue: SyncSender<VerifyJob>,
    /// The verifier, then the writer, which ends after the verifier.
    handles: Option<[JoinHandle<()>; 2]>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        let _ = self.queue.send(VerifyJob::Stop); // a verifier that is gone needs no message
        for handle in self.handles.take().into_iter().flatten() {
            let _ = handle.join(); // a panic of a thread was printed when it happened
        }
    }
}

/// Opening, and what the store has.
impl Store {
    /// Opens the store of a folder, or creates it. Hashes what an earlier process left unfinished. Blocks.
    ///
    /// # Errors
    /// [`OpenError`] if the folder or its database cannot be used.
    pub fn open(config: StoreConfig, sink: EventSink) -> Result<Self, OpenError> {
        let inner = Arc::new(Inner::open(config, sink)?);
        let (queue, jobs) = sync_channel(SUBMIT_QUEUE_MAX);
        let start = || {
            let (writes, writer) = writer::start(&inner)?;
            let inner = inner.clone();
            let verifier = std::thread::Builder::new().name("store".into());
            let verifier = verifier.spawn(move || verifier::run(&inner, &jobs, &writes))?;
            Ok([verifier, writer])
        };
        let handles = start().map_err(|source| OpenError::Io { dir: inner.config.dir.clone(), source })?;
        Ok(Self { inner, _threads: Arc::new(Threads { queue: queue.clone(), handles: Some(handles) }), queue })
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.inner.tables
    }

    /// Returns all contents, whole or not, in the order of their ids.
    pub fn contents(&self) -> Vec<StoredContent> {
        self.inner.contents().iter().map(|content| StoredContent::of(content)).collect()
    }

    /// Returns the number of contents, whole or not.
    pub fn count(&self) -> usize {
        self.inner.content_count()
    }

    /// Returns a content's manifest.
    pub fn manifest(&self, id: &ContentId) -> Option<Arc<Manifest>> {
        Some(self.inner.content(id)?.manifest.clone())
    }

    /// Returns how many pieces of a content the store has. `None` if the store does not know the content.
    pub fn pieces_stored(&self, id: &ContentId) -> Option<u32> {
        self.inner.content(id).map(|content| content.pieces_stored())
    }

    /// Returns whether a content is whole and durable.
    pub fn is_complete(&self, id: &ContentId) -> bool {
        self.inner.content(id).is_some_and(|content| content.is_complete())
    }

    /// Returns whether the store has every piece of a content, durable or not.
    pub fn is_whole(&self, id: &ContentId) -> bool {
        self.inner.has_every_piece(id)
    }

    /// Returns the file of a stream. Callers may link or copy the file of a complete content, but never write to it.
    pub fn stream_path(&self, id: &ContentId, stream: usize) -> PathBuf {
        stream_path(&self.inner.folder(id), stream)
    }

    /// Returns the space taken and left.
    pub fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

/// Fetching a content.
impl Store {
    /// Begins a content: evicts what must go, reserves space, copies pieces of other contents. Returns a content that
    /// the store has as it is. Blocks while it copies.
    ///
    /// # Errors
    /// [`BeginError`] if the manifest is invalid, the content does not fit, or the disk fails.
    pub fn begin(&self, manifest: &[u8]) -> Result<Begun, BeginError> {
        self.inner.begin(manifest, BeginAs::Content)
    }

    /// Begins a feed's version with the pieces of the former one. Blocks while it copies.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin_version(&self, manifest: &[u8], former: Option<ContentId>) -> Result<Begun, BeginError> {
        self.inner.begin(manifest, BeginAs::FeedVersion { former })
    }

    /// Hands a shard to the verifying thread. `token` comes back in the event.
    ///
    /// # Errors
    /// [`SubmitError`] with the payload if the queue is full.
    pub fn submit_shard(
        &self,
        id: &ContentId,
        shard: ShardIndex,
        payload: Bytes,
        token: u64,
    ) -> Result<(), SubmitError> {
        let Some(content) = self.inner.content(id) else { return Err(SubmitError::UnknownContent) };
        match self.queue.try_send(VerifyJob::Shard { content, shard, payload, token }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(VerifyJob::Shard { payload, .. })) => Err(SubmitError::Full(payload)),
            Err(_) => Err(SubmitError::UnknownContent),
        }
    }

    /// Returns the distance of a shard's first byte from the start of its disk block, bytes. A payload with the same
    /// alignment in memory is written without a copy. Returns 0 where the alignment does not matter.
    pub fn block_offset(&self, id: &ContentId, shard: ShardIndex) -> usize {
        let Some(content) = self.inner.content(id) else { return 0 };
        content.geometry.piece_of(shard).map_or(0, |piece| content.layout.block_offset(piece))
    }

    /// Writes all pieces of a content from memory, end to end. Leaves out pieces with a wrong hash. Blocks.
    ///
    /// # Errors
    /// [`ReadError::NotHere`] if the content is unknown or `data` is too short, [`ReadError::Io`] if the disk fails.
    pub fn write_all_pieces(&self, id: &ContentId, data: &[u8]) -> Result<(), ReadError> {
        self.inner.write_all_pieces(id, data)
    }

    /// Asks the verifying thread to decode a stripe from the pieces and parity shards that the store has. Waits while
    /// the queue is full, which is acceptable because rebuilds are rare.
    pub fn rebuild(&self, id: &ContentId, stripe: StripeIndex) {
        if let Some(content) = self.inner.content(id) {
            let _ = self.queue.send(VerifyJob::Rebuild { content, stripe }); // fails only while the store closes
        }
    }

    /// Makes a content durable and marks it complete. Blocks until the disk has it.
    ///
    /// # Errors
    /// [`FinishError`] if pieces are missing or the disk fails.
    pub fn finish(&self, id: &ContentId) -> Result<(), FinishError> {
        if self.is_complete(id) {
            return Ok(());
        }
        self.flush_queue();
        self.inner.finish(id)
    }

    /// Returns once every piece of a feed's version is written. Readers may read its stream from then on. Blocks.
    ///
    /// # Errors
    /// [`FinishError`] if pieces are missing.
    pub fn finish_version(&self, id: &ContentId) -> Result<(), FinishError> {
        self.flush_queue();
        self.inner.finish_version(id)
    }

    /// Waits until the threads have done everything that they got so far.
    fn flush_queue(&self) {
        let (done, wait) = sync_channel::<()>(0);
        let _ = self.queue.send(VerifyJob::Barrier(done)); // fails only while the store closes
        let _ = wait.recv(); // the threads send nothing: they drop `done` after all earlier work
    }
}

/// Reading.
impl Store {
    /// Returns a recent shard from memory, without a disk access.
    pub fn read_cached(&self, id: &ContentId, shard: ShardIndex) -> Option<Bytes> {
        self.inner.cache.get(&(*id, shard))
    }

    /// Whether [`Store::read`] finds a data shard, in memory or on disk. Does not block.
    pub fn has_shard(&self, id: &ContentId, shard: ShardIndex) -> bool {
        self.inner.has_shard(id, shard)
    }

    /// Releases a shard's memory once the shard is written, because no other host needs it from here.
    pub fn release_from_cache(&self, id: &ContentId, shard: ShardIndex) {
        self.inner.cache.release(&(*id, shard));
    }

    /// Returns a shard's bytes. Encodes a parity shard from its stripe if the disk does not have it. Blocks.
    ///
    /// # Errors
    /// [`ReadError`] if the store does not have the shard or the disk fails.
    pub fn read(&self, id: &ContentId, shard: ShardIndex) -> Result<Bytes, ReadError> {
        self.inner.read(id, shard)
    }

    /// Returns the encoded manifest. Blocks.
    ///
    /// # Errors
    /// [`ReadError`] if the store does not have the content or the disk fails.
    pub fn read_manifest(&self, id: &ContentId) -> Result<Bytes, ReadError> {
        self.inner.read_manifest(id)
    }

    /// Returns a blob of a complete image. Counts as a use of that image.
    pub fn blob(&self, digest: &Digest) -> Option<BlobFile> {
        self.inner.blob(digest)
    }

    /// Returns the complete images by full name. Of several contents of one name, the one with the highest sequence.
    pub fn images(&self) -> BTreeMap<String, StoredImage> {
        self.inner.images()
    }

    /// Returns the complete image of a name, as [`Store::images`] does.
    pub fn image(&self, reference: &str) -> Option<StoredImage> {
        self.inner.image(reference)
    }

    /// Notes the sequence of an announcement that named a content. A lower sequence than before changes nothing.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn set_sequence(&self, id: &ContentId, sequence: u64) -> Result<(), KvError> {
        self.inner.set_sequence(id, sequence)
    }
}

/// Ingest.
impl Store {
    /// Ingests the file or directory at `source`. Blocks for the whole ingest.
    ///
    /// # Errors
    /// [`IngestError`] with the cause. Nothing of the attempt is left.
    pub fn ingest(
        &self,
        source: &Path,
        options: &IngestOptions,
        progress: &Arc<IngestProgress>,
    ) -> Result<Ingested, IngestError> {
        let opened = OpenSource::open(source);
        let opened = opened.map_err(|error| WalkError::Read { path: source.to_path_buf(), source: error })?;
        self.ingest_opened(&opened, options, progress)
    }

    /// Ingests a file or directory that is open. Blocks for the whole ingest.
    ///
    /// # Errors
    /// [`IngestError`] with the cause. Nothing of the attempt is left.
    pub fn ingest_opened(
        &self,
        source: &OpenSource,
        options: &IngestOptions,
        progress: &Arc<IngestProgress>,
    ) -> Result<Ingested, IngestError> {
        self.inner.ingest(source, options, progress)
    }

    /// Ingests an image. `open` returns the bytes of the blobs that the store lacks. Makes space unless `space` is
    /// given. Blocks for the whole ingest.
    ///
    /// # Errors
    /// [`IngestError`] with the cause. Nothing of the attempt is left.
    pub fn ingest_image(
        &self,
        image: ImageIndex,
        open: impl FnMut(&ImageBlob) -> io::Result<BlobSource> + Send,
        space: Option<SpaceReservation>,
        options: &IngestOptions,
        progress: &Arc<IngestProgress>,
    ) -> Result<Ingested, IngestError> {
        self.inner.ingest_image(image, open, space, options, progress)
    }

    /// Ingests a feed's version from memory, with pieces shared with the former one. Blocks.
    ///
    /// # Errors
    /// [`IngestError`] with the cause.
    pub fn ingest_version(
        &self,
        data: &Bytes,
        options: &IngestOptions,
        former: Option<&ContentId>,
    ) -> Result<Ingested, IngestError> {
        self.inner.ingest_version(data, options, former)
    }
}

/// Space, eviction, damage.
impl Store {
    /// Evicts contents until `bytes` are free, and reserves them until the reservation is dropped. Blocks.
    ///
    /// # Errors
    /// [`IngestError::NoSpace`] if the bytes cannot be freed.
    pub fn reserve_space(&self, bytes: u64) -> Result<SpaceReservation, IngestError> {
        Ok(self.inner.make_space(bytes, None)?.reservation)
    }

    /// Deletes a content.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn remove(&self, id: &ContentId) -> Result<(), KvError> {
        self.inner.remove(id)
    }

    /// Protects a content from eviction, or ends the protection.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn pin(&self, id: &ContentId, pinned: bool) -> Result<(), KvError> {
        let Some(content) = self.inner.content(id) else { return Ok(()) };
        content.set_pinned(pinned);
        self.inner.save_state(&content)
    }

    /// Returns whether a content is protected from eviction.
    pub fn is_pinned(&self, id: &ContentId) -> bool {
        self.inner.content(id).is_some_and(|content| content.is_pinned())
    }

    /// Hashes a content again. Returns the damaged pieces, which count as missing from now on. Blocks.
    pub fn scrub(&self, id: &ContentId) -> Vec<PieceIndex> {
        self.inner.scrub(id)
    }
}

/// Demotion and promotion.
impl Store {
    /// Makes this host's share of a placement durable, beside the whole content and earlier shares. Blocks.
    ///
    /// # Errors
    /// [`RackShareError`]. The content is as it was before.
    pub fn make_share(&self, id: &ContentId, me: HostIndex, placement: &RackPlacement) -> Result<(), RackShareError> {
        self.inner.make_share(id, me, placement)
    }

    /// Drops everything of a content except its shares. Returns the bytes that are left. Blocks.
    ///
    /// # Errors
    /// [`RackShareError`]. The content is as it was before, unless the disk fails during the exchange of its files.
    pub fn drop_whole(&self, id: &ContentId) -> Result<u64, RackShareError> {
        self.inner.drop_whole(id)
    }

    /// Reserves space for the rest of a content of which only shares are left. Returns the contents that were evicted.
    ///
    /// # Errors
    /// [`BeginError`] if the rest does not fit or the disk fails.
    pub fn reserve_rest(&self, id: &ContentId) -> Result<Vec<ContentId>, BeginError> {
        self.inner.reserve_rest(id)
    }

    /// Drops the shares of a content that stays whole.
    ///
    /// # Errors
    /// [`KvError`] if the database fails.
    pub fn discard_share(&self, id: &ContentId) -> Result<(), KvError> {
        self.inner.discard_share(id)
    }

    /// Returns the shares of a content.
    pub fn rack_share(&self, id: &ContentId) -> Option<StoredShare> {
        self.inner.content(id)?.stored_share()
    }
}

/// Backups.
impl Store {
    /// Calls `each` for the table, the key and the value of every row. Rows of contents and pieces come only with
    /// `with_contents`.
    ///
    /// # Errors
    /// The first error of `each` or of the database.
    pub fn export<E: From<KvError>>(
        &self,
        with_contents: bool,
        each: impl FnMut(&str, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.inner.export(with_contents, each)
    }

    /// Returns the files of every whole content, relative to the store's folder.
    pub fn export_files(&self) -> Vec<PathBuf> {
        self.inner.export_files()
    }
}
