//! Takes a file or directory in: reads it once, cuts, hashes, codes, writes, and makes its manifest.
//!
//! Two threads: one reads and cuts, the other hashes, codes and writes. Memory is a few stripes whatever the size.
//! Invariant: either the content is complete and durable in the store, or nothing is left of the attempt.

use crate::cdc::{Cutter, average_piece_bytes};
use crate::erasure::{ErasureCode, ReedSolomonCode};
use crate::layout;
use crate::store::{BeginError, FinishError, Store};
pub use crate::walk::WalkError;
use crate::walk::{self, Stream};
use bytes::Bytes;
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, Hash};
use shoal_proto::image::Digest;
use shoal_proto::manifest::Manifest;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// What a piece adds to the manifest: its hash, its length, its part of the parity's hashes.
pub(crate) const MANIFEST_BYTES_PER_PIECE: u64 = 48;
/// Parts between the two threads.
const QUEUE: usize = 4;

/// How to take a content in.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// Average piece length, bytes; by size when `None`. Versions share pieces only if cut with the same average.
    pub average: Option<u32>,
    /// Data shards in a stripe (k).
    pub data: u8,
    /// Parity shards in a stripe (m).
    pub parity: u8,
    /// Distribution trees (L).
    pub lanes: u8,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self { average: None, data: 16, parity: 4, lanes: 64 }
    }
}

/// How far an ingest is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct IngestProgress {
    /// Payload bytes read.
    pub done: AtomicU64,
    /// Payload bytes in all; 0 until the source is listed.
    pub total: AtomicU64,
    /// Set to stop.
    pub cancel: AtomicBool,
}

impl IngestProgress {
    /// Counts bytes read, unless it was told to stop.
    pub(crate) fn advance(&self, bytes: usize) -> Result<(), IngestError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(WalkError::Cancelled.into());
        }
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Why a source was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The source is at fault.
    #[error(transparent)]
    Source(#[from] WalkError),
    /// The store's disk is at fault.
    #[error("cannot write to the store: {0}")]
    Store(#[from] io::Error),
    /// A blob of an image is not what it should be, or cannot be read.
    #[error("blob {digest}: {why}")]
    Blob {
        /// The blob.
        digest: Digest,
        /// What is wrong.
        why: String,
    },
    /// The content is over a limit.
    #[error("the content breaks a limit: {0}")]
    Limit(String),
    /// There is no room for it, even after everything that may be evicted is.
    #[error(
        "it takes {need} bytes and the store has room for {room}: raise node.quota, lower node.min_free or free the disk"
    )]
    NoSpace {
        /// Bytes needed.
        need: u64,
        /// Bytes that could be freed.
        room: u64,
    },
    /// The content could not be made durable.
    #[error(transparent)]
    Finish(#[from] FinishError),
}

impl From<BeginError> for IngestError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::WouldNotFit { need, room } => Self::NoSpace { need, room },
            other => Self::Store(io::Error::other(other.to_string())),
        }
    }
}

/// What was taken in.
#[derive(Clone, Debug)]
pub struct Ingested {
    /// The content.
    pub content: ContentId,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Length of the encoded manifest, bytes.
    pub manifest_bytes: u64,
}

impl Store {
    /// Takes in the file or directory at `source`. Blocks; run it on a thread that may.
    pub fn ingest(
        &self,
        source: &Path,
        options: &IngestOptions,
        progress: &Arc<IngestProgress>,
    ) -> Result<Ingested, IngestError> {
        let listing = walk::list(source)?;
        progress.total.store(listing.size, Ordering::Relaxed);
        let average = options.average.unwrap_or_else(|| average_piece_bytes(listing.size));
        let need = listing.size + listing.size / u64::from(average.max(1)) * MANIFEST_BYTES_PER_PIECE;
        let (_promise, _evicted) = self.make_space(need)?;
        let folder = self.ingest_folder()?;
        let result = (|| {
            let stream = Stream::new(listing.sources);
            let cut = write_stream(&folder.path, stream, average, options, progress)?;
            let manifest = Manifest {
                root: listing.root,
                entries: listing.entries,
                streams: if listing.size > 0 { vec![listing.size] } else { Vec::new() },
                piece_bytes_avg: average,
                data: options.data,
                parity: options.parity,
                lanes: options.lanes,
                piece_lens: cut.lens,
                piece_hashes: cut.hashes,
                parity_hashes: cut.parity_hashes,
                image: None,
            };
            self.adopt_manifest(&folder, manifest)
        })();
        drop(folder);
        result
    }

