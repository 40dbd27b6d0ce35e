//! Feeds on the disk: what is found again after a restart, and the files readers open.
//!
//! ```text
//! STATE/ID                         signed announcement, and a small version's manifest and data
//! CONTENT/feeds/NAME/current       the newest version's bytes, replaced in one step
//! CONTENT/feeds/NAME/version       which version that is, as JSON; replaced right after
//! ```
//!
//! Invariant: `current` is one whole version at any moment, and a file that was once there is never written to again.
//! Nothing here waits for the disk: a kill loses none of it; what a loss of power garbles is told by its hash, dropped,
//! and heard again from neighbours.

use super::version::{FeedData, FeedVersion};
use crate::activation::content_dir::share_file;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{Hash, JobId};
use shoal_proto::limits;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Prefix of files in the making.
const TEMPORARY: &str = ".shoal-";
/// Folder of the readers' files within the content folder; no pushed content may be named so.
pub(crate) const FOLDER: &str = "feeds";

/// What is kept of a feed.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct Kept {
    /// The signed announcement.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) envelope: Vec<u8>,
    /// A small version's manifest.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) manifest: Option<Vec<u8>>,
    /// And its data.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) data: Option<Vec<u8>>,
}

/// What the file `version` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VersionFile {
    pub(crate) feed: String,
    pub(crate) sequence: u64,
    pub(crate) published_at_ms: u64,
    pub(crate) size: u64,
    /// BLAKE3 of `current`.
    pub(crate) hash: Hash,
}

/// The folders.
#[derive(Clone)]
pub(crate) struct FeedFiles {
    state: PathBuf,
    /// Only hosts have readers.
    readers: Option<PathBuf>,
    /// Sequences of what is in `current`: versions of one feed may be written by two threads.
    placed: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl FeedFiles {
    /// Opens or makes the folders.
    pub(crate) fn open(state: PathBuf, content_dir: Option<&Path>) -> io::Result<Self> {
        fs::create_dir_all(&state)?;
        for item in fs::read_dir(&state)? {
            let path = item?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY)) {
                fs::remove_file(path)?;
            }
        }
        let readers = content_dir.map(|dir| dir.join(FOLDER));
        if let Some(readers) = &readers {
            fs::create_dir_all(readers)?;
        }
        Ok(Self { state, readers, placed: Arc::default() })
    }

    /// Everything kept that is whole.
    pub(crate) fn load(&self) -> io::Result<Vec<(JobId, Kept)>> {
        let mut found = Vec::new();
        for item in fs::read_dir(&self.state)? {
            let path = item?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) else {
                continue;
            };
            match read_kept(&path) {
                Some(kept) if found.len() < limits::FEEDS_MAX => found.push((id, kept)),
                _ => {
                    tracing::warn!(path = %path.display(), "dropped a feed that cannot be read");
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(found)
    }

    /// Keeps a feed's newest version.
    pub(crate) fn save(&self, feed: &JobId, kept: &Kept) -> io::Result<()> {
        let body = encode(kept);
        let bytes = [&Hash::of(&body).0[..], &body].concat();
        replace(&self.state.join(feed.to_string()), &bytes)
    }

    /// Forgets a feed. What readers have stays.
    pub(crate) fn forget(&self, feed: &JobId) {
        let _gone = fs::remove_file(self.state.join(feed.to_string()));
    }

    /// Gives readers a version's bytes, from memory or from a stream file, unless they have a newer one. Gives the file.
    pub(crate) fn place(&self, version: &FeedVersion, stream: Option<&Path>) -> io::Result<Option<Arc<File>>> {
        let Some(readers) = &self.readers else { return Ok(None) };
        let folder = readers.join(&version.name);
        fs::create_dir_all(&folder)?;
        let temporary = folder.join(format!("{TEMPORARY}{}", version.sequence));
        let _former = fs::remove_file(&temporary);
        let hash = match (&version.data, stream) {
            (FeedData::Memory(bytes), _) => {
                fs::write(&temporary, bytes)?;
                Hash::of(bytes)
            }
            (_, Some(stream)) => {
                share_file(stream, version.size, 0o644, &temporary)?;
                hash_file(&temporary)?
            }
            _ => return Ok(None),
        };
        let file = Arc::new(File::open(&temporary)?);
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        if placed.get(&version.name).is_some_and(|newest| *newest >= version.sequence) {
            fs::remove_file(&temporary)?;
            return Ok(Some(file));
        }
        fs::rename(&temporary, folder.join("current"))?;
        let said = VersionFile {
            feed: version.name.clone(),
            sequence: version.sequence,
            published_at_ms: version.published_at_ms,
            size: version.size,
            hash,
        };
        replace(&folder.join("version"), &serde_json::to_vec(&said)?)?;
        placed.insert(version.name.clone(), version.sequence);
        Ok(Some(file))
    }

    /// What readers had before the restart, when both files say the same.
    pub(crate) fn placed(&self, name: &str) -> Option<(VersionFile, Arc<File>)> {
        let folder = self.readers.as_ref()?.join(name);
        let said: VersionFile = serde_json::from_slice(&fs::read(folder.join("version")).ok()?).ok()?;
        let current = folder.join("current");
        let file = Arc::new(File::open(&current).ok()?);
        let same = said.feed == name && file.metadata().ok()?.len() == said.size;
        (same && hash_file(&current).ok()? == said.hash).then_some((said, file))
    }
}

fn hash_file(path: &Path) -> io::Result<Hash> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(Hash(*hasher.finalize().as_bytes()))
}

fn read_kept(path: &Path) -> Option<Kept> {
    let bytes: Bytes = fs::read(path).ok()?.into();
    let (hash, body) = bytes.split_at_checked(32)?;
    if Hash::of(body).0 != *hash { None } else { decode_exact(body).ok() }
}

/// Puts a file there in one step.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!("{TEMPORARY}{name}"));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}
