//! The content folder: a complete content becomes `NAME/VERSION`, and the link `NAME/current` points at one version.
//!
//! A new version is built under a temporary name, flushed, and renamed.
//! Invariant: a version exists whole or not at all, and `current` points at a whole version at any moment. This holds
//! after a kill and after a loss of power. Whatever another user swaps in below the folder, nothing outside changes. No
//! version and no name meets a file of ours: ours begin with a dot, and the temporary name of a version is of no other
//! use.

use super::mode_mask::ModeMask;
use super::version_build::build;
use shoal_proto::ids::ContentId;
use shoal_service::folders::{self, FolderError};
use shoal_store::Store;
use shoal_store::open_folder::OpenFolder;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Prefix of unfinished files and folders. A start removes them, except for the ledger.
const TEMPORARY: &str = ".shoal-";
/// Prefix of the folder in which a version is built. The version follows.
const BUILDING: &str = ".shoal-new-";
/// File beside the versions that lists the content id of each version. A folder with this file is a name's folder.
const LEDGER: &str = ".shoal-versions";
/// The next ledger, before it replaces the present one.
const NEXT_LEDGER: &str = ".shoal-versions.new";
/// The next `current`, before it replaces the present one.
const NEXT_CURRENT: &str = ".shoal-current";
/// The link to the version in use.
const CURRENT: &str = "current";
/// The longest ledger that is read, in bytes.
const LEDGER_BYTES_MAX: u64 = 1024 * 1024;

/// Why the content folder was not changed. `current` still points at the same version.
#[derive(Debug, thiserror::Error)]
pub enum ContentDirError {
    /// The version is not in the folder, and its content is not complete in the store.
    #[error("the content is not in the store")]
    NoContent,
    /// The folder of one name would be in the place of a version of another name.
    #[error("{} has the versions of another name; use another name", .path.display())]
    NameInTheWay {
        /// The folder of the other name.
        path: PathBuf,
    },
    /// The folder itself is unusable.
    #[error(transparent)]
    Folder(#[from] FolderError),
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

pub(crate) fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ContentDirError + 'a {
    move |source| ContentDirError::Io { action, path: path.to_path_buf(), source }
}

/// What a host's configuration says of its content folder.
#[derive(Clone, Debug)]
pub struct ContentSettings {
    /// The folder. Other users read it.
    pub dir: PathBuf,
    /// Versions of one name that [`ContentDir::prune`] leaves. At least one stays.
    pub keep_versions: usize,
    /// The mode bits that files and folders of contents may have.
    pub mode_mask: ModeMask,
}

/// The content folder. Clones use the same folder.
#[derive(Clone, Debug)]
pub struct ContentDir {
    settings: ContentSettings,
}

impl ContentDir {
    /// Opens or creates the folder, and removes what interrupted activations left.
    ///
    /// # Errors
    /// Fails if the folder cannot be created or read.
    pub fn open(settings: ContentSettings) -> Result<Self, ContentDirError> {
        folders::shared(&settings.dir)?;
        let content_dir = Self { settings };
        let list = |path: &Path, folder: &OpenFolder| folder.entries().map_err(io_error("list", path));
        let mut folders = vec![PathBuf::new()];
        while let Some(path) = folders.pop() {
            let full = content_dir.settings.dir.join(&path);
            let folder = content_dir.open_at(&path).map_err(io_error("open", &full))?;
            // Files of contents may begin like ours. They are safe in a version, also of a name that lost its ledger.
            let has_versions = is_name_folder(&folder) || current_in(&folder).is_some();
            for entry in list(&full, &folder)? {
                if entry.name.as_bytes().starts_with(TEMPORARY.as_bytes()) && entry.name != LEDGER {
                    discard(&folder, &full, &entry.name);
                } else if entry.is_dir && !has_versions {
                    folders.push(path.join(&entry.name));
                }
            }
        }
        Ok(content_dir)
    }

    /// Opens a folder below the content folder. The empty path is the content folder itself.
    fn open_at(&self, path: &Path) -> io::Result<OpenFolder> {
        let root = OpenFolder::open(&self.settings.dir)?;
        if path.as_os_str().is_empty() { Ok(root) } else { root.folder(path) }
    }

    /// Opens the folder of a name. Creates it where it is missing.
    fn create_name(&self, name: &str) -> Result<OpenFolder, ContentDirError> {
        let created = OpenFolder::open(&self.settings.dir).and_then(|root| root.create_folders(Path::new(name)));
        created.map_err(io_error("create", &self.folder(name)))
    }

