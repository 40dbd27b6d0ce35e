//! Ingest of an image, blob by blob. Each blob is a stream of its own and is cut the same in every image.
//!
//! Invariant: a blob that the store has is neither read from its source nor stored again. A blob whose bytes do not
//! match its digest makes the ingest fail.

use crate::cdc::{Cutter, average_blob_piece_bytes};
use crate::images::{BlobHolder, LinkedFiles};
use crate::ingest::{
    IngestError, IngestOptions, IngestProgress, Ingested, MANIFEST_BYTES_PER_PIECE, StreamPart, send_pieces,
    write_streams,
};
use crate::inner::Inner;
use crate::layout::{FileExtent, stream_path};
use crate::piece_table::ManifestParts;
use crate::space::SpaceReservation;
use aws_lc_rs::digest::{Context, SHA256};
use shoal_proto::ids::{Hash, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob, ImageIndex};
use shoal_proto::manifest::Root;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

/// Where a blob's bytes come from.
pub enum BlobSource {
    /// The store reads and copies the bytes.
    Reader(Box<dyn Read + Send>),
    /// A file on the store's disk that never changes again. The store links it instead of copying it.
    File(PathBuf),
}

/// How a blob gets into the ingest's folder.
enum BlobPlan {
    /// The folder has a link to the file of another image, cut as in that image.
    Linked(BlobHolder),
    /// The bytes come from the blob's source.
    FromSource,
}

/// A blob with its stream and plan.
struct PlannedBlob<'a> {
    stream: usize,
    blob: &'a ImageBlob,
    plan: BlobPlan,
}

impl Inner {
    /// Ingests an image. `open` returns the bytes of the blobs that the store lacks. `space` is space that the caller
    /// reserved for the image before.
    pub(crate) fn ingest_image(
        self: &Arc<Self>,
        image: ImageIndex,
        mut open: impl FnMut(&ImageBlob) -> io::Result<BlobSource> + Send,
        space: Option<SpaceReservation>,
        options: &IngestOptions,
        progress: &IngestProgress,
    ) -> Result<Ingested, IngestError> {
        let size = image.blobs.iter().map(|blob| blob.size).sum();
        progress.total.store(size, Ordering::Relaxed);
        let folder = self.ingest_folder()?;
        let mut linked = LinkedFiles::none(self);
        let plans = self.plan_blobs(&image, &folder.path, &mut linked);
        let _space = match space {
            Some(space) => space,
            None => {
                let pieces = size / u64::from(average_blob_piece_bytes("tar", size)) + image.blobs.len() as u64;
                let need = size - linked.bytes() + pieces * MANIFEST_BYTES_PER_PIECE;
                self.make_space(need, None)?.reservation
            }
        };
        let pieces = write_streams(&folder.path, options, |queue| {
            let reader = BlobReader { folder: &folder.path, queue, progress };
            plans.into_iter().try_for_each(|PlannedBlob { stream, blob, plan }| match plan {
                BlobPlan::Linked(holder) => reader.read_linked(stream, blob, &holder).inspect_err(|error| {
                    if matches!(error, IngestError::Blob { .. }) {
                        // Marks the damaged pieces, so that the image stops being a source.
                        self.scrub(&holder.content.id);
                    }
                }),
                BlobPlan::FromSource => reader.read_source(stream, blob, &mut open),
            })
        })?;
        let manifest = pieces.into_manifest(ManifestParts {
            root: Root::Image,
            entries: Vec::new(),
            streams: image.blobs.iter().map(|blob| blob.size).filter(|size| *size > 0).collect(),
            piece_bytes_avg: 0,
            image: Some(image),
        });
        self.adopt_ingest(&folder, manifest)
    }

