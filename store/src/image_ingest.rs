//! Takes an image in, blob by blob: each a stream of its own, cut alike in every image, its digest checked on the way.
//!
//! Invariant: a blob that is here already is neither read from its source nor stored again, and no content comes of a blob
//! whose bytes are not what its digest says.

use crate::cdc::{Cutter, average_blob_piece_bytes};
use crate::ingest::{
    IngestError, IngestOptions, IngestProgress, Ingested, MANIFEST_BYTES_PER_PIECE, Part, send_pieces, write_streams,
};
use crate::layout::stream_path;
use crate::space::SpaceReservation;
use crate::store::{Content, Store};
use aws_lc_rs::digest::{Context, SHA256};
use shoal_proto::ids::{Hash, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob, ImageIndex};
use shoal_proto::manifest::{Manifest, Root};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

/// Where a blob's bytes come from.
pub enum BlobSource {
    /// They are read and copied.
    Reader(Box<dyn Read + Send>),
    /// A file that nobody writes to any more, on the store's disk: it becomes the stream as it is.
    File(PathBuf),
}

/// How a blob gets into the folder.
enum Plan {
    /// It is a file of the store's already, cut as in that content.
    Held { holder: Arc<Content>, stream: usize },
    /// It comes from its source.
    Fresh,
}

impl Store {
    /// Evicts what may go until `bytes` fit, and keeps that room until the promise is dropped. Blocks.
    pub fn reserve_space(&self, bytes: u64) -> Result<SpaceReservation, IngestError> {
        Ok(self.make_space(bytes)?.0)
    }

    /// Takes in an image. `open` gives the bytes of blobs that are not here yet. With room reserved for it before, none is
    /// looked for. Blocks; run it on a thread that may.
    pub fn ingest_image(
        &self,
        image: ImageIndex,
        mut open: impl FnMut(&ImageBlob) -> io::Result<BlobSource> + Send,
        room: Option<SpaceReservation>,
        options: &IngestOptions,
        progress: &Arc<IngestProgress>,
    ) -> Result<Ingested, IngestError> {
        let size = image.blobs.iter().map(|blob| blob.size).sum();
        progress.total.store(size, Ordering::Relaxed);
        let folder = self.ingest_folder()?;
        let mut shared = self.inner.nothing_linked();
        let mut plans = Vec::new();
        for (number, blob) in image.blobs.iter().enumerate().filter(|(_, blob)| blob.size > 0) {
            let held = self.inner.holder(&blob.digest, blob.size).and_then(|(holder, stream)| {
                let path = stream_path(&folder.path, number);
                fs::hard_link(self.stream_path(&holder.id, stream), &path).ok()?;
                shared.add(fs::metadata(path).ok()?.ino(), blob.size);
                Some(Plan::Held { holder, stream })
            });
            plans.push((number, blob, held.unwrap_or(Plan::Fresh)));
        }
        let _room = match room {
            Some(room) => room,
            None => {
                let pieces = size / u64::from(average_blob_piece_bytes("tar", size)) + image.blobs.len() as u64;
                self.reserve_space(size - shared.bytes() + pieces * MANIFEST_BYTES_PER_PIECE)?
            }
        };
        let cut = write_streams(&folder.path, options, |queue| {
            let feed = Feed { folder: &folder.path, queue, progress };
            plans.into_iter().try_for_each(|(number, blob, plan)| match plan {
                Plan::Held { holder, stream } => {
                    feed.held(number, blob, &holder, stream).inspect_err(|error| {
                        if matches!(error, IngestError::Blob { .. }) {
                            // From now on it is nobody's source.
                            self.scrub(&holder.id);
                        }
                    })
                }
                Plan::Fresh => feed.fresh(number, blob, &mut open),
            })
        })?;
        let streams = image.blobs.iter().map(|blob| blob.size).filter(|size| *size > 0).collect();
        let manifest = Manifest {
            root: Root::Image,
            entries: Vec::new(),
            streams,
            piece_bytes_avg: 0,
            data: options.data,
            parity: options.parity,
            lanes: options.lanes,
            piece_lens: cut.lens,
            piece_hashes: cut.hashes,
            parity_hashes: cut.parity_hashes,
            image: Some(image),
        };
        self.adopt_manifest(&folder, manifest)
    }
}

/// The reading side of an ingest.
struct Feed<'a> {
    folder: &'a Path,
    queue: SyncSender<Part>,
    progress: &'a IngestProgress,
}

impl Feed<'_> {
    /// Sends the pieces of a blob that is in the store on: only the parity they are part of is new.
    fn held(&self, number: usize, blob: &ImageBlob, holder: &Content, stream: usize) -> Result<(), IngestError> {
        let mut file = File::open(stream_path(self.folder, number))?;
        if self.queue.send(Part::Stream { number, write: false }).is_err() {
            return Ok(());
        }
        for piece in holder.layout.pieces_of(stream).map(PieceIndex) {
            let mut bytes = vec![0; holder.geometry.piece_len(piece) as usize];
            file.read_exact(&mut bytes)?;
            if Hash::of(&bytes) != holder.manifest.piece_hash(piece) {
                let why = "the store's copy is damaged and is not used any more; push again".into();
                return Err(IngestError::Blob { digest: blob.digest, why });
            }
            self.progress.advance(bytes.len())?;
            if self.queue.send(Part::Piece(bytes.into())).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Cuts a blob and checks its digest and length.
    fn fresh(
        &self,
        number: usize,
        blob: &ImageBlob,
        open: &mut impl FnMut(&ImageBlob) -> io::Result<BlobSource>,
    ) -> Result<(), IngestError> {
        let bad = |why: String| IngestError::Blob { digest: blob.digest, why };
        let source = open(blob).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let (reader, write): (Box<dyn Read + Send>, bool) = match source {
            BlobSource::Reader(reader) => (reader, true),
            BlobSource::File(path) => {
                let file = File::open(&path).map_err(|error| bad(format!("cannot be read: {error}")))?;
                // Where there are no hard links it is copied.
                let linked = fs::hard_link(&path, stream_path(self.folder, number)).is_ok();
                (Box::new(file), !linked)
            }
        };
        if self.queue.send(Part::Stream { number, write }).is_err() {
            return Ok(());
        }
        let checked = Checked { reader, sha256: Context::new(&SHA256), left: blob.size };
        let mut cutter = Cutter::new(checked, average_blob_piece_bytes(&blob.media_type, blob.size));
        send_pieces(&mut cutter, &self.queue, self.progress).map_err(|error| match error {
            IngestError::Store(error) => bad(error.to_string()),
            other => other,
        })?;
        let Checked { sha256, left, .. } = cutter.into_reader();
        if left > 0 {
            return Err(bad(format!("it ends {left} bytes before its {} bytes", blob.size)));
        }
        let found = sha256.finish();
        if found.as_ref() != blob.digest.0 {
            let found = found.as_ref().try_into().map_or_else(|_| String::new(), |bytes| Digest(bytes).to_string());
            return Err(bad(format!("its bytes are those of {found}")));
        }
        Ok(())
    }
}

/// Hashes what passes, and lets no more pass than there should be.
struct Checked {
    reader: Box<dyn Read + Send>,
    sha256: Context,
    left: u64,
}

impl Read for Checked {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buf)?;
        self.left =
            self.left.checked_sub(read as u64).ok_or_else(|| io::Error::other("it is longer than its size says"))?;
        self.sha256.update(&buf[..read]);
        Ok(read)
    }
}
