//! What the next flush to the hub contains, and which flushes are due.
//!
//! Invariant: a flush is at most half of what the hub accepts in one request. What does not fit stays due.

use crate::jobs::JobTable;
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::ids::{HostIndex, JobId};
use shoal_proto::limits;
use shoal_proto::report::{HubFlush, HubSubmission, JobFlush, RosterRow};
use shoal_proto::trust::{Envelope, Keypair, Role};
use shoal_swarm::membership::Membership;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Bytes of a flush without its envelope.
const FLUSH_BYTES: usize = limits::HUB_BODY_BYTES_MAX / 2;

/// When the last flush was written, and which localities the hub has from this process.
#[derive(Debug, Default)]
pub(crate) struct HubFlusher {
    flushed_at: Option<Instant>,
    /// Hosts whose locality is in an earlier flush.
    sent_hosts: BTreeSet<HostIndex>,
    flushes: u64,
}

impl HubFlusher {
    /// Returns whether `interval` has passed since the last flush.
    pub(crate) fn is_due(&self, interval: Duration) -> bool {
        self.flushed_at.is_none_or(|at| at.elapsed() >= interval)
    }

    /// Returns how many flushes this process wrote.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Notes that a flush is on the disk.
    pub(crate) fn on_written(&mut self) {
        self.flushed_at = Some(Instant::now());
        self.flushes += 1;
    }

    /// Makes every host's locality due again, because the hub may have missed any flush.
    pub(crate) fn resend_hosts(&mut self) {
        self.sent_hosts.clear();
    }

    /// Returns localities that the hub lacks, as many as one flush may have. They count as sent.
    pub(crate) fn take_roster(&mut self, members: &Membership) -> Vec<RosterRow> {
        let fresh: Vec<RosterRow> = members
            .iter()
            .filter(|member| member.role == Role::Peer && !self.sent_hosts.contains(&member.index))
            .take(limits::FLUSH_ROSTER_MAX)
            .map(|member| RosterRow { index: member.index, locality: member.locality.clone() })
            .collect();
        self.sent_hosts.extend(fresh.iter().map(|row| row.index));
        fresh
    }
}

/// Returns the folded jobs that fit beside a roster, and marks them as flushed. Jobs wait while more of the roster is
/// due, because the hub needs a host's locality first.
pub(crate) fn take_jobs(
    jobs: &mut JobTable,
    due: &[JobId],
    members: &Membership,
    roster: &[RosterRow],
) -> Vec<JobFlush> {
    let jobs_max = if roster.len() < limits::FLUSH_ROSTER_MAX { limits::FLUSH_JOBS_MAX } else { 0 };
    let mut room = FLUSH_BYTES.saturating_sub(encode(&roster).len());
    let mut folded = Vec::new();
    for id in due.iter().take(jobs_max) {
        let Some(job) = jobs.fold(id, members) else { continue };
        let bytes = encode(&job).len();
        // One job always goes, or a job of a very large region would wait for ever.
        if bytes > room && !folded.is_empty() {
            break;
        }
        room = room.saturating_sub(bytes);
        jobs.mark_flushed(id, members);
        folded.push(job);
    }
    folded
}

/// Returns the bytes of a submission: the flush, signed, and the tracker's credential.
pub(crate) fn seal(flush: &HubFlush, keys: &Keypair, credential: &[u8]) -> Vec<u8> {
    encode(&HubSubmission { credential: credential.to_vec(), flush: Envelope::seal(flush, keys).to_bytes() })
}

/// Returns a spooled submission with the present credential, which may be newer than the flush.
pub(crate) fn with_credential(spooled: &[u8], credential: &[u8]) -> Vec<u8> {
    match decode_exact::<HubSubmission>(spooled) {
        Ok(submission) => encode(&HubSubmission { credential: credential.to_vec(), ..submission }),
        Err(_) => spooled.to_vec(),
    }
}
