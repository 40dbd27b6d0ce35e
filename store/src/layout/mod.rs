//! Where a content's bytes lie: one file per stream, preallocated, with the pieces end to end.
//!
//! Invariant: a stream file is written only between [`Layout::create_files`] and [`Layout::seal`].

mod open_files;

use crate::direct_io::{self, BLOCK, BounceBuffer, EdgeBlocks, block_start};
use crate::lock::lock;
use open_files::{FileKey, IoMode};
use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::{Errno, pread};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::PieceIndex;
use shoal_proto::manifest::Manifest;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(crate) use open_files::OpenFiles;

/// Shortest stream that is written around the page cache, bytes. Readers read shorter streams soon after.
const DIRECT_MIN: u64 = 4 * 1024 * 1024;

/// The length of a file and the inode that identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileExtent {
    pub(crate) inode: u64,
    pub(crate) bytes: u64,
}

/// A sparse copy of a stream, and the stream that it replaces.
#[derive(Debug)]
pub(crate) struct SparseCopy {
    pub(crate) copy: PathBuf,
    pub(crate) stream: PathBuf,
}

/// A content's stream files, and the place of each piece.
#[derive(Debug)]
pub(crate) struct Layout {
    /// This layout's number among the open files.
    number: u64,
    dir: PathBuf,
    sizes: Vec<u64>,
    /// The blocks at the edges of pieces, by stream. A writer holds the lock, and takes it before `writable`.
    edges: Mutex<BTreeMap<usize, EdgeBlocks>>,
    /// The files exist and may be written, because the content is not complete.
    writable: Mutex<bool>,
    /// The files' inodes, once the files exist. A file that several contents share takes its space once.
    inodes: Mutex<Vec<u64>>,
    opened: Arc<OpenFiles>,
    /// First piece of each stream.
    first_piece: Vec<u32>,
    /// Offset of each piece in its stream, bytes.
    offsets: Box<[u64]>,
    lens: Arc<[u32]>,
}

impl Drop for Layout {
    fn drop(&mut self) {
        self.opened.close(self.number);
    }
}

/// Returns the file of a stream.
pub(crate) fn stream_path(dir: &Path, stream: usize) -> PathBuf {
    dir.join(format!("stream-{stream}"))
}

impl Layout {
    /// Returns the layout of the stream files in `dir`. It opens and creates nothing before the first write.
    pub(crate) fn new(dir: &Path, manifest: &Manifest, geometry: &Geometry, opened: Arc<OpenFiles>) -> Self {
        let lens = geometry.piece_lens().clone();
        let mut offsets = Vec::with_capacity(lens.len());
        let mut first_piece = Vec::new();
        let mut piece = 0;
        for size in &manifest.streams {
            first_piece.push(piece as u32);
            let mut at = 0;
            while at < *size {
                offsets.push(at);
                at += u64::from(lens[piece]);
                piece += 1;
            }
        }
        let (dir, sizes) = (dir.to_path_buf(), manifest.streams.clone());
        let (writable, inodes, edges) = (Mutex::default(), Mutex::default(), Mutex::default());
        let number = opened.new_layout();
        Self { number, dir, sizes, edges, writable, inodes, opened, first_piece, offsets: offsets.into(), lens }
    }
}

/// Files.
impl Layout {
    /// Returns whether every stream file exists with the right length.
    pub(crate) fn files_exist(&self) -> bool {
        let inode = |(stream, size): (usize, &u64)| {
            fs::metadata(stream_path(&self.dir, stream)).ok().filter(|meta| meta.len() == *size).map(|meta| meta.ino())
        };
        let inodes: Option<Vec<u64>> = self.sizes.iter().enumerate().map(inode).collect();
        let exist = inodes.is_some();
        *lock(&self.inodes) = inodes.unwrap_or_default();
        exist
    }

    /// Creates the missing files with their lengths and disk space, and allows writes.
    pub(crate) fn create_files(&self) -> io::Result<()> {
        if *lock(&self.writable) {
            return Ok(());
        }
        // The locks in the order in which writers take them.
        let mut edges = lock(&self.edges);
        let mut writable = lock(&self.writable);
        if *writable {
            return Ok(());
        }
        // Files that are open for reading only must not serve a write.
        self.opened.close(self.number);
        let create = |(stream, size): (usize, &u64)| {
            let path = stream_path(&self.dir, stream);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            let meta = file.metadata()?;
            if meta.len() != *size {
                allocate(&file, *size)?;
            }
            if meta.len() == 0 {
                edges.insert(stream, EdgeBlocks::of_empty_file());
            }
            Ok(meta.ino())
        };
        let inodes: io::Result<Vec<u64>> = self.sizes.iter().enumerate().map(create).collect();
        *lock(&self.inodes) = inodes?;
        *writable = true;
        Ok(())
    }

    /// Forbids writes, because the content is complete.
    pub(crate) fn seal(&self) {
        *lock(&self.writable) = false;
        lock(&self.edges).clear();
        self.opened.close(self.number);
    }

    /// Returns the files that exist.
    pub(crate) fn extents(&self) -> Vec<FileExtent> {
        let inodes = lock(&self.inodes);
        inodes.iter().zip(&self.sizes).map(|(inode, bytes)| FileExtent { inode: *inode, bytes: *bytes }).collect()
    }

    /// Makes a stream a hard link to a file that never changes again. Returns the file's inode.
    pub(crate) fn link(&self, stream: usize, file: &Path) -> io::Result<u64> {
        let path = stream_path(&self.dir, stream);
        fs::hard_link(file, &path)?;
        Ok(fs::metadata(path)?.ino())
    }

