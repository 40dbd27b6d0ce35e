//! The state of this host in its jobs, and which part of it the tracker has acknowledged.
//!
//! Invariant: within an attempt a state never goes back, and what the tracker has not acknowledged is sent again.

use shoal_proto::control::CurrentVersion;
use shoal_proto::ids::JobId;
use shoal_proto::limits;
use shoal_proto::plain_text;
use shoal_proto::report::{HostReport, HostState, TierBytes};
use std::collections::BTreeMap;

/// Names whose current version is reported.
const NAMES_MAX: usize = 1024;

#[derive(Debug)]
struct JobReport {
    report: HostReport,
    /// Grows with every change of `report`.
    revision: u64,
    /// The revision that the tracker acknowledged.
    acknowledged: u64,
    /// True if the state changed since the last acknowledgement. Progress alone is not urgent.
    urgent: bool,
}

impl JobReport {
    fn new(job: JobId) -> Self {
        Self {
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
            revision: 1,
            acknowledged: 0,
            urgent: false,
        }
    }

    fn is_unacknowledged(&self) -> bool {
        self.acknowledged < self.revision
    }
}

#[derive(Debug)]
struct NameReport {
    /// Empty for a name without a current version.
    version: String,
    acknowledged: bool,
}

/// The progress of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobProgress {
    /// Verified pieces on this host.
    pub pieces_have: u32,
    /// Pieces of the content.
    pub pieces_total: u32,
    /// Received payload bytes, by tier.
    pub tiers: TierBytes,
    /// Sent payload bytes.
    pub sent: u64,
}

/// The host's reports.
#[derive(Debug, Default)]
pub struct Reports {
    jobs: BTreeMap<JobId, JobReport>,
    names: BTreeMap<String, NameReport>,
}

/// The reports of one beat.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields of a beat")]
pub struct ReportBatch {
    pub reports: Vec<HostReport>,
    pub versions: Vec<CurrentVersion>,
    revisions: Vec<(JobId, u64)>,
}

impl Reports {
    fn job(&mut self, job: JobId) -> &mut JobReport {
        self.jobs.entry(job).or_insert_with(|| JobReport::new(job))
    }

    /// Adds a job in the state `Unknown`, unless the job has a report.
    pub fn open(&mut self, job: JobId) {
        self.job(job);
    }

    /// Sets the state of a job in attempt 0. See [`Reports::reach_in`].
    pub fn reach(&mut self, job: JobId, state: HostState, detail: &str) {
        self.reach_in(job, 0, state, detail);
    }

    /// Sets the state of a job in an attempt. An earlier attempt or an earlier state changes nothing.
    pub fn reach_in(&mut self, job: JobId, attempt: u16, state: HostState, detail: &str) {
        let row = self.job(job);
        if (attempt, state) > row.report.rank() {
            row.report.attempt = attempt;
            row.report.state = state;
            // Words of hooks, registries and probes stand in the detail.
            row.report.detail = clip(&plain_text::escape(detail));
            row.revision += 1;
            row.urgent = true;
        }
    }

    /// Returns the state of a job, or `None` if the job has no report.
    pub fn state(&self, job: &JobId) -> Option<HostState> {
        self.jobs.get(job).map(|row| row.report.state)
    }

    /// Sets the progress of a job.
    pub fn set_progress(&mut self, job: JobId, progress: JobProgress) {
        let row = self.job(job);
        let report = &mut row.report;
        let JobProgress { pieces_have, pieces_total, tiers, sent } = progress;
        let former = JobProgress {
            pieces_have: report.pieces_have,
            pieces_total: report.pieces_total,
            tiers: report.tiers,
            sent: report.sent,
        };
        if former != progress {
            (report.pieces_have, report.pieces_total, report.tiers, report.sent) =
                (pieces_have, pieces_total, tiers, sent);
            row.revision += 1;
        }
    }

    /// Removes the report of a job.
    pub fn forget(&mut self, job: &JobId) {
        self.jobs.remove(job);
    }

    /// Sets the current version of a name. An empty version means that there is none.
    pub fn set_current(&mut self, name: &str, version: &str) {
        let known = self.names.get(name);
        let unchanged = known.is_some_and(|known| known.version == version);
        let too_many = known.is_none() && self.names.len() >= NAMES_MAX;
        if unchanged || too_many {
            return;
        }
        self.names.insert(name.to_string(), NameReport { version: version.to_string(), acknowledged: false });
    }

