//! The audit log of a role: who asked for which change, from where, and how it ended.
//!
//! Owns: the folder of the log. Files and rotation are in `segments`, the bound on refused requests in `refusals`.
//! Invariant: when [`AuditLog::record`] returns, the entry survives a loss of power. A flood of refused requests
//! removes no entry of a change, because both have files of their own.

mod config;
mod refusals;
mod segments;

pub use config::AuditConfig;

use refusals::Refusals;
use segments::{Segments, read};
use shoal_api::access::{AuditEntry, AuditQuery};
use shoal_api::units::ByteSize;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Entries that wait for the disk.
const QUEUED_MAX: usize = 1024;
/// Entries that one write to the disk takes together.
const BATCH_MAX: usize = 256;
/// Entries of one answer, unless the reader wants another number.
const ANSWERED: usize = 1_000;
/// The largest number of entries of one answer.
const ANSWERED_MAX: usize = 10_000;

/// How much the log keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditSettings {
    /// The size at which a file ends and the next one begins.
    pub file_size: ByteSize,
    /// Files that are kept for changes, and as many for refused requests.
    pub files: u32,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum AuditError {
    /// A file or folder of the log cannot be opened or read.
    #[error("cannot use the audit log in {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    /// An entry could not be made durable.
    #[error("cannot write to the audit log: {0}")]
    Write(String),
    /// The log's thread has ended.
    #[error("the audit log is closed")]
    Closed,
}

/// An entry on its way to the disk.
enum Append {
    /// The sender waits until the entry is durable.
    Change(AuditEntry, oneshot::Sender<Result<(), AuditError>>),
    Refused(AuditEntry),
}

/// The audit log of a role. Clones share it.
#[derive(Clone)]
pub struct AuditLog {
    dir: Arc<Path>,
    queue: mpsc::Sender<Append>,
    refusals: Arc<Mutex<Refusals>>,
    /// Refused requests that were not logged since the last one that was.
    unlogged: Arc<AtomicU64>,
    is_failed: Arc<AtomicBool>,
    /// One reader at a time, because each reads whole files.
    readers: Arc<Semaphore>,
}

/// Returns the time of an entry, Unix milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl AuditLog {
    /// Opens the log in a folder, which is created. A line that a crash cut off stays and is skipped by readers.
    ///
    /// # Errors
    /// Returns an error if the folder or a file cannot be opened.
    pub fn open(dir: &Path, settings: AuditSettings) -> Result<Self, AuditError> {
        let failed = |source| AuditError::Folder { path: dir.to_path_buf(), source };
        let changes = Segments::open(dir, segments::CHANGES, settings).map_err(failed)?;
        let refused = Segments::open(dir, segments::REFUSED, settings).map_err(failed)?;
        let (queue, queued) = mpsc::channel(QUEUED_MAX);
        let is_failed = Arc::<AtomicBool>::default();
        let writer = Writer { changes, refused, is_failed: is_failed.clone() };
        // A thread of its own, so that entries that arrive during one fsync share the next one. It ends with the last
        // handle of the log.
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(queued)).map_err(failed)?;
        Ok(Self {
            dir: dir.into(),
            queue,
            refusals: Arc::default(),
            unlogged: Arc::default(),
            is_failed,
            readers: Arc::new(Semaphore::new(1)),
        })
    }

    /// Whether the last entry could not be written.
    pub fn is_failed(&self) -> bool {
        self.is_failed.load(Ordering::Relaxed)
    }

    /// Makes the entry of a change durable.
    ///
    /// # Errors
    /// Returns an error if the entry may be lost.
    pub async fn record(&self, entry: AuditEntry) -> Result<(), AuditError> {
        let (sender, written) = oneshot::channel();
        self.queue.send(Append::Change(entry, sender)).await.map_err(|_| AuditError::Closed)?;
        written.await.map_err(|_| AuditError::Closed)?
    }

    /// Logs a refused request, unless its address or all addresses together had too many.
    pub fn refuse(&self, from: Option<IpAddr>, mut entry: AuditEntry) {
        let admits = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).admits(from, Instant::now());
        if admits {
            entry.unlogged = self.unlogged.swap(0, Ordering::Relaxed);
            let unlogged = entry.unlogged;
            if self.queue.try_send(Append::Refused(entry)).is_ok() {
                return;
            }
            self.unlogged.fetch_add(unlogged, Ordering::Relaxed);
        }
        self.unlogged.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the newest entries that match, oldest first.
    ///
    /// # Errors
    /// Returns an error if the files cannot be read.
    pub async fn read(&self, query: AuditQuery) -> Result<Vec<AuditEntry>, AuditError> {
        let _place = self.readers.acquire().await.map_err(|_| AuditError::Closed)?;
        let since = query.since.map_or(Duration::MAX, |span| span.0).as_millis();
        let since_ms = now_ms().saturating_sub(u64::try_from(since).unwrap_or(u64::MAX));
        let limit = query.limit.unwrap_or(ANSWERED).min(ANSWERED_MAX);
        let dir = self.dir.clone();
        let matches = move |entry: &AuditEntry| {
            entry.time_ms >= since_ms
                && query.who.as_ref().is_none_or(|who| *who == entry.who)
                && query.verb.as_ref().is_none_or(|verb| *verb == entry.verb)
        };
        let reading = tokio::task::spawn_blocking(move || {
            let mut entries = read(&dir, segments::CHANGES, since_ms, limit, &matches)?;
            entries.extend(read(&dir, segments::REFUSED, since_ms, limit, &matches)?);
            entries.sort_by_key(|entry| entry.time_ms);
            entries.drain(..entries.len().saturating_sub(limit));
            Ok(entries)
        });
        let read = reading.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        read.map_err(|source| AuditError::Folder { path: self.dir.to_path_buf(), source })
    }
}

/// The thread that writes.
struct Writer {
    changes: Segments,
    refused: Segments,
    is_failed: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Append>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(next) = queue.try_recv()
            {
                batch.push(next);
            }
            self.write(batch);
        }
    }

    fn write(&mut self, batch: Vec<Append>) {
        let mut waiting = Vec::new();
        let mut changes = Vec::new();
        for append in batch {
            match append {
                Append::Change(entry, sender) => {
                    changes.push(entry);
                    waiting.push(sender);
                }
                Append::Refused(entry) => {
                    if let Err(error) = self.refused.append(&[entry]) {
                        tracing::error!(%error, "cannot log a refused request");
                    }
                }
            }
        }
        if changes.is_empty() {
            return;
        }
        let written = self.changes.append(&changes).and_then(|()| self.changes.sync());
        self.is_failed.store(written.is_err(), Ordering::Relaxed);
        if let Err(error) = &written {
            tracing::error!(%error, "cannot write to the audit log");
        }
        for sender in waiting {
            let result = written.as_ref().copied().map_err(|error| AuditError::Write(error.to_string()));
            let _ = sender.send(result); // a caller that has gone needs no answer
        }
    }
}

#[cfg(test)]
mod tests;
