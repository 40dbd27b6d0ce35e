//! Ingest of a file or directory: reads it once, cuts it, hashes and encodes the pieces, writes them, makes the
//! manifest.
//!
//! One thread reads and cuts, another one hashes, encodes and writes. Memory is a few stripes, whatever the size.
//! Invariant: either the content is complete and durable in the store, or nothing of the attempt is left.

use crate::cdc::{Cutter, average_piece_bytes};
use crate::erasure::ErasureError;
use crate::errors::{BeginError, FinishError};
use crate::inner::Inner;
use crate::layout;
use crate::piece_table::{ManifestParts, PieceTable, Shape};
use crate::source::OpenSource;
pub use crate::walk::WalkError;
use crate::walk::{self, SourceReader};
use bytes::Bytes;
use shoal_kv::KvError;
use shoal_proto::codec::{DecodeError, Document};
use shoal_proto::ids::{ContentId, Hash};
use shoal_proto::image::Digest;
use shoal_proto::manifest::Manifest;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// What a piece adds to the manifest, bytes: its hash, its length, and its share of the parity hashes.
pub(crate) const MANIFEST_BYTES_PER_PIECE: u64 = 48;
/// Messages between the two threads.
const QUEUE_MAX: usize = 4;

/// How to ingest a content.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// Average piece length, bytes. `None` chooses it by the size. Versions share pieces only with the same average.
    pub average: Option<u32>,
    /// Data shards in a stripe (k).
    pub data: u8,
    /// Parity shards in a stripe (m).
    pub parity: u8,
    /// Lanes of the plan (L).
    pub lanes: u8,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self { average: None, data: 16, parity: 4, lanes: 64 }
    }
}

impl IngestOptions {
    pub(crate) fn shape(&self) -> Shape {
        Shape { data: self.data, parity: self.parity, lanes: self.lanes }
    }
}

/// The progress of an ingest, shared with the tasks that show or cancel it.
#[derive(Debug, Default)]
pub struct IngestProgress {
    /// Payload bytes read so far.
    pub done: AtomicU64,
    /// Payload bytes in all. 0 until the source is listed.
    pub total: AtomicU64,
    /// Any task may set this to stop the ingest.
    pub cancel: AtomicBool,
}

impl IngestProgress {
    /// Counts bytes that were read.
    ///
    /// # Errors
    /// [`WalkError::Cancelled`] if `cancel` is set.
    pub(crate) fn advance(&self, bytes: usize) -> Result<(), WalkError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(WalkError::Cancelled);
        }
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Why a source was not ingested.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The source is at fault.
    #[error(transparent)]
    Source(#[from] WalkError),
    /// The store's disk failed.
    #[error("cannot write to the store: {0}")]
    Store(#[from] io::Error),
    /// The store's database failed.
    #[error(transparent)]
    Database(#[from] KvError),
    /// A blob of an image is damaged or cannot be read.
    #[error("blob {digest}: {why}")]
    #[allow(missing_docs, reason = "the message says it")]
    Blob { digest: Digest, why: String },
    /// The content breaks a rule of the format.
    #[error("the content breaks a limit: {0}")]
    Format(#[from] DecodeError),
    /// No erasure code has the shape of the options.
    #[error("the content breaks a limit: {0}")]
    Shape(#[from] ErasureError),
    /// The content does not fit, even after the eviction of everything that may go.
    #[error(
        "the content needs {need} bytes and the store can free {available}: raise node.quota, lower node.min_free or \
         free the disk"
    )]
    #[allow(missing_docs, reason = "the message says it")]
    NoSpace { need: u64, available: u64 },
    /// The content could not be made durable.
    #[error(transparent)]
    Finish(#[from] FinishError),
}

impl From<BeginError> for IngestError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::WouldNotFit { need, available } => Self::NoSpace { need, available },
            BeginError::Manifest(error) => Self::Format(error),
            BeginError::Io(error) => Self::Store(error),
            BeginError::Database(error) => Self::Database(error),
        }
    }
}

/// An ingested content.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub struct Ingested {
    pub content: ContentId,
    pub manifest: Arc<Manifest>,
    /// Length of the encoded manifest, bytes.
    pub manifest_bytes: u64,
}

impl Inner {
    /// Ingests the file or directory at `source`.
    pub(crate) fn ingest(
        self: &Arc<Self>,
        source: &OpenSource,
        options: &IngestOptions,
        progress: &IngestProgress,
    ) -> Result<Ingested, IngestError> {
        let listing = walk::list(source)?;
        progress.total.store(listing.size, Ordering::Relaxed);
        let average = options.average.unwrap_or_else(|| average_piece_bytes(listing.size));
        let need = listing.size + listing.size / u64::from(average.max(1)) * MANIFEST_BYTES_PER_PIECE;
        let _space = self.make_space(need, None)?;
        let folder = self.ingest_folder()?;
        let reader = SourceReader::new(source, listing.sources);
        let pieces = write_stream(&folder.path, reader, average, options, progress)?;
        let manifest = pieces.into_manifest(ManifestParts {
            root: listing.root,
            entries: listing.entries,
            // An empty stream has no file and no entry.
            streams: if listing.size > 0 { vec![listing.size] } else { Vec::new() },
            piece_bytes_avg: average,
            image: None,
        });
        self.adopt_ingest(&folder, manifest)
    }

