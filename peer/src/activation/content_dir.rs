//! The content folder: a complete content becomes `NAME/VERSION`, and the link `NAME/current` points at one version.
//!
//! A new version is built under a temporary name, flushed, and renamed.
//! Invariant: a version exists whole or not at all, and `current` points at a whole version at any moment. This holds
//! after a kill and after a loss of power.

use crate::clone_file::clone_file;
use shoal_proto::ids::ContentId;
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use shoal_store::Store;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Prefix of unfinished files and folders. A start removes them.
const TEMPORARY: &str = ".shoal-";
/// File beside the versions that lists the content id of each version.
const LEDGER: &str = ".shoal-versions";
/// A content with more entries is flushed by one `syncfs` instead of one `fsync` per entry.
const FSYNC_ENTRIES_MAX: usize = 512;

/// Why the content folder was not changed. `current` still points at the same version.
#[derive(Debug, thiserror::Error)]
pub enum ContentDirError {
    /// The version is not in the folder, and its content is not complete in the store.
    #[error("the content is not in the store")]
    NoContent,
    /// The file system refused an operation.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// A verb, for example `write`.
        action: &'static str,
        /// The operation's object.
        path: PathBuf,
        #[allow(missing_docs, reason = "the error of the system call")]
        #[source]
        source: io::Error,
    },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ContentDirError + 'a {
    move |source| ContentDirError::Io { action, path: path.to_path_buf(), source }
}

/// The content folder. Clones use the same folder.
#[derive(Clone, Debug)]
pub struct ContentDir {
    dir: PathBuf,
    /// Versions of one name that [`ContentDir::prune`] leaves, at least 1.
    keep: usize,
}

impl ContentDir {
    /// Opens or creates the folder, and removes what interrupted activations left.
    ///
    /// # Errors
    /// Fails if the folder cannot be created or read.
    pub fn open(dir: &Path, keep: usize) -> Result<Self, ContentDirError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let content_dir = Self { dir: dir.to_path_buf(), keep: keep.max(1) };
        let mut folders = vec![dir.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for item in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
                let item = item.map_err(io_error("list", &folder))?;
                let (path, name) = (item.path(), item.file_name());
                if name.as_bytes().starts_with(TEMPORARY.as_bytes()) && name != OsStr::new(LEDGER) {
                    discard(&path);
                } else if is_name_folder(&path) {
                    folders.push(path);
                }
            }
        }
        Ok(content_dir)
    }

    /// Returns the folder of a name's versions.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the version that `current` points at.
    pub fn current(&self, name: &str) -> Option<String> {
        fs::read_link(self.folder(name).join("current")).ok()?.to_str().map(str::to_string)
    }

    /// Builds the version if it is missing, points `current` at it and removes old versions. A repeated call changes
    /// nothing.
    ///
    /// # Errors
    /// Fails if the content is not in the store, or if the file system fails.
    pub fn activate(&self, store: &Store, id: &ContentId, name: &str, version: &str) -> Result<(), ContentDirError> {
        self.prepare(store, id, name, version)?;
        self.switch_to(name, Some(version))?;
        self.prune(name, &[version.to_string()]);
        Ok(())
    }

    /// Returns the content of a version that is in the folder.
    pub fn content_of(&self, name: &str, version: &str) -> Option<ContentId> {
        let folder = self.folder(name);
        Ledger::load(&folder).get(version).filter(|_| folder.join(version).exists())
    }

    /// Builds the folder of a version and leaves `current` unchanged.
    ///
    /// An existing version stays as it is, even if the content has left the store.
    ///
    /// # Errors
    /// Fails if the content is not in the store, or if the file system fails.
    pub fn prepare(&self, store: &Store, id: &ContentId, name: &str, version: &str) -> Result<(), ContentDirError> {
        let folder = self.folder(name);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let target = folder.join(version);
        let mut ledger = Ledger::load(&folder);
        if ledger.get(version) != Some(*id) || !target.exists() {
            let manifest = store.manifest(id).ok_or(ContentDirError::NoContent)?;
            let temporary = folder.join(format!("{TEMPORARY}{version}"));
            discard(&temporary);
            let built = build(store, id, &manifest, &temporary)
                .and_then(|()| replace(&temporary, &target).map_err(io_error("rename to", &target)));
            if let Err(error) = built {
                discard(&temporary);
                return Err(error);
            }
        }
        ledger.put(version, *id);
        ledger.save().map_err(io_error("write", &ledger.path))
    }

    /// Returns `NAME/VERSION` for each name whose current version is this content.
    pub fn current_of(&self, id: &ContentId) -> Vec<String> {
        let names = self.name_folders().into_iter();
        let current = names.filter_map(|folder| {
            let version = fs::read_link(folder.join("current")).ok()?.to_str()?.to_string();
            let name = folder.strip_prefix(&self.dir).ok()?.display().to_string();
            (Ledger::load(&folder).get(&version) == Some(*id)).then(|| format!("{name}/{version}"))
        });
        current.collect()
    }

    /// Removes all versions of a content that `current` does not point at.
    ///
    /// # Errors
    /// Fails if the file system fails.
    pub fn withdraw(&self, id: &ContentId) -> Result<(), ContentDirError> {
        for folder in self.name_folders() {
            let mut ledger = Ledger::load(&folder);
            let current = fs::read_link(folder.join("current")).ok();
            let is_unused = |version: &str| current.as_deref() != Some(Path::new(version));
            let versions: Vec<String> = ledger
                .rows
                .iter()
                .filter(|(version, row)| row == id && is_unused(version))
                .map(|row| row.0.clone())
                .collect();
            for version in versions {
                ledger.rows.retain(|(row, _)| *row != version);
                ledger.save().map_err(io_error("write", &ledger.path))?;
                discard(&folder.join(version));
            }
        }
        Ok(())
    }

    /// Returns the folders of names, which are the folders with a ledger.
    fn name_folders(&self) -> Vec<PathBuf> {
        let (mut found, mut folders) = (Vec::new(), vec![self.dir.clone()]);
        while let Some(folder) = folders.pop() {
            if folder.join(LEDGER).exists() {
                found.push(folder);
                continue;
            }
            let items = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(items.map(|item| item.path()).filter(|path| is_name_folder(path)));
        }
        found
    }

    /// Points `current` at a version in the folder, or removes `current`.
    ///
    /// # Errors
    /// Fails if the version is missing, or if the file system fails.
    pub fn switch_to(&self, name: &str, version: Option<&str>) -> Result<(), ContentDirError> {
        let folder = self.folder(name);
        match version {
            Some(version) if !folder.join(version).exists() => Err(ContentDirError::NoContent),
            Some(version) => point(&folder, version).map_err(io_error("switch `current` in", &folder)),
            None => match fs::remove_file(folder.join("current")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(io_error("switch `current` in", &folder)(error))
                }
                _ => Ok(()),
            },
        }
    }

    /// Removes the oldest versions beyond the limit. The current version and `needed` versions stay.
    pub fn prune(&self, name: &str, needed: &[String]) {
        let folder = self.folder(name);
        let mut ledger = Ledger::load(&folder);
        let current = self.current(name);
        while ledger.rows.len() > self.keep {
            let must_stay = |version: &String| Some(version) == current.as_ref() || needed.contains(version);
            let Some(place) = ledger.rows.iter().position(|(version, _)| !must_stay(version)) else { return };
            let (version, _) = ledger.rows.remove(place);
            if ledger.save().is_err() {
                return;
            }
            discard(&folder.join(version));
        }
    }
}

