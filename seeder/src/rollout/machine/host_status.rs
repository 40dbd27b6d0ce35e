//! What one host does in the present attempt, judged by its last report.
//!
//! Invariant: an open host without a report in this attempt counts as switching. The machine cannot know otherwise.

use super::{HostReport, Machine, ObservedHost, ms};
use shoal_proto::report::{HostState, Reason};

/// A host's place in the present attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostStatus {
    /// The host is not open yet.
    Waiting,
    /// The host never gets the content.
    Blocked,
    /// The host is open and has not reported.
    Switching {
        /// The host has exceeded the switch timeout.
        late: bool,
    },
    Active,
    Failed,
    /// The host has its former version again.
    RolledBack,
    /// In a rollback: the host never was open, so it has nothing to return from.
    NeverOpened,
}

impl HostStatus {
    /// Whether the status counts as a failure.
    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Blocked | Self::Switching { late: true })
    }

    /// Whether the host occupies its rack.
    pub(super) fn is_switching(self) -> bool {
        matches!(self, Self::Switching { .. })
    }

    /// Whether the batch still waits for the host.
    pub(super) fn is_awaited(self) -> bool {
        self == Self::Switching { late: false }
    }
}

impl Machine {
    pub(super) fn host_status(&self, now: u64, host: &ObservedHost) -> HostStatus {
        if self.is_rolling_back() { self.status_backward(now, host) } else { self.status_forward(now, host) }
    }

    fn status_forward(&self, now: u64, host: &ObservedHost) -> HostStatus {
        let is_open = self.state.open.get(host.index);
        match host.report {
            // An open host that has not reported in this attempt may be switching in it, even if its last report says
            // active: it may have failed since, or a former attempt may have told it to roll back.
            Some(HostReport { attempt, state: HostState::Active | HostState::Stored })
                if attempt >= self.state.attempt || !is_open =>
            {
                HostStatus::Active
            }
            Some(HostReport { attempt, state: HostState::Failed(_) }) if attempt >= self.state.attempt => {
                HostStatus::Failed
            }
            _ if is_open => self.switching(now, host),
            _ if host.blocked => HostStatus::Blocked,
            _ => HostStatus::Waiting,
        }
    }

    fn status_backward(&self, now: u64, host: &ObservedHost) -> HostStatus {
        match host.report {
            _ if !self.state.ever_opened.get(host.index) => HostStatus::NeverOpened,
            Some(HostReport { attempt, state: HostState::Failed(reason) }) if attempt >= self.state.attempt => {
                match reason {
                    Reason::RolledBack => HostStatus::RolledBack,
                    _ => HostStatus::Failed,
                }
            }
            _ if self.state.open.get(host.index) => self.switching(now, host),
            _ => HostStatus::Waiting,
        }
    }

    fn switching(&self, now: u64, host: &ObservedHost) -> HostStatus {
        let since = self.state.opened_at.get(&host.index).copied().unwrap_or(now);
        HostStatus::Switching { late: now.saturating_sub(since) >= ms(self.spec.switch_timeout) }
    }
}
