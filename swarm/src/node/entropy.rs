//! Anti-entropy: neighbours compare the lists of jobs they know, which heals whatever announcements were missed.

use super::{Node, bounds};
use shoal_proto::ids::{Hash, HostIndex, JobId};
use shoal_proto::message::Message;

/// What stands for a sorted list of jobs in a digest.
pub(super) fn hash_of<'a>(jobs: impl Iterator<Item = &'a JobId>) -> u64 {
    let bytes: Vec<u8> = jobs.flat_map(|job| *job.as_bytes()).collect();
    Hash::of(&bytes).prefix()
}

impl Node {
    pub(super) fn send_digest(&mut self, to: HostIndex) {
        self.send(to, Message::Digest { hash: self.jobs_hash, jobs: None });
        self.send_feeds(to);
    }

    /// Sends an announcement outside the lanes.
    pub(super) fn announce_again(&mut self, to: HostIndex, job: JobId) {
        self.announce_to(to, job, bounds::ENTROPY_LANE, self.is_feed_held(&job));
    }

    /// Compares with the next neighbour in turn.
    pub(super) fn compare_with_next(&mut self) {
        let linked: Vec<HostIndex> = self.linked().collect();
        if linked.is_empty() {
            return;
        }
        let next = linked[(self.entropy_turn % linked.len() as u64) as usize];
        self.entropy_turn += 1;
        // A digest is no reason to keep a link that is otherwise idle.
        let last_used = self.links.get(&next).map(|link| link.last_used);
        self.send_digest(next);
        if let (Some(link), Some(last_used)) = (self.links.get_mut(&next), last_used) {
            link.last_used = last_used;
        }
    }

    /// The newest jobs, as many as a digest takes.
    fn newest_jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<(u64, JobId)> =
            self.jobs.iter().map(|(id, job)| (job.announcement.created_at, *id)).collect();
        jobs.sort_unstable_by(|a, b| b.cmp(a));
        jobs.truncate(bounds::DIGEST_JOBS);
        jobs.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn on_digest(&mut self, from: HostIndex, hash: u64, jobs: Option<Vec<JobId>>) {
        if hash == self.jobs_hash {
            return;
        }
        let Some(theirs) = jobs else {
            let jobs = Some(self.newest_jobs());
            self.send(from, Message::Digest { hash: self.jobs_hash, jobs });
            return;
        };
        let missing: Vec<JobId> = theirs.iter().copied().filter(|job| !self.jobs.contains_key(job)).collect();
        if !missing.is_empty() {
            self.send(from, Message::WantAnnounce { jobs: missing });
        }
        for job in self.newest_jobs() {
            if !theirs.contains(&job) {
                self.announce_again(from, job);
            }
        }
    }

    pub(super) fn on_want_announce(&mut self, from: HostIndex, jobs: &[JobId]) {
        for job in jobs {
            if self.jobs.contains_key(job) && self.may_serve_feed(from, job) {
                self.announce_again(from, *job);
            }
        }
    }
}
