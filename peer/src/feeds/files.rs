//! Feeds on disk: the state for a restart, and the files that local readers open.
//!
//! ```text
//! STATE/ID                         signed announcement, and manifest and data of a small version
//! CONTENT/feeds/NAME/current       the bytes of the newest version, replaced by one rename
//! CONTENT/feeds/NAME/version       the sequence and hash of `current`, as JSON, replaced right after
//! ```
//!
//! Invariant: `current` is one whole version at any moment, and a file with this name never changes afterwards.
//! Whatever another user swaps in below the readers' folder, nothing outside changes. No feed has a part `current` or a
//! later part `version`, so no feed's folder is in the place of another feed's file. Desired states have no files.
//!
//! Nothing here is flushed, so writes survive a kill but not a loss of power. A hash reveals a damaged file at the next
//! start. The file is then dropped, and the host gets the version from neighbours.

use super::version::{FeedData, FeedVersion};
use crate::clone_file::clone_file;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::desired::name_of;
use shoal_proto::ids::{Hash, JobId};
use shoal_proto::limits;
use shoal_store::open_folder::OpenFolder;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Prefix of unfinished files. A start removes them.
const TEMPORARY: &str = ".shoal-";
/// Folder of the readers' files in the content folder. A pushed content cannot have this name.
pub(crate) const FOLDER: &str = "feeds";
/// Mode of the readers' files. Any user of the host may read feeds.
const READERS_MODE: u32 = 0o644;
/// The longest file `version` that is read, in bytes.
const VERSION_BYTES_MAX: u64 = 64 * 1024;

/// The state of a feed for a restart.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct SavedFeed {
    /// The signed announcement of the newest version.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) envelope: Vec<u8>,
    /// The manifest of a small version.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) manifest: Option<Vec<u8>>,
    /// The data of a small version.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) data: Option<Vec<u8>>,
}

/// The contents of the file `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VersionFile {
    pub(crate) feed: String,
    pub(crate) sequence: u64,
    pub(crate) published_at_ms: u64,
    pub(crate) size: u64,
    /// BLAKE3 of `current`.
    pub(crate) hash: Hash,
}

