//! What ingests, trackers and rollouts report about a job.
//!
//! Invariant: every change that a restart must not lose is stored here, and every visible change wakes the watchers.

use super::{EnvelopeForTracker, Job, Jobs, new_status};
use crate::errors::StateError;
use shoal_api::jobs::{JobPhase, PushRequest};
use shoal_api::rollouts::HostFailure;
use shoal_net::admission::system_clock;
use shoal_proto::announcement::Announcement;
use shoal_proto::control::JobRollup;
use shoal_proto::ids::JobId;
use shoal_proto::trust::Envelope;
use std::time::{Duration, Instant};

/// Shortest time between two questions about one job.
const ASK_MIN: Duration = Duration::from_millis(100);
/// Longest time between two questions about a running job.
pub(crate) const ASK_MAX: Duration = Duration::from_secs(1);
/// Longest time between two questions about a job that only waits for hosts that are away.
const ASK_AWAY: Duration = Duration::from_secs(30);

impl Jobs {
    /// Shows how far a pull or an ingest is.
    pub(crate) fn set_progress(&self, job: JobId, phase: JobPhase, done: u64, total: u64) {
        if let Some(row) = self.rows().get_mut(&job) {
            row.status.phase = phase;
            row.status.ingested = done;
            row.status.size = total;
        }
        self.notify();
    }

    /// Shows that an image waits for another one. Returns whether that is new.
    pub(crate) fn set_waiting(&self, job: JobId) -> bool {
        let mut is_new = false;
        if let Some(row) = self.rows().get_mut(&job) {
            is_new = row.status.phase != JobPhase::Waiting;
            row.status.phase = JobPhase::Waiting;
        }
        if is_new {
            self.notify();
        }
        is_new
    }

    /// Ends a job that did not reach the hosts.
    pub(crate) fn fail(&self, job: JobId, why: String) {
        if let Some(row) = self.rows().get_mut(&job) {
            row.fail(why);
        }
        self.store_or_log(&job);
        self.notify();
    }

    /// Returns the sequence that a push drew.
    pub(crate) fn sequence(&self, job: &JobId) -> Option<u64> {
        self.rows().get(job)?.sequence
    }

    /// Notes that a push is signed, and stores its announcement.
    pub(crate) fn set_announced(
        &self,
        announcement: &Announcement,
        envelope: Envelope,
        pieces: u32,
    ) -> Result<(), StateError> {
        if let Some(row) = self.rows().get_mut(&announcement.job) {
            row.set_announced(announcement, envelope, pieces);
        }
        self.store(&announcement.job)
    }

    /// Returns the jobs about which to ask the tracker now.
    pub(crate) fn due(&self) -> Vec<JobId> {
        let (now, clock) = (Instant::now(), system_clock());
        let rows = self.rows();
        let due = rows.values().filter(|row| row.ask_at <= now && row.expires_at > clock && row.may_change());
        due.map(|row| row.status.job).collect()
    }

    /// Returns what the tracker still has to be sent of a job.
    pub(crate) fn envelope_for_tracker(&self, job: &JobId) -> EnvelopeForTracker {
        self.rows().get(job).map_or(EnvelopeForTracker::None, Job::envelope_for_tracker)
    }

    /// Notes that the tracker has a job's announcement.
    pub(crate) fn set_opened(&self, job: &JobId) {
        if let Some(row) = self.rows().get_mut(job) {
            row.is_opened = true;
            row.status.error.clear();
        }
    }

    /// Notes that the tracker refuses a job, and when to ask again.
    pub(crate) fn set_refused(&self, job: &JobId, why: String, wait: Duration) {
        if let Some(row) = self.rows().get_mut(job) {
            row.status.error = why;
        }
        self.ask_later(job, wait);
        self.notify();
    }

    /// Notes that the tracker does not know a job, whatever it answered before.
    pub(crate) fn set_unknown_to_tracker(&self, job: &JobId) {
        if let Some(row) = self.rows().get_mut(job) {
            row.is_opened = false;
        }
        self.ask_later(job, ASK_MAX);
    }

    /// Notes that another tracker is in use, which may know no job.
    pub(crate) fn set_tracker_changed(&self) {
        self.rows().values_mut().for_each(|row| row.is_opened = false);
    }

    pub(crate) fn ask_later(&self, job: &JobId, wait: Duration) {
        if let Some(row) = self.rows().get_mut(job) {
            row.ask_at = Instant::now() + wait;
        }
    }

    /// Takes over the tracker's counts of a job.
    pub(crate) fn fold(&self, job: JobId, rollup: JobRollup, seeder_sent: u64) {
        let mut rows = self.rows();
        let Some(row) = rows.get_mut(&job) else { return };
        let before = row.status.clone();
        let elapsed = row.announced.elapsed();
        row.fold(rollup, seeder_sent, elapsed.as_secs_f64());
        // Ask at most every twentieth of the time that the job has taken: no operator needs a long job every 100 ms.
        let longest = if row.status.is_final() { ASK_AWAY } else { ASK_MAX };
        row.ask_at = Instant::now() + (elapsed / 20).clamp(ASK_MIN, longest);
        let has_changed = row.status != before;
        let is_final = row.status.is_final();
        drop(rows);
        if is_final && !before.is_final() {
            tracing::info!(%job, elapsed_s = elapsed.as_secs_f64(), "a job is done");
        }
        if has_changed && is_final {
            self.store_or_log(&job);
        }
        if has_changed {
            self.notify();
        }
    }

    /// Fails the jobs whose lifetime has ended before their hosts were done.
    pub(crate) fn fail_expired(&self) {
        let now = system_clock();
        let is_over = |row: &&mut Job| row.status.phase == JobPhase::Distributing && row.expires_at <= now;
        let expire = |row: &mut Job| {
            row.fail("the job's lifetime has ended and not every host has reported");
            row.status.job
        };
        let expired: Vec<JobId> = self.rows().values_mut().filter(is_over).map(expire).collect();
        expired.iter().for_each(|job| self.store_or_log(job));
        if !expired.is_empty() {
            self.notify();
        }
    }

    /// Adds a rollout to the jobs, so that its reports are shown and sent to the hub.
    pub(crate) fn follow_rollout(
        &self,
        request: &PushRequest,
        announcement: &Announcement,
        envelope: Envelope,
        pieces: u32,
    ) -> Result<(), StateError> {
        let mut status = new_status(announcement.job, request, announcement.selector.to_string(), system_clock());
        status.rollout = true;
        let mut job = Job::new(status, None);
        job.set_announced(announcement, envelope, pieces);
        self.insert_rollout(job)
    }

    /// Keeps which hosts of a rollout failed first, and why.
    pub(crate) fn set_failures(&self, job: &JobId, failures: Vec<HostFailure>) {
        match self.rows().get_mut(job) {
            Some(row) if row.status.failures != failures => row.status.failures = failures,
            _ => return,
        }
        self.store_or_log(job);
        self.notify();
    }

    /// Notes whether a rollout has ended. A retry continues a rollout that had ended.
    pub(crate) fn rollout_ended(&self, job: &JobId, has_ended: bool) {
        let phase = if has_ended { JobPhase::Done } else { JobPhase::Distributing };
        match self.rows().get_mut(job) {
            Some(row) if row.status.phase != phase && row.status.phase != JobPhase::Failed => row.status.phase = phase,
            _ => return,
        }
        self.store_or_log(job);
        self.notify();
    }
}