    /// Returns the folder of a name's versions.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.settings.dir.join(name)
    }

    /// Returns the version that `current` points at.
    pub fn current(&self, name: &str) -> Option<String> {
        current_in(&self.open_at(Path::new(name)).ok()?)
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
        let folder = self.open_at(Path::new(name)).ok()?;
        Ledger::load(&folder).get(version).filter(|_| folder.has_folder(OsStr::new(version)))
    }

    /// Builds the folder of a version and leaves `current` unchanged.
    ///
    /// An existing version stays as it is, even if the content has left the store.
    ///
    /// # Errors
    /// Fails if the content is not in the store, or if the file system fails.
    pub fn prepare(&self, store: &Store, id: &ContentId, name: &str, version: &str) -> Result<(), ContentDirError> {
        let (path, target) = (self.folder(name), OsStr::new(version));
        self.check_outer_names(name)?;
        let folder = self.create_name(name)?;
        let mut ledger = Ledger::load(&folder);
        if !is_name_folder(&folder) {
            self.check_inner_names(name)?;
            // Before a version is in the folder, so that no start takes a version for the folder of a name.
            ledger.save(&folder).map_err(io_error("write", &path.join(LEDGER)))?;
        }
        if ledger.get(version) != Some(*id) || !folder.has_folder(target) {
            let manifest = store.manifest(id).ok_or(ContentDirError::NoContent)?;
            let temporary = format!("{BUILDING}{version}");
            discard(&folder, &path, OsStr::new(&temporary));
            let at = path.join(&temporary);
            let built =
                build(store, id, &manifest, self.settings.mode_mask, (&folder, &temporary), &at).and_then(|()| {
                    replace(&folder, &path, OsStr::new(&temporary), target)
                        .map_err(io_error("rename to", &path.join(version)))
                });
            if let Err(error) = built {
                discard(&folder, &path, OsStr::new(&temporary));
                return Err(error);
            }
        }
        ledger.put(version, *id);
        ledger.save(&folder).map_err(io_error("write", &path.join(LEDGER)))
    }

    /// Checks that no folder around a name's has versions: the name would be a version there.
    fn check_outer_names(&self, name: &str) -> Result<(), ContentDirError> {
        let around = Path::new(name).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
        let mut in_the_way = around.filter(|path| self.open_at(path).is_ok_and(|folder| is_name_folder(&folder)));
        in_the_way.next().map_or(Ok(()), |path| Err(self.in_the_way(path)))
    }

    /// Checks that no other name lies in the folder of a new name: it would be a version there.
    fn check_inner_names(&self, name: &str) -> Result<(), ContentDirError> {
        self.name_folders(Path::new(name)).first().map_or(Ok(()), |path| Err(self.in_the_way(path)))
    }

    fn in_the_way(&self, path: &Path) -> ContentDirError {
        ContentDirError::NameInTheWay { path: self.settings.dir.join(path) }
    }

    /// Returns `NAME/VERSION` for each name whose current version is this content.
    pub fn current_of(&self, id: &ContentId) -> Vec<String> {
        let current = self.name_folders(Path::new("")).into_iter().filter_map(|name| {
            let folder = self.open_at(&name).ok()?;
            let version = current_in(&folder)?;
            (Ledger::load(&folder).get(&version) == Some(*id)).then(|| format!("{}/{version}", name.display()))
        });
        current.collect()
    }

    /// Removes all versions of a content that `current` does not point at.
    ///
    /// # Errors
    /// Fails if the file system fails.
    pub fn withdraw(&self, id: &ContentId) -> Result<(), ContentDirError> {
        for name in self.name_folders(Path::new("")) {
            let path = self.settings.dir.join(&name);
            let folder = self.open_at(&name).map_err(io_error("open", &path))?;
            let mut ledger = Ledger::load(&folder);
            let current = current_in(&folder);
            let is_unused = |version: &str| current.as_deref() != Some(version);
            let versions: Vec<String> = ledger
                .rows
                .iter()
                .filter(|(version, row)| row == id && is_unused(version))
                .map(|row| row.0.clone())
                .collect();
            for version in versions {
                ledger.rows.retain(|(row, _)| *row != version);
                ledger.save(&folder).map_err(io_error("write", &path.join(LEDGER)))?;
                discard(&folder, &path, OsStr::new(&version));
            }
        }
        Ok(())
    }

