//! Writes feeds' versions to the disk, behind whoever is told of them.
//!
//! Invariant: of each feed at most one version waits, the newest; so a disk that is slow costs memory for none but that,
//! and delays nobody. Nor does a feed that changes all the time keep the disk busy all the time.

use super::files::{FeedFiles, Kept};
use super::version::{FeedData, FeedVersion};
use bytes::Bytes;
use shoal_proto::ids::JobId;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Between two versions of a feed on the disk, unless somebody waits for the later. A version takes some fifteen calls.
const WRITE_EVERY: Duration = Duration::from_millis(100);

/// A version to be written.
pub(crate) struct PendingWrite {
    /// The version.
    pub(crate) version: Arc<FeedVersion>,
    /// Its signed announcement.
    pub(crate) envelope: Bytes,
    /// A small version's manifest.
    pub(crate) manifest: Option<Bytes>,
    /// Told once it, or a newer one, is written.
    pub(crate) done: Option<oneshot::Sender<Result<(), String>>>,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<JobId, Waiting>,
    /// When feeds may be written again; those that may be are not here.
    resting: BTreeMap<JobId, Instant>,
    stopping: bool,
}

struct Waiting {
    keep: PendingWrite,
    told: Vec<oneshot::Sender<Result<(), String>>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next version to write; `None` once all is written and no more will come.
    fn next(&self) -> Option<(JobId, Waiting)> {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            let Queue { waiting, resting, stopping } = &mut *queue;
            resting.retain(|_, until| *until > now);
            let ready = |(feed, row): (&JobId, &Waiting)| {
                (*stopping || !row.told.is_empty() || !resting.contains_key(feed)).then_some(*feed)
            };
            if let Some(next) = waiting.iter().find_map(ready).and_then(|feed| waiting.remove_entry(&feed)) {
                resting.insert(next.0, now + WRITE_EVERY);
                return Some(next);
            }
            if *stopping {
                return None;
            }
            // Everything that waits rests.
            let rest = resting.values().min().filter(|_| !waiting.is_empty()).map(|until| *until - now);
            let rest = rest.unwrap_or(Duration::MAX);
            queue = self.wake.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The thread that writes. Dropping this writes what waits.
pub(crate) struct FeedWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl FeedWriter {
    /// Starts it.
    pub(crate) fn start(files: FeedFiles) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let thread = std::thread::Builder::new().name("feeds".into()).spawn({
            let shared = shared.clone();
            move || {
                while let Some((feed, waiting)) = shared.next() {
                    let written = write(&files, &feed, &waiting.keep).map_err(|error| error.to_string());
                    if let Err(error) = &written {
                        tracing::error!(feed = waiting.keep.version.name, %error, "cannot keep a version of a feed");
                    }
                    for told in waiting.told {
                        let _ = told.send(written.clone());
                    }
                }
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has a version written, in place of an older one that waits.
    pub(crate) fn put(&self, feed: JobId, mut keep: PendingWrite) {
        let mut queue = self.shared.queue();
        let mut told: Vec<_> = keep.done.take().into_iter().collect();
        if let Some(former) = queue.waiting.remove(&feed) {
            told.extend(former.told);
            if former.keep.version.sequence > keep.version.sequence {
                keep = former.keep;
            }
        }
        queue.waiting.insert(feed, Waiting { keep, told });
        drop(queue);
        self.shared.wake.notify_one();
    }
}

impl Drop for FeedWriter {
    fn drop(&mut self) {
        self.shared.queue().stopping = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write(files: &FeedFiles, feed: &JobId, keep: &PendingWrite) -> std::io::Result<()> {
    let data = match &keep.version.data {
        FeedData::Memory(data) => Some(data.to_vec()),
        FeedData::File(_) | FeedData::Store => None,
    };
    let manifest = keep.manifest.as_ref().map(|manifest| manifest.to_vec());
    files.save(feed, &Kept { envelope: keep.envelope.to_vec(), manifest, data })?;
    // A large version's file is there before readers are told.
    if let FeedData::Memory(_) = &keep.version.data {
        files.place(&keep.version, None)?;
    }
    Ok(())
}
