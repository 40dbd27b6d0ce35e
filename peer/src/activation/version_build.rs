//! Builds the folder of one version from the store.
//!
//! Invariant: until everything is on the disk, only the peer's own user can enter the new folder. Afterwards no path in
//! it is opened again. Files and folders have no mode bit outside of the host's mask.

use super::content_dir::{ContentDirError, io_error};
use super::mode_mask::ModeMask;
use crate::clone_file::clone_file;
use shoal_proto::ids::ContentId;
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use shoal_store::Store;
use shoal_store::open_folder::OpenFolder;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A content with more entries is flushed by one `syncfs` instead of one `fsync` per entry.
const FSYNC_ENTRIES_MAX: usize = 512;
/// Mode of the folder around a content that is one file.
const FOLDER_MODE: u32 = 0o755;

/// Builds the content in a fresh folder of this name and flushes it. `at` is its path, for errors.
pub(crate) fn build(
    store: &Store,
    id: &ContentId,
    manifest: &Manifest,
    mask: ModeMask,
    (parent, name): (&OpenFolder, &str),
    at: &Path,
) -> Result<(), ContentDirError> {
    let folder = parent.create_folder(Path::new(name), 0o700).map_err(io_error("create", at))?;
    let build = Build { folder, at, manifest, mask };
    let stream = store.stream_path(id, 0);
    match (manifest.root, &manifest.entries[..]) {
        (Root::File, [entry]) => {
            let path = at.join(OsStr::from_bytes(&entry.path));
            let name = OsStr::from_bytes(&entry.path);
            clone_file(&stream, manifest.size(), mask.apply(entry.mode), &build.folder, name)
                .map_err(io_error("write", &path))?;
        }
        _ => {
            let source =
                if manifest.size() > 0 { Some(File::open(&stream).map_err(io_error("read", &stream))?) } else { None };
            build.files(source.as_ref())?;
        }
    }
    build.flush_files()?;
    build.open_folders()
}

struct Build<'a> {
    folder: OpenFolder,
    at: &'a Path,
    manifest: &'a Manifest,
    mask: ModeMask,
}

fn relative(entry: &Entry) -> &Path {
    Path::new(OsStr::from_bytes(&entry.path))
}

impl Build<'_> {
    fn path(&self, entry: &Entry) -> PathBuf {
        self.at.join(relative(entry))
    }

    /// Creates the folders, files and links of a directory content. Folders have mode 0700 so far.
    fn files(&self, mut source: Option<&File>) -> Result<(), ContentDirError> {
        let mut offset = 0;
        // The files of a folder follow each other, so the folder stays open for the next file.
        let mut opened: Option<(&Path, OpenFolder)> = None;
        for entry in &self.manifest.entries {
            let path = self.path(entry);
            match &entry.kind {
                EntryKind::Directory => {
                    self.folder.create_folder(relative(entry), 0o700).map_err(io_error("create", &path))?;
                }
                EntryKind::File { size } => {
                    let mut file = self.create_file(entry, &mut opened).map_err(io_error("create", &path))?;
                    if let Some(source) = source.as_mut().filter(|_| *size > 0) {
                        source.seek(SeekFrom::Start(offset)).map_err(io_error("read the stream for", &path))?;
                        // The kernel copies without a user-space buffer, or shares blocks where the file system can.
                        let copied = io::copy(&mut source.take(*size), &mut file).map_err(io_error("write", &path))?;
                        if copied != *size {
                            return Err(io_error("write", &path)(io::ErrorKind::UnexpectedEof.into()));
                        }
                    }
                    offset += size;
                    let mode = Permissions::from_mode(self.mask.apply(entry.mode));
                    file.set_permissions(mode).map_err(io_error("set the mode of", &path))?;
                }
                // Links come last, so that no write goes through a link.
                EntryKind::Link { .. } => {}
            }
        }
        for entry in &self.manifest.entries {
            if let EntryKind::Link { target } = &entry.kind {
                let path = self.path(entry);
                self.folder.create_link(target, relative(entry)).map_err(io_error("create link", &path))?;
            }
        }
        Ok(())
    }

    /// Creates a file in its folder, which `opened` remembers.
    fn create_file<'e>(&self, entry: &'e Entry, opened: &mut Option<(&'e Path, OpenFolder)>) -> io::Result<File> {
        let path = relative(entry);
        let (Some(parent), Some(name)) = (path.parent().filter(|path| !path.as_os_str().is_empty()), path.file_name())
        else {
            return self.folder.create_file(path);
        };
        let folder = match opened.take() {
            Some((known, folder)) if known == parent => folder,
            _ => self.folder.folder(parent)?,
        };
        let file = folder.create_file(Path::new(name));
        *opened = Some((parent, folder));
        file
    }

    fn has_few_entries(&self) -> bool {
        self.manifest.entries.len() <= FSYNC_ENTRIES_MAX
    }

    /// Flushes the files to the disk.
    ///
    /// Few files are flushed one by one, because `syncfs` also waits for the writes of other programs.
    fn flush_files(&self) -> Result<(), ContentDirError> {
        if !self.has_few_entries() {
            return self.folder.sync_file_system().map_err(io_error("flush", self.at));
        }
        for entry in self.manifest.entries.iter().filter(|entry| matches!(entry.kind, EntryKind::File { .. })) {
            match self.folder.file(relative(entry)).and_then(|file| file.sync_all()) {
                // The mode of the file may forbid reading, unless we are root.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return self.folder.sync_file_system().map_err(io_error("flush", self.at));
                }
                flushed => flushed.map_err(io_error("flush", &self.path(entry)))?,
            }
        }
        Ok(())
    }

    /// Sets the final modes of the folders and flushes them. The outermost folder is the last, so no other user is
    /// inside before the end.
    fn open_folders(&self) -> Result<(), ContentDirError> {
        let folders = self.manifest.entries.iter().rev().filter(|entry| entry.kind == EntryKind::Directory);
        // The deepest comes first, because a mode may close a folder to us.
        for entry in folders {
            let path = self.path(entry);
            let folder = self.folder.folder(relative(entry)).map_err(io_error("open", &path))?;
            folder.set_mode(self.mask.apply(entry.mode)).map_err(io_error("set the mode of", &path))?;
            if self.has_few_entries() {
                folder.sync().map_err(io_error("flush", &path))?;
            }
        }
        let mode = if let Root::Directory { mode } = self.manifest.root { self.mask.apply(mode) } else { FOLDER_MODE };
        self.folder.set_mode(mode).map_err(io_error("set the mode of", self.at))?;
        self.folder.sync().map_err(io_error("flush", self.at))
    }
}
