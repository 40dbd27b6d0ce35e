//! Metrics of the trust document that a role has in force.
//!
//! Invariant: every value is read right before a scrape.

use crate::metrics::Metrics;
use shoal_proto::trust::Trust;
use std::sync::Arc;

/// Registers the metrics. `in_force` returns the document.
pub fn register(metrics: &Metrics, in_force: impl Fn() -> Arc<Trust> + Send + Sync + 'static) {
    let version = metrics.gauge("shoal_trust_version", "Version of the trust document in force");
    let epoch = metrics.gauge("shoal_trust_epoch", "Trust epoch of the document in force");
    let revoked = metrics.gauge("shoal_trust_revoked_nodes", "Nodes that the trust document in force revokes");
    metrics.refresh(move || {
        let trust = in_force();
        version.set(i64::try_from(trust.version()).unwrap_or(i64::MAX));
        epoch.set(i64::from(trust.epoch()));
        revoked.set(trust.document().revoked.len() as i64);
    });
}
