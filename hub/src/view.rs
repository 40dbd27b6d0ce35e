//! What the HTTP API and the page show of a job.
//!
//! Invariant: a view is made from the ledger alone and changes nothing.

use crate::folds::counts;
use crate::ledger::{Ledger, RegionJob};
use shoal_api::hub::{HubHost, HubJob};
use shoal_kv::KvError;
use shoal_proto::announcement::Kind;
use shoal_proto::control::RackRollup;
use shoal_proto::report::HostState;
use std::collections::BTreeMap;

/// Returns a job with its racks and the hosts that failed or went back, or with all its hosts.
///
/// # Errors
/// [`KvError`] if the ledger cannot be read.
pub(crate) fn with_hosts(ledger: &Ledger, row: &RegionJob, every_host: bool) -> Result<HubJob, KvError> {
    let mut racks: BTreeMap<String, RackRollup> = BTreeMap::new();
    let mut lines = Vec::new();
    for (index, state) in &row.hosts {
        let locality = ledger.locality(&row.region, *index)?;
        let rack = locality.as_ref().map_or_else(|| "unknown".to_string(), |locality| locality.rack_path());
        let rollup = racks.entry(rack.clone()).or_insert_with(|| RackRollup { rack, ..RackRollup::default() });
        rollup.hosts += 1;
        rollup.has += u32::from(state.has_all());
        rollup.stored += u32::from(*state == HostState::Stored);
        rollup.active += u32::from(*state == HostState::Active);
        rollup.failed += u32::from(state.has_failed());
        rollup.rolled_back += u32::from(state.is_rolled_back());
        if every_host || matches!(state, HostState::Failed(_)) {
            let host = locality.map_or_else(|| format!("host {index}"), |locality| locality.to_string());
            let prewarmed = *state == HostState::Active && row.job.kind == Kind::Image;
            lines.push(HubHost { host, state: if prewarmed { "prewarmed".into() } else { state.to_string() } });
        }
    }
    Ok(HubJob { racks: racks.into_values().collect(), lines, ..counts(&row.region, &row.job, &row.hosts) })
}
