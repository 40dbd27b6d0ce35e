//! Counts payload by tier for reports and metrics.
//!
//! A counter includes every received payload byte, also an unwanted one, so reports show the true use of an uplink.
//! Counts reach the disk every two seconds. A kill loses the last seconds of them, a clean stop loses none.
//! Invariant: a job's figures count from the moment when this host learned of the job.

use minicbor::{Decode, Encode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::TierBytes;
use shoal_service::metrics::Metrics;
use shoal_store::Store;
use shoal_swarm::membership::Tier;
use std::collections::{BTreeMap, BTreeSet, HashMap};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabels {
    tier: &'static str,
}

/// The label of a sender's tier. `None` means other contents on this host.
fn labels(tier: Option<Tier>) -> TierLabels {
    let tier = match tier {
        None => "local",
        Some(Tier::Rack) => "rack",
        Some(Tier::Site) => "site",
        Some(Tier::Region) => "region",
        Some(Tier::Seeder) => "seeder",
    };
    TierLabels { tier }
}

/// A node's counters and gauges.
#[derive(Clone)]
pub struct NodeMetrics {
    received_bytes: Family<TierLabels, Counter>,
    feed_received_bytes: Family<TierLabels, Counter>,
    sent_bytes: Counter,
    duplicate_bytes: Counter,
    shards_unwanted: Counter,
    shards_corrupt: Counter,
    shards_verified: Counter,
    announcements_refused: Counter,
    jobs_dropped: Counter,
    desired_refused: Counter,
    links: Gauge,
    jobs: Gauge,
    members: Gauge,
    /// Shared with the check of rows.
    pub(crate) rows_refused: Counter,
}

impl NodeMetrics {
    /// Registers the node's metrics. Each scrape measures the store.
    pub fn new(metrics: &Metrics, store: &Store) -> Self {
        let contents = metrics.gauge("shoal_contents", "Contents in the store, complete or not");
        let used = metrics.gauge("shoal_store_used_bytes", "Bytes of contents in the store");
        let free = metrics.gauge("shoal_store_free_bytes", "Free bytes on the store's disk");
        let measured = store.clone();
        metrics.refresh(move || {
            let usage = measured.usage();
            contents.set(measured.count() as i64);
            used.set(usage.used as i64);
            free.set(usage.free as i64);
        });
        Self {
            received_bytes: metrics.counters("shoal_payload_received_bytes", "Payload bytes received, by tier"),
            feed_received_bytes: metrics.counters("shoal_feed_received_bytes", "Bytes of small feed versions, by tier"),
            sent_bytes: metrics.counter("shoal_payload_sent_bytes", "Payload bytes sent"),
            duplicate_bytes: metrics.counter("shoal_payload_duplicate_bytes", "Payload bytes received a second time"),
            shards_unwanted: metrics.counter("shoal_shards_unwanted", "Received shards of contents not in the store"),
            shards_corrupt: metrics.counter("shoal_shards_corrupt", "Received shards with a wrong hash"),
            shards_verified: metrics.counter("shoal_shards_verified", "Received shards with the right hash"),
            announcements_refused: metrics.counter("shoal_announcements_refused", "Announcements refused"),
            jobs_dropped: metrics.counter("shoal_jobs_dropped", "Jobs forgotten before they were complete here"),
            desired_refused: metrics.counter("shoal_desired_refused", "Desired states of rollouts refused"),
            links: metrics.gauge("shoal_links", "Links that are up"),
            jobs: metrics.gauge("shoal_jobs", "Jobs remembered"),
            members: metrics.gauge("shoal_members", "Hosts in the membership"),
            rows_refused: metrics.counter("shoal_membership_rows_refused", "Rows that do not fit their credentials"),
        }
    }
}

/// One thing to count.
pub enum Event {
    AnnouncementRefused,
    /// A job was forgotten before it was complete here.
    JobDropped,
    /// A desired state of a rollout was refused.
    DesiredRefused,
    ShardVerified,
    ShardCorrupt,
    /// A shard of a content that this host does not fetch.
    ShardUnwanted,
    /// A shard that was in the store already.
    DuplicateBytes(u64),
    /// A small feed version's data was sent. No job counts it.
    FeedSentBytes(u64),
}

/// A current quantity.
pub enum Level {
    Links(usize),
    Jobs(usize),
    Members(usize),
}

/// Payload bytes of one content.
///
/// The store keeps this struct, so field numbers are permanent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Counts {
    #[n(0)]
    pub received: TierBytes,
    #[n(1)]
    pub sent: u64,
}

impl Counts {
    /// The increase since `earlier`.
    fn since(&self, earlier: &Self) -> Self {
        let (now, then) = (&self.received, &earlier.received);
        let received = TierBytes {
            local: now.local.saturating_sub(then.local),
            rack: now.rack.saturating_sub(then.rack),
            site: now.site.saturating_sub(then.site),
            region: now.region.saturating_sub(then.region),
            seeder: now.seeder.saturating_sub(then.seeder),
        };
        Self { received, sent: self.sent.saturating_sub(earlier.sent) }
    }
}

const CONTENT_PREFIX: &str = "bytes/";
const JOB_PREFIX: &str = "base/";

fn content_key(content: &ContentId) -> String {
    format!("{CONTENT_PREFIX}{content}")
}

fn job_key(job: &JobId) -> String {
    format!("{JOB_PREFIX}{job}")
}

