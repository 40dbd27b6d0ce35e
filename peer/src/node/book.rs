//! Counting: payload by source, for reports and metrics.
//!
//! Every payload byte that arrives is counted, wanted or not, so that what crossed an uplink is told honestly.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use shoal_ops::metrics::Metrics;
use shoal_proto::ids::ContentId;
use shoal_proto::report::TierBytes;
use shoal_swarm::membership::Tier;
use std::collections::HashMap;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum TierLabel {
    Local,
    Rack,
    Site,
    Region,
    Seeder,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabels {
    tier: TierLabel,
}

/// A node's counters.
#[derive(Clone)]
pub struct NodeMetrics {
    received: Family<TierLabels, Counter>,
    pub(super) sent: Counter,
    pub(super) surplus: Counter,
    pub(super) corrupt: Counter,
    pub(super) untrusted: Counter,
    pub(super) links: Gauge,
    pub(super) contents: Gauge,
    pub(super) members: Gauge,
}

impl NodeMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            received: metrics.counters("shoal_payload_received_bytes", "Payload bytes received, by source"),
            sent: metrics.counter("shoal_payload_sent_bytes", "Payload bytes sent"),
            surplus: metrics.counter("shoal_shards_surplus", "Shards that arrived and were not needed"),
            corrupt: metrics.counter("shoal_shards_corrupt", "Shards that arrived broken"),
            untrusted: metrics.counter("shoal_announcements_refused", "Announcements not accepted"),
            links: metrics.gauge("shoal_links", "Bulk links up"),
            contents: metrics.gauge("shoal_contents", "Contents known"),
            members: metrics.gauge("shoal_members", "Hosts of the region known"),
        }
    }
}

#[derive(Debug, Default)]
struct Row {
    tiers: TierBytes,
    sent: u64,
}

/// Counts by content.
pub(super) struct Book {
    pub(super) metrics: NodeMetrics,
    rows: HashMap<ContentId, Row>,
}

impl Book {
    pub(super) fn new(metrics: NodeMetrics) -> Self {
        Self { metrics, rows: HashMap::new() }
    }

    fn row(&mut self, content: ContentId) -> &mut Row {
        self.rows.entry(content).or_default()
    }

    pub(super) fn received(&mut self, content: ContentId, tier: Option<Tier>, bytes: u64) {
        let tiers = &mut self.row(content).tiers;
        let (count, label) = match tier {
            None => (&mut tiers.local, TierLabel::Local),
            Some(Tier::Rack) => (&mut tiers.rack, TierLabel::Rack),
            Some(Tier::Site) => (&mut tiers.site, TierLabel::Site),
            Some(Tier::Region) => (&mut tiers.region, TierLabel::Region),
            Some(Tier::Seeder) => (&mut tiers.seeder, TierLabel::Seeder),
        };
        *count += bytes;
        self.metrics.received.get_or_create(&TierLabels { tier: label }).inc_by(bytes);
    }

    pub(super) fn count_sent(&mut self, content: ContentId, bytes: u64) {
        self.row(content).sent += bytes;
        self.metrics.sent.inc_by(bytes);
    }

    pub(super) fn tiers(&self, content: &ContentId) -> TierBytes {
        self.rows.get(content).map(|row| row.tiers).unwrap_or_default()
    }

    pub(super) fn sent(&self, content: &ContentId) -> u64 {
        self.rows.get(content).map_or(0, |row| row.sent)
    }

    pub(super) fn forget(&mut self, content: &ContentId) {
        self.rows.remove(content);
    }
}
