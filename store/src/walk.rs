//! Lists a directory in the manifest's order, and reads its files as one stream.
//!
//! Invariant: the bytes read are those of the files that were listed. A file that changes in between is an error.
//! Set-user-id, set-group-id and sticky bits never enter a listing.

use shoal_proto::limits;
use shoal_proto::manifest::{Entry, EntryKind, MODE_BITS, Root, is_safe_path, link_stays_inside};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
    path: PathBuf,
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
    fn of(meta: &Metadata) -> Self {
        Self { size: meta.len(), mtime: (meta.mtime(), meta.mtime_nsec()), inode: meta.ino() }
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
fn permissions(meta: &Metadata, path: &Path) -> u32 {
    let dropped = meta.mode() & 0o7777 & !MODE_BITS;
    if dropped != 0 {
        tracing::info!(path = %path.display(), bits = format!("{dropped:04o}"), "left out set-id or sticky bits");
    }
    meta.mode() & MODE_BITS
}

/// Lists a file or directory. The path itself may be a link. Links inside stay links.
pub(crate) fn list(path: &Path) -> Result<Listing, WalkError> {
    let meta = fs::metadata(path).map_err(read_error(path))?;
    if meta.is_file() {
        let name = path.file_name().unwrap_or(OsStr::new("file")).as_bytes().to_vec();
        let mode = permissions(&meta, path);
        let entry = Entry { path: name, mode, kind: EntryKind::File { size: meta.len() } };
        let source = Source { path: path.to_path_buf(), stamp: Stamp::of(&meta) };
        return Ok(Listing { root: Root::File, entries: vec![entry], sources: vec![source], size: meta.len() });
    }
    if !meta.is_dir() {
        return Err(WalkError::Special(path.to_path_buf()));
    }
    let mut found: Vec<FoundItem> = Vec::new();
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let at = path.join(OsStr::from_bytes(&folder));
        for item in fs::read_dir(&at).map_err(read_error(&at))? {
            let name = item.map_err(read_error(&at))?.file_name().into_vec();
            let relative = if folder.is_empty() { name } else { [folder.as_slice(), b"/", &name].concat() };
            let item = inspect(path, relative)?;
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
    let mut listing = Listing {
        root: Root::Directory { mode: permissions(&meta, path) },
        entries: Vec::new(),
        sources: Vec::new(),
        size: 0,
    };
    for FoundItem { entry, stamp } in found {
        if let Some(stamp) = stamp {
            listing.size += stamp.size;
            listing.sources.push(Source { path: path.join(OsStr::from_bytes(&entry.path)), stamp });
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

fn inspect(root: &Path, relative: Vec<u8>) -> Result<FoundItem, WalkError> {
    let path = root.join(OsStr::from_bytes(&relative));
    if !is_safe_path(&relative) {
        return Err(WalkError::Limit { path, what: "path is too long" });
    }
    let meta = fs::symlink_metadata(&path).map_err(read_error(&path))?;
    let mode = permissions(&meta, &path);
    let kind = meta.file_type();
    if kind.is_dir() {
        return Ok(FoundItem { entry: Entry { path: relative, mode, kind: EntryKind::Directory }, stamp: None });
    }
    if kind.is_file() {
        let kind = EntryKind::File { size: meta.len() };
        return Ok(FoundItem { entry: Entry { path: relative, mode, kind }, stamp: Some(Stamp::of(&meta)) });
    }
    if kind.is_symlink() {
        let target = fs::read_link(&path).map_err(read_error(&path))?;
        if !link_stays_inside(&relative, target.as_os_str().as_bytes()) {
            return Err(WalkError::Escapes { path, target });
        }
        // Linux shows mode 0777 for every link.
        let kind = EntryKind::Link { target: target.into_os_string().into_vec() };
        return Ok(FoundItem { entry: Entry { path: relative, mode: 0o777, kind }, stamp: None });
    }
    Err(WalkError::Special(path))
}

/// A file that is being read.
#[derive(Debug)]
struct OpenSource {
    file: File,
    source: Source,
    /// Bytes read so far.
    read: u64,
}

/// Reads the listed files as one stream.
#[derive(Debug)]
pub(crate) struct SourceReader {
    sources: std::vec::IntoIter<Source>,
    current: Option<OpenSource>,
    /// Why a read failed. `Read` itself can only return an `io::Error`.
    fault: Option<WalkError>,
}

impl SourceReader {
    pub(crate) fn new(sources: Vec<Source>) -> Self {
        Self { sources: sources.into_iter(), current: None, fault: None }
    }

    /// Returns why a read failed.
    pub(crate) fn into_fault(self) -> Option<WalkError> {
        self.fault
    }

    /// Opens the next file. Returns false after the last one.
    fn open_next(&mut self) -> Result<bool, WalkError> {
        let Some(source) = self.sources.next() else { return Ok(false) };
        // Without O_NONBLOCK, the open of a pipe that replaced the file would block.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(&source.path)
            .map_err(read_error(&source.path))?;
        let meta = file.metadata().map_err(read_error(&source.path))?;
        if Stamp::of(&meta) != source.stamp || !meta.is_file() {
            return Err(WalkError::Changed(source.path));
        }
        self.current = Some(OpenSource { file, source, read: 0 });
        Ok(true)
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize, WalkError> {
        loop {
            let Some(OpenSource { file, source, read }) = &mut self.current else {
                if !self.open_next()? {
                    return Ok(0);
                }
                continue;
            };
            let left = source.stamp.size - *read;
            if left == 0 {
                // A file that grew or was rewritten in place has another size or time now.
                let meta = file.metadata().map_err(read_error(&source.path))?;
                if Stamp::of(&meta) != source.stamp {
                    return Err(WalkError::Changed(source.path.clone()));
                }
                self.current = None;
                continue;
            }
            let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match file.read(&mut buf[..len]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(read_error(&source.path))?,
            };
            if count == 0 {
                return Err(WalkError::Changed(source.path.clone()));
            }
            *read += count as u64;
            return Ok(count);
        }
    }
}

impl Read for SourceReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_some(buf).map_err(|fault| {
            let error = io::Error::other(fault.to_string());
            self.fault = Some(fault);
            error
        })
    }
}
