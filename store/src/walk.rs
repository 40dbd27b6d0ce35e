//! Lists a directory in the manifest's order, and reads its files as one stream.
//!
//! Invariant: the bytes read are those of the files that were listed. A file that changes in between is an error. No
//! link is followed below the source, so nothing outside of it is read.
//! Set-user-id, set-group-id and sticky bits never enter a listing.

use crate::open_folder::OpenFolder;
use crate::source::{OpenSource, Opened};
use rustix::fs::{FileType, Stat, fstat};
use shoal_proto::limits;
use shoal_proto::manifest::{Entry, EntryKind, MODE_BITS, Root, is_safe_path, link_stays_inside};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Why a source cannot be ingested.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The path does not exist, or its permissions forbid reading.
    #[error("cannot read {}: {source}", .path.display())]
    #[allow(missing_docs, reason = "the message says it")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The path is a device, a socket or a pipe.
    #[error("{} is neither a file, a directory nor a link: remove it from the source", .0.display())]
    Special(PathBuf),
    /// A link would point outside of the content on a host.
    #[error("link {} -> {} leads out of the content: use a relative target inside", .path.display(), .target.display())]
    #[allow(missing_docs, reason = "the message says it")]
    Escapes { path: PathBuf, target: PathBuf },
    /// A path or the number of entries exceeds a limit of the format.
    #[error("{}: {what}", .path.display())]
    #[allow(missing_docs, reason = "the message says it")]
    Limit { path: PathBuf, what: &'static str },
    /// A file changed between the listing and the end of its reading.
    #[error("{} changed while it was read: push again", .0.display())]
    Changed(PathBuf),
    /// The caller cancelled the ingest.
    #[error("cancelled")]
    Cancelled,
}

/// A file to read, and its state at the listing.
#[derive(Debug)]
pub(crate) struct Source {
    /// Where it lies below the source. Empty for a source that is a single file.
    relative: PathBuf,
    stamp: Stamp,
}

/// Differs after a change of the file.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Stamp {
    size: u64,
    mtime: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(i64::MAX)),
            inode: stat.st_ino,
        }
    }
}

/// The entries of a source.
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

/// Returns the mode bits that a content may carry. A file has another owner on a host, so other bits would change their
/// meaning there.
fn permissions(stat: &Stat, path: &Path) -> u32 {
    let dropped = stat.st_mode & 0o7777 & !MODE_BITS;
    if dropped != 0 {
        tracing::info!(path = %path.display(), bits = format!("{dropped:04o}"), "left out set-id or sticky bits");
    }
    stat.st_mode & MODE_BITS
}

/// Lists a file or directory. Links inside stay links.
pub(crate) fn list(source: &OpenSource) -> Result<Listing, WalkError> {
    let (path, stat) = (source.path(), source.stat());
    match &source.opened {
        Opened::File(_) => {
            let name = path.file_name().unwrap_or(OsStr::new("file")).as_bytes().to_vec();
            let stamp = Stamp::of(stat);
            let kind = EntryKind::File { size: stamp.size };
            let entry = Entry { path: name, mode: permissions(stat, path), kind };
            let source = Source { relative: PathBuf::new(), stamp };
            Ok(Listing { root: Root::File, entries: vec![entry], sources: vec![source], size: stamp.size })
        }
        Opened::Folder(folder) => list_folder(folder, path, permissions(stat, path)),
        Opened::Special => Err(WalkError::Special(path.to_path_buf())),
    }
}

fn list_folder(root: &OpenFolder, path: &Path, mode: u32) -> Result<Listing, WalkError> {
    let mut found: Vec<FoundItem> = Vec::new();
    let mut folders = vec![Vec::new()];
    while let Some(relative) = folders.pop() {
        let at = path.join(OsStr::from_bytes(&relative));
        // No part of the path is a link: a link that replaced a folder meanwhile is an error.
        let opened = match relative.is_empty() {
            true => None,
            false => Some(root.folder(Path::new(OsStr::from_bytes(&relative))).map_err(read_error(&at))?),
        };
        let folder = opened.as_ref().unwrap_or(root);
        for item in folder.entries().map_err(read_error(&at))? {
            let below = if relative.is_empty() {
                item.name.as_bytes().to_vec()
            } else {
                [&relative, b"/".as_slice(), item.name.as_bytes()].concat()
            };
            let item = inspect(folder, &item.name, below, path)?;
            if item.entry.kind == EntryKind::Directory {
                folders.push(item.entry.path.clone());
            }
            found.push(item);
            if found.len() > limits::ENTRIES_MAX {
                return Err(WalkError::Limit { path: path.to_path_buf(), what: "too many entries" });
            }
        }
    }
    found.sort_unstable_by(|a, b| a.entry.path.cmp(&b.entry.path));
    let mut listing = Listing { root: Root::Directory { mode }, entries: Vec::new(), sources: Vec::new(), size: 0 };
    for FoundItem { entry, stamp } in found {
        if let Some(stamp) = stamp {
            listing.size += stamp.size;
            listing.sources.push(Source { relative: OsStr::from_bytes(&entry.path).into(), stamp });
        }
        listing.entries.push(entry);
    }
    Ok(listing)
}

