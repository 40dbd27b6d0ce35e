//! Stream files that are kept open.
//!
//! Invariant: at most [`OPEN_MAX`] files are open, the most recently used ones.

use crate::lock::lock;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Open files. A store of thousands of contents, or an image of a thousand layers, needs no more descriptors than this.
const OPEN_MAX: usize = 256;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoMode {
    /// Through the page cache.
    Buffered,
    /// Around the page cache (`O_DIRECT`).
    Direct,
}

/// Identifies an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileKey {
    pub(super) layout: u64,
    pub(super) stream: usize,
    pub(super) mode: IoMode,
}

#[derive(Debug)]
struct OpenFile {
    key: FileKey,
    file: Arc<File>,
}

/// The open files of all contents, most recently used first.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    /// Whether long streams are written around the page cache.
    direct_io: AtomicBool,
    files: Mutex<VecDeque<OpenFile>>,
    layouts: AtomicU64,
}

impl OpenFiles {
    pub(crate) fn new(direct_io: bool) -> Self {
        Self { direct_io: AtomicBool::new(direct_io), files: Mutex::default(), layouts: AtomicU64::default() }
    }

    pub(super) fn uses_direct_io(&self) -> bool {
        self.direct_io.load(Ordering::Relaxed)
    }

    /// The file system refuses direct writes. All later writes go through the page cache.
    pub(super) fn disable_direct_io(&self) {
        self.direct_io.store(false, Ordering::Relaxed);
    }

    /// Returns a number that no other layout has. A later content in the same folder gets another one, so it never gets
    /// the files of its predecessor.
    pub(super) fn new_layout(&self) -> u64 {
        self.layouts.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, key: FileKey, open: impl FnOnce() -> io::Result<File>) -> io::Result<Arc<File>> {
        let mut files = lock(&self.files);
        let found = files.iter().position(|row| row.key == key).and_then(|place| files.remove(place));
        let row = match found {
            Some(row) => row,
            None => OpenFile { key, file: Arc::new(open()?) },
        };
        let file = row.file.clone();
        files.push_front(row);
        files.truncate(OPEN_MAX);
        Ok(file)
    }

    /// Closes the files of a layout.
    pub(super) fn close(&self, layout: u64) {
        lock(&self.files).retain(|row| row.key.layout != layout);
    }
}