    /// Makes what was written into the folder a content.
    pub(crate) fn adopt_manifest(&self, folder: &IngestFolder, manifest: Manifest) -> Result<Ingested, IngestError> {
        manifest.validate().map_err(|error| IngestError::Limit(error.to_string()))?;
        let bytes = manifest.to_bytes();
        let content = Manifest::id(&bytes);
        fs::write(folder.path.join("manifest"), &bytes)?;
        File::open(folder.path.join("manifest"))?.sync_data()?;
        let manifest = Arc::new(manifest);
        self.adopt(content, &folder.path, manifest.clone())?;
        Ok(Ingested { content, manifest, manifest_bytes: bytes.len() as u64 })
    }
}

/// A folder of an attempt; gone with it unless the store adopted it.
pub(crate) struct IngestFolder {
    pub(crate) path: PathBuf,
}

impl Drop for IngestFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What the manifest says of the pieces.
#[derive(Default)]
pub(crate) struct Cut {
    pub(crate) lens: Vec<u8>,
    pub(crate) hashes: Vec<u8>,
    pub(crate) parity_hashes: Vec<u8>,
}

/// What one thread hands to the other.
pub(crate) enum Part {
    /// The pieces of this stream follow; they are written unless its file is there already.
    Stream { number: usize, write: bool },
    /// The next piece.
    Piece(Bytes),
}

/// Runs `read` on a thread of its own; writes, hashes and codes what it sends.
pub(crate) fn write_streams(
    folder: &Path,
    options: &IngestOptions,
    read: impl FnOnce(SyncSender<Part>) -> Result<(), IngestError> + Send,
) -> Result<Cut, IngestError> {
    let (sender, receiver) = sync_channel(QUEUE);
    std::thread::scope(|scope| {
        // The sender moves into the reading thread, whose end closes the queue.
        let reader = scope.spawn(move || read(sender));
        let written = write_parts(folder, &receiver, options);
        drop(receiver);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The writer's fault first: the reader's may only be that nobody listens any more.
        let cut = written?;
        read.map(|()| cut)
    })
}

fn write_stream(
    folder: &Path,
    stream: Stream,
    average: u32,
    options: &IngestOptions,
    progress: &Arc<IngestProgress>,
) -> Result<Cut, IngestError> {
    write_streams(folder, options, |queue| {
        if queue.send(Part::Stream { number: 0, write: true }).is_err() {
            // The writer failed and says why.
            return Ok(());
        }
        let mut cutter = Cutter::new(stream, average);
        let cut = send_pieces(&mut cutter, &queue, progress);
        match (cut, cutter.into_reader().fault) {
            (Err(IngestError::Store(_)), Some(fault)) => Err(fault.into()),
            (cut, _) => cut,
        }
    })
}

/// Sends all pieces of a cutter on.
pub(crate) fn send_pieces<R: Read>(
    cutter: &mut Cutter<R>,
    queue: &SyncSender<Part>,
    progress: &IngestProgress,
) -> Result<(), IngestError> {
    while let Some(piece) = cutter.next_piece()? {
        progress.advance(piece.len())?;
        if queue.send(Part::Piece(piece)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn write_parts(folder: &Path, queue: &Receiver<Part>, options: &IngestOptions) -> Result<Cut, IngestError> {
    let code = ReedSolomonCode::new(usize::from(options.data), usize::from(options.parity))
        .map_err(|error| IngestError::Limit(error.to_string()))?;
    let mut cut = Cut::default();
    let mut stream = None;
    let mut file: Option<File> = None;
    let mut stripe: Vec<Bytes> = Vec::with_capacity(usize::from(options.data));
    for part in queue {
        let piece = match part {
            Part::Stream { number, write } => {
                stream = write.then(|| layout::stream_path(folder, number));
                file = None;
                continue;
            }
            Part::Piece(piece) => piece,
        };
        // Made with its first piece: an empty stream has no file.
        if let Some(path) = stream.take() {
            file = Some(File::create(path)?);
        }
        if let Some(file) = &mut file {
            file.write_all(&piece)?;
        }
        cut.lens.extend_from_slice(&(piece.len() as u32).to_le_bytes());
        cut.hashes.extend_from_slice(Hash::of(&piece).as_bytes());
        stripe.push(piece);
        if stripe.len() == usize::from(options.data) {
            code_stripe(&code, &mut stripe, options.parity, &mut cut);
        }
    }
    if !stripe.is_empty() {
        code_stripe(&code, &mut stripe, options.parity, &mut cut);
    }
    Ok(cut)
}

pub(crate) fn code_stripe(code: &ReedSolomonCode, stripe: &mut Vec<Bytes>, parity: u8, cut: &mut Cut) {
    let pieces: Vec<&[u8]> = stripe.iter().map(|piece| &piece[..]).collect();
    for row in 0..usize::from(parity) {
        cut.parity_hashes.extend_from_slice(Hash::of(&code.parity(row, &pieces)).as_bytes());
    }
    stripe.clear();
}
