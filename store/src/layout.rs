//! Where a content's bytes lie: one preallocated file a stream, pieces end to end.

use rustix::fs::{FallocateFlags, fallocate};
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::PieceIndex;
use shoal_proto::manifest::Manifest;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A content's stream files, open, and where each piece lies in them.
#[derive(Debug)]
pub(crate) struct Layout {
    files: Vec<File>,
    /// First piece of each stream.
    first_piece: Vec<u32>,
    /// Offset of each piece in its stream, bytes.
    offsets: Box<[u64]>,
    lens: std::sync::Arc<[u32]>,
}

pub(crate) fn stream_path(dir: &Path, stream: usize) -> PathBuf {
    dir.join(format!("stream-{stream}"))
}

impl Layout {
    /// Opens the stream files in `dir`, making and preallocating those that are not there.
    pub(crate) fn open(dir: &Path, manifest: &Manifest, geometry: &Geometry) -> io::Result<Self> {
        let lens = geometry.piece_lens().clone();
        let mut offsets = Vec::with_capacity(lens.len());
        let (mut files, mut first_piece) = (Vec::new(), Vec::new());
        let mut piece = 0;
        for (stream, size) in manifest.streams.iter().enumerate() {
            first_piece.push(piece as u32);
            let mut at = 0;
            while at < *size {
                offsets.push(at);
                at += u64::from(lens[piece]);
                piece += 1;
            }
            let path = stream_path(dir, stream);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            if file.metadata()?.len() != *size {
                reserve(&file, *size)?;
            }
            files.push(file);
        }
        Ok(Self { files, first_piece, offsets: offsets.into(), lens })
    }

    fn place(&self, piece: PieceIndex) -> (&File, u64, usize) {
        let stream = self.first_piece.partition_point(|first| *first <= piece.0) - 1;
        (&self.files[stream], self.offsets[piece.index()], self.lens[piece.index()] as usize)
    }

    pub(crate) fn read(&self, piece: PieceIndex) -> io::Result<Vec<u8>> {
        let (file, offset, len) = self.place(piece);
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    pub(crate) fn write(&self, piece: PieceIndex, bytes: &[u8]) -> io::Result<()> {
        let (file, offset, _) = self.place(piece);
        file.write_all_at(bytes, offset)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(File::sync_data)
    }
}

/// Gives a file its length and its blocks, so that a full disk shows now.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => {}
        // Not every file system can; then the writes will tell.
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    file.set_len(size)
}
