//! Where a content's bytes lie: one preallocated file a stream, pieces end to end.

use rustix::fs::{FallocateFlags, fallocate};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::PieceIndex;
use shoal_proto::manifest::Manifest;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Complete contents whose files stay open, so that a store of thousands of them does not need thousands of descriptors.
const OPEN_MAX: usize = 64;

/// A content's stream files.
type Files = Arc<[File]>;

/// Files of complete contents that were read of late, the latest first.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles {
    rows: Mutex<VecDeque<(PathBuf, Files)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenFiles {
    fn get(&self, dir: &Path, streams: usize) -> io::Result<Files> {
        let mut rows = lock(&self.rows);
        let found = rows.iter().position(|(row, _)| row == dir).and_then(|place| rows.remove(place));
        let row = match found {
            Some(row) => row,
            None => {
                let files: io::Result<Vec<File>> =
                    (0..streams).map(|stream| File::open(stream_path(dir, stream))).collect();
                (dir.to_path_buf(), files?.into())
            }
        };
        let files = row.1.clone();
        rows.push_front(row);
        rows.truncate(OPEN_MAX);
        Ok(files)
    }

    /// Closes a folder's files: it is about to go or to change.
    pub(crate) fn forget(&self, dir: &Path) {
        lock(&self.rows).retain(|(row, _)| row != dir);
    }
}

/// A content's stream files, and where each piece lies in them.
#[derive(Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    sizes: Vec<u64>,
    /// Open for writing, until the content is complete.
    held: Mutex<Option<Files>>,
    opened: Arc<OpenFiles>,
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
        let (dir, sizes, held) = (dir.to_path_buf(), manifest.streams.clone(), Mutex::default());
        Self { dir, sizes, held, opened, first_piece, offsets: offsets.into(), lens }
    }

    /// Whether every stream file is there and as long as it should be.
    pub(crate) fn is_there(&self) -> bool {
        let whole = |(stream, size): (usize, &u64)| {
            fs::metadata(stream_path(&self.dir, stream)).is_ok_and(|meta| meta.len() == *size)
        };
        self.sizes.iter().enumerate().all(whole)
    }

    /// Opens the files for writing, making and preallocating those that are not there.
    pub(crate) fn hold(&self) -> io::Result<Files> {
        let mut held = lock(&self.held);
        if let Some(files) = &*held {
            return Ok(files.clone());
        }
        self.opened.forget(&self.dir);
        let open = |(stream, size): (usize, &u64)| {
            let path = stream_path(&self.dir, stream);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            if file.metadata()?.len() != *size {
                reserve(&file, *size)?;
            }
            Ok(file)
        };
        let files: io::Result<Vec<File>> = self.sizes.iter().enumerate().map(open).collect();
        let files: Files = files?.into();
        *held = Some(files.clone());
        Ok(files)
    }

    /// The content is complete: from now on its files are opened to be read, while they are.
    pub(crate) fn release(&self) {
        *lock(&self.held) = None;
    }

    /// Closes everything: the folder is about to go.
    pub(crate) fn close(&self) {
        self.release();
        self.opened.forget(&self.dir);
    }

    fn place(&self, piece: PieceIndex) -> (usize, u64, usize) {
        let stream = self.first_piece.partition_point(|first| *first <= piece.0) - 1;
        (stream, self.offsets[piece.index()], self.lens[piece.index()] as usize)
    }

    pub(crate) fn read(&self, piece: PieceIndex) -> io::Result<Vec<u8>> {
        let (stream, offset, len) = self.place(piece);
        let held = lock(&self.held).clone();
        let files = match held {
            Some(files) => files,
            None => self.opened.get(&self.dir, self.sizes.len())?,
        };
        let mut bytes = vec![0; len];
        files[stream].read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    pub(crate) fn write(&self, piece: PieceIndex, bytes: &[u8]) -> io::Result<()> {
        let (stream, offset, _) = self.place(piece);
        self.hold()?[stream].write_all_at(bytes, offset)
    }

    /// Writes files with these pieces and holes between them beside the streams, durable; gives them, and the streams they
    /// may replace.
    pub(crate) fn copy_sparse(&self, pieces: &Bitmap, suffix: &str) -> io::Result<Vec<(PathBuf, PathBuf)>> {
        let mut copies = Vec::new();
        for (stream, size) in self.sizes.iter().enumerate() {
            let path = self.dir.join(format!("stream-{stream}.{suffix}"));
            let file = File::create(&path)?;
            file.set_len(*size)?;
            copies.push((file, path, stream_path(&self.dir, stream)));
        }
        for piece in pieces.iter().map(PieceIndex) {
            let (stream, offset, _) = self.place(piece);
            copies[stream].0.write_all_at(&self.read(piece)?, offset)?;
        }
        let done = copies.into_iter().map(|(file, copy, stream)| file.sync_all().map(|()| (copy, stream)));
        done.collect()
    }

    /// Gives sparse streams all their blocks, so that a full disk shows now.
    pub(crate) fn reserve(&self) -> io::Result<()> {
        let files = self.hold()?;
        files.iter().zip(&self.sizes).try_for_each(|(file, size)| reserve(file, *size))
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.hold()?.iter().try_for_each(File::sync_data)
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
