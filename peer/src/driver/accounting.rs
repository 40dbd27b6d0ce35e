//! Counting: payload by source, for reports and metrics.
//!
//! Every payload byte that arrives is counted, wanted or not, so that what crossed an uplink is told honestly.
//! Counts are kept on disk, a little late: a kill costs the last seconds' of them, a restart nothing.

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

/// A node's counters.
#[derive(Clone)]
pub struct NodeMetrics {
    received: Family<TierLabels, Counter>,
    feeds: Family<TierLabels, Counter>,
    pub(super) sent: Counter,
    pub(super) surplus: Counter,
    pub(super) duplicate_bytes: Counter,
    pub(super) corrupt: Counter,
    pub(super) pieces: Counter,
    pub(super) refused: Counter,
    pub(super) links: Gauge,
    pub(super) jobs: Gauge,
    pub(super) members: Gauge,
}

impl NodeMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics, store: &Store) -> Self {
        let contents = metrics.gauge("shoal_contents", "Contents in the store, whole or not");
        let used = metrics.gauge("shoal_store_used_bytes", "Bytes of contents in the store");
        let free = metrics.gauge("shoal_store_free_bytes", "Bytes free on the store's disk");
        let measured = store.clone();
        metrics.refresh(move || {
            let usage = measured.usage();
            contents.set(measured.count() as i64);
            used.set(usage.used as i64);
            free.set(usage.free as i64);
        });
        Self {
            received: metrics.counters("shoal_payload_received_bytes", "Payload bytes received, by source"),
            feeds: metrics.counters("shoal_feed_received_bytes", "Bytes of small versions received, by source"),
            sent: metrics.counter("shoal_payload_sent_bytes", "Payload bytes sent"),
            surplus: metrics.counter("shoal_shards_surplus", "Shards of contents that are not here or not wanted"),
            duplicate_bytes: metrics.counter("shoal_payload_duplicate_bytes", "Payload received that was here already"),
            corrupt: metrics.counter("shoal_shards_corrupt", "Shards that arrived broken"),
            pieces: metrics.counter("shoal_shards_verified", "Shards that arrived and were right"),
            refused: metrics.counter("shoal_announcements_refused", "Announcements not accepted"),
            links: metrics.gauge("shoal_links", "Bulk links up"),
            jobs: metrics.gauge("shoal_jobs", "Jobs remembered"),
            members: metrics.gauge("shoal_members", "Hosts of the region known"),
        }
    }
}

/// Payload bytes received by source, and sent.
type Counts = (TierBytes, u64);

fn content_key(content: &ContentId) -> String {
    format!("bytes/{content}")
}

fn job_key(job: &JobId) -> String {
    format!("base/{job}")
}

/// Counts by content, and what each job's content had counted when the job began.
pub(super) struct Book {
    pub(super) metrics: NodeMetrics,
    rows: HashMap<ContentId, Counts>,
    /// Only jobs whose content was not new.
    bases: BTreeMap<JobId, Counts>,
    unsaved: BTreeSet<ContentId>,
}

impl Book {
    pub(super) fn new(metrics: NodeMetrics) -> Self {
        Self { metrics, rows: HashMap::new(), bases: BTreeMap::new(), unsaved: BTreeSet::new() }
    }

    /// Takes over what was kept on disk.
    pub(super) fn load(&mut self, store: &Store) {
        for (key, value) in store.scan_state("bytes/").unwrap_or_default() {
            if let (Ok(content), Ok(counts)) = (key["bytes/".len()..].parse(), decode_exact(&value)) {
                self.rows.insert(content, counts);
            }
        }
        for (key, value) in store.scan_state("base/").unwrap_or_default() {
            if let (Ok(job), Ok(counts)) = (key["base/".len()..].parse(), decode_exact(&value)) {
                self.bases.insert(job, counts);
            }
        }
    }

    /// Writes what changed to the disk.
    pub(super) fn save(&mut self, store: &Store) {
        for content in std::mem::take(&mut self.unsaved) {
            let row = self.rows.get(&content).map(encode);
            if let Err(error) = store.put_state(&content_key(&content), row) {
                tracing::warn!(content = %content.short(), %error, "cannot keep counts");
            }
        }
    }

    /// Counts of this job begin now.
    pub(super) fn begin_job(&mut self, job: JobId, content: &ContentId, store: &Store) {
        let counts = self.of(content);
        if counts == Counts::default() {
            return;
        }
        self.bases.insert(job, counts);
        if let Err(error) = store.put_state(&job_key(&job), Some(encode(&counts))) {
            tracing::warn!(%job, %error, "cannot keep counts");
        }
    }

    pub(super) fn end_job(&mut self, job: &JobId, store: &Store) {
        if self.bases.remove(job).is_some() {
            let _unimportant = store.put_state(&job_key(job), None);
        }
    }

    fn row(&mut self, content: ContentId) -> &mut Counts {
        self.unsaved.insert(content);
        self.rows.entry(content).or_default()
    }

    /// Counts payload in; `None` is what other contents here had.
    pub(super) fn received(&mut self, content: ContentId, tier: Option<Tier>, bytes: u64) {
        let tiers = &mut self.row(content).0;
        *match tier {
            None => &mut tiers.local,
            Some(Tier::Rack) => &mut tiers.rack,
            Some(Tier::Site) => &mut tiers.site,
            Some(Tier::Region) => &mut tiers.region,
            Some(Tier::Seeder) => &mut tiers.seeder,
        } += bytes;
        self.count_received(tier, bytes);
    }

    /// Counts payload in that belongs to no job: a feed's, of which a version may be gone in a moment.
    pub(super) fn received_feed(&mut self, tier: Tier, bytes: u64) {
        self.count_received(Some(tier), bytes);
        self.metrics.feeds.get_or_create(&labels(Some(tier))).inc_by(bytes);
    }

    fn count_received(&self, tier: Option<Tier>, bytes: u64) {
        self.metrics.received.get_or_create(&labels(tier)).inc_by(bytes);
    }

    pub(super) fn count_sent(&mut self, content: ContentId, bytes: u64) {
        self.row(content).1 += bytes;
        self.metrics.sent.inc_by(bytes);
    }

    /// A content's counts since it came here.
    pub(super) fn of(&self, content: &ContentId) -> Counts {
        self.rows.get(content).copied().unwrap_or_default()
    }

    /// A content's counts since a job began.
    pub(super) fn of_job(&self, job: &JobId, content: &ContentId) -> Counts {
        let (tiers, sent) = self.of(content);
        let (tiers_then, sent_then) = self.bases.get(job).copied().unwrap_or_default();
        let tiers = TierBytes {
            local: tiers.local.saturating_sub(tiers_then.local),
            rack: tiers.rack.saturating_sub(tiers_then.rack),
            site: tiers.site.saturating_sub(tiers_then.site),
            region: tiers.region.saturating_sub(tiers_then.region),
            seeder: tiers.seeder.saturating_sub(tiers_then.seeder),
        };
        (tiers, sent.saturating_sub(sent_then))
    }

    /// The content is gone. Jobs that go on with it count anew.
    pub(super) fn forget(&mut self, content: &ContentId) {
        if self.rows.remove(content).is_some() {
            self.unsaved.insert(*content);
        }
    }
}
