//! The counters of the prewarm task.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use shoal_service::metrics::Metrics;

/// The counters. Clones share them.
#[derive(Clone)]
pub struct PrewarmMetrics {
    pub prewarmed: Counter,
    pub failed: Counter,
    pub past_mirror: Counter,
    pub running: Gauge,
}

impl PrewarmMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            prewarmed: metrics.counter("shoal_images_prewarmed", "Images that containerd has unpacked and pinned"),
            failed: metrics.counter("shoal_images_prewarm_failed", "Images that could not be prewarmed"),
            past_mirror: metrics
                .counter("shoal_images_past_mirror", "Images that containerd pulled without the mirror"),
            running: metrics.gauge("shoal_images_prewarming", "Images that are being prewarmed"),
        }
    }
}
