//! The state of one link that other tasks may use.
//!
//! Invariant: at most 64 manifests are expected on a link, each with memory set aside for it. Shards take memory only
//! if this node asked the other end for shards of their content.

use super::activity::Activity;
use super::counters::ByteCounters;
use super::error::AbortReason;
use super::ledbat::Ledbat;
use super::rate_limit::LinkRateLimiter;
use super::send_queue::SendQueue;
use super::trust_exchange::TrustExchange;
use shoal_proto::announcement::Class;
use shoal_proto::ids::{ContentId, NodeId};
use shoal_proto::trust::Admitted;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::Instant;

/// Manifests that a link may be expected to bring at a time.
const EXPECTED_MANIFESTS_MAX: usize = 64;
/// Contents of which a link may bring shards at a time. A further one replaces the one that was asked for longest ago.
const ASKED_CONTENTS_MAX: usize = 1024;
/// The age from which the rate of a part says something.
const JUDGED_AFTER: Duration = Duration::from_secs(3);
/// A part that takes longer than this holds its memory for too long.
pub const PART_TIME_MAX: Duration = Duration::from_secs(120);

/// A manifest that the other end may send.
pub struct ExpectedManifest {
    total: u32,
    permit: OwnedSemaphorePermit,
}

impl ExpectedManifest {
    /// `permit` covers the `total` bytes of the manifest.
    pub fn new(total: u32, permit: OwnedSemaphorePermit) -> Self {
        Self { total, permit }
    }

    pub fn into_permit(self) -> OwnedSemaphorePermit {
        self.permit
    }
}

/// Shards of a content that the other end may send.
struct AskedContent {
    content: ContentId,
    /// Longest shard, bytes.
    shard_max: u32,
}

/// The progress of the open part of a class.
#[derive(Default)]
struct PartProgress {
    /// When the part began, moved forward by each pause of this node's reader. `None` if no part is open.
    since: Mutex<Option<Instant>>,
    /// Length of the part, bytes.
    total: AtomicU64,
    /// Bytes that have arrived.
    bytes: AtomicU64,
}

impl PartProgress {
    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how long the whole part takes at its present rate. `None` if no part is open, or it is too young.
    fn time(&self) -> Option<Duration> {
        let age = (*self.since()).map(|since| since.elapsed()).filter(|age| *age >= JUDGED_AFTER)?;
        let (total, bytes) = (self.total.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        Some(
            Duration::try_from_secs_f64(age.as_secs_f64() * total as f64 / bytes.max(1) as f64)
                .unwrap_or(Duration::MAX),
        )
    }
}

/// A link that is up.
pub struct Link {
    node: NodeId,
    credential: Arc<Admitted>,
    queue: SendQueue,
    limiter: LinkRateLimiter,
    activity: Activity,
    counters: ByteCounters,
    ledbat: Mutex<Ledbat>,
    /// Notified on each `Pong`.
    pong: Notify,
    expected: Mutex<HashMap<ContentId, ExpectedManifest>>,
    trust: TrustExchange,
    /// The latest request is the last.
    asked: Mutex<VecDeque<AskedContent>>,
    parts: [PartProgress; 4],
    aborted: watch::Sender<Option<AbortReason>>,
}

impl Link {
    pub fn new(node: NodeId, credential: Admitted, queue: SendQueue, limiter: LinkRateLimiter) -> Self {
        Self {
            node,
            credential: Arc::new(credential),
            queue,
            limiter,
            activity: Activity::new(),
            counters: ByteCounters::default(),
            ledbat: Mutex::new(Ledbat::new()),
            pong: Notify::new(),
            expected: Mutex::default(),
            trust: TrustExchange::default(),
            asked: Mutex::default(),
            parts: Default::default(),
            aborted: watch::Sender::new(None),
        }
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn credential(&self) -> &Arc<Admitted> {
        &self.credential
    }

    pub fn queue(&self) -> &SendQueue {
        &self.queue
    }

    pub fn limiter(&self) -> &LinkRateLimiter {
        &self.limiter
    }

    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    pub fn counters(&self) -> &ByteCounters {
        &self.counters
    }

    /// What both ends know of each other's trust documents.
    pub fn trust(&self) -> &TrustExchange {
        &self.trust
    }

    /// Returns the controller that bulk follows while urgent traffic is recent.
    pub fn ledbat(&self) -> MutexGuard<'_, Ledbat> {
        self.ledbat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a `Pong` with this stamp: the time that the `Ping` took one way, plus the difference of both clocks.
    pub fn on_pong(&self, stamp: u64) {
        self.ledbat().on_pong(stamp, self.activity.now());
        self.pong.notify_waiters();
    }

    /// The notification of each `Pong`.
    pub fn pong(&self) -> &Notify {
        &self.pong
    }

    /// Ends the link without a `Bye`. The other end has forgotten the link.
    pub fn abort(&self, reason: AbortReason) {
        self.aborted.send_replace(Some(reason));
    }

    /// Returns once [`Link::abort`] was called.
    pub async fn until_aborted(&self) -> AbortReason {
        let mut aborted = self.aborted.subscribe();
        match aborted.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            _ => std::future::pending().await,
        }
    }