    /// Returns the folders of names at and below `from`, relative to the content folder.
    fn name_folders(&self, from: &Path) -> Vec<PathBuf> {
        let (mut found, mut folders) = (Vec::new(), vec![from.to_path_buf()]);
        while let Some(path) = folders.pop() {
            let Ok(folder) = self.open_at(&path) else { continue };
            if is_name_folder(&folder) {
                found.push(path);
                continue;
            }
            let entries = folder.entries().unwrap_or_default().into_iter();
            folders.extend(entries.filter(|entry| entry.is_dir).map(|entry| path.join(entry.name)));
        }
        found
    }

    /// Points `current` at a version in the folder, or removes `current`.
    ///
    /// # Errors
    /// Fails if the version is missing, or if the file system fails.
    pub fn switch_to(&self, name: &str, version: Option<&str>) -> Result<(), ContentDirError> {
        let path = self.folder(name);
        let folder = match self.open_at(Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match version {
                Some(_) => return Err(ContentDirError::NoContent),
                None => return Ok(()),
            },
            folder => folder.map_err(io_error("open", &path))?,
        };
        let switched = match version {
            Some(version) if !folder.has_folder(OsStr::new(version)) => return Err(ContentDirError::NoContent),
            Some(version) => point(&folder, version),
            None => folder.remove(OsStr::new(CURRENT)),
        };
        switched.map_err(io_error("switch `current` in", &path))
    }

    /// Removes the oldest versions beyond the limit. The current version and `needed` versions stay.
    pub fn prune(&self, name: &str, needed: &[String]) {
        let Ok(folder) = self.open_at(Path::new(name)) else { return };
        let mut ledger = Ledger::load(&folder);
        let current = current_in(&folder);
        while ledger.rows.len() > self.settings.keep_versions.max(1) {
            let must_stay = |version: &String| Some(version) == current.as_ref() || needed.contains(version);
            let Some(place) = ledger.rows.iter().position(|(version, _)| !must_stay(version)) else { return };
            let (version, _) = ledger.rows.remove(place);
            if ledger.save(&folder).is_err() {
                return;
            }
            discard(&folder, &self.folder(name), OsStr::new(&version));
        }
    }
}

/// Whether a folder has the versions of a name.
fn is_name_folder(folder: &OpenFolder) -> bool {
    folder.has(OsStr::new(LEDGER))
}

fn current_in(folder: &OpenFolder) -> Option<String> {
    folder.read_link(OsStr::new(CURRENT)).ok()?.into_string().ok()
}

/// The content id of each version of one name, the oldest first.
struct Ledger {
    rows: Vec<(String, ContentId)>,
}

impl Ledger {
    fn load(folder: &OpenFolder) -> Self {
        let mut text = String::new();
        // A ledger that cannot be read is as good as none: the versions are built anew.
        let read =
            folder.file(Path::new(LEDGER)).and_then(|file| file.take(LEDGER_BYTES_MAX).read_to_string(&mut text));
        if read.is_err() {
            text.clear();
        }
        let rows = text
            .lines()
            .filter_map(|line| {
                let (id, version) = line.split_once(' ')?;
                // A version is one part of a path. Another user may have written the line.
                let is_version = !version.is_empty() && !version.contains('/') && !version.starts_with('.');
                is_version.then_some((version.to_string(), id.parse().ok()?))
            })
            .collect();
        Self { rows }
    }

    fn get(&self, version: &str) -> Option<ContentId> {
        self.rows.iter().find(|(row, _)| row == version).map(|(_, id)| *id)
    }

    fn put(&mut self, version: &str, id: ContentId) {
        self.rows.retain(|(row, _)| row != version);
        self.rows.push((version.to_string(), id));
    }

    fn save(&self, folder: &OpenFolder) -> io::Result<()> {
        let text: String = self.rows.iter().map(|(version, id)| format!("{id} {version}\n")).collect();
        let temporary = OsStr::new(NEXT_LEDGER);
        folder.remove(temporary)?;
        let mut file = folder.create_file(Path::new(temporary))?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        folder.rename(temporary, OsStr::new(LEDGER))
    }
}

/// Renames a built version to its place and removes a former version there.
fn replace(folder: &OpenFolder, path: &Path, built: &OsStr, target: &OsStr) -> io::Result<()> {
    if !folder.has(target) {
        return folder.rename(built, target);
    }
    folder.exchange(built, target)?;
    // After the exchange this is the former version.
    discard(folder, path, built);
    Ok(())
}

