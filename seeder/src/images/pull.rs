//! Blobs between a registry and the store.
//!
//! ```text
//! DIR/pulls/HEX.part    a blob on its way, kept across a restart
//! DIR/pulls/HEX         a whole blob; the store takes the file over when it ingests the image
//! DIR/pulls/job-ID/HEX  the blobs of one job: hard links to the same files
//! ```
//!
//! Invariant: a blob is fetched at most once at a time, however many images need it, and a blob in the store is not
//! fetched.

use crate::registry::{RegistryError, Repository};
use bytes::Bytes;
use shoal_proto::ids::JobId;
use shoal_proto::image::{Digest, ImageBlob, ImageIndex};
use shoal_store::ingest::{IngestError, IngestOptions, IngestProgress, Ingested};
use shoal_store::{BlobSource, SpaceReservation, Store};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Images that are pulled at the same time.
const PULLS_MAX: usize = 4;
/// Blobs of one image that are fetched at the same time.
const BLOBS_AT_ONCE: usize = 3;
/// How long the blobs of a failed pull stay, so that the next attempt continues.
const LEFTOVERS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Why an image cannot be pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Store(#[from] IngestError),
    #[error("cannot write {}", .path.display())]
    Disk { path: PathBuf, source: io::Error },
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> PullError + '_ {
    move |source| PullError::Disk { path: path.to_path_buf(), source }
}

/// A job's folder. Dropping it removes the folder.
struct JobFolder(PathBuf);

impl JobFolder {
    /// Links a whole blob into the folder.
    fn link(&self, from: &Path, digest: &Digest) -> io::Result<()> {
        fs::hard_link(from, self.0.join(digest.hex()))
    }
}

impl Drop for JobFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // the next start removes what stays
    }
}

/// An image whose blobs are all on this disk.
pub(crate) struct PulledImage {
    index: ImageIndex,
    documents: BTreeMap<Digest, Bytes>,
    dir: PathBuf,
    folder: JobFolder,
    space: SpaceReservation,
}

impl PulledImage {
    /// Ingests the image. The store takes its files over. Blocks.
    ///
    /// # Errors
    /// Returns an error if a blob does not match its digest, or the disk fails.
    pub(crate) fn ingest(
        self,
        store: &Store,
        options: &IngestOptions,
        progress: &Arc<IngestProgress>,
    ) -> Result<Ingested, IngestError> {
        let Self { index, documents, dir, folder, space } = self;
        let source = |blob: &ImageBlob| {
            Ok(match documents.get(&blob.digest) {
                Some(bytes) => BlobSource::Reader(Box::new(Cursor::new(bytes.clone()))),
                None => BlobSource::File(folder.0.join(blob.digest.hex())),
            })
        };
        let blobs = index.blobs.clone();
        let ingested = store.ingest_image(index, source, Some(space), options, progress)?;
        // The store has the blobs now. Other jobs that need them have links of their own.
        for blob in blobs {
            let _ = fs::remove_file(dir.join(blob.digest.hex())); // documents never had a file
        }
        Ok(ingested)
    }
}

/// A lock per blob. It is held while the blob is fetched.
type BlobLock = Arc<tokio::sync::Mutex<()>>;

/// The folder of pulls.
pub struct Pulls {
    dir: PathBuf,
    places: Semaphore,
    fetching: Mutex<BTreeMap<Digest, BlobLock>>,
}

/// One image's pull.
struct Pull<'a> {
    pulls: &'a Pulls,
    repository: &'a Repository,
    store: &'a Store,
    folder: JobFolder,
    progress: &'a IngestProgress,
}

impl Pulls {
    /// Uses a folder below the seeder's folder. The first pull creates it.
    pub fn new(dir: &Path) -> Self {
        let dir = dir.join("pulls");
        remove_leftovers(&dir);
        Self { dir, places: Semaphore::new(PULLS_MAX), fetching: Mutex::default() }
    }

