//! A file or folder that is open to be ingested.
//!
//! Invariant: what a source reads is the file or folder that was opened, or lies below it, whatever another user swaps
//! in at its path meanwhile.

use crate::open_folder::{OpenFolder, open_inside};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A file or folder that is open to be ingested.
#[derive(Debug)]
pub struct OpenSource {
    path: PathBuf,
    stat: Stat,
    real: PathBuf,
    /// What is open.
    pub opened: Opened,
}

/// What a source is.
#[derive(Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum Opened {
    File(File),
    Folder(OpenFolder),
    /// A pipe, a device or a socket.
    Special,
}

impl OpenSource {
    /// Opens a path, through links.
    ///
    /// # Errors
    /// Fails if the path cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Self::of(openat(CWD, path, flags, Mode::empty())?, path)
    }

    /// Opens a path below a folder. The folder's own path may lead through links. Links below it must stay below it.
    ///
    /// # Errors
    /// Fails if the path cannot be opened or leads out of the folder.
    pub fn open_below(folder: &Path, below: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, folder, flags, Mode::empty())?;
        Self::of(open_inside(&root, below)?, &folder.join(below))
    }

    fn of(fd: OwnedFd, path: &Path) -> io::Result<Self> {
        let stat = fstat(&fd)?;
        let real = readlinkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        let opened = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Opened::File(fd.into()),
            FileType::Directory => Opened::Folder(fd.into()),
            _ => Opened::Special,
        };
        Ok(Self { path: path.to_path_buf(), stat, real: OsString::from_vec(real.into_bytes()).into(), opened })
    }

    /// Returns the path by which the source was opened. Messages name it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path that the system knows, without links.
    pub fn real_path(&self) -> &Path {
        &self.real
    }

    pub(crate) fn stat(&self) -> &Stat {
        &self.stat
    }
}
