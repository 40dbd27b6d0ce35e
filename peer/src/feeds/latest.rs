//! The newest version of every feed, in memory, for local readers and followers.
//!
//! Invariant: a reader of a feed sees growing sequences only, each with the data that was signed for it.

use super::version::FeedVersion;
use crate::clock::unix_ms;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use shoal_api::feeds::{FeedStatus, RefusedVersion};
use shoal_proto::announcement::Announcement;
use shoal_proto::ids::JobId;
use shoal_proto::limits;
use shoal_service::metrics::Metrics;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::broadcast;

/// Remembered refusals. The oldest one goes when another comes.
const REFUSED_MAX: usize = 32;

/// Versions of all feeds that a follower can be behind without missing one. A slower follower gets the newest version.
const FOLLOWER_LAG_MAX: usize = 16;

#[derive(Default)]
struct FeedState {
    /// The version that readers have.
    version: Option<Arc<FeedVersion>>,
    name: String,
    /// The newest announced sequence.
    announced: u64,
    /// When a neighbour last mentioned the feed.
    seen: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabel {
    feed: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;

/// A version that readers just got.
#[derive(Clone)]
struct Published {
    feed: JobId,
    version: Arc<FeedVersion>,
}

/// The newest version of every feed. Clones share the versions.
#[derive(Clone)]
pub struct LatestVersions {
    inner: Arc<Inner>,
}

struct Inner {
    feeds: Mutex<BTreeMap<JobId, FeedState>>,
    refused: Mutex<VecDeque<RefusedVersion>>,
    /// Every new version, for the followers of all feeds.
    published: broadcast::Sender<Published>,
    versions: Counter,
    refusals: Family<ReasonLabel, Counter>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LatestVersions {
    /// Returns an empty set, and registers the metrics of feeds.
    pub fn new(metrics: &Metrics) -> Self {
        let inner = Arc::new(Inner {
            feeds: Mutex::default(),
            refused: Mutex::default(),
            published: broadcast::Sender::new(FOLLOWER_LAG_MAX),
            versions: metrics.counter("shoal_feed_versions", "Versions of feeds that readers got"),
            refusals: metrics.counters("shoal_feed_refused", "Refused versions of feeds, by reason"),
        });
        let sequence: Family<FeedLabel, Gauge> =
            metrics.gauges("shoal_feed_sequence", "Sequence of the version that readers have");
        let age: Family<FeedLabel, Seconds> =
            metrics.gauges("shoal_feed_age_seconds", "Time since the publication of the version that readers have");
        let unseen: Family<FeedLabel, Seconds> =
            metrics.gauges("shoal_feed_unseen_seconds", "Time since a neighbour last mentioned the feed");
        let latest = Self { inner };
        let measured = latest.clone();
        metrics.refresh(move || {
            for row in measured.all() {
                let label = FeedLabel { feed: row.feed };
                sequence.get_or_create(&label).set(row.sequence as i64);
                age.get_or_create(&label).set(row.age_ms as f64 / 1000.0);
                if let Some(unseen_ms) = row.unseen_ms {
                    unseen.get_or_create(&label).set(unseen_ms as f64 / 1000.0);
                }
            }
        });
        latest
    }

    /// A neighbour mentioned the feed, with any version.
    pub(crate) fn on_mention(&self, feed: &JobId) {
        if let Some(row) = lock(&self.inner.feeds).get_mut(feed) {
            row.seen = Some(Instant::now());
        }
    }

    /// A version was announced, and its data may arrive later. Returns false if there are too many feeds.
    pub(crate) fn on_announced(&self, announcement: &Announcement, by_neighbour: bool) -> bool {
        let mut feeds = lock(&self.inner.feeds);
        if feeds.len() >= limits::FEEDS_MAX && !feeds.contains_key(&announcement.job) {
            return false;
        }
        let row = feeds.entry(announcement.job).or_default();
        row.name.clone_from(&announcement.name);
        row.announced = row.announced.max(announcement.sequence);
        if by_neighbour {
            row.seen = Some(Instant::now());
        }
        true
    }

    /// Makes a version the readers' newest. Returns false if they have it or a newer one.
    pub(crate) fn publish(&self, feed: &JobId, version: Arc<FeedVersion>) -> bool {
        let mut feeds = lock(&self.inner.feeds);
        let row = feeds.entry(*feed).or_default();
        if row.version.as_ref().is_some_and(|known| known.sequence >= version.sequence) {
            return false;
        }
        row.name.clone_from(&version.name);
        row.announced = row.announced.max(version.sequence);
        row.version = Some(version.clone());
        // Sent under the lock, so that followers see versions in order.
        let _ = self.inner.published.send(Published { feed: *feed, version }); // fails without followers
        drop(feeds);
        self.inner.versions.inc();
        true
    }

    /// Removes a feed.
    pub(crate) fn forget(&self, feed: &JobId) {
        lock(&self.inner.feeds).remove(feed);
    }

    /// Records a refusal. `label` is the reason in the metrics, `why` the reason for operators.
    pub(crate) fn on_refused(&self, feed: &str, sequence: u64, label: &'static str, why: String) {
        tracing::warn!(feed, sequence, %why, "refused a version of a feed");
        self.inner.refusals.get_or_create(&ReasonLabel { reason: label }).inc();
        let mut refused = lock(&self.inner.refused);
        refused.push_front(RefusedVersion { feed: feed.into(), sequence, why, at_ms: unix_ms() });
        refused.truncate(REFUSED_MAX);
    }

    /// Counts a version that is older than the newest. This is normal, because versions arrive on several lanes.
    pub(crate) fn on_stale(&self) {
        self.inner.refusals.get_or_create(&ReasonLabel { reason: "stale" }).inc();
    }

    /// Returns the newest version of a feed by name.
    pub fn get(&self, name: &str) -> Option<Arc<FeedVersion>> {
        self.newest(&shoal_proto::feed::feed_id(name))
    }

    /// Returns the newest version of a feed by id.
    pub(crate) fn newest(&self, feed: &JobId) -> Option<Arc<FeedVersion>> {
        lock(&self.inner.feeds).get(feed)?.version.clone()
    }

    /// Returns the newest announced sequence of a feed. Its data may still be arriving.
    pub fn announced_sequence(&self, name: &str) -> Option<u64> {
        lock(&self.inner.feeds).get(&shoal_proto::feed::feed_id(name)).map(|row| row.announced)
    }

    /// Returns a follower of a feed. Its first version is the newest one with a sequence above `after`.
    pub fn follow(&self, name: &str, after: u64) -> Follower {
        let feed = shoal_proto::feed::feed_id(name);
        // Subscribed before the first look, so that no version is missed in between.
        Follower { published: self.inner.published.subscribe(), latest: self.clone(), feed, after, behind: true }
    }

    /// Returns the state of every feed that readers have a version of, sorted by name.
    pub fn all(&self) -> Vec<FeedStatus> {
        let now = unix_ms();
        let feeds = lock(&self.inner.feeds);
        let mut all: Vec<FeedStatus> = feeds
            .values()
            .filter_map(|row| {
                let version = row.version.as_ref()?;
                Some(FeedStatus {
                    feed: version.name.clone(),
                    kind: version.kind,
                    sequence: version.sequence,
                    size: version.size,
                    content: version.content,
                    published_at_ms: version.published_at_ms,
                    age_ms: now.saturating_sub(version.published_at_ms),
                    unseen_ms: row.seen.map(|seen| seen.elapsed().as_millis() as u64),
                    announced: row.announced,
                })
            })
            .collect();
        drop(feeds);
        all.sort_by(|a, b| a.feed.cmp(&b.feed));
        all
    }

    /// Returns the recent refusals, the newest first.
    pub fn refused(&self) -> Vec<RefusedVersion> {
        lock(&self.inner.refused).iter().cloned().collect()
    }
}

/// A reader of the versions of one feed, one after the other.
pub struct Follower {
    latest: LatestVersions,
    feed: JobId,
    /// The sequence of the last returned version.
    after: u64,
    /// True at the start, and after the follower missed versions. The next version is then the newest.
    behind: bool,
    published: broadcast::Receiver<Published>,
}

impl Follower {
    /// Waits for the next version. A slow follower skips versions and gets the newest.
    pub async fn next(&mut self) -> Arc<FeedVersion> {
        loop {
            let version = if std::mem::take(&mut self.behind) {
                self.latest.newest(&self.feed)
            } else {
                match self.published.recv().await {
                    Ok(published) => Some(published.version).filter(|_| published.feed == self.feed),
                    // The error is always `Lagged`, because `latest` keeps the sender alive.
                    Err(_) => {
                        self.behind = true;
                        None
                    }
                }
            };
            if let Some(version) = version.filter(|version| version.sequence > self.after) {
                self.after = version.sequence;
                return version;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feeds::version::FeedData;
    use bytes::Bytes;
    use shoal_proto::announcement::Kind;
    use shoal_proto::feed::feed_id;
    use shoal_proto::ids::ContentId;

    fn publish(latest: &LatestVersions, name: &str, sequence: u64) {
        let version = FeedVersion {
            name: name.into(),
            kind: Kind::Gslb,
            sequence,
            published_at_ms: 0,
            content: ContentId([0; 32]),
            size: 1,
            data: FeedData::Memory(Bytes::from_static(b"1")),
        };
        latest.publish(&feed_id(name), Arc::new(version));
    }

    #[tokio::test]
    async fn a_follower_sees_each_version_or_the_newest_if_it_is_too_far_behind() {
        let latest = LatestVersions::new(&Metrics::default());
        publish(&latest, "a", 1);
        publish(&latest, "a", 2);
        let mut follower = latest.follow("a", 0);
        assert_eq!(follower.next().await.sequence, 2, "the newest version comes first");
        for sequence in 3..=8 {
            publish(&latest, "a", sequence);
            publish(&latest, "b", sequence);
        }
        publish(&latest, "a", 5);
        for sequence in 3..=8 {
            assert_eq!(follower.next().await.sequence, sequence);
        }
        let last = 9 + FOLLOWER_LAG_MAX as u64;
        (9..=last).for_each(|sequence| publish(&latest, "a", sequence));
        assert_eq!(follower.next().await.sequence, last);
        publish(&latest, "a", last + 1);
        assert_eq!(follower.next().await.sequence, last + 1);
        assert_eq!(latest.follow("a", last).next().await.sequence, last + 1);
    }
}