    /// Lets the other end send a manifest. Returns false if too many manifests are expected already.
    pub fn expect_manifest(&self, content: ContentId, manifest: ExpectedManifest) -> bool {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.len() >= EXPECTED_MANIFESTS_MAX && !expected.contains_key(&content) {
            return false;
        }
        expected.insert(content, manifest);
        true
    }

    fn asked(&self) -> MutexGuard<'_, VecDeque<AskedContent>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the other end send shards of a content, each of at most `shard_max` bytes.
    pub fn expect_shards(&self, content: ContentId, shard_max: u32) {
        let mut asked = self.asked();
        asked.retain(|former| former.content != content);
        asked.push_back(AskedContent { content, shard_max });
        if asked.len() > ASKED_CONTENTS_MAX {
            asked.pop_front();
        }
    }

    /// Lets the other end send no more shards of a content.
    pub fn expect_no_shards(&self, content: &ContentId) {
        self.asked().retain(|asked| asked.content != *content);
    }

    /// Whether the other end may send a shard of this length.
    pub fn expects_shard(&self, content: &ContentId, len: u32) -> bool {
        self.asked().iter().any(|asked| asked.content == *content && len <= asked.shard_max)
    }

    pub fn on_part_begins(&self, class: Class, total: u32) {
        let part = &self.parts[class as usize];
        part.total.store(total.into(), Ordering::Relaxed);
        part.bytes.store(0, Ordering::Relaxed);
        *part.since() = Some(Instant::now());
    }

    pub fn on_part_bytes(&self, class: Class, bytes: usize) {
        self.parts[class as usize].bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes that this node did not read for a time, in which no part could grow.
    pub fn on_pause(&self, pause: Duration) {
        for part in &self.parts {
            if let Some(since) = &mut *part.since() {
                *since += pause;
            }
        }
    }

    pub fn on_part_ends(&self, class: Class) {
        *self.parts[class as usize].since() = None;
    }

    /// Returns how long the open part of a class will hold its memory in all, at its present rate. `None` if the part
    /// is young, if this node does not read, or if a more urgent part goes first.
    pub fn part_time(&self, class: Class) -> Option<Duration> {
        if self.activity.is_reading_paused() {
            return None;
        }
        let grows =
            |part: &PartProgress| part.since().is_some() && part.time().is_none_or(|time| time <= PART_TIME_MAX);
        if self.parts[..class as usize].iter().any(grows) {
            return None;
        }
        self.parts[class as usize].time()
    }

    /// Takes the permission for a manifest of exactly `total` bytes.
    pub fn take_expected(&self, content: ContentId, total: u32) -> Option<ExpectedManifest> {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.get(&content)?.total != total {
            return None;
        }
        expected.remove(&content)
    }
}