    /// Marks all as unacknowledged, because a new or restarted tracker knows nothing.
    pub fn on_new_tracker(&mut self) {
        self.jobs.values_mut().for_each(|row| row.acknowledged = 0);
        self.names.values_mut().for_each(|name| name.acknowledged = false);
    }

    /// Whether a state or a current version is unacknowledged.
    pub fn is_urgent(&self) -> bool {
        self.jobs.values().any(|row| row.urgent && row.is_unacknowledged())
            || self.names.values().any(|name| !name.acknowledged)
    }

    /// Returns unacknowledged reports for one beat. States come before progress.
    pub fn next_batch(&self) -> ReportBatch {
        let mut rows: Vec<(&JobId, &JobReport)> = self.jobs.iter().filter(|(_, row)| row.is_unacknowledged()).collect();
        rows.sort_by_key(|(job, row)| (!row.urgent, **job));
        rows.truncate(limits::BEAT_ROWS_MAX);
        ReportBatch {
            reports: rows.iter().map(|(_, row)| row.report.clone()).collect(),
            versions: self.unacknowledged_versions().take(limits::BEAT_ROWS_MAX).collect(),
            revisions: rows.iter().map(|(job, row)| (**job, row.revision)).collect(),
        }
    }

    fn unacknowledged_versions(&self) -> impl Iterator<Item = CurrentVersion> {
        let names = self.names.iter().filter(|(_, row)| !row.acknowledged);
        names.map(|(name, row)| CurrentVersion { name: name.clone(), version: row.version.clone() })
    }

    /// The tracker acknowledged a batch. Changes since the batch stay unacknowledged.
    pub fn on_acknowledged(&mut self, batch: &ReportBatch) {
        for sent in &batch.versions {
            if let Some(name) = self.names.get_mut(&sent.name) {
                name.acknowledged |= name.version == sent.version;
            }
        }
        for (job, revision) in &batch.revisions {
            if let Some(row) = self.jobs.get_mut(job) {
                row.acknowledged = row.acknowledged.max(*revision);
                row.urgent &= row.is_unacknowledged();
            }
        }
    }

    /// Returns all reports.
    pub fn all(&self) -> impl Iterator<Item = &HostReport> {
        self.jobs.values().map(|row| &row.report)
    }
}

/// Cuts a text to the length that a report can have, between two characters.
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
    fn an_unacknowledged_report_is_sent_again() {
        let mut reports = Reports::default();
        let job = JobId([1; 16]);
        reports.open(job);
        let first = reports.next_batch();
        assert_eq!(first.reports.len(), 1);
        reports.reach(job, HostState::Has, "");
        reports.on_acknowledged(&first);
        assert!(reports.is_urgent(), "the state changed after the batch");
        let second = reports.next_batch();
        reports.on_acknowledged(&second);
        assert!(reports.next_batch().reports.is_empty());
        reports.on_new_tracker();
        assert_eq!(reports.next_batch().reports[0].state, HostState::Has);
    }

    #[test]
    fn attempts_and_versions_are_reported() {
        let mut reports = Reports::default();
        let job = JobId([1; 16]);
        reports.reach_in(job, 1, HostState::Active, "");
        reports.reach_in(job, 2, HostState::Failed(Reason::Unhealthy), "probe");
        reports.reach_in(job, 1, HostState::Active, "");
        let batch = reports.next_batch();
        assert_eq!(batch.reports[0].rank(), (2, HostState::Failed(Reason::Unhealthy)));
        reports.on_acknowledged(&batch);
        reports.set_current("a", "1");
        let batch = reports.next_batch();
        assert_eq!(batch.versions[0].version, "1");
        reports.set_current("a", "2");
        reports.on_acknowledged(&batch);
        let batch = reports.next_batch();
        assert_eq!(batch.versions[0].version, "2", "the version changed after the batch");
        reports.on_acknowledged(&batch);
        assert!(reports.next_batch().versions.is_empty() && !reports.is_urgent());
        reports.on_new_tracker();
        assert_eq!(reports.next_batch().versions.len(), 1);
    }

    #[test]
    fn a_state_never_goes_back() {
        let mut reports = Reports::default();
        let job = JobId([1; 16]);
        reports.reach(job, HostState::Active, "");
        reports.reach(job, HostState::Failed(Reason::Disk), "late");
        assert_eq!(reports.next_batch().reports[0].state, HostState::Active);
        reports.reach(JobId([2; 16]), HostState::Failed(Reason::Disk), &"ö".repeat(300));
        assert!(reports.next_batch().reports[1].detail.len() <= limits::DETAIL_BYTES_MAX);
    }
}
