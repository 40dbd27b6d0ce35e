//! Finds what is in a directory, in the manifest's order, and reads it as one stream.
//!
//! Invariant: what was read is what was listed; a file that changes in between is an error that names it.

use shoal_proto::limits;
use shoal_proto::manifest::{Entry, EntryKind, Root, is_safe_path, link_stays_inside};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a source cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no file, directory or link.
    #[error("{} is neither a file, a directory nor a link", .0.display())]
    Special(PathBuf),
    /// A link leads out of the source.
    #[error("link {} -> {} leads out of the content", .path.display(), .target.display())]
    Escapes {
        /// The link.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// A path or the number of entries is over a limit.
    #[error("{}: {what}", .path.display())]
    Limit {
        /// What.
        path: PathBuf,
        /// Which limit.
        what: &'static str,
    },
    /// A file was changed while it was read.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// Told to stop.
    #[error("cancelled")]
    Cancelled,
}

/// A file to read, as it was when listed.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    stamp: Stamp,
}

/// What tells that a file was changed.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Stamp {
    size: u64,
    mtime: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self { size: meta.len(), mtime: (meta.mtime(), meta.mtime_nsec()), inode: meta.ino() }
    }
}

/// What is at a path.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) root: Root,
    pub(crate) entries: Vec<Entry>,
    pub(crate) sources: Vec<Source>,
    pub(crate) size: u64,
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> WalkError + '_ {
    move |source| WalkError::Read { path: path.to_path_buf(), source }
}

/// Lists a file or directory. The path itself may be a link; links inside stay links.
pub(crate) fn list(path: &Path) -> Result<Listing, WalkError> {
    let meta = fs::metadata(path).map_err(read_error(path))?;
    if meta.is_file() {
        let name = path.file_name().unwrap_or(OsStr::new("file")).as_bytes().to_vec();
        let entry = Entry { path: name, mode: meta.mode() & 0o7777, kind: EntryKind::File { size: meta.len() } };
        let source = Source { path: path.to_path_buf(), stamp: Stamp::of(&meta) };
        return Ok(Listing { root: Root::File, entries: vec![entry], sources: vec![source], size: meta.len() });
    }
    if !meta.is_dir() {
        return Err(WalkError::Special(path.to_path_buf()));
    }
    let mut found: Vec<(Entry, Option<Stamp>)> = Vec::new();
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let at = path.join(OsStr::from_bytes(&folder));
        for item in fs::read_dir(&at).map_err(read_error(&at))? {
            let name = item.map_err(read_error(&at))?.file_name().into_vec();
            let relative = if folder.is_empty() { name } else { [folder.as_slice(), b"/", &name].concat() };
            let row = inspect(path, relative)?;
            if row.0.kind == EntryKind::Directory {
                folders.push(row.0.path.clone());
            }
            found.push(row);
            if found.len() > limits::ENTRIES_MAX {
                return Err(WalkError::Limit { path: path.to_path_buf(), what: "too many entries" });
            }
        }
    }
    found.sort_unstable_by(|a, b| a.0.path.cmp(&b.0.path));
    let mut listing = Listing {
        root: Root::Directory { mode: meta.mode() & 0o7777 },
        entries: Vec::new(),
        sources: Vec::new(),
        size: 0,
    };
    for (entry, stamp) in found {
        if let Some(stamp) = stamp {
            listing.size += stamp.size;
            listing.sources.push(Source { path: path.join(OsStr::from_bytes(&entry.path)), stamp });
        }
        listing.entries.push(entry);
    }
    Ok(listing)
}

fn inspect(root: &Path, relative: Vec<u8>) -> Result<(Entry, Option<Stamp>), WalkError> {
    let path = root.join(OsStr::from_bytes(&relative));
    if !is_safe_path(&relative) {
        return Err(WalkError::Limit { path, what: "path is too long" });
    }
    let meta = fs::symlink_metadata(&path).map_err(read_error(&path))?;
    let mode = meta.mode() & 0o7777;
    let kind = meta.file_type();
    if kind.is_dir() {
        return Ok((Entry { path: relative, mode, kind: EntryKind::Directory }, None));
    }
    if kind.is_file() {
        let kind = EntryKind::File { size: meta.len() };
        return Ok((Entry { path: relative, mode, kind }, Some(Stamp::of(&meta))));
    }
    if kind.is_symlink() {
        let target = fs::read_link(&path).map_err(read_error(&path))?;
        if !link_stays_inside(&relative, target.as_os_str().as_bytes()) {
            return Err(WalkError::Escapes { path, target });
        }
        // Linux gives every link mode 0777, whatever it was made with.
        let kind = EntryKind::Link { target: target.into_os_string().into_vec() };
        return Ok((Entry { path: relative, mode: 0o777, kind }, None));
    }
    Err(WalkError::Special(path))
}

/// The listed files end to end.
#[derive(Debug)]
pub(crate) struct Stream {
    sources: std::vec::IntoIter<Source>,
    current: Option<(File, Source, u64)>,
    /// What went wrong, for the caller of a `Read` that failed.
    pub(crate) fault: Option<WalkError>,
}

impl Stream {
    pub(crate) fn new(sources: Vec<Source>) -> Self {
        Self { sources: sources.into_iter(), current: None, fault: None }
    }

    fn open(&mut self) -> Result<bool, WalkError> {
        let Some(source) = self.sources.next() else { return Ok(false) };
        // O_NOFOLLOW: what was listed as a file may have become a link. Not for the path given by the user.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(&source.path)
            .map_err(read_error(&source.path))?;
        let meta = file.metadata().map_err(read_error(&source.path))?;
        if Stamp::of(&meta) != source.stamp || !meta.is_file() {
            return Err(WalkError::Changed(source.path));
        }
        self.current = Some((file, source, 0));
        Ok(true)
    }

    fn step(&mut self, buf: &mut [u8]) -> Result<usize, WalkError> {
        loop {
            let Some((file, source, read)) = &mut self.current else {
                if !self.open()? {
                    return Ok(0);
                }
                continue;
            };
            let left = source.stamp.size - *read;
            if left == 0 {
                // A file that grew has more; one rewritten in place has another time.
                let meta = file.metadata().map_err(read_error(&source.path))?;
                if Stamp::of(&meta) != source.stamp {
                    return Err(WalkError::Changed(source.path.clone()));
                }
                self.current = None;
                continue;
            }
            let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = match file.read(&mut buf[..len]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(read_error(&source.path))?,
            };
            if got == 0 {
                return Err(WalkError::Changed(source.path.clone()));
            }
            *read += got as u64;
            return Ok(got);
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.step(buf).map_err(|fault| {
            let error = io::Error::other(fault.to_string());
            self.fault = Some(fault);
            error
        })
    }
}