    /// Creates a folder for an ingest on the store's disk.
    pub(crate) fn ingest_folder(&self) -> io::Result<IngestFolder> {
        let path = self.new_ingest_folder();
        fs::create_dir_all(&path)?;
        Ok(IngestFolder { path })
    }

    /// Makes the streams of an ingest's folder a content.
    pub(crate) fn adopt_ingest(&self, folder: &IngestFolder, manifest: Manifest) -> Result<Ingested, IngestError> {
        manifest.validate()?;
        let bytes = manifest.to_bytes();
        let content = Manifest::id(&bytes);
        fs::write(folder.path.join("manifest"), &bytes)?;
        File::open(folder.path.join("manifest"))?.sync_data()?;
        let manifest = Arc::new(manifest);
        self.adopt(content, &folder.path, manifest.clone())?;
        Ok(Ingested { content, manifest, manifest_bytes: bytes.len() as u64 })
    }
}

/// The folder of an ingest. A drop deletes it, unless the store has renamed it.
pub(crate) struct IngestFolder {
    pub(crate) path: PathBuf,
}

impl Drop for IngestFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // after a success it has another name
    }
}

/// A message from the reading thread to the writing thread.
pub(crate) enum StreamPart {
    /// The next pieces belong to this stream. `write` is false if the stream's file exists already.
    Stream { number: usize, write: bool },
    /// The next piece.
    Piece(Bytes),
}

/// Runs `read` on a thread of its own, and writes, hashes and encodes what it sends.
pub(crate) fn write_streams(
    folder: &Path,
    options: &IngestOptions,
    read: impl FnOnce(SyncSender<StreamPart>) -> Result<(), IngestError> + Send,
) -> Result<PieceTable, IngestError> {
    let (sender, receiver) = sync_channel(QUEUE_MAX);
    std::thread::scope(|scope| {
        // The sender moves into the reading thread, so the end of that thread ends the queue.
        let reader = scope.spawn(move || read(sender));
        let written = write_parts(folder, &receiver, options);
        drop(receiver);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The writer's error comes first: the reader may only have met a closed queue.
        let pieces = written?;
        read.map(|()| pieces)
    })
}

fn write_stream(
    folder: &Path,
    reader: SourceReader<'_>,
    average: u32,
    options: &IngestOptions,
    progress: &IngestProgress,
) -> Result<PieceTable, IngestError> {
    write_streams(folder, options, |queue| {
        if queue.send(StreamPart::Stream { number: 0, write: true }).is_err() {
            // The writer failed, and its error counts.
            return Ok(());
        }
        let mut cutter = Cutter::new(reader, average);
        let sent = send_pieces(&mut cutter, &queue, progress);
        // An `io::Error` of the reader is only a copy of its fault, which has a type.
        match (sent, cutter.into_reader().into_fault()) {
            (Err(IngestError::Store(_)), Some(fault)) => Err(fault.into()),
            (sent, _) => sent,
        }
    })
}

/// Sends the pieces of a cutter to the writing thread.
pub(crate) fn send_pieces<R: Read>(
    cutter: &mut Cutter<R>,
    queue: &SyncSender<StreamPart>,
    progress: &IngestProgress,
) -> Result<(), IngestError> {
    while let Some(piece) = cutter.next_piece()? {
        progress.advance(piece.len())?;
        if queue.send(StreamPart::Piece(piece)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn write_parts(
    folder: &Path,
    queue: &Receiver<StreamPart>,
    options: &IngestOptions,
) -> Result<PieceTable, IngestError> {
    let mut pieces = PieceTable::new(options.shape())?;
    let mut next_file = None;
    let mut file: Option<File> = None;
    for part in queue {
        let piece = match part {
            StreamPart::Stream { number, write } => {
                next_file = write.then(|| layout::stream_path(folder, number));
                file = None;
                continue;
            }
            StreamPart::Piece(piece) => piece,
        };
        // The first piece creates the file, because an empty stream has none.
        if let Some(path) = next_file.take() {
            file = Some(File::create(path)?);
        }
        if let Some(file) = &mut file {
            file.write_all(&piece)?;
        }
        let hash = Hash::of(&piece);
        pieces.push(piece, hash);
    }
    Ok(pieces)
}
