//! Anti-entropy: neighbours compare their lists of jobs and feed versions, which heals what announcements missed.
//!
//! Owns: when the next comparison is due, and whose turn it is.
//! Invariant: a comparison alone never keeps a link open.

use super::Jobs;
use crate::io::Via;
use crate::node::cx::Cx;
use crate::node::feeds::Feeds;
use crate::node::links::{Link, Links};
use crate::time::Instant;
use shoal_proto::ids::{HostIndex, JobId};
use shoal_proto::message::Message;
use std::time::Duration;

pub struct AntiEntropy {
    next_at: Instant,
    turn: u64,
}

impl AntiEntropy {
    pub fn new(cx: &Cx) -> Self {
        // Hosts of a rack have neighbouring indices: they compare at different times.
        let stagger = Duration::from_millis(u64::from(cx.me.0) % 64 * 75);
        Self { next_at: Instant::ZERO + cx.tuning.anti_entropy_every + stagger, turn: 0 }
    }

    pub fn next_at(&self) -> Instant {
        self.next_at
    }

    /// Compares with the next neighbour if it is time. Returns whether it was.
    pub fn run_if_due(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, feeds: &Feeds) -> bool {
        if cx.now < self.next_at {
            return false;
        }
        self.next_at = cx.now + cx.tuning.anti_entropy_every;
        let linked: Vec<HostIndex> = links.linked().collect();
        if !linked.is_empty() {
            let next = linked[(self.turn % linked.len() as u64) as usize];
            self.turn += 1;
            let last_used = links.get(next).map(Link::last_used);
            send_digest(cx, links, jobs, feeds, next);
            // A digest is no reason to keep a link that is otherwise idle.
            if let (Some(link), Some(last_used)) = (links.get_mut(next), last_used) {
                link.touch(last_used);
            }
        }
        true
    }
}

pub fn send_digest(cx: &mut Cx, links: &mut Links, jobs: &Jobs, feeds: &Feeds, to: HostIndex) {
    links.send(cx, to, Message::Digest { hash: jobs.hash(), jobs: None });
    feeds.send_versions(cx, links, to);
}

/// Announces a job outside the lanes, with its data if it is a small feed version that is stored here.
pub fn announce_again(cx: &mut Cx, links: &mut Links, feeds: &Feeds, to: HostIndex, job: JobId) {
    links.announce(cx, to, job, Via::AntiEntropy, feeds.has_newest(&job));
}

/// A neighbour's digest. The hash alone comes first; both sides send their lists only when the hashes differ.
pub fn on_digest(
    cx: &mut Cx,
    links: &mut Links,
    jobs: &Jobs,
    feeds: &Feeds,
    from: HostIndex,
    hash: u64,
    theirs: Option<Vec<JobId>>,
) {
    if hash == jobs.hash() {
        return;
    }
    let Some(theirs) = theirs else {
        links.send(cx, from, Message::Digest { hash: jobs.hash(), jobs: Some(jobs.newest()) });
        return;
    };
    let missing: Vec<JobId> = theirs.iter().copied().filter(|job| !jobs.contains(job)).collect();
    if !missing.is_empty() {
        links.send(cx, from, Message::WantAnnounce { jobs: missing });
    }
    for job in jobs.newest() {
        if !theirs.contains(&job) {
            announce_again(cx, links, feeds, from, job);
        }
    }
}

pub fn on_want_announce(
    cx: &mut Cx,
    links: &mut Links,
    jobs: &Jobs,
    feeds: &mut Feeds,
    from: HostIndex,
    wanted: &[JobId],
) {
    for job in wanted {
        if jobs.contains(job) && feeds.may_serve(jobs, from, job) {
            announce_again(cx, links, feeds, from, *job);
        }
    }
}