    /// Removes such a link.
    pub(crate) fn unlink(&self, stream: usize) -> io::Result<()> {
        self.opened.close(self.number);
        fs::remove_file(stream_path(&self.dir, stream))
    }

    /// Allocates the blocks of sparse streams, so that a full disk is an error now and not at a later write.
    pub(crate) fn allocate(&self) -> io::Result<()> {
        self.create_files()?;
        (0..self.sizes.len())
            .try_for_each(|stream| allocate(&*self.file(stream, IoMode::Buffered)?, self.sizes[stream]))
    }

    /// Writes sparse copies of all streams that have only these pieces. The copies are durable when this returns.
    pub(crate) fn copy_sparse(&self, pieces: &Bitmap, suffix: &str) -> io::Result<Vec<SparseCopy>> {
        let copy = |(stream, size): (usize, &u64)| {
            let path = self.dir.join(format!("stream-{stream}.{suffix}"));
            let file = File::create(&path)?;
            file.set_len(*size)?;
            for piece in self.pieces_of(stream).filter(|piece| pieces.get(*piece)).map(PieceIndex) {
                file.write_all_at(&self.read(piece)?, self.offsets[piece.index()])?;
            }
            file.sync_all()?;
            Ok(SparseCopy { copy: path, stream: stream_path(&self.dir, stream) })
        };
        self.sizes.iter().enumerate().map(copy).collect()
    }

    /// Returns once the disk has every stream.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.create_files()?;
        (0..self.sizes.len()).try_for_each(|stream| self.file(stream, IoMode::Buffered)?.sync_data())
    }

    /// Returns once the disk has what was written to a stream so far. Does nothing if the content is complete.
    pub(crate) fn sync_stream(&self, stream: usize) -> io::Result<()> {
        if *lock(&self.writable) { self.file(stream, IoMode::Buffered)?.sync_data() } else { Ok(()) }
    }

    fn file(&self, stream: usize, mode: IoMode) -> io::Result<Arc<File>> {
        let write = *lock(&self.writable);
        let flags = if mode == IoMode::Direct { OFlags::DIRECT.bits() as i32 } else { 0 };
        self.opened.get(FileKey { layout: self.number, stream, mode }, || {
            OpenOptions::new().read(true).write(write).custom_flags(flags).open(stream_path(&self.dir, stream))
        })
    }
}

/// Pieces.
impl Layout {
    /// Returns the pieces of a stream.
    pub(crate) fn pieces_of(&self, stream: usize) -> Range<u32> {
        let end = self.first_piece.get(stream + 1).copied().unwrap_or(self.lens.len() as u32);
        self.first_piece[stream]..end
    }

    /// Returns the stream that contains a piece.
    pub(crate) fn stream_of(&self, piece: PieceIndex) -> usize {
        self.first_piece.partition_point(|first| *first <= piece.0) - 1
    }

    /// Returns the distance of a piece's first byte from the start of its disk block, bytes.
    pub(crate) fn block_offset(&self, piece: PieceIndex) -> usize {
        (self.offsets[piece.index()] % BLOCK as u64) as usize
    }

    pub(crate) fn read(&self, piece: PieceIndex) -> io::Result<Vec<u8>> {
        let (len, offset) = (self.lens[piece.index()] as usize, self.offsets[piece.index()]);
        let file = self.file(self.stream_of(piece), IoMode::Buffered)?;
        // Reads into spare capacity, which saves filling up to 8 MiB with zeros first.
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match pread(&*file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The spare capacity may be larger than the piece.
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Writes a piece through the page cache. A write of a neighbouring piece waits meanwhile.
    pub(crate) fn write(&self, piece: PieceIndex, bytes: &[u8]) -> io::Result<()> {
        self.create_files()?;
        let (stream, offset) = (self.stream_of(piece), self.offsets[piece.index()]);
        let mut edges = lock(&self.edges);
        if let Some(edges) = edges.get_mut(&stream) {
            edges.forget(offset, bytes.len());
        }
        self.file(stream, IoMode::Buffered)?.write_all_at(bytes, offset)
    }

    /// Writes a piece around the page cache where possible. Returns how many of its bytes went into the page cache.
    pub(crate) fn write_direct(&self, piece: PieceIndex, bytes: &[u8], bounce: &mut BounceBuffer) -> io::Result<usize> {
        let (stream, offset) = (self.stream_of(piece), self.offsets[piece.index()]);
        let size = self.sizes[stream];
        if size < DIRECT_MIN || !self.opened.uses_direct_io() {
            self.write(piece, bytes)?;
            return Ok(bytes.len());
        }
        self.create_files()?;
        // A direct write covers whole blocks, but the file ends within a block. The page cache writes that last part.
        let whole = block_start(size).saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (direct, rest) = bytes.split_at(whole);
        if !direct.is_empty() {
            let mut edges = lock(&self.edges);
            let edges = edges.entry(stream).or_default();
            let written = self
                .file(stream, IoMode::Direct)
                .and_then(|file| direct_io::write(&file, edges, bounce, offset, direct));
            match written {
                Ok(()) => {}
                // The file system has no direct writes.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    tracing::debug!(dir = %self.dir.display(), "the file system refuses direct writes");
                    self.opened.disable_direct_io();
                    self.file(stream, IoMode::Buffered)?.write_all_at(bytes, offset)?;
                    return Ok(bytes.len());
                }
                Err(error) => return Err(error),
            }
        }
        if !rest.is_empty() {
            self.file(stream, IoMode::Buffered)?.write_all_at(rest, offset + whole as u64)?;
        }
        Ok(rest.len())
    }
}

/// Sets a file's length and allocates its blocks, so that a full disk is an error now.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => {}
        // Some file systems cannot allocate ahead. There, a full disk is an error of a later write.
        Err(Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    file.set_len(size)
}
