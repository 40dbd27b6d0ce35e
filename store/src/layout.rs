//! Where a content's bytes lie: one preallocated file a stream, pieces end to end.

use crate::direct_io::{self, BLOCK, Bounce, Edges, floor};
use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::{Errno, pread};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::PieceIndex;
use shoal_proto::manifest::Manifest;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files kept open, of those read or written of late: a store of thousands of contents does not need thousands of
/// descriptors, nor does an image of a thousand layers.
const OPEN_MAX: usize = 256;

/// Bytes of a stream from which on it is written around the page cache. Shorter ones are read soon, or were never worth it.
const DIRECT_MIN: u64 = 4 * 1024 * 1024;

/// How a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cached,
    /// Around the page cache.
    Direct,
}

/// A layout's number, a stream's in it, and the way.
type FileKey = (u64, usize, Way);

/// Stream files used of late, the latest first.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    /// Whether the page cache is gone around where it is worth it.
    direct: AtomicBool,
    rows: Mutex<VecDeque<(FileKey, Arc<File>)>>,
    layouts: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenFiles {
    /// None yet. `direct` has long streams written around the page cache, if the file system can.
    pub(crate) fn new(direct: bool) -> Self {
        Self { direct: AtomicBool::new(direct), rows: Mutex::default(), layouts: AtomicU64::default() }
    }

    fn get(&self, key: FileKey, open: impl FnOnce() -> io::Result<File>) -> io::Result<Arc<File>> {
        let mut rows = lock(&self.rows);
        let found = rows.iter().position(|(row, _)| *row == key).and_then(|place| rows.remove(place));
        let row = match found {
            Some(row) => row,
            None => (key, Arc::new(open()?)),
        };
        let file = row.1.clone();
        rows.push_front(row);
        rows.truncate(OPEN_MAX);
        Ok(file)
    }

    /// Closes a layout's files.
    fn forget(&self, layout: u64) {
        lock(&self.rows).retain(|((row, _, _), _)| *row != layout);
    }
}

/// A content's stream files, and where each piece lies in them.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Tells its files from those of others, also of a former content in the same folder.
    number: u64,
    dir: PathBuf,
    sizes: Vec<u64>,
    /// The files are there and may be written to, until the content is complete.
    held: Mutex<bool>,
    /// The files' inodes, once they are there: contents that share a file take its room once.
    inodes: Mutex<Vec<u64>>,
    /// Blocks between pieces, by stream. Held by whoever writes.
    edges: Mutex<BTreeMap<usize, Edges>>,
    opened: Arc<OpenFiles>,
    /// First piece of each stream.
    first_piece: Vec<u32>,
    /// Offset of each piece in its stream, bytes.
    offsets: Box<[u64]>,
    lens: std::sync::Arc<[u32]>,
}

impl Drop for Layout {
    fn drop(&mut self) {
        self.opened.forget(self.number);
    }
}

pub(crate) fn stream_path(dir: &Path, stream: usize) -> PathBuf {
    dir.join(format!("stream-{stream}"))
}

