//! Which hosts failed first, and why. Hosts report other things after a rollback, and this record stays.
//!
//! Invariant: at most [`FAILURES_MAX`] failures are kept, the first ones. Nothing removes one.

use super::host_status::HostStatus;
use super::{HostReport, Machine, ObservedHost, clip};
use shoal_api::rollouts::HostFailure;
use shoal_proto::limits;
use shoal_proto::report::{HostState, Reason};

/// Failures that a rollout remembers.
pub(crate) const FAILURES_MAX: usize = 32;

/// A host that counts as failed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailedHost {
    /// Roster index.
    pub(crate) index: u32,
    /// The attempt in which the host failed. 0 for a failed push.
    pub(crate) attempt: u16,
    pub(crate) cause: FailureCause,
}

/// How the seeder learned of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// The host reported it.
    Reported(Reason),
    /// The push of the version failed on the host, so the host never gets the content.
    Push,
    /// The host was asked to switch and has not reported within the switch timeout.
    Late,
}

impl Machine {
    /// Returns the hosts that count as failed, in the order of `hosts`.
    pub(crate) fn failed_hosts(&self, now: u64, hosts: &[ObservedHost]) -> Vec<FailedHost> {
        let failed = |host: &ObservedHost| {
            let (attempt, cause) = match (self.host_status(now, host), host.report) {
                (HostStatus::Failed, Some(HostReport { attempt, state: HostState::Failed(reason) })) => {
                    (attempt, FailureCause::Reported(reason))
                }
                (HostStatus::Blocked, _) => (0, FailureCause::Push),
                (HostStatus::Switching { late: true }, _) => (self.state.attempt, FailureCause::Late),
                _ => return None,
            };
            Some(FailedHost { index: host.index, attempt, cause })
        };
        hosts.iter().filter_map(failed).collect()
    }

    /// Keeps the first failures. A host has at most one in each attempt.
    pub(crate) fn keep_failures(&mut self, failures: &[HostFailure]) {
        let kept = &mut self.state.failures;
        for failure in failures {
            let is_known = kept.iter().any(|known| (&known.host, known.attempt) == (&failure.host, failure.attempt));
            if !is_known && kept.len() < FAILURES_MAX {
                let (host, reason) = (clip(&failure.host, limits::DETAIL_BYTES_MAX), clip(&failure.reason, 64));
                let detail = clip(&failure.detail, limits::DETAIL_BYTES_MAX);
                kept.push(HostFailure { host, reason, detail, ..*failure });
            }
        }
    }

    /// Returns the newest failure that the present attempt counts, in words.
    pub(crate) fn newest_failure(&self) -> Option<String> {
        let counts = |failure: &&HostFailure| failure.attempt == 0 || failure.attempt >= self.state.attempt;
        self.state.failures.iter().rfind(counts).map(HostFailure::to_string)
    }
}