/// Whether a folder belongs to a name or lies above one. A version is no such folder: a ledger lies beside it.
fn is_name_folder(path: &Path) -> bool {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let parent_has_ledger = path.parent().is_some_and(|parent| parent.join(LEDGER).exists());
    is_dir && !parent_has_ledger
}

/// The content id of each version of one name, the oldest first.
struct Ledger {
    path: PathBuf,
    rows: Vec<(String, ContentId)>,
}

impl Ledger {
    fn load(folder: &Path) -> Self {
        let path = folder.join(LEDGER);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let rows = text
            .lines()
            .filter_map(|line| {
                let (id, version) = line.split_once(' ')?;
                Some((version.to_string(), id.parse().ok()?))
            })
            .collect();
        Self { path, rows }
    }

    fn get(&self, version: &str) -> Option<ContentId> {
        self.rows.iter().find(|(row, _)| row == version).map(|(_, id)| *id)
    }

    fn put(&mut self, version: &str, id: ContentId) {
        self.rows.retain(|(row, _)| row != version);
        self.rows.push((version.to_string(), id));
    }

    fn save(&self) -> io::Result<()> {
        let text: String = self.rows.iter().map(|(version, id)| format!("{id} {version}\n")).collect();
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, text)?;
        File::open(&temporary)?.sync_data()?;
        fs::rename(&temporary, &self.path)
    }
}

/// Builds the content at a fresh path and flushes it.
fn build(store: &Store, id: &ContentId, manifest: &Manifest, at: &Path) -> Result<(), ContentDirError> {
    let stream = store.stream_path(id, 0);
    fs::create_dir(at).map_err(io_error("create", at))?;
    fs::set_permissions(at, Permissions::from_mode(0o700)).map_err(io_error("set the mode of", at))?;
    match (manifest.root, &manifest.entries[..]) {
        (Root::File, [entry]) => {
            let path = at.join(OsStr::from_bytes(&entry.path));
            clone_file(&stream, manifest.size(), entry.mode, &path).map_err(io_error("write", &path))?;
            set_mode(at, 0o755)?;
        }
        _ => {
            let source =
                if manifest.size() > 0 { Some(File::open(&stream).map_err(io_error("read", &stream))?) } else { None };
            build_entries(manifest, source.as_ref(), at)?;
            let mode = if let Root::Directory { mode } = manifest.root { mode } else { 0o755 };
            set_mode(at, mode)?;
        }
    }
    flush(manifest, at)
}

