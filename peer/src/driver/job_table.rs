//! Jobs: their signed announcements, kept on disk, and how far this host says it is with each.
//!
//! Reports themselves are not on disk. Whatever a host could say after a restart follows from the jobs and contents
//! that are, and from the jobs marked as switched in.

use super::Driver;
use bytes::Bytes;
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, HostIndex, JobId};
use shoal_proto::report::{HostState, Reason};
use shoal_proto::trust::{Envelope, Role, TrustError};
use shoal_swarm::io::Input;
use shoal_swarm::node::bounds::JOBS_MAX;
use std::sync::Arc;
use std::time::Duration;

/// Jobs of untrusted publishers that are reported on; the rest are only counted.
const UNTRUSTED_MAX: usize = 16;
/// How long a link may wait for membership to tell of its other end.
const STRANGER_PATIENCE: Duration = Duration::from_secs(30);

/// Key of the record that says a job was switched in here.
fn active_key(job: &JobId) -> String {
    format!("active-job/{job}")
}

impl Driver {
    /// Remembers a job and its signed announcement, on disk too.
    pub(super) fn keep_job(&mut self, announcement: Arc<Announcement>, envelope: Bytes) {
        let job = announcement.job;
        if self.envelopes.len() >= JOBS_MAX {
            let jobs = self.envelopes.values().filter(|(row, _)| row.feed.is_none());
            let oldest = jobs.map(|(row, _)| (row.created_at, row.job)).min();
            if let Some((_, oldest)) = oldest {
                self.forget_job(oldest);
            }
        }
        if let Err(error) = self.store.save_job(&job, &envelope) {
            tracing::error!(%job, %error, "cannot keep an announcement");
        }
        self.book.begin_job(job, &announcement.content, &self.store);
        self.open_report(&announcement);
        self.envelopes.insert(job, (announcement, envelope));
        self.book.metrics.jobs.set(self.envelopes.len() as i64);
    }