impl Layout {
    /// Of the stream files in `dir`. Nothing is opened or made before the first write.
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
        let (held, inodes, edges) = (Mutex::default(), Mutex::default(), Mutex::default());
        let number = opened.layouts.fetch_add(1, Ordering::Relaxed);
        Self { number, dir, sizes, held, inodes, edges, opened, first_piece, offsets: offsets.into(), lens }
    }

    /// Whether every stream file is there and as long as it should be.
    pub(crate) fn is_there(&self) -> bool {
        let inode = |(stream, size): (usize, &u64)| {
            fs::metadata(stream_path(&self.dir, stream)).ok().filter(|meta| meta.len() == *size).map(|meta| meta.ino())
        };
        let inodes: Option<Vec<u64>> = self.sizes.iter().enumerate().map(inode).collect();
        let there = inodes.is_some();
        *lock(&self.inodes) = inodes.unwrap_or_default();
        there
    }

    /// Makes the files that are not there, each with its length and its room. They may be written to from now on.
    pub(crate) fn hold(&self) -> io::Result<()> {
        if *lock(&self.held) {
            return Ok(());
        }
        // In the order in which writers take them.
        let mut edges = lock(&self.edges);
        let mut held = lock(&self.held);
        if *held {
            return Ok(());
        }
        self.opened.forget(self.number);
        let make = |(stream, size): (usize, &u64)| {
            let path = stream_path(&self.dir, stream);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            let meta = file.metadata()?;
            if meta.len() != *size {
                reserve(&file, *size)?;
            }
            if meta.len() == 0 {
                edges.insert(stream, Edges::of_empty());
            }
            Ok(meta.ino())
        };
        let inodes: io::Result<Vec<u64>> = self.sizes.iter().enumerate().map(make).collect();
        *lock(&self.inodes) = inodes?;
        *held = true;
        Ok(())
    }

    /// The content is complete: its files are only read from now on.
    pub(crate) fn release(&self) {
        *lock(&self.held) = false;
        lock(&self.edges).clear();
        self.opened.forget(self.number);
    }

    /// The inodes and lengths of the files that are there.
    pub(crate) fn extents(&self) -> Vec<(u64, u64)> {
        lock(&self.inodes).iter().copied().zip(self.sizes.iter().copied()).collect()
    }

    /// Makes a stream another name of a file that is there and will not change. Gives its inode.
    pub(crate) fn link(&self, stream: usize, file: &Path) -> io::Result<u64> {
        let path = stream_path(&self.dir, stream);
        fs::hard_link(file, &path)?;
        Ok(fs::metadata(path)?.ino())
    }

    /// Takes such a name away again.
    pub(crate) fn unlink(&self, stream: usize) -> io::Result<()> {
        self.opened.forget(self.number);
        fs::remove_file(stream_path(&self.dir, stream))
    }

    /// The pieces of a stream.
    pub(crate) fn pieces_of(&self, stream: usize) -> Range<u32> {
        let end = self.first_piece.get(stream + 1).copied().unwrap_or(self.lens.len() as u32);
        self.first_piece[stream]..end
    }

    /// The stream a piece is in.
    pub(crate) fn stream_of(&self, piece: PieceIndex) -> usize {
        self.first_piece.partition_point(|first| *first <= piece.0) - 1
    }

    fn file(&self, stream: usize, way: Way) -> io::Result<Arc<File>> {
        let write = *lock(&self.held);
        let flags = if way == Way::Direct { OFlags::DIRECT.bits() as i32 } else { 0 };
        self.opened.get((self.number, stream, way), || {
            OpenOptions::new().read(true).write(write).custom_flags(flags).open(stream_path(&self.dir, stream))
        })
    }

    pub(crate) fn read(&self, piece: PieceIndex) -> io::Result<Vec<u8>> {
        let (len, offset) = (self.lens[piece.index()] as usize, self.offsets[piece.index()]);
        let file = self.file(self.stream_of(piece), Way::Cached)?;
        // Not filled with zeros first.
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match pread(&*file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// How far into a block of the disk a piece begins, bytes.
    pub(crate) fn block_offset(&self, piece: PieceIndex) -> usize {
        (self.offsets[piece.index()] % BLOCK as u64) as usize
    }

    /// Writes a piece. What is written for one of its neighbours meanwhile waits.
    pub(crate) fn write(&self, piece: PieceIndex, bytes: &[u8]) -> io::Result<()> {
        self.hold()?;
        let (stream, offset) = (self.stream_of(piece), self.offsets[piece.index()]);
        let mut edges = lock(&self.edges);
        if let Some(edges) = edges.get_mut(&stream) {
            edges.forget(offset, bytes.len());
        }
        self.file(stream, Way::Cached)?.write_all_at(bytes, offset)
    }

    /// Writes a piece around the page cache where that can be; gives the bytes that are in it all the same.
    pub(crate) fn write_direct(&self, piece: PieceIndex, bytes: &[u8], bounce: &mut Bounce) -> io::Result<usize> {
        let (stream, offset) = (self.stream_of(piece), self.offsets[piece.index()]);
        let size = self.sizes[stream];
        if size < DIRECT_MIN || !self.opened.direct.load(Ordering::Relaxed) {
            self.write(piece, bytes)?;
            return Ok(bytes.len());
        }
        self.hold()?;
        // The file ends within a block, which only the page cache can write.
        let whole = floor(size).saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (around, rest) = bytes.split_at(whole);
        if !around.is_empty() {
            let mut edges = lock(&self.edges);
            let edges = edges.entry(stream).or_default();
            let written =
                self.file(stream, Way::Direct).and_then(|file| direct_io::write(&file, edges, bounce, offset, around));
            match written {
                Ok(()) => {}
                // Not every file system can.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    tracing::debug!(dir = %self.dir.display(), "the page cache cannot be gone around here");
                    self.opened.direct.store(false, Ordering::Relaxed);
                    self.file(stream, Way::Cached)?.write_all_at(bytes, offset)?;
                    return Ok(bytes.len());
                }
                Err(error) => return Err(error),
            }
        }
        if !rest.is_empty() {
            self.file(stream, Way::Cached)?.write_all_at(rest, offset + whole as u64)?;
        }
        Ok(rest.len())
    }

    /// Has the disk take what was written to a stream so far, if it is still written to.
    pub(crate) fn flush(&self, stream: usize) -> io::Result<()> {
        if *lock(&self.held) { self.file(stream, Way::Cached)?.sync_data() } else { Ok(()) }
    }

    /// Writes files with these pieces and holes between them beside the streams, durable; gives them, and the streams they
    /// may replace.
    pub(crate) fn copy_sparse(&self, pieces: &Bitmap, suffix: &str) -> io::Result<Vec<(PathBuf, PathBuf)>> {
        let copy = |(stream, size): (usize, &u64)| {
            let path = self.dir.join(format!("stream-{stream}.{suffix}"));
            let file = File::create(&path)?;
            file.set_len(*size)?;
            for piece in self.pieces_of(stream).filter(|piece| pieces.get(*piece)).map(PieceIndex) {
                file.write_all_at(&self.read(piece)?, self.offsets[piece.index()])?;
            }
            file.sync_all()?;
            Ok((path, stream_path(&self.dir, stream)))
        };
        self.sizes.iter().enumerate().map(copy).collect()
    }

    /// Gives sparse streams all their blocks, so that a full disk shows now.
    pub(crate) fn reserve(&self) -> io::Result<()> {
        self.hold()?;
        (0..self.sizes.len()).try_for_each(|stream| reserve(&*self.file(stream, Way::Cached)?, self.sizes[stream]))
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.hold()?;
        (0..self.sizes.len()).try_for_each(|stream| self.file(stream, Way::Cached)?.sync_data())
    }
}

/// Gives a file its length and its blocks, so that a full disk shows now.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => {}
        // Not every file system can; then the writes will tell.
        Err(Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    file.set_len(size)
}