/// Flushes a built content to the disk.
///
/// Few files are flushed one by one, because `syncfs` also waits for the writes of other programs.
fn flush(manifest: &Manifest, at: &Path) -> Result<(), ContentDirError> {
    let flush_one = |path: &Path| match File::open(path).and_then(|file| file.sync_all()) {
        // The mode of the file may forbid reading, unless we are root.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => flush_all(path),
        result => result.map_err(io_error("flush", path)),
    };
    if manifest.entries.len() > FSYNC_ENTRIES_MAX {
        return flush_all(at);
    }
    let entries = manifest.entries.iter().filter(|entry| !matches!(entry.kind, EntryKind::Link { .. }));
    entries.map(|entry| at.join(OsStr::from_bytes(&entry.path))).try_for_each(|path| flush_one(&path))?;
    flush_one(at)
}

fn flush_all(at: &Path) -> Result<(), ContentDirError> {
    let folder = at.ancestors().skip(1).find_map(|folder| File::open(folder).ok());
    let folder = folder.ok_or(io::Error::from(io::ErrorKind::PermissionDenied)).map_err(io_error("open", at))?;
    rustix::fs::syncfs(&folder).map_err(|error| io_error("flush", at)(error.into()))
}

/// Creates the files, directories and links of a directory content.
///
/// Directories get their final modes last, because a final mode may forbid writing.
fn build_entries(manifest: &Manifest, mut source: Option<&File>, at: &Path) -> Result<(), ContentDirError> {
    let path_of = |entry: &Entry| at.join(OsStr::from_bytes(&entry.path));
    let mut offset = 0;
    for entry in &manifest.entries {
        let path = path_of(entry);
        match &entry.kind {
            EntryKind::Directory => {
                fs::create_dir(&path).map_err(io_error("create", &path))?;
                fs::set_permissions(&path, Permissions::from_mode(0o700))
                    .map_err(io_error("set the mode of", &path))?;
            }
            EntryKind::File { size } => {
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(io_error("create", &path))?;
                if let Some(source) = source.as_mut().filter(|_| *size > 0) {
                    source.seek(SeekFrom::Start(offset)).map_err(io_error("read the stream for", &path))?;
                    // The kernel copies without a user-space buffer, or shares blocks where the file system can.
                    let copied = io::copy(&mut source.take(*size), &mut file).map_err(io_error("write", &path))?;
                    if copied != *size {
                        return Err(io_error("write", &path)(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                offset += size;
                let mode = Permissions::from_mode(entry.mode);
                file.set_permissions(mode).map_err(io_error("set the mode of", &path))?;
            }
            // Links come last, so that no write goes through a link.
            EntryKind::Link { .. } => {}
        }
    }
    for entry in &manifest.entries {
        if let EntryKind::Link { target } = &entry.kind {
            let path = path_of(entry);
            symlink(OsStr::from_bytes(target), &path).map_err(io_error("create link", &path))?;
        }
    }
    // The deepest directory comes first, because a mode may close a directory to us.
    for entry in manifest.entries.iter().rev() {
        if entry.kind == EntryKind::Directory {
            set_mode(&path_of(entry), entry.mode)?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ContentDirError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))
}

/// Renames a built version to its place and removes a former version there.
fn replace(built: &Path, target: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    if fs::symlink_metadata(target).is_err() {
        return fs::rename(built, target);
    }
    renameat_with(CWD, built, CWD, target, RenameFlags::EXCHANGE)?;
    // After the exchange this is the former version.
    discard(built);
    Ok(())
}

/// Points `current` at a version by one rename.
fn point(folder: &Path, version: &str) -> io::Result<()> {
    let link = folder.join("current");
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(version)) {
        return Ok(());
    }
    let temporary = folder.join(format!("{TEMPORARY}current"));
    discard(&temporary);
    symlink(version, &temporary)?;
    fs::rename(&temporary, &link)?;
    File::open(folder)?.sync_all()
}

/// Removes a file or a folder, whatever modes its directories have. A missing path is fine.
fn discard(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let removed = if meta.is_dir() {
        allow_access(path);
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "cannot remove an old version");
    }
}

/// Makes every directory below writable for us. Root needs no such mode.
fn allow_access(path: &Path) {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let _ = fs::set_permissions(path, Permissions::from_mode(0o700)); // the removal reports a failure
    let Ok(items) = fs::read_dir(path) else { return };
    for item in items.flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            allow_access(&item.path());
        }
    }
}
