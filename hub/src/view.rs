//! What the HTTP API and the page show of a job.
//!
//! Invariant: a view is made from the ledger alone and changes nothing.

use crate::ledger::{Ledger, RegionJob};
use serde::{Deserialize, Serialize};
use shoal_kv::KvError;
use shoal_proto::announcement::Kind;
use shoal_proto::control::RackRollup;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::{HostState, TierBytes};
use std::collections::BTreeMap;

/// A job in one region.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "most names say it")]
pub struct JobView {
    pub job: JobId,
    pub region: String,
    pub content: ContentId,
    pub kind: Kind,
    pub name: String,
    pub version: String,
    /// Payload, bytes.
    pub size: u64,
    /// When the seeder signed the job, Unix seconds.
    pub created_at: u64,
    /// Hosts that the job's selector matches.
    pub hosts: u32,
    /// Hosts that have every piece, active or not.
    pub has: u32,
    /// Hosts that switched to the version.
    pub active: u32,
    /// Hosts that failed.
    pub failed: u32,
    /// Payload bytes by source, over all hosts.
    pub tiers: TierBytes,
    /// Racks in the order of their names. Only in the answer for one job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub racks: Vec<RackRollup>,
    /// Hosts that failed, or every host if the query asks for them. Only in the answer for one job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<HostView>,
}

/// A host's state in a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostView {
    /// The locality, or `host INDEX` until a flush brings the host's locality.
    pub host: String,
    /// A state of [`HostState`], or `prewarmed` for an image that containerd has unpacked.
    pub state: String,
}

impl JobView {
    /// Returns the counts of a job, without racks and hosts.
    pub fn new(row: &RegionJob) -> Self {
        let count = |test: fn(HostState) -> bool| row.hosts.values().filter(|state| test(**state)).count() as u32;
        let job = &row.job;
        Self {
            job: job.job,
            region: row.region.clone(),
            content: job.content,
            kind: job.kind,
            name: job.name.clone(),
            version: job.version.clone(),
            size: job.size,
            created_at: job.created_at,
            hosts: row.hosts.len() as u32,
            has: count(HostState::has_all),
            active: count(|state| state == HostState::Active),
            failed: count(|state| matches!(state, HostState::Failed(_))),
            tiers: job.tiers,
            racks: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Returns a job with its racks and its failed hosts, or with all its hosts.
    ///
    /// # Errors
    /// [`KvError`] if the ledger cannot be read.
    pub fn with_hosts(ledger: &Ledger, row: &RegionJob, every_host: bool) -> Result<Self, KvError> {
        let mut racks: BTreeMap<String, RackRollup> = BTreeMap::new();
        let mut lines = Vec::new();
        for (index, state) in &row.hosts {
            let locality = ledger.locality(&row.region, *index)?;
            let rack = locality.as_ref().map_or_else(|| "unknown".to_string(), |locality| locality.rack_path());
            let rollup = racks.entry(rack.clone()).or_insert_with(|| RackRollup { rack, ..RackRollup::default() });
            rollup.hosts += 1;
            rollup.has += u32::from(state.has_all());
            rollup.held += u32::from(*state == HostState::Stored);
            rollup.active += u32::from(*state == HostState::Active);
            rollup.failed += u32::from(matches!(state, HostState::Failed(_)));
            if every_host || matches!(state, HostState::Failed(_)) {
                let host = locality.map_or_else(|| format!("host {index}"), |locality| locality.to_string());
                let prewarmed = *state == HostState::Active && row.job.kind == Kind::Image;
                lines.push(HostView { host, state: if prewarmed { "prewarmed".into() } else { state.to_string() } });
            }
        }
        Ok(Self { racks: racks.into_values().collect(), lines, ..Self::new(row) })
    }
}
