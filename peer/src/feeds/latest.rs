//! The newest version of every feed, in memory, for local readers and followers.
//!
//! Invariant: a reader of a feed sees growing sequences only, each with the data that was signed for it.

use super::version::FeedVersion;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// Refusals remembered, the newest.
const REFUSED_MAX: usize = 32;

/// Versions, of all feeds, that a follower may be behind and still see each. Those behind further see the newest only.
const FOLLOWED_MAX: usize = 16;

#[derive(Default)]
struct Row {
    /// What readers have.
    version: Option<Arc<FeedVersion>>,
    name: String,
    /// The newest sequence heard of.
    announced: u64,
    /// When others last spoke of it.
    seen: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabel {
    feed: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabel {
    why: &'static str,
}

/// The newest version of every feed. Clones share it.
#[derive(Clone)]
pub struct LatestVersions {
    inner: Arc<Inner>,
}

struct Inner {
    rows: Mutex<BTreeMap<JobId, Row>>,
    refused: Mutex<VecDeque<RefusedVersion>>,
    /// Versions as readers get them, for those who follow a feed.
    told: broadcast::Sender<(JobId, Arc<FeedVersion>)>,
    versions: Counter,
    refusals: Family<WhyLabel, Counter>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Now, Unix milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn millis(span: Duration) -> u64 {
    span.as_millis() as u64
}

impl LatestVersions {
    /// An empty one, and its metrics.
    pub fn new(metrics: &Metrics) -> Self {
        let inner = Arc::new(Inner {
            rows: Mutex::default(),
            refused: Mutex::default(),
            told: broadcast::Sender::new(FOLLOWED_MAX),
            versions: metrics.counter("shoal_feed_versions", "Versions of feeds that readers were told"),
            refusals: metrics.counters("shoal_feed_refused", "Versions of feeds not accepted, by reason"),
        });
        let sequence: Family<FeedLabel, Gauge> =
            metrics.gauges("shoal_feed_sequence", "Sequence of the version of a feed that readers have");
        let age: Family<FeedLabel, Gauge> =
            metrics.gauges("shoal_feed_age_milliseconds", "Since the version that readers have was published");
        let unseen: Family<FeedLabel, Gauge> =
            metrics.gauges("shoal_feed_unseen_milliseconds", "Since a neighbour last spoke of the feed");
        let shelf = Self { inner };
        let measured = shelf.clone();
        metrics.refresh(move || {
            for row in measured.all() {
                let label = FeedLabel { feed: row.feed };
                sequence.get_or_create(&label).set(row.sequence as i64);
                age.get_or_create(&label).set(row.age_ms as i64);
                if let Some(span) = row.unseen_ms {
                    unseen.get_or_create(&label).set(span as i64);
                }
            }
        });
        shelf
    }

    /// Others spoke of a feed, of this version or older ones.
    pub(crate) fn heard(&self, feed: &JobId) {
        if let Some(row) = lock(&self.inner.rows).get_mut(feed) {
            row.seen = Some(Instant::now());
        }
    }

    /// A version was announced; it may be some way off. False when there are too many feeds.
    pub(crate) fn announce(&self, announcement: &Announcement, by_others: bool) -> bool {
        let mut rows = lock(&self.inner.rows);
        if rows.len() >= limits::FEEDS_MAX && !rows.contains_key(&announcement.job) {
            return false;
        }
        let row = rows.entry(announcement.job).or_default();
        row.name.clone_from(&announcement.name);
        row.announced = row.announced.max(announcement.sequence);
        if by_others {
            row.seen = Some(Instant::now());
        }
        true
    }

    /// Gives readers a version, unless they have a newer one.
    pub(crate) fn show(&self, feed: &JobId, version: Arc<FeedVersion>) -> bool {
        let mut rows = lock(&self.inner.rows);
        let row = rows.entry(*feed).or_default();
        if row.version.as_ref().is_some_and(|known| known.sequence >= version.sequence) {
            return false;
        }
        row.name.clone_from(&version.name);
        row.announced = row.announced.max(version.sequence);
        row.version = Some(version.clone());
        // Under the lock: followers see versions in their order. Without any, the version goes nowhere.
        let _ = self.inner.told.send((*feed, version));
        drop(rows);
        self.inner.versions.inc();
        true
    }

    /// A feed is forgotten.
    pub(crate) fn forget(&self, feed: &JobId) {
        lock(&self.inner.rows).remove(feed);
    }

    /// A version was not accepted.
    pub(crate) fn refuse(&self, feed: &str, sequence: u64, label: &'static str, why: String) {
        tracing::warn!(feed, sequence, %why, "refused a version of a feed");
        self.inner.refusals.get_or_create(&WhyLabel { why: label }).inc();
        let mut refused = lock(&self.inner.refused);
        refused.push_front(RefusedVersion { feed: feed.into(), sequence, why, at_ms: unix_ms() });
        refused.truncate(REFUSED_MAX);
    }

    /// An older version than the newest came. That is usual where it comes by several ways, so it is only counted.
    pub(crate) fn refuse_stale(&self) {
        self.inner.refusals.get_or_create(&WhyLabel { why: "stale" }).inc();
    }

    /// The newest version of a feed.
    pub fn get(&self, name: &str) -> Option<Arc<FeedVersion>> {
        self.newest(&shoal_proto::feed::feed_id(name))
    }

    /// The same, by the feed's id.
    pub(crate) fn newest(&self, feed: &JobId) -> Option<Arc<FeedVersion>> {
        lock(&self.inner.rows).get(feed)?.version.clone()
    }

    /// The newest sequence of a feed that was heard of, whole here or not.
    pub fn announced(&self, name: &str) -> Option<u64> {
        lock(&self.inner.rows).get(&shoal_proto::feed::feed_id(name)).map(|row| row.announced)
    }

    /// Follows a feed from its newest version on, if that is above `after`.
    pub fn follow(&self, name: &str, after: u64) -> Follower {
        let feed = shoal_proto::feed::feed_id(name);
        // Listening begins before the first look, so that no version is missed between the two.
        Follower { told: self.inner.told.subscribe(), shelf: self.clone(), feed, after, behind: true }
    }

    /// How the feeds stand that readers have, in order of name.
    pub fn all(&self) -> Vec<FeedStatus> {
        let now = unix_ms();
        let rows = lock(&self.inner.rows);
        let mut all: Vec<FeedStatus> = rows
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
                    unseen_ms: row.seen.map(|seen| millis(seen.elapsed())),
                    announced: row.announced,
                })
            })
            .collect();
        drop(rows);
        all.sort_by(|a, b| a.feed.cmp(&b.feed));
        all
    }

    /// Versions not accepted of late, the newest first.
    pub fn refused(&self) -> Vec<RefusedVersion> {
        lock(&self.inner.refused).iter().cloned().collect()
    }
}