    pub(super) fn load_jobs(&mut self) {
        let jobs = self.store.jobs().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the jobs kept");
            Vec::new()
        });
        for (job, bytes) in jobs {
            match self.open_announcement(&bytes) {
                Ok(announcement) => {
                    self.envelopes.insert(job, (Arc::new(announcement), bytes.into()));
                }
                Err(error) => {
                    tracing::warn!(%job, %error, "dropped a kept announcement");
                    let _gone = self.store.forget_job(&job);
                }
            }
        }
        self.book.metrics.jobs.set(self.envelopes.len() as i64);
    }

    /// Reads a signed announcement, if a publisher we trust signed it.
    pub(super) fn open_announcement(&self, envelope: &[u8]) -> Result<Announcement, TrustError> {
        self.trust.open_published(&Envelope::from_bytes(envelope)?)
    }

    /// An announcement is not accepted. Who signed it may be a publisher the trust document does not name yet, which
    /// the operator should see; a stranger's inventions must not fill the reports.
    pub(super) fn refuse_announcement(&mut self, from: HostIndex, envelope: &[u8], error: &TrustError) {
        self.book.metrics.refused.inc();
        tracing::warn!(%from, %error, "refused an announcement");
        let TrustError::UntrustedSigner(_) = error else { return };
        let opened =
            Envelope::from_bytes(envelope).map_err(TrustError::from).and_then(|row| row.open::<Announcement>());
        let Ok(announcement) = opened else { return };
        if announcement.feed.is_some() {
            self.refuse_feed(&announcement, error);
            return;
        }
        let job = announcement.job;
        let new = self.untrusted.len() < UNTRUSTED_MAX && !self.envelopes.contains_key(&job);
        if new && self.is_for_us(&announcement) && self.untrusted.insert(job) {
            self.shared.reports().open(job);
            self.reach(&job, HostState::Failed(Reason::Untrusted), &error.to_string());
        }
    }

    pub(super) fn is_for_us(&self, announcement: &Announcement) -> bool {
        let me = self.me.and_then(|me| self.membership.get(me));
        me.is_some_and(|me| me.role == Role::Peer && announcement.selector.matches(&me.locality, &me.labels))
    }

    /// Hosts report on jobs that are for them; feeds are not reported on.
    pub(super) fn open_report(&mut self, announcement: &Announcement) {
        if announcement.feed.is_some() || !self.is_for_us(announcement) {
            return;
        }
        let job = announcement.job;
        self.shared.reports().open(job);
        // It was, before a restart; whether it still is the current one is another matter.
        if self.store.get_state(&active_key(&job)).is_ok_and(|row| row.is_some()) {
            self.shared.reports().reach(job, HostState::Active, "");
        }
        self.shared.tell_soon();
    }

    /// Our own row changed: other jobs may be for us.
    pub(super) fn open_reports(&mut self) {
        let jobs: Vec<Arc<Announcement>> = self.envelopes.values().map(|(row, _)| row.clone()).collect();
        for announcement in jobs {
            self.open_report(&announcement);
        }
    }

    /// Pushes of a content, for us or not.
    pub(super) fn jobs_of(&self, content: &ContentId) -> Vec<Arc<Announcement>> {
        let pushes = self.envelopes.values().filter(|(row, _)| row.content == *content && !row.demotes());
        pushes.map(|(row, _)| row.clone()).collect()
    }

    /// Whether a job names this content.
    pub(super) fn is_named(&self, content: &ContentId) -> bool {
        self.envelopes.values().any(|(row, _)| row.content == *content)
    }

    /// How far we said we are; `None` when the job is not for us.
    pub(super) fn reported(&self, job: &JobId) -> Option<HostState> {
        self.shared.reports().state(job)
    }

    /// Says of all jobs of a content how far this host is.
    pub(super) fn reach_all(&mut self, content: &ContentId, state: HostState, detail: &str) {
        for announcement in self.jobs_of(content) {
            self.reach(&announcement.job, state, detail);
        }
    }

    pub(super) fn reach(&mut self, job: &JobId, state: HostState, detail: &str) {
        if self.reported(job).is_none() {
            return;
        }
        self.shared.reports().reach(*job, state, detail);
        self.shared.tell_soon();
        if state == HostState::Active
            && let Err(error) = self.store.put_state(&active_key(job), Some(Vec::new()))
        {
            tracing::error!(%job, %error, "cannot keep that a job is active");
        }
    }

    /// A content moved on; its jobs' reports follow in a moment.
    pub(super) fn progressed(&mut self, content: ContentId) {
        self.progressed.insert(content);
        if self.progress_at.is_none() {
            self.progress_at = Some(self.now() + super::PROGRESS_AFTER);
        }
    }

    pub(super) fn flush_progress(&mut self) {
        self.progress_at = None;
        for content in std::mem::take(&mut self.progressed) {
            self.report_progress(&content);
        }
    }

    /// Progress of a content goes into the reports of its jobs.
    pub(super) fn report_progress(&mut self, content: &ContentId) {
        let progress = self.progress(content);
        let mut reported = false;
        for announcement in self.jobs_of(content) {
            let job = announcement.job;
            let (tiers, sent) = self.book.of_job(&job, content);
            let mut reports = self.shared.reports();
            if reports.state(&job).is_some() {
                reports.progress(job, progress.have, progress.total, tiers, sent);
                reported = true;
            }
        }
        if reported {
            self.shared.tell_soon();
        }
    }

    pub(super) fn forget_job(&mut self, job: JobId) {
        if self.envelopes.remove(&job).is_some_and(|(row, _)| row.feed.is_some()) {
            self.forget_feed(&job);
            self.tell(Input::Forgotten { job });
            return;
        }
        self.shared.reports().forget(&job);
        let forgotten = self.store.forget_job(&job).and_then(|()| self.store.put_state(&active_key(&job), None));
        if let Err(error) = forgotten {
            tracing::warn!(%job, %error, "cannot forget a job");
        }
        self.book.end_job(&job, &self.store);
        self.tell_known_jobs();
        self.tell(Input::Forgotten { job });
    }

    pub(super) fn keep_house(&mut self) {
        let now = shoal_net::admission::system_clock();
        let expired: Vec<JobId> =
            self.envelopes.values().filter(|(row, _)| row.expires_at <= now).map(|(row, _)| row.job).collect();
        for job in expired {
            self.forget_job(job);
        }
        self.book.metrics.jobs.set(self.envelopes.len() as i64);
        self.tell_known_jobs();
        let now = self.now();
        self.strangers.retain(|_, stranger| now.since(stranger.since) < STRANGER_PATIENCE);
    }
}
