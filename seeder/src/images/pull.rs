//! Blobs between a registry and the store.
//!
//! ```text
//! DIR/pulls/HEX.part    a blob on its way, kept over a restart
//! DIR/pulls/HEX         a blob that is here; the store shares the file once its image is taken in
//! DIR/pulls/job-ID/HEX  the blobs of one job: other names of the same files
//! ```
//!
//! Invariant: a blob is on its way once at a time, whoever wants it, and one in the store is not fetched.

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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Images pulled at once.
const PULLS_MAX: usize = 4;
/// Blobs of one image fetched at once.
const AT_ONCE: usize = 3;
/// What a failed pull left is kept this long, for the next attempt.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no room for it.
    #[error(transparent)]
    Store(#[from] IngestError),
    /// The disk failed.
    #[error("{path}: {source}")]
    Disk { path: String, source: io::Error },
}

/// The folder of blobs on their way.
pub(crate) struct Pulls {
    dir: PathBuf,
    /// One a running pull.
    pub(crate) turns: Semaphore,
    /// Held while an image is announced.
    pub(crate) order: tokio::sync::Mutex<()>,
    flights: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image whose blobs are all here.
pub(crate) struct Pulled {
    index: ImageIndex,
    documents: BTreeMap<Digest, Bytes>,
    dir: PathBuf,
    folder: Folder,
    room: SpaceReservation,
}

/// A job's folder, gone with it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Pulled {
    /// Takes it in. The files become the store's. Blocks.
    pub(crate) fn ingest(
        self,
        store: &Store,
        options: &IngestOptions,
        progress: &Arc<IngestProgress>,
    ) -> Result<Ingested, IngestError> {
        let Self { index, documents, dir, folder, room } = self;
        let source = |blob: &ImageBlob| {
            Ok(match documents.get(&blob.digest) {
                Some(bytes) => BlobSource::Reader(Box::new(Cursor::new(bytes.clone()))),
                None => BlobSource::File(folder.0.join(blob.digest.hex())),
            })
        };
        let blobs = index.blobs.clone();
        let ingested = store.ingest_image(index, source, Some(room), options, progress)?;
        // From now on the store has them. Others that are at it have names of their own.
        for blob in blobs {
            let _ = fs::remove_file(dir.join(blob.digest.hex()));
        }
        Ok(ingested)
    }
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> PullError + '_ {
    move |source| PullError::Disk { path: path.display().to_string(), source }
}

impl Pulls {
    /// Below a seeder's folder. Nothing is made before the first pull.
    pub(crate) fn new(dir: &Path) -> Self {
        let made = Self {
            dir: dir.join("pulls"),
            turns: Semaphore::new(PULLS_MAX),
            order: tokio::sync::Mutex::default(),
            flights: Mutex::default(),
        };
        made.sweep();
        made
    }

    /// Removes the folders of former runs and what has lain about for long.
    fn sweep(&self) {
        let Ok(items) = fs::read_dir(&self.dir) else { return };
        for item in items.flatten() {
            let Ok(meta) = item.metadata() else { continue };
            let age = meta.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
            let _ = match meta.is_dir() {
                true => fs::remove_dir_all(item.path()),
                false if age > KEPT => fs::remove_file(item.path()),
                false => Ok(()),
            };
        }
    }

    /// Brings an image's blobs here; those in the store stay where they are.
    pub(crate) async fn pull(
        &self,
        repository: &Repository,
        store: &Store,
        job: JobId,
        index: ImageIndex,
        documents: BTreeMap<Digest, Bytes>,
        progress: &IngestProgress,
    ) -> Result<Pulled, PullError> {
        progress.total.store(index.blobs.iter().map(|blob| blob.size).sum(), Ordering::Relaxed);
        let folder = Folder(self.dir.join(format!("job-{job}")));
        fs::create_dir_all(&folder.0).map_err(disk(&folder.0))?;
        let link = |from: &Path, digest: &Digest| fs::hard_link(from, folder.0.join(digest.hex()));
        let mut wanted = Vec::new();
        let mut need = 0;
        for blob in index.blobs.iter().filter(|blob| blob.size > 0) {
            if let Some(bytes) = documents.get(&blob.digest) {
                need += bytes.len() as u64;
                progress.done.fetch_add(blob.size, Ordering::Relaxed);
                continue;
            }
            // Linked, so that it stays even if its image is evicted for this one.
            let held = store.blob(&blob.digest).filter(|held| held.size == blob.size);
            if held.is_some_and(|held| link(&held.path, &blob.digest).is_ok()) {
                progress.done.fetch_add(blob.size, Ordering::Relaxed);
            } else {
                need += blob.size;
                wanted.push(blob);
            }
        }
        let keeper = store.clone();
        let room = tokio::task::spawn_blocking(move || keeper.reserve_space(need)).await;
        let room = room.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let slots = Semaphore::new(AT_ONCE);
        let fetches = wanted.into_iter().map(|blob| {
            let (slots, link) = (&slots, &link);
            async move {
                let _slot = slots.acquire().await;
                self.one(repository, store, blob, link, progress).await
            }
        });
        futures::future::try_join_all(fetches).await?;
        Ok(Pulled { index, documents, dir: self.dir.clone(), folder, room })
    }

    /// One blob, once: who comes second waits and finds it here.
    async fn one(
        &self,
        repository: &Repository,
        store: &Store,
        blob: &ImageBlob,
        link: &impl Fn(&Path, &Digest) -> io::Result<()>,
        progress: &IngestProgress,
    ) -> Result<(), PullError> {
        let flight = self.flights().entry(blob.digest).or_default().clone();
        let turn = flight.lock().await;
        let done = self.dir.join(blob.digest.hex());
        let held = store.blob(&blob.digest).filter(|held| held.size == blob.size).map(|held| held.path);
        let found = [held.as_ref(), Some(&done)].into_iter().flatten().any(|path| link(path, &blob.digest).is_ok());
        let result = if found {
            progress.done.fetch_add(blob.size, Ordering::Relaxed);
            Ok(())
        } else {
            let part = self.dir.join(format!("{}.part", blob.digest.hex()));
            match repository.fetch(blob, &part, &done, &progress.done).await {
                Ok(()) => link(&done, &blob.digest).map_err(disk(&done)),
                Err(error) => Err(error.into()),
            }
        };
        drop(turn);
        drop(flight);
        self.flights().retain(|_, flight| Arc::strong_count(flight) > 1);
        result
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