/// The folders of the files. Clones use the same folders.
#[derive(Clone)]
pub(crate) struct FeedFiles {
    state: PathBuf,
    /// The content folder. `None` at a seeder, which has no local readers.
    content_dir: Option<PathBuf>,
    /// The sequence of `current` of each feed. The writer's thread and the driver's threads both place versions.
    placed: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl FeedFiles {
    /// Opens or creates the folders, and removes unfinished files.
    pub(crate) fn open(state: PathBuf, content_dir: Option<&Path>) -> io::Result<Self> {
        fs::create_dir_all(&state)?;
        for item in fs::read_dir(&state)? {
            let path = item?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY)) {
                fs::remove_file(path)?;
            }
        }
        if let Some(dir) = content_dir {
            OpenFolder::open(dir)?.create_folders(Path::new(FOLDER))?;
        }
        Ok(Self { state, content_dir: content_dir.map(Path::to_path_buf), placed: Arc::default() })
    }

    /// Returns all saved feeds that are undamaged. Removes the others.
    pub(crate) fn load(&self) -> io::Result<Vec<(JobId, SavedFeed)>> {
        let mut found = Vec::new();
        for item in fs::read_dir(&self.state)? {
            let path = item?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) else {
                continue;
            };
            match read_saved(&path) {
                Some(saved) if found.len() < limits::FEEDS_MAX => found.push((id, saved)),
                _ => {
                    tracing::warn!(path = %path.display(), "removed a damaged feed");
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(found)
    }

    /// Saves the state of a feed.
    pub(crate) fn save(&self, feed: &JobId, saved: &SavedFeed) -> io::Result<()> {
        let body = encode(saved);
        let bytes = [&Hash::of(&body).0[..], &body].concat();
        replace(&self.state.join(feed.to_string()), &bytes)
    }

    /// Removes the state of a feed. The readers' files stay.
    pub(crate) fn forget(&self, feed: &JobId) {
        let _ = fs::remove_file(self.state.join(feed.to_string())); // there may be none
    }

    /// Makes a version the readers' `current`, unless a newer one is there. Returns the version's file.
    ///
    /// The bytes come from memory, or else from `stream`. Returns `None` at a node without readers, without bytes, and
    /// for a desired state: only this peer reads it, and the name of its content may be `x/version`.
    pub(crate) fn place(&self, version: &FeedVersion, stream: Option<&Path>) -> io::Result<Option<Arc<File>>> {
        let Some(dir) = self.content_dir.as_ref().filter(|_| name_of(&version.name).is_none()) else { return Ok(None) };
        let folder = OpenFolder::open(dir)?.create_folders(&Path::new(FOLDER).join(&version.name))?;
        let temporary = format!("{TEMPORARY}{}", version.sequence);
        let temporary = OsStr::new(&temporary);
        folder.remove(temporary)?; // an interrupted attempt may have left one
        match (&version.data, stream) {
            (FeedData::Memory(bytes), _) => write_for_readers(&folder, temporary, bytes)?,
            (_, Some(stream)) => clone_file(stream, version.size, READERS_MODE, &folder, temporary)?,
            _ => return Ok(None),
        }
        let file = Arc::new(folder.file(Path::new(temporary))?);
        let hash = match &version.data {
            FeedData::Memory(bytes) => Hash::of(bytes),
            _ => hash_file(folder.file(Path::new(temporary))?)?,
        };
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        if placed.get(&version.name).is_some_and(|newest| *newest >= version.sequence) {
            folder.remove(temporary)?;
            return Ok(Some(file));
        }
        folder.rename(temporary, OsStr::new("current"))?;
        let described = VersionFile {
            feed: version.name.clone(),
            sequence: version.sequence,
            published_at_ms: version.published_at_ms,
            size: version.size,
            hash,
        };
        let new_version = OsStr::new(".shoal-version");
        folder.remove(new_version)?;
        write_for_readers(&folder, new_version, &serde_json::to_vec(&described)?)?;
        folder.rename(new_version, OsStr::new("version"))?;
        placed.insert(version.name.clone(), version.sequence);
        Ok(Some(file))
    }

    /// Returns the readers' version from before the restart, if both files are consistent.
    pub(crate) fn placed(&self, name: &str) -> Option<(VersionFile, Arc<File>)> {
        let folder = OpenFolder::open(self.content_dir.as_ref()?).ok()?;
        let folder = folder.folder(&Path::new(FOLDER).join(name)).ok()?;
        let mut text = Vec::new();
        folder.file(Path::new("version")).ok()?.take(VERSION_BYTES_MAX).read_to_end(&mut text).ok()?;
        let described: VersionFile = serde_json::from_slice(&text).ok()?;
        let file = Arc::new(folder.file(Path::new("current")).ok()?);
        let same = described.feed == name && file.metadata().ok()?.len() == described.size;
        let hash = hash_file(folder.file(Path::new("current")).ok()?).ok()?;
        (same && hash == described.hash).then_some((described, file))
    }
}

fn write_for_readers(folder: &OpenFolder, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
    let mut file = folder.create_file(Path::new(name))?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(READERS_MODE))
}

fn hash_file(mut file: File) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(Hash(*hasher.finalize().as_bytes()))
}

fn read_saved(path: &Path) -> Option<SavedFeed> {
    let bytes: Bytes = fs::read(path).ok()?.into();
    let (hash, body) = bytes.split_at_checked(32)?;
    if Hash::of(body).0 != *hash { None } else { decode_exact(body).ok() }
}

/// Writes a file by a rename, so that readers see the old or the new bytes.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!("{TEMPORARY}{name}"));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::announcement::Kind;
    use shoal_proto::feed::is_feed_name;
    use shoal_proto::ids::ContentId;

    fn version(name: &str, data: &[u8]) -> FeedVersion {
        let data = Bytes::copy_from_slice(data);
        FeedVersion {
            name: name.into(),
            kind: Kind::Gslb,
            sequence: 1,
            published_at_ms: 1,
            content: ContentId([1; 32]),
            size: data.len() as u64,
            data: FeedData::Memory(data),
        }
    }

    #[test]
    fn no_feed_meets_the_files_of_another_feed() {
        let dir = tempfile::tempdir().unwrap();
        let content = dir.path().join("content");
        fs::create_dir(&content).unwrap();
        let files = FeedFiles::open(dir.path().join("state"), Some(content.as_path())).unwrap();
        let names = ["x", "x/events/y", "x/versions", "version", "version/x", "events"];
        for name in names {
            assert!(is_feed_name(name), "{name}");
            files.place(&version(name, name.as_bytes()), None).unwrap().expect("readers get the version");
        }
        for name in names {
            let folder = content.join(FOLDER).join(name);
            assert_eq!(fs::read(folder.join("current")).unwrap(), name.as_bytes(), "{name}");
            let described: VersionFile = serde_json::from_slice(&fs::read(folder.join("version")).unwrap()).unwrap();
            assert_eq!(described.feed, name);
        }
        // A rollout of a content whose name ends like a file of ours.
        assert!(files.place(&version("desired/x/version", b"state"), None).unwrap().is_none());
        assert!(!content.join(FOLDER).join("desired").exists());
    }
}
