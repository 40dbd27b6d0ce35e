//! The counts of every job, kept up to date in memory, so that lists and the page decode no report.
//!
//! Invariant: after a report is stored, the row of each of its jobs has counts that contain the report.

use shoal_api::hub::HubJob;
use shoal_kv::KvError;
use shoal_proto::ids::{HostIndex, JobId};
use shoal_proto::report::{HostState, JobFlush};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Newest first, then by job and region.
type FoldKey = (Reverse<u64>, JobId, String);

/// Returns the counts of a job, without racks and hosts.
pub(crate) fn counts(region: &str, job: &JobFlush, hosts: &BTreeMap<HostIndex, HostState>) -> HubJob {
    let count = |test: fn(HostState) -> bool| hosts.values().filter(|state| test(**state)).count() as u32;
    HubJob {
        job: job.job,
        region: region.to_string(),
        content: job.content,
        kind: job.kind,
        name: job.name.clone(),
        version: job.version.clone(),
        size: job.size,
        created_at: job.created_at,
        hosts: hosts.len() as u32,
        has: count(HostState::has_all),
        active: count(|state| state == HostState::Active),
        failed: count(HostState::has_failed),
        rolled_back: count(HostState::is_rolled_back),
        tiers: job.tiers,
        racks: Vec::new(),
        lines: Vec::new(),
    }
}

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<FoldKey, HubJob>,
    /// The keys of a job's rows.
    keys: BTreeMap<JobId, Vec<FoldKey>>,
}

/// The counts of all jobs.
#[derive(Debug, Default)]
pub(crate) struct Folds {
    rows: Mutex<Rows>,
}

impl Folds {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the rows of a job by what `read` returns. The rows are locked meanwhile, so that of two reports of one
    /// job the later fold contains both.
    ///
    /// # Errors
    /// As `read`.
    pub(crate) fn refresh(
        &self,
        job: &JobId,
        read: impl FnOnce() -> Result<Vec<HubJob>, KvError>,
    ) -> Result<(), KvError> {
        let mut rows = self.rows();
        let fresh = read()?;
        for key in rows.keys.remove(job).unwrap_or_default() {
            rows.rows.remove(&key);
        }
        let key = |row: &HubJob| (Reverse(row.created_at), row.job, row.region.clone());
        if !fresh.is_empty() {
            rows.keys.insert(*job, fresh.iter().map(key).collect());
        }
        rows.rows.extend(fresh.into_iter().map(|row| (key(&row), row)));
        Ok(())
    }

    /// Returns jobs, newest first.
    pub(crate) fn list(&self, offset: usize, limit: usize) -> Vec<HubJob> {
        self.rows().rows.values().skip(offset).take(limit).cloned().collect()
    }
}
