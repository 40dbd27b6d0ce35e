//! Switching a version in: a complete content becomes `NAME/VERSION` in the content folder, and `NAME/current` points at
//! it.
//!
//! Invariant: a version is there whole or not at all, and `current` points at a whole one at any moment, kills and power
//! cuts included. The new version is made in a folder nobody looks at, made durable, and renamed.

use rustix::fs::ioctl_ficlone;
use shoal_proto::ids::ContentId;
use shoal_proto::manifest::{Entry, EntryKind, Manifest, Root};
use shoal_store::Store;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Prefix of folders in the making; what is left of them is removed at start.
const TEMPORARY: &str = ".shoal-";
/// File beside the versions that says which content each is.
const LEDGER: &str = ".shoal-versions";
/// Contents of more entries than this are made durable by one flush of the file system.
const FLUSHED_ALONE_MAX: usize = 512;

/// Why a version was not switched in. `current` is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ContentDirError {
    /// The content is not in the store.
    #[error("the content is not in the store")]
    Missing,
    /// The file system refused.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn fault<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ContentDirError + 'a {
    move |source| ContentDirError::Io { what, path: path.to_path_buf(), source }
}

/// The content folder.
#[derive(Clone, Debug)]
pub struct ContentDir {
    dir: PathBuf,
    keep: usize,
}

impl ContentDir {
    /// Opens or makes it, and removes what interrupted activations left. `keep` versions of a name stay.
    pub fn open(dir: &Path, keep: usize) -> Result<Self, ContentDirError> {
        fs::create_dir_all(dir).map_err(fault("make", dir))?;
        let made = Self { dir: dir.to_path_buf(), keep: keep.max(1) };
        let mut folders = vec![dir.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for item in fs::read_dir(&folder).map_err(fault("list", &folder))? {
                let item = item.map_err(fault("list", &folder))?;
                let (path, name) = (item.path(), item.file_name());
                if name.as_bytes().starts_with(TEMPORARY.as_bytes()) && name != OsStr::new(LEDGER) {
                    discard(&path);
                } else if is_name_folder(&path) {
                    folders.push(path);
                }
            }
        }
        Ok(made)
    }

    /// Where a name's versions are.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The version that is switched in, if any.
    pub fn current(&self, name: &str) -> Option<String> {
        fs::read_link(self.folder(name).join("current")).ok()?.to_str().map(str::to_string)
    }

    /// Switches a complete content in. Doing it again changes nothing.
    pub fn activate(&self, store: &Store, id: &ContentId, name: &str, version: &str) -> Result<(), ContentDirError> {
        self.prepare(store, id, name, version)?;
        self.switch_to(name, Some(version))?;
        self.prune(name, &[version.to_string()]);
        Ok(())
    }

    /// The content of a version that is in the folder.
    pub fn content_of(&self, name: &str, version: &str) -> Option<ContentId> {
        let folder = self.folder(name);
        Ledger::load(&folder).get(version).filter(|_| folder.join(version).exists())
    }

    /// Makes the folder of a version, without switching to it. It stays as it is when it is there already, whether or not
    /// the store still holds the content.
    pub fn prepare(&self, store: &Store, id: &ContentId, name: &str, version: &str) -> Result<(), ContentDirError> {
        let folder = self.folder(name);
        fs::create_dir_all(&folder).map_err(fault("make", &folder))?;
        let target = folder.join(version);
        let mut ledger = Ledger::load(&folder);
        if ledger.get(version) != Some(*id) || !target.exists() {
            let manifest = store.manifest(id).ok_or(ContentDirError::Missing)?;
            let temporary = folder.join(format!("{TEMPORARY}{version}"));
            discard(&temporary);
            let made = materialise(store, id, &manifest, &temporary)
                .and_then(|()| replace(&temporary, &target).map_err(fault("switch in", &target)));
            if let Err(error) = made {
                discard(&temporary);
                return Err(error);
            }
        }
        ledger.put(version, *id);
        ledger.save().map_err(fault("write", &ledger.path))
    }