    /// Waits for one of [`PULLS_MAX`] places.
    pub async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    /// Brings an image's blobs to this disk. Blobs in the store stay where they are.
    pub async fn pull(
        &self,
        repository: &Repository,
        store: &Store,
        job: JobId,
        index: ImageIndex,
        documents: BTreeMap<Digest, Bytes>,
        progress: &IngestProgress,
    ) -> Result<PulledImage, PullError> {
        progress.total.store(index.blobs.iter().map(|blob| blob.size).sum(), Ordering::Relaxed);
        let folder = JobFolder(self.dir.join(format!("job-{job}")));
        fs::create_dir_all(&folder.0).map_err(disk(&folder.0))?;
        let pull = Pull { pulls: self, repository, store, folder, progress };
        let space = pull.fetch_missing(&index, &documents).await?;
        Ok(PulledImage { index, documents, dir: self.dir.clone(), folder: pull.folder, space })
    }

    fn fetching(&self) -> MutexGuard<'_, BTreeMap<Digest, BlobLock>> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pull<'_> {
    /// Fetches the blobs that are neither documents nor in the store. Returns the space reserved for the image.
    async fn fetch_missing(
        &self,
        index: &ImageIndex,
        documents: &BTreeMap<Digest, Bytes>,
    ) -> Result<SpaceReservation, PullError> {
        let mut missing = Vec::new();
        let mut need = 0;
        for blob in index.blobs.iter().filter(|blob| blob.size > 0) {
            if let Some(bytes) = documents.get(&blob.digest) {
                need += bytes.len() as u64;
                self.progress.done.fetch_add(blob.size, Ordering::Relaxed);
                continue;
            }
            // Linked, so that the blob stays even if reserving space evicts its image.
            let stored = self.store.blob(&blob.digest).filter(|stored| stored.size == blob.size);
            if stored.is_some_and(|stored| self.folder.link(&stored.path, &blob.digest).is_ok()) {
                self.progress.done.fetch_add(blob.size, Ordering::Relaxed);
            } else {
                need += blob.size;
                missing.push(blob);
            }
        }
        let store = self.store.clone();
        let space = tokio::task::spawn_blocking(move || store.reserve_space(need)).await;
        let space = space.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let places = Semaphore::new(BLOBS_AT_ONCE);
        let fetches = missing.into_iter().map(|blob| {
            let places = &places;
            async move {
                let _place = places.acquire().await;
                self.fetch_once(blob).await
            }
        });
        futures::future::try_join_all(fetches).await?;
        Ok(space)
    }

    /// Fetches one blob. If another image fetches it already, waits and links the result.
    async fn fetch_once(&self, blob: &ImageBlob) -> Result<(), PullError> {
        let lock = self.pulls.fetching().entry(blob.digest).or_default().clone();
        let guard = lock.lock().await;
        let result = self.fetch(blob).await;
        drop(guard);
        drop(lock);
        self.pulls.fetching().retain(|_, lock| Arc::strong_count(lock) > 1);
        result
    }

    async fn fetch(&self, blob: &ImageBlob) -> Result<(), PullError> {
        let whole = self.pulls.dir.join(blob.digest.hex());
        let stored = self.store.blob(&blob.digest).filter(|stored| stored.size == blob.size).map(|stored| stored.path);
        let is_linked = [stored.as_ref(), Some(&whole)]
            .into_iter()
            .flatten()
            .any(|path| self.folder.link(path, &blob.digest).is_ok());
        if is_linked {
            self.progress.done.fetch_add(blob.size, Ordering::Relaxed);
            return Ok(());
        }
        let part = self.pulls.dir.join(format!("{}.part", blob.digest.hex()));
        self.repository.fetch(blob, &part, &whole, &self.progress.done).await?;
        self.folder.link(&whole, &blob.digest).map_err(disk(&whole))
    }
}

/// Removes the folders of former runs, and blobs older than [`LEFTOVERS_KEPT`].
fn remove_leftovers(dir: &Path) {
    let Ok(items) = fs::read_dir(dir) else { return };
    for item in items.flatten() {
        let Ok(meta) = item.metadata() else { continue };
        let age = meta.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
        // What cannot be removed now is tried again at the next start.
        let _ = match meta.is_dir() {
            true => fs::remove_dir_all(item.path()),
            false if age > LEFTOVERS_KEPT => fs::remove_file(item.path()),
            false => Ok(()),
        };
    }
}
