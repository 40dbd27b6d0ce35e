//! Writes versions of feeds to disk, after local readers got them from memory.
//!
//! Invariant: at most one version of each feed waits to be written, the newest. A slow disk therefore costs bounded
//! memory and delays no reader. A feed that changes all the time is written at most once per [`WRITE_INTERVAL`].

use super::files::{FeedFiles, SavedFeed};
use super::version::{FeedData, FeedVersion};
use bytes::Bytes;
use shoal_proto::ids::JobId;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Shortest time between two writes of one feed, unless a caller waits for the second. A write takes about 15 system
/// calls.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);

/// Why a version is not on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FeedWriteError {
    /// The node has the maximum number of feeds.
    #[error("there are too many feeds; use an existing feed or wait until an old one expires")]
    TooManyFeeds,
    /// The disk failed. Clones share the cause.
    #[error("cannot write a version of feed {feed}")]
    #[allow(missing_docs, reason = "the message explains the fields")]
    Io {
        feed: String,
        #[source]
        source: Arc<io::Error>,
    },
}

/// The answer to a caller that waits for a write.
type WriteResult = Result<(), FeedWriteError>;

/// A version to write.
pub(crate) struct PendingWrite {
    pub(crate) version: Arc<FeedVersion>,
    /// The signed announcement.
    pub(crate) envelope: Bytes,
    /// The manifest of a small version.
    pub(crate) manifest: Option<Bytes>,
    /// Receives the result once this version, or a newer one, is written.
    pub(crate) done: Option<oneshot::Sender<WriteResult>>,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<JobId, Waiting>,
    /// The earliest next write of recently written feeds.
    not_before: BTreeMap<JobId, Instant>,
    stopping: bool,
}

struct Waiting {
    write: PendingWrite,
    /// The callers of this write, and of the older writes that it replaced.
    callers: Vec<oneshot::Sender<WriteResult>>,
}

#[derive(Default)]
struct SharedQueue {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl SharedQueue {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next write. Returns `None` once all is written and the writer stops.
    fn next(&self) -> Option<(JobId, Waiting)> {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            let Queue { waiting, not_before, stopping } = &mut *queue;
            not_before.retain(|_, until| *until > now);
            let ready = |(feed, row): (&JobId, &Waiting)| {
                (*stopping || !row.callers.is_empty() || !not_before.contains_key(feed)).then_some(*feed)
            };
            if let Some(next) = waiting.iter().find_map(ready).and_then(|feed| waiting.remove_entry(&feed)) {
                not_before.insert(next.0, now + WRITE_INTERVAL);
                return Some(next);
            }
            if *stopping {
                return None;
            }
            // Every waiting feed was written a moment ago.
            let pause = not_before.values().min().filter(|_| !waiting.is_empty()).map(|until| *until - now);
            let pause = pause.unwrap_or(Duration::MAX);
            queue = self.changed.wait_timeout(queue, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The thread that writes versions. Dropping this writes what waits and ends the thread.
pub(crate) struct FeedWriter {
    shared: Arc<SharedQueue>,
    thread: Option<JoinHandle<()>>,
}

impl FeedWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// Fails if the system cannot start a thread.
    pub(crate) fn start(files: FeedFiles) -> io::Result<Self> {
        let shared = Arc::<SharedQueue>::default();
        let thread = std::thread::Builder::new().name("feeds".into()).spawn({
            let shared = shared.clone();
            move || {
                while let Some((feed, waiting)) = shared.next() {
                    let name = &waiting.write.version.name;
                    let written = save(&files, &feed, &waiting.write).map_err(|error| {
                        tracing::error!(feed = name, %error, "cannot write a version of a feed");
                        FeedWriteError::Io { feed: name.clone(), source: Arc::new(error) }
                    });
                    for caller in waiting.callers {
                        let _ = caller.send(written.clone()); // the caller may have given up
                    }
                }
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues a version. It replaces an older version of the same feed that waits.
    pub(crate) fn write(&self, feed: JobId, mut write: PendingWrite) {
        let mut queue = self.shared.queue();
        let mut callers: Vec<_> = write.done.take().into_iter().collect();
        if let Some(former) = queue.waiting.remove(&feed) {
            callers.extend(former.callers);
            if former.write.version.sequence > write.version.sequence {
                write = former.write;
            }
        }
        queue.waiting.insert(feed, Waiting { write, callers });
        drop(queue);
        self.shared.changed.notify_one();
    }
}

impl Drop for FeedWriter {
    fn drop(&mut self) {
        self.shared.queue().stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic of the thread is in the log
        }
    }
}

fn save(files: &FeedFiles, feed: &JobId, write: &PendingWrite) -> io::Result<()> {
    let data = match &write.version.data {
        FeedData::Memory(data) => Some(data.to_vec()),
        FeedData::File(_) | FeedData::Store => None,
    };
    let manifest = write.manifest.as_ref().map(|manifest| manifest.to_vec());
    files.save(feed, &SavedFeed { envelope: write.envelope.to_vec(), manifest, data })?;
    // The file of a large version exists before readers get the version.
    if let FeedData::Memory(_) = &write.version.data {
        files.place(&write.version, None)?;
    }
    Ok(())
}
