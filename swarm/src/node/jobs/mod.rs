//! Jobs: the announcements a node knows, and which of them are for this host.
//!
//! Owns: every known job, and the hash that stands for the list in a digest.
//! Invariant: the hash always belongs to the list, and at most `bounds::JOBS_MAX` jobs are known.

pub mod anti_entropy;
pub mod spread;

use super::bounds;
use super::cx::Cx;
use shoal_proto::announcement::Announcement;
use shoal_proto::ids::{Hash, JobId};
use shoal_proto::trust::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug)]
pub struct Job {
    pub announcement: Arc<Announcement>,
    /// This host is the origin, or the selector names it.
    pub ours: bool,
}

impl Job {
    pub fn id(&self) -> JobId {
        self.announcement.job
    }
}

pub struct Jobs {
    by_id: BTreeMap<JobId, Job>,
    hash: u64,
}

impl Jobs {
    pub fn new() -> Self {
        Self { by_id: BTreeMap::new(), hash: hash_of(std::iter::empty()) }
    }

    pub fn get(&self, id: &JobId) -> Option<&Job> {
        self.by_id.get(id)
    }

    pub fn contains(&self, id: &JobId) -> bool {
        self.by_id.contains_key(id)
    }

    pub fn is_ours(&self, id: &JobId) -> bool {
        self.by_id.get(id).is_some_and(|job| job.ours)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &Arc<Announcement>)> {
        self.by_id.iter().map(|(id, job)| (id, &job.announcement))
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Adds a job that was not known. Returns the job that was forgotten to make room for it.
    ///
    /// Feeds are never forgotten for room: `shoal_proto::limits::FEEDS_MAX` bounds them.
    pub fn add(&mut self, job: Job) -> Option<Job> {
        let mut forgotten = None;
        if self.by_id.len() >= bounds::JOBS_MAX {
            let jobs = self.by_id.iter().filter(|(_, job)| job.announcement.feed.is_none());
            let oldest = jobs.min_by_key(|(id, job)| (job.announcement.created_at, **id)).map(|(id, _)| *id);
            forgotten = oldest.and_then(|id| self.by_id.remove(&id));
        }
        self.by_id.insert(job.id(), job);
        self.hash = hash_of(self.by_id.keys());
        forgotten
    }

    /// Puts a feed's newer version in the place of the former one. The list of ids stays the same.
    pub fn replace(&mut self, job: Job) {
        self.by_id.insert(job.id(), job);
    }

    pub fn remove(&mut self, id: &JobId) -> Option<Job> {
        let job = self.by_id.remove(id)?;
        self.hash = hash_of(self.by_id.keys());
        Some(job)
    }

    /// Of these jobs the one with the newest order.
    pub fn newest_of(&self, ids: &BTreeSet<JobId>) -> Option<&Job> {
        let known = ids.iter().filter_map(|id| self.by_id.get(id));
        known.max_by_key(|job| (job.announcement.sequence, job.id()))
    }

    /// The job that demotes the content of these jobs, if that is the newest order.
    pub fn demotion_of(&self, ids: &BTreeSet<JobId>) -> Option<JobId> {
        self.newest_of(ids).filter(|job| job.announcement.demotes()).map(Job::id)
    }

    /// Marks jobs that a change of membership makes ours. Returns them in order of id.
    pub fn newly_ours(&mut self, cx: &Cx) -> Vec<JobId> {
        let mut fresh = Vec::new();
        for (id, job) in self.by_id.iter_mut().filter(|(_, job)| !job.ours) {
            job.ours = is_for_us(cx, &job.announcement);
            if job.ours {
                fresh.push(*id);
            }
        }
        fresh
    }

    /// The newest jobs, as many as a digest takes.
    fn newest(&self) -> Vec<JobId> {
        let mut jobs: Vec<(u64, JobId)> =
            self.by_id.iter().map(|(id, job)| (job.announcement.created_at, *id)).collect();
        jobs.sort_unstable_by(|a, b| b.cmp(a));
        jobs.truncate(bounds::DIGEST_JOBS);
        jobs.into_iter().map(|(_, id)| id).collect()
    }
}

/// Whether this host is the announcement's origin, or a peer that its selector names.
pub fn is_for_us(cx: &Cx, announcement: &Announcement) -> bool {
    let Some(me) = cx.membership.get(cx.me) else { return false };
    announcement.origin == me.node || (me.role == Role::Peer && announcement.selector.matches(&me.locality, &me.labels))
}

/// What stands for a sorted list of jobs in a digest.
fn hash_of<'a>(jobs: impl Iterator<Item = &'a JobId>) -> u64 {
    let bytes: Vec<u8> = jobs.flat_map(|job| *job.as_bytes()).collect();
    Hash::of(&bytes).prefix()
}