/// Points `current` at a version by one rename.
fn point(folder: &OpenFolder, version: &str) -> io::Result<()> {
    if current_in(folder).as_deref() == Some(version) {
        return Ok(());
    }
    let temporary = OsStr::new(NEXT_CURRENT);
    folder.remove(temporary)?;
    folder.create_link(version.as_bytes(), Path::new(temporary))?;
    folder.rename(temporary, OsStr::new(CURRENT))?;
    folder.sync()
}

/// Removes an entry of a folder. `path` is the folder's, for the log. A missing entry is fine.
fn discard(folder: &OpenFolder, path: &Path, name: &OsStr) {
    if let Err(error) = folder.remove(name) {
        tracing::warn!(path = %path.join(name).display(), %error, "cannot remove an old version");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_store::StoreConfig;
    use shoal_store::ingest::{IngestOptions, IngestProgress};
    use std::fs;
    use std::sync::Arc;

    struct Host {
        dir: tempfile::TempDir,
        store: Store,
        /// A directory with a file whose name begins like ours.
        content: ContentId,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(StoreConfig::new(dir.path().join("store")), Box::new(|_| {})).unwrap();
            let source = dir.path().join("source");
            fs::create_dir(&source).unwrap();
            fs::write(source.join(".shoal-mine"), "a file of the customer").unwrap();
            let progress = Arc::new(IngestProgress::default());
            let content = store.ingest(&source, &IngestOptions::default(), &progress).unwrap().content;
            Self { dir, store, content }
        }

        fn open(&self) -> ContentDir {
            let (dir, mode_mask) = (self.dir.path().join("content"), ModeMask::default());
            ContentDir::open(ContentSettings { dir, keep_versions: 2, mode_mask }).unwrap()
        }

        fn is_whole(&self, version: &str) -> bool {
            self.dir.path().join("content/edge/a").join(version).join(".shoal-mine").exists()
        }
    }

    #[test]
    fn no_version_meets_a_file_of_ours() {
        let host = Host::new();
        let folder = host.open();
        folder.activate(&host.store, &host.content, "edge/a", "1").unwrap();
        let versions =
            ["versions", "versions.new", "version", "new", "new-1", "new-versions", "shoal-current", "feeds"];
        for version in versions {
            let temporary = format!("{BUILDING}{version}");
            assert!(![LEDGER, NEXT_LEDGER, NEXT_CURRENT, CURRENT].contains(&&*temporary), "{version}");
            // The making of a version fails if its content is not in the store. The ledger outlives that.
            assert!(folder.prepare(&host.store, &ContentId([9; 32]), "edge/a", version).is_err());
            folder.activate(&host.store, &host.content, "edge/a", version).unwrap();
            assert_eq!(folder.content_of("edge/a", version), Some(host.content), "{version}");
            host.open();
            assert!(host.is_whole(version), "a restart removed a file of version {version}");
        }
        let kept = fs::read_dir(host.dir.path().join("content/edge/a")).unwrap().flatten();
        let kept = kept.filter(|entry| entry.file_type().unwrap().is_dir()).count();
        assert_eq!(kept, 2, "the ledger knows every version, so old ones go");
    }

    #[test]
    fn a_lost_ledger_costs_no_file_of_a_content() {
        let host = Host::new();
        host.open().activate(&host.store, &host.content, "edge/a", "1").unwrap();
        fs::remove_file(host.dir.path().join("content/edge/a").join(LEDGER)).unwrap();
        host.open();
        assert!(host.is_whole("1"));
    }

    #[test]
    fn a_name_never_takes_the_place_of_a_version_of_another_name() {
        let host = Host::new();
        let folder = host.open();
        folder.activate(&host.store, &host.content, "edge/a", "1").unwrap();
        let refused = |name: &str, version: &str| {
            let error = folder.activate(&host.store, &host.content, name, version).unwrap_err();
            assert!(matches!(error, ContentDirError::NameInTheWay { .. }), "{name}@{version}: {error}");
        };
        refused("edge/a/1", "2");
        refused("edge/a/b/c", "2");
        refused("edge", "a");
        refused("edge", "2");
        assert!(host.is_whole("1"));
        folder.activate(&host.store, &host.content, "edge/a", "2").unwrap();
        folder.activate(&host.store, &host.content, "edge/b", "a").unwrap();
    }
}