    /// Links the blobs that the store has into the folder, and plans the others. Empty blobs have no stream.
    fn plan_blobs<'a>(
        &self,
        image: &'a ImageIndex,
        folder: &Path,
        linked: &mut LinkedFiles<'_>,
    ) -> Vec<PlannedBlob<'a>> {
        let mut plan = |stream: usize, blob: &ImageBlob| {
            let holder = self.blob_holder_of_size(&blob.digest, blob.size)?;
            let path = stream_path(folder, stream);
            fs::hard_link(holder.path(), &path).ok()?;
            linked.add(FileExtent { inode: fs::metadata(path).ok()?.ino(), bytes: blob.size });
            Some(BlobPlan::Linked(holder))
        };
        let blobs = image.blobs.iter().enumerate().filter(|(_, blob)| blob.size > 0);
        blobs
            .map(|(stream, blob)| PlannedBlob {
                stream,
                blob,
                plan: plan(stream, blob).unwrap_or(BlobPlan::FromSource),
            })
            .collect()
    }
}

/// The reading thread of an image ingest.
struct BlobReader<'a> {
    folder: &'a Path,
    queue: SyncSender<StreamPart>,
    progress: &'a IngestProgress,
}

impl BlobReader<'_> {
    /// Sends the pieces of a blob that the store has. Only the parity hashes of their stripes are new.
    fn read_linked(&self, stream: usize, blob: &ImageBlob, holder: &BlobHolder) -> Result<(), IngestError> {
        let content = &holder.content;
        let mut file = File::open(stream_path(self.folder, stream))?;
        if self.queue.send(StreamPart::Stream { number: stream, write: false }).is_err() {
            return Ok(());
        }
        for piece in content.layout.pieces_of(holder.stream).map(PieceIndex) {
            let mut bytes = vec![0; content.geometry.piece_len(piece) as usize];
            file.read_exact(&mut bytes)?;
            if Hash::of(&bytes) != content.manifest.piece_hash(piece) {
                let why = "the store's copy is damaged and no longer used: push again".into();
                return Err(IngestError::Blob { digest: blob.digest, why });
            }
            self.progress.advance(bytes.len())?;
            if self.queue.send(StreamPart::Piece(bytes.into())).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Cuts a blob and checks its digest and length.
    fn read_source(
        &self,
        stream: usize,
        blob: &ImageBlob,
        open: &mut impl FnMut(&ImageBlob) -> io::Result<BlobSource>,
    ) -> Result<(), IngestError> {
        let damaged = |why: String| IngestError::Blob { digest: blob.digest, why };
        let unreadable = |error: io::Error| damaged(format!("cannot be read: {error}"));
        let (reader, write): (Box<dyn Read + Send>, bool) = match open(blob).map_err(unreadable)? {
            BlobSource::Reader(reader) => (reader, true),
            BlobSource::File(path) => {
                let file = File::open(&path).map_err(unreadable)?;
                // A file system without hard links gets a copy.
                let is_linked = fs::hard_link(&path, stream_path(self.folder, stream)).is_ok();
                (Box::new(file), !is_linked)
            }
        };
        if self.queue.send(StreamPart::Stream { number: stream, write }).is_err() {
            return Ok(());
        }
        let checked = CheckedReader { reader, sha256: Context::new(&SHA256), left: blob.size };
        let mut cutter = Cutter::new(checked, average_blob_piece_bytes(&blob.media_type, blob.size));
        send_pieces(&mut cutter, &self.queue, self.progress).map_err(|error| match error {
            // On this thread an `io::Error` comes from the blob, never from the store.
            IngestError::Store(error) => damaged(error.to_string()),
            other => other,
        })?;
        let CheckedReader { sha256, left, .. } = cutter.into_reader();
        if left > 0 {
            return Err(damaged(format!("it ends {left} bytes before its {} bytes", blob.size)));
        }
        let found = sha256.finish();
        if found.as_ref() != blob.digest.0 {
            let found = found.as_ref().try_into().map_or_else(|_| String::new(), |bytes| Digest(bytes).to_string());
            return Err(damaged(format!("its bytes are those of {found}")));
        }
        Ok(())
    }
}

/// Hashes the bytes that pass, and fails after more bytes than the blob has.
struct CheckedReader {
    reader: Box<dyn Read + Send>,
    sha256: Context,
    left: u64,
}

impl Read for CheckedReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf)?;
        self.left =
            self.left.checked_sub(read as u64).ok_or_else(|| io::Error::other("it is longer than its size says"))?;
        self.sha256.update(&buf[..read]);
        Ok(read)
    }
}
