//! What this host says of its jobs, and what of it the tracker has heard.
//!
//! Invariant: within an attempt a state never goes back, and what was not heard is said again.

use shoal_proto::control::CurrentVersion;
use shoal_proto::ids::JobId;
use shoal_proto::limits;
use shoal_proto::report::{HostReport, HostState, TierBytes};
use std::collections::BTreeMap;

/// Names whose current version is told.
const NAMES_MAX: usize = 1024;

#[derive(Debug)]
struct Row {
    report: HostReport,
    /// Grows with every change.
    version: u64,
    /// The version the tracker has heard.
    heard: u64,
    /// The state itself changed, not just progress: tell it promptly.
    urgent: bool,
}

/// The host's reports.
#[derive(Debug, Default)]
pub struct Reports {
    rows: BTreeMap<JobId, Row>,
    /// The current version of each name, and whether the tracker has heard it.
    versions: BTreeMap<String, (String, bool)>,
}

/// A batch for one beat; give it back to [`Reports::heard`] when it was heard.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The reports.
    pub reports: Vec<HostReport>,
    /// Current versions.
    pub versions: Vec<CurrentVersion>,
    rows: Vec<(JobId, u64)>,
}

impl Reports {
    fn row(&mut self, job: JobId) -> &mut Row {
        self.rows.entry(job).or_insert_with(|| Row {
            report: HostReport {
                job,
                attempt: 0,
                state: HostState::Unknown,
                detail: String::new(),
                pieces_have: 0,
                pieces_total: 0,
                tiers: TierBytes::default(),
                sent: 0,
            },
            version: 1,
            heard: 0,
            urgent: false,
        })
    }

    /// The job is known here.
    pub fn open(&mut self, job: JobId) {
        self.row(job);
    }

    /// A state was reached; earlier ones are ignored.
    pub fn reach(&mut self, job: JobId, state: HostState, detail: &str) {
        self.reach_in(job, 0, state, detail);
    }

    /// A state was reached in an attempt; earlier ones are ignored.
    pub fn reach_in(&mut self, job: JobId, attempt: u16, state: HostState, detail: &str) {
        let row = self.row(job);
        if (attempt, state) > row.report.rank() {
            row.report.attempt = attempt;
            row.report.state = state;
            row.report.detail = clip(detail);
            row.version += 1;
            row.urgent = true;
        }
    }

    /// The state reached in a job; `None` when the job is not known here.
    pub fn state(&self, job: &JobId) -> Option<HostState> {
        self.rows.get(job).map(|row| row.report.state)
    }

    /// Progress was made.
    pub fn progress(&mut self, job: JobId, have: u32, total: u32, tiers: TierBytes, sent: u64) {
        let row = self.row(job);
        let report = &mut row.report;
        if (report.pieces_have, report.pieces_total, report.tiers, report.sent) != (have, total, tiers, sent) {
            (report.pieces_have, report.pieces_total, report.tiers, report.sent) = (have, total, tiers, sent);
            row.version += 1;
        }
    }

    /// The job is over.
    pub fn forget(&mut self, job: &JobId) {
        self.rows.remove(job);
    }

    /// A version of a name was switched in; an empty one: none is.
    pub fn current(&mut self, name: &str, version: &str) {
        let known = self.versions.get(name);
        if known.is_some_and(|(known, _)| known == version) || (known.is_none() && self.versions.len() >= NAMES_MAX) {
            return;
        }
        self.versions.insert(name.to_string(), (version.to_string(), false));
    }

    /// A new tracker, or one that was restarted, has heard nothing.
    pub fn unheard(&mut self) {
        for row in self.rows.values_mut() {
            row.heard = 0;
        }
        self.versions.values_mut().for_each(|(_, heard)| *heard = false);
    }

    /// Whether a state was not heard yet.
    pub fn is_urgent(&self) -> bool {
        self.rows.values().any(|row| row.urgent && row.heard < row.version)
            || self.versions.values().any(|(_, heard)| !heard)
    }

