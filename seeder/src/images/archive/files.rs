//! Files by name, in a folder or in a tar archive.
//!
//! Invariant: a name of an archive leads to a part of that archive or nowhere. Links that lead out are not followed.

use super::error::{ArchiveError, io_error, malformed};
use crate::oci_documents::DOCUMENT_BYTES_MAX;
use shoal_store::open_folder::OpenFolder;
use shoal_store::{OpenSource, Opened};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Files that one archive may contain.
const ENTRIES_MAX: usize = 100_000;
/// Links that are followed from one name.
const LINKS_MAX: usize = 8;

/// A folder or an archive.
pub enum Files {
    Folder(OpenFolder),
    Tar { file: Arc<File>, entries: BTreeMap<String, Entry> },
}

/// An entry of an archive.
pub enum Entry {
    File {
        offset: u64,
        len: u64,
    },
    /// The name to which a symbolic or hard link leads.
    Link(String),
}

/// Returns a name without `.` and `..`, or `None` if the name leads out of the archive.
pub fn normalized(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!name.starts_with('/') && !parts.is_empty()).then(|| parts.join("/"))
}

/// Returns an entry and its name, or `None` for what is neither a file nor a link inside the archive.
fn entry_of<R: Read>(entry: &tar::Entry<'_, R>) -> Option<(String, Entry)> {
    let name = normalized(std::str::from_utf8(&entry.path_bytes()).ok()?)?;
    let target = || entry.link_name_bytes().and_then(|target| String::from_utf8(target.into()).ok());
    let row = match entry.header().entry_type() {
        tar::EntryType::Regular | tar::EntryType::Continuous => {
            Entry::File { offset: entry.raw_file_position(), len: entry.size() }
        }
        tar::EntryType::Symlink => {
            let target = target().filter(|target| !target.starts_with('/'))?;
            let beside = name.rsplit_once('/').map_or(target.clone(), |(folder, _)| format!("{folder}/{target}"));
            Entry::Link(normalized(&beside)?)
        }
        tar::EntryType::Link => Entry::Link(normalized(&target()?)?),
        _ => return None,
    };
    Some((name, row))
}

impl Files {
    /// Reads a folder, or the list of an archive. Blocks.
    pub fn open(source: OpenSource) -> Result<Self, ArchiveError> {
        let what = source.path().display().to_string();
        let file = match source.opened {
            Opened::Folder(folder) => return Ok(Self::Folder(folder)),
            Opened::File(file) => file,
            Opened::Special => return Err(ArchiveError::UnknownForm(what)),
        };
        let mut entries = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(|_| ArchiveError::UnknownForm(what.clone()))? {
            let entry = entry.map_err(|error| match entries.is_empty() {
                true => ArchiveError::UnknownForm(what.clone()),
                false => io_error(&what)(error),
            })?;
            entries.extend(entry_of(&entry));
            if entries.len() > ENTRIES_MAX {
                return Err(malformed(&what, format!("more than {ENTRIES_MAX} files")));
            }
        }
        Ok(Self::Tar { file: Arc::new(file), entries })
    }

    pub fn is_archive(&self) -> bool {
        matches!(self, Self::Tar { .. })
    }

    /// Returns a reader of a file and the file's length.
    ///
    /// In a folder the caller gives only names that it made itself, from digests or constants.
    pub fn reader(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Folder(folder) => {
                let file = folder.file_through_links(Path::new(name))?;
                let len = file.metadata()?.len();
                Ok((Box::new(file), len))
            }
            Self::Tar { file, entries } => {
                let mut at = name;
                for _ in 0..LINKS_MAX {
                    match entries.get(at) {
                        Some(Entry::Link(target)) => at = target,
                        Some(Entry::File { offset, len }) => {
                            let section = Section { file: file.clone(), at: *offset, left: *len };
                            return Ok((Box::new(section), *len));
                        }
                        None => break,
                    }
                }
                Err(io::Error::new(io::ErrorKind::NotFound, "not in the archive"))
            }
        }
    }

    /// Returns a whole file of at most [`DOCUMENT_BYTES_MAX`] bytes.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let (reader, len) = self.reader(name).map_err(io_error(name))?;
        if len > DOCUMENT_BYTES_MAX {
            return Err(malformed(name, format!("the document has {len} bytes, the limit is {DOCUMENT_BYTES_MAX}")));
        }
        let mut bytes = Vec::new();
        reader.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(io_error(name))?;
        Ok(bytes)
    }

    pub fn has(&self, name: &str) -> bool {
        self.reader(name).is_ok()
    }

    /// Returns the length of a file, or `None` if there is no such file.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.reader(name).ok().map(|(_, len)| len)
    }
}

/// A reader of a part of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buf[..want], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