    /// Under which names a content is switched in, as `NAME/VERSION`.
    pub fn current_of(&self, id: &ContentId) -> Vec<String> {
        let names = self.name_folders().into_iter();
        let current = names.filter_map(|folder| {
            let version = fs::read_link(folder.join("current")).ok()?.to_str()?.to_string();
            let name = folder.strip_prefix(&self.dir).ok()?.display().to_string();
            (Ledger::load(&folder).get(&version) == Some(*id)).then(|| format!("{name}/{version}"))
        });
        current.collect()
    }

    /// Removes a content's versions, but never one that is switched in.
    pub fn withdraw(&self, id: &ContentId) -> Result<(), ContentDirError> {
        for folder in self.name_folders() {
            let mut ledger = Ledger::load(&folder);
            let current = fs::read_link(folder.join("current")).ok();
            let goes = |version: &str| current.as_deref() != Some(Path::new(version));
            let versions: Vec<String> = ledger
                .rows
                .iter()
                .filter(|(version, row)| row == id && goes(version))
                .map(|row| row.0.clone())
                .collect();
            for version in versions {
                ledger.rows.retain(|(row, _)| *row != version);
                ledger.save().map_err(fault("write", &ledger.path))?;
                discard(&folder.join(version));
            }
        }
        Ok(())
    }

    /// Folders of names: those with a ledger.
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

    /// Points `current` at a version that is in the folder, or at nothing.
    pub fn switch_to(&self, name: &str, version: Option<&str>) -> Result<(), ContentDirError> {
        let folder = self.folder(name);
        match version {
            Some(version) if !folder.join(version).exists() => Err(ContentDirError::Missing),
            Some(version) => point(&folder, version).map_err(fault("switch", &folder)),
            None => match fs::remove_file(folder.join("current")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault("switch", &folder)(error)),
                _ => Ok(()),
            },
        }
    }

    /// Removes all but the newest versions, never the current one or one that is needed.
    pub fn prune(&self, name: &str, needed: &[String]) {
        let folder = self.folder(name);
        let mut ledger = Ledger::load(&folder);
        let current = self.current(name);
        while ledger.rows.len() > self.keep {
            let stays = |version: &String| Some(version) == current.as_ref() || needed.contains(version);
            let Some(place) = ledger.rows.iter().position(|(version, _)| !stays(version)) else { return };
            let (version, _) = ledger.rows.remove(place);
            if ledger.save().is_err() {
                return;
            }
            discard(&folder.join(version));
        }
    }
}

/// A folder of a name, or one on the way to it: not a version, which the ledger beside it would list.
fn is_name_folder(path: &Path) -> bool {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let parent_has_ledger = path.parent().is_some_and(|parent| parent.join(LEDGER).exists());
    is_dir && !parent_has_ledger
}

/// Which content each version is, oldest first.
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

/// Makes the content under a fresh path, durable.
fn materialise(store: &Store, id: &ContentId, manifest: &Manifest, at: &Path) -> Result<(), ContentDirError> {
    let stream = store.stream_path(id, 0);
    fs::create_dir(at).map_err(fault("make", at))?;
    fs::set_permissions(at, Permissions::from_mode(0o700)).map_err(fault("set the mode of", at))?;
    match (manifest.root, &manifest.entries[..]) {
        (Root::File, [entry]) => {
            let path = at.join(OsStr::from_bytes(&entry.path));
            share_file(&stream, manifest.size(), entry.mode, &path).map_err(fault("write", &path))?;
            set_mode(at, 0o755)?;
        }
        _ => {
            let source =
                if manifest.size() > 0 { Some(File::open(&stream).map_err(fault("read", &stream))?) } else { None };
            fill(manifest, source.as_ref(), at)?;
            let mode = if let Root::Directory { mode } = manifest.root { mode } else { 0o755 };
            set_mode(at, mode)?;
        }
    }
    make_durable(manifest, at)
}

/// Flushes what was made. File by file as long as they are few: a flush of the whole file system also waits for whatever
/// the host's other programs have written to it.
fn make_durable(manifest: &Manifest, at: &Path) -> Result<(), ContentDirError> {
    let flush = |path: &Path| match File::open(path).and_then(|file| file.sync_all()) {
        // Its own mode may close it to us, unless we are root.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => flush_all(path),
        result => result.map_err(fault("flush", path)),
    };
    if manifest.entries.len() > FLUSHED_ALONE_MAX {
        return flush_all(at);
    }
    let real = manifest.entries.iter().filter(|entry| !matches!(entry.kind, EntryKind::Link { .. }));
    real.map(|entry| at.join(OsStr::from_bytes(&entry.path))).try_for_each(|path| flush(&path))?;
    flush(at)
}