/// Payload counts by content and by job.
pub struct Accounting {
    metrics: NodeMetrics,
    contents: HashMap<ContentId, Counts>,
    /// The content's counts when the job began. A job without a row began at zero.
    job_baselines: BTreeMap<JobId, Counts>,
    /// Contents whose counts changed since the last save.
    unsaved: BTreeSet<ContentId>,
}

impl Accounting {
    /// Reads the counts that the store keeps.
    pub fn load(metrics: NodeMetrics, store: &Store) -> Self {
        let rows = |prefix: &'static str| {
            let rows = store.scan_state(prefix).unwrap_or_else(|error| {
                tracing::error!(%error, "cannot read the payload counts");
                Vec::new()
            });
            rows.into_iter().filter_map(move |(key, value)| {
                Some((key[prefix.len()..].to_string(), decode_exact::<Counts>(&value).ok()?))
            })
        };
        Self {
            metrics,
            contents: rows(CONTENT_PREFIX).filter_map(|(id, counts)| Some((id.parse().ok()?, counts))).collect(),
            job_baselines: rows(JOB_PREFIX).filter_map(|(id, counts)| Some((id.parse().ok()?, counts))).collect(),
            unsaved: BTreeSet::new(),
        }
    }

    /// Writes changed counts to the store.
    pub fn save(&mut self, store: &Store) {
        for content in std::mem::take(&mut self.unsaved) {
            let counts = self.contents.get(&content).map(encode);
            if let Err(error) = store.put_state(&content_key(&content), counts) {
                tracing::warn!(content = %content.short(), %error, "cannot save payload counts");
            }
        }
    }

    /// Counts of this job begin now.
    pub fn begin_job(&mut self, job: JobId, content: &ContentId, store: &Store) {
        let counts = self.of_content(content);
        if counts == Counts::default() {
            return;
        }
        self.job_baselines.insert(job, counts);
        if let Err(error) = store.put_state(&job_key(&job), Some(encode(&counts))) {
            tracing::warn!(%job, %error, "cannot save a job's payload counts");
        }
    }

    pub fn end_job(&mut self, job: &JobId, store: &Store) {
        if self.job_baselines.remove(job).is_some() {
            let _ = store.put_state(&job_key(job), None); // a stale row costs some bytes and has no effect
        }
    }

    fn content_mut(&mut self, content: ContentId) -> &mut Counts {
        self.unsaved.insert(content);
        self.contents.entry(content).or_default()
    }

    /// Counts received payload. A `tier` of `None` means other contents on this host.
    pub fn received(&mut self, content: ContentId, tier: Option<Tier>, bytes: u64) {
        let tiers = &mut self.content_mut(content).received;
        *match tier {
            None => &mut tiers.local,
            Some(Tier::Rack) => &mut tiers.rack,
            Some(Tier::Site) => &mut tiers.site,
            Some(Tier::Region) => &mut tiers.region,
            Some(Tier::Seeder) => &mut tiers.seeder,
        } += bytes;
        self.metrics.received_bytes.get_or_create(&labels(tier)).inc_by(bytes);
    }

    /// Counts received data of a small feed version. No job counts it, because the next version may replace it at once.
    pub fn received_feed(&self, tier: Tier, bytes: u64) {
        self.metrics.received_bytes.get_or_create(&labels(Some(tier))).inc_by(bytes);
        self.metrics.feed_received_bytes.get_or_create(&labels(Some(tier))).inc_by(bytes);
    }

    pub fn sent(&mut self, content: ContentId, bytes: u64) {
        self.content_mut(content).sent += bytes;
        self.metrics.sent_bytes.inc_by(bytes);
    }

    /// A content's counts since its arrival on this host.
    pub fn of_content(&self, content: &ContentId) -> Counts {
        self.contents.get(content).copied().unwrap_or_default()
    }

    /// A content's counts since a job began.
    pub fn of_job(&self, job: &JobId, content: &ContentId) -> Counts {
        let baseline = self.job_baselines.get(job).copied().unwrap_or_default();
        self.of_content(content).since(&baseline)
    }

    /// Forgets a removed content. Its jobs count from zero if the content returns.
    pub fn forget(&mut self, content: &ContentId) {
        if self.contents.remove(content).is_some() {
            self.unsaved.insert(*content);
        }
    }

    pub fn count(&self, event: Event) {
        match event {
            Event::AnnouncementRefused => self.metrics.announcements_refused.inc(),
            Event::JobDropped => self.metrics.jobs_dropped.inc(),
            Event::DesiredRefused => self.metrics.desired_refused.inc(),
            Event::ShardVerified => self.metrics.shards_verified.inc(),
            Event::ShardCorrupt => self.metrics.shards_corrupt.inc(),
            Event::ShardUnwanted => self.metrics.shards_unwanted.inc(),
            Event::DuplicateBytes(bytes) => self.metrics.duplicate_bytes.inc_by(bytes),
            Event::FeedSentBytes(bytes) => self.metrics.sent_bytes.inc_by(bytes),
        };
    }

    pub fn set(&self, level: Level) {
        match level {
            Level::Links(links) => self.metrics.links.set(links as i64),
            Level::Jobs(jobs) => self.metrics.jobs.set(jobs as i64),
            Level::Members(members) => self.metrics.members.set(members as i64),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_the_form_they_have_on_disk() {
        let received = TierBytes { local: 1, rack: 2, site: 3, region: 4, seeder: 5 };
        assert_eq!(encode(&Counts { received, sent: 6 }), encode(&(received, 6u64)));
    }
}