/// An entry of a directory. Files have a stamp.
struct FoundItem {
    entry: Entry,
    stamp: Option<Stamp>,
}

/// Looks at the entry `name` of a folder, whose path below `root` is `relative`.
fn inspect(folder: &OpenFolder, name: &OsStr, relative: Vec<u8>, root: &Path) -> Result<FoundItem, WalkError> {
    let path = root.join(OsStr::from_bytes(&relative));
    if !is_safe_path(&relative) {
        return Err(WalkError::Limit { path, what: "path is too long" });
    }
    let stat = folder.status(name).map_err(read_error(&path))?;
    let mode = permissions(&stat, &path);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            Ok(FoundItem { entry: Entry { path: relative, mode, kind: EntryKind::Directory }, stamp: None })
        }
        FileType::RegularFile => {
            let stamp = Stamp::of(&stat);
            let kind = EntryKind::File { size: stamp.size };
            Ok(FoundItem { entry: Entry { path: relative, mode, kind }, stamp: Some(stamp) })
        }
        FileType::Symlink => {
            let target = folder.read_link(name).map_err(read_error(&path))?;
            if !link_stays_inside(&relative, target.as_bytes()) {
                return Err(WalkError::Escapes { path, target: target.into() });
            }
            // Linux shows mode 0777 for every link.
            let kind = EntryKind::Link { target: target.into_vec() };
            Ok(FoundItem { entry: Entry { path: relative, mode: 0o777, kind }, stamp: None })
        }
        _ => Err(WalkError::Special(path)),
    }
}

/// A file that is being read.
#[derive(Debug)]
struct Reading {
    file: File,
    stamp: Stamp,
    /// Its path in messages.
    path: PathBuf,
    /// Bytes read so far.
    read: u64,
}

/// Reads the listed files as one stream.
#[derive(Debug)]
pub(crate) struct SourceReader<'a> {
    root: &'a OpenSource,
    sources: std::vec::IntoIter<Source>,
    current: Option<Reading>,
    /// Why a read failed. `Read` itself can only return an `io::Error`.
    fault: Option<WalkError>,
}

impl<'a> SourceReader<'a> {
    pub(crate) fn new(root: &'a OpenSource, sources: Vec<Source>) -> Self {
        Self { root, sources: sources.into_iter(), current: None, fault: None }
    }

    /// Returns why a read failed.
    pub(crate) fn into_fault(self) -> Option<WalkError> {
        self.fault
    }

    /// Opens the next file. Returns false after the last one.
    fn open_next(&mut self) -> Result<bool, WalkError> {
        let Some(Source { relative, stamp }) = self.sources.next() else { return Ok(false) };
        let path = match relative.as_os_str().is_empty() {
            true => self.root.path().to_path_buf(),
            false => self.root.path().join(&relative),
        };
        let file = match &self.root.opened {
            Opened::Folder(folder) => folder.file(&relative),
            Opened::File(file) => file.try_clone(),
            Opened::Special => return Err(WalkError::Special(path)),
        };
        // A pipe or a link that replaced the file meanwhile is an error, as every other change.
        let file = file.map_err(read_error(&path))?;
        if Stamp::of(&fstat(&file).map_err(|error| read_error(&path)(error.into()))?) != stamp {
            return Err(WalkError::Changed(path));
        }
        self.current = Some(Reading { file, stamp, path, read: 0 });
        Ok(true)
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize, WalkError> {
        loop {
            let Some(Reading { file, stamp, path, read }) = &mut self.current else {
                if !self.open_next()? {
                    return Ok(0);
                }
                continue;
            };
            let left = stamp.size - *read;
            if left == 0 {
                // A file that grew or was rewritten in place has another size or time now.
                let stat = fstat(&*file).map_err(|error| read_error(path)(error.into()))?;
                if Stamp::of(&stat) != *stamp {
                    return Err(WalkError::Changed(path.clone()));
                }
                self.current = None;
                continue;
            }
            let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match file.read(&mut buf[..len]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(read_error(path))?,
            };
            if count == 0 {
                return Err(WalkError::Changed(path.clone()));
            }
            *read += count as u64;
            return Ok(count);
        }
    }
}

impl Read for SourceReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_some(buf).map_err(|fault| {
            let error = io::Error::other(fault.to_string());
            self.fault = Some(fault);
            error
        })
    }
}