fn flush_all(at: &Path) -> Result<(), ContentDirError> {
    let folder = at.ancestors().skip(1).find_map(|folder| File::open(folder).ok());
    let folder = folder.ok_or(io::Error::from(io::ErrorKind::PermissionDenied)).map_err(fault("open", at))?;
    rustix::fs::syncfs(&folder).map_err(|error| fault("flush", at)(error.into()))
}

/// Files, directories and links of a directory content. Directories are open to us until all is in them.
fn fill(manifest: &Manifest, mut source: Option<&File>, at: &Path) -> Result<(), ContentDirError> {
    let path_of = |entry: &Entry| at.join(OsStr::from_bytes(&entry.path));
    let mut offset = 0;
    for entry in &manifest.entries {
        let path = path_of(entry);
        match &entry.kind {
            EntryKind::Directory => {
                fs::create_dir(&path).map_err(fault("make", &path))?;
                fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(fault("set the mode of", &path))?;
            }
            EntryKind::File { size } => {
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(fault("make", &path))?;
                if let Some(source) = source.as_mut().filter(|_| *size > 0) {
                    source.seek(SeekFrom::Start(offset)).map_err(fault("read for", &path))?;
                    // The kernel copies from page to page, or shares the blocks where the file system can.
                    let copied = io::copy(&mut source.take(*size), &mut file).map_err(fault("write", &path))?;
                    if copied != *size {
                        return Err(fault("write", &path)(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                offset += size;
                let mode = Permissions::from_mode(entry.mode);
                file.set_permissions(mode).map_err(fault("set the mode of", &path))?;
            }
            // Last, so that nothing is ever written through one.
            EntryKind::Link { .. } => {}
        }
    }
    for entry in &manifest.entries {
        if let EntryKind::Link { target } = &entry.kind {
            let path = path_of(entry);
            symlink(OsStr::from_bytes(target), &path).map_err(fault("link", &path))?;
        }
    }
    // Deepest first: a directory may be closed to us by its own mode.
    for entry in manifest.entries.iter().rev() {
        if entry.kind == EntryKind::Directory {
            set_mode(&path_of(entry), entry.mode)?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ContentDirError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(fault("set the mode of", path))
}

/// A file with the stream's bytes and this mode: sharing its blocks where the file system can, else the stream file itself
/// where it is on the same file system and has this mode already (a mode belongs to the file, not to the name), else a
/// copy.
pub(crate) fn share_file(stream: &Path, size: u64, mode: u32, path: &Path) -> io::Result<()> {
    let mut copy = File::create_new(path)?;
    if size > 0 {
        let source = File::open(stream)?;
        let (of_stream, of_copy) = (source.metadata()?, copy.metadata()?);
        let same_disk = of_stream.dev() == of_copy.dev();
        if !(same_disk && ioctl_ficlone(&copy, &source).is_ok()) {
            if same_disk && of_stream.mode() & 0o7777 == mode {
                fs::remove_file(path)?;
                return fs::hard_link(stream, path);
            }
            io::copy(&mut &source, &mut copy)?;
        }
    }
    copy.set_permissions(Permissions::from_mode(mode))
}

/// Puts a made version in its place, over a former one of the same name.
fn replace(made: &Path, target: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    if fs::symlink_metadata(target).is_err() {
        return fs::rename(made, target);
    }
    renameat_with(CWD, made, CWD, target, RenameFlags::EXCHANGE)?;
    discard(made);
    Ok(())
}

/// Points `current` at a version, in one step.
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

/// Removes whatever is there, whatever modes its directories have.
fn discard(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let removed = if meta.is_dir() {
        open_up(path);
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "cannot remove");
    }
}

/// Gives us access to every directory below. Root needs none of this.
fn open_up(path: &Path) {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
    let Ok(items) = fs::read_dir(path) else { return };
    for item in items.flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&item.path());
        }
    }
}
