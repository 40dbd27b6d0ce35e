//! The tracker's metrics.
//!
//! Invariant: every value is read right before a scrape, so no request pays for its metrics.

use crate::state::TrackerState;
use prometheus_client::metrics::counter::Counter;
use shoal_net::control::ControlHandle;
use shoal_service::metrics::Metrics;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// Registers the tracker's metrics.
pub(crate) fn register(state: &Arc<Mutex<TrackerState>>, control: &ControlHandle) -> Metrics {
    let metrics = Metrics::with_process();
    let hosts_up = metrics.gauge("shoal_tracker_hosts_up", "Hosts that are up");
    let hosts_away = metrics.gauge("shoal_tracker_hosts_away", "Hosts that are away and keep their place");
    let spooled = metrics.gauge("shoal_tracker_spooled_flushes", "Flushes that wait for the hub");
    let received =
        metrics.counter("shoal_tracker_received_bytes", "Bytes received on the control plane since the start");
    let sent = metrics.counter("shoal_tracker_sent_bytes", "Bytes sent on the control plane since the start");
    let beats = metrics.counter("shoal_tracker_beats", "Beats received from hosts");
    let flushes = metrics.counter("shoal_tracker_flushes", "Flushes written for the hub");
    let unadmitted =
        metrics.gauge("shoal_tracker_unadmitted_connections", "Connections that wait for the admission of their host");
    let dropped = metrics
        .counter("shoal_tracker_unadmitted_dropped", "Connections that ended before the admission of their host");
    let duplicates = metrics.counter(
        "shoal_tracker_duplicate_joins",
        "Refused joins with the key, or at the locality, of a host that answers",
    );
    let dropped_jobs =
        metrics.counter("shoal_tracker_dropped_jobs", "Jobs that made room for others before they were finished");
    let unplaced_names =
        metrics.counter("shoal_tracker_unplaced_names", "Announced names without a place for their versions");
    let (state, control) = (state.clone(), control.clone());
    metrics.refresh(move || {
        let counts = state.lock().unwrap_or_else(PoisonError::into_inner).counts();
        hosts_up.set(counts.hosts_up as i64);
        hosts_away.set(counts.hosts_away as i64);
        spooled.set(counts.spooled_flushes as i64);
        unadmitted.set(control.unadmitted() as i64);
        set(&dropped, control.dropped_unadmitted());
        set(&duplicates, counts.duplicates);
        set(&dropped_jobs, counts.dropped_jobs);
        set(&unplaced_names, counts.unplaced_names);
        set(&received, control.bytes_in());
        set(&sent, control.bytes_out());
        set(&beats, counts.beats);
        set(&flushes, counts.flushes);
    });
    metrics
}

/// Sets a counter to a total that is counted elsewhere.
fn set(counter: &Counter, total: u64) {
    counter.inner().store(total, Ordering::Relaxed);
}