/// Someone who reads the versions of a feed one after the other.
pub struct Follower {
    shelf: LatestVersions,
    feed: JobId,
    /// The version seen last.
    after: u64,
    /// Versions were missed, or none was looked at yet: the newest is on the shelf.
    behind: bool,
    told: broadcast::Receiver<(JobId, Arc<FeedVersion>)>,
}

impl Follower {
    /// The next version. Who takes long between two sees the newest then: the latest wins.
    pub async fn next(&mut self) -> Arc<FeedVersion> {
        loop {
            let version = if std::mem::take(&mut self.behind) {
                self.shelf.newest(&self.feed)
            } else {
                match self.told.recv().await {
                    Ok((feed, version)) => Some(version).filter(|_| feed == self.feed),
                    // The shelf, which we hold, keeps the sender.
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

    fn show(shelf: &LatestVersions, name: &str, sequence: u64) {
        let version = FeedVersion {
            name: name.into(),
            kind: Kind::Gslb,
            sequence,
            published_at_ms: 0,
            content: ContentId([0; 32]),
            size: 1,
            data: FeedData::Memory(Bytes::from_static(b"1")),
        };
        shelf.show(&feed_id(name), Arc::new(version));
    }

    #[tokio::test]
    async fn who_follows_sees_each_version_or_the_newest_when_too_far_behind() {
        let shelf = LatestVersions::new(&Metrics::default());
        show(&shelf, "a", 1);
        show(&shelf, "a", 2);
        let mut follower = shelf.follow("a", 0);
        assert_eq!(follower.next().await.sequence, 2, "the newest at first");
        for sequence in 3..=8 {
            show(&shelf, "a", sequence);
            show(&shelf, "b", sequence);
        }
        show(&shelf, "a", 5);
        for sequence in 3..=8 {
            assert_eq!(follower.next().await.sequence, sequence);
        }
        let last = 9 + FOLLOWED_MAX as u64;
        (9..=last).for_each(|sequence| show(&shelf, "a", sequence));
        assert_eq!(follower.next().await.sequence, last);
        show(&shelf, "a", last + 1);
        assert_eq!(follower.next().await.sequence, last + 1);
        assert_eq!(shelf.follow("a", last).next().await.sequence, last + 1);
    }
}