    /// What the tracker has not heard, states before progress.
    pub fn batch(&self) -> Batch {
        let mut rows: Vec<(&JobId, &Row)> = self.rows.iter().filter(|(_, row)| row.heard < row.version).collect();
        rows.sort_by_key(|(job, row)| (!row.urgent, **job));
        rows.truncate(limits::BEAT_ROWS_MAX);
        Batch {
            reports: rows.iter().map(|(_, row)| row.report.clone()).collect(),
            versions: self.unheard_versions().take(limits::BEAT_ROWS_MAX).collect(),
            rows: rows.iter().map(|(job, row)| (**job, row.version)).collect(),
        }
    }

    fn unheard_versions(&self) -> impl Iterator<Item = CurrentVersion> {
        let unheard = self.versions.iter().filter(|(_, (_, heard))| !heard);
        unheard.map(|(name, (version, _))| CurrentVersion { name: name.clone(), version: version.clone() })
    }

    /// The tracker has heard a batch.
    pub fn heard(&mut self, batch: &Batch) {
        for told in &batch.versions {
            if let Some((version, heard)) = self.versions.get_mut(&told.name) {
                *heard |= *version == told.version;
            }
        }
        for (job, version) in &batch.rows {
            if let Some(row) = self.rows.get_mut(job) {
                row.heard = row.heard.max(*version);
                row.urgent &= row.heard < row.version;
            }
        }
    }

    /// All reports.
    pub fn all(&self) -> impl Iterator<Item = &HostReport> {
        self.rows.values().map(|row| &row.report)
    }
}

/// Cuts a text to what a report takes, at a character.
fn clip(text: &str) -> String {
    let mut end = text.len().min(limits::DETAIL_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::report::Reason;

    #[test]
    fn what_was_not_heard_is_said_again() {
        let mut reports = Reports::default();
        let job = JobId([1; 16]);
        reports.open(job);
        let first = reports.batch();
        assert_eq!(first.reports.len(), 1);
        reports.reach(job, HostState::Has, "");
        reports.heard(&first);
        assert!(reports.is_urgent(), "the state came after the batch was made");
        let second = reports.batch();
        reports.heard(&second);
        assert!(reports.batch().reports.is_empty());
        reports.unheard();
        assert_eq!(reports.batch().reports[0].state, HostState::Has);
    }

    #[test]
    fn attempts_and_versions_are_told() {
        let mut reports = Reports::default();
        let job = JobId([1; 16]);
        reports.reach_in(job, 1, HostState::Active, "");
        reports.reach_in(job, 2, HostState::Failed(Reason::Unhealthy), "probe");
        reports.reach_in(job, 1, HostState::Active, "");
        let batch = reports.batch();
        assert_eq!(batch.reports[0].rank(), (2, HostState::Failed(Reason::Unhealthy)));
        reports.heard(&batch);
        reports.current("a", "1");
        let batch = reports.batch();
        assert_eq!(batch.versions[0].version, "1");
        reports.current("a", "2");
        reports.heard(&batch);
        let batch = reports.batch();
        assert_eq!(batch.versions[0].version, "2", "it changed after the batch was made");
        reports.heard(&batch);
        assert!(reports.batch().versions.is_empty() && !reports.is_urgent());
        reports.unheard();
        assert_eq!(reports.batch().versions.len(), 1);
    }

    #[test]
    fn states_only_advance() {
        let mut reports = Reports::default();
        let job = JobId([1; 16]);
        reports.reach(job, HostState::Active, "");
        reports.reach(job, HostState::Failed(Reason::Disk), "late");
        assert_eq!(reports.batch().reports[0].state, HostState::Active);
        reports.reach(JobId([2; 16]), HostState::Failed(Reason::Disk), &"ö".repeat(300));
        assert!(reports.batch().reports[1].detail.len() <= limits::DETAIL_BYTES_MAX);
    }
}
