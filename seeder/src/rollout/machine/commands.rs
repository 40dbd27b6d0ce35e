//! Commands of operators.
//!
//! Invariant: a refused command changes nothing.

use super::{Machine, Refusal};
use crate::rollout::batches::goal;
use shoal_api::rollouts::{RolloutCommand, RolloutPhase};
use shoal_proto::bitmap::Bitmap;

/// Attempts of one rollout. Each attempt takes two numbers, and hosts use the number after the last one.
const ATTEMPTS_MAX: u16 = u16::MAX - 4;

/// Whether hosts may be opened in this phase.
fn may_open_hosts(phase: RolloutPhase) -> bool {
    matches!(
        phase,
        RolloutPhase::Staging
            | RolloutPhase::Switching
            | RolloutPhase::Soaking
            | RolloutPhase::Waiting
            | RolloutPhase::RollingBack
    )
}

/// Whether hosts may have switched and are not told to roll back.
fn may_roll_back(phase: RolloutPhase) -> bool {
    matches!(
        phase,
        RolloutPhase::Switching
            | RolloutPhase::Soaking
            | RolloutPhase::Waiting
            | RolloutPhase::Stopped
            | RolloutPhase::Done
            | RolloutPhase::Cancelled
    )
}

/// Whether failed hosts may try again.
fn may_retry(phase: RolloutPhase) -> bool {
    matches!(
        phase,
        RolloutPhase::Switching
            | RolloutPhase::Soaking
            | RolloutPhase::Stopped
            | RolloutPhase::Done
            | RolloutPhase::RolledBack
    )
}

impl Machine {
    pub(super) fn on_command(&mut self, now: u64, command: RolloutCommand) -> Result<(), Refusal> {
        let phase = self.state.phase;
        // Hosts would switch away from what the push or the promotion brought.
        if self.state.retired {
            return Err(Refusal::Retired);
        }
        let begins_attempt = matches!(command, RolloutCommand::Rollback | RolloutCommand::RetryFailed);
        if begins_attempt && self.state.attempt >= ATTEMPTS_MAX {
            return Err(Refusal::AttemptsUsedUp);
        }
        match command {
            RolloutCommand::Pause if may_open_hosts(phase) && !self.state.paused => {
                self.state.paused = true;
                self.note(now, "paused");
            }
            RolloutCommand::Resume if self.state.paused => {
                self.restart_clocks(now);
                self.state.paused = false;
                self.note(now, "resumed");
            }
            RolloutCommand::Resume if phase == RolloutPhase::Stopped => {
                self.restart_clocks(now);
                self.state.why.clear();
                self.state.tolerated_failures = self.state.failed.clone();
                self.enter(now, RolloutPhase::Switching, "resumed; the failures so far are tolerated");
            }
            RolloutCommand::Cancel if !phase.is_final() => self.enter(now, RolloutPhase::Cancelled, "cancelled"),
            RolloutCommand::Rollback if may_roll_back(phase) => self.roll_back(now, "an operator asked for it"),
            RolloutCommand::RetryFailed if may_retry(phase) => self.retry_failed(now),
            RolloutCommand::Promote if matches!(phase, RolloutPhase::Soaking | RolloutPhase::Waiting) => {
                self.note(now, "promoted");
                if self.is_last_batch() {
                    self.enter(now, RolloutPhase::Done, "done");
                } else {
                    self.next_batch(now);
                }
            }
            RolloutCommand::PromoteAll
                if matches!(phase, RolloutPhase::Switching | RolloutPhase::Soaking | RolloutPhase::Waiting) =>
            {
                let hosts = self.state.tally.hosts;
                while goal(&self.spec, self.state.batch, hosts) < hosts {
                    self.state.batch += 1;
                }
                self.enter(now, RolloutPhase::Switching, "promoted to all hosts");
            }
            _ => return Err(Refusal::Phase { phase, paused: self.state.paused }),
        }
        Ok(())
    }

    fn retry_failed(&mut self, now: u64) {
        if self.state.phase == RolloutPhase::RolledBack {
            self.state.batch = 0;
            self.state.ever_failed = Bitmap::default();
        }
        self.next_attempt(now);
        self.state.tolerated_failures = Bitmap::default();
        self.state.paused = false;
        self.state.why.clear();
        self.enter(now, RolloutPhase::Switching, "failed hosts try again");
    }

    /// Restarts every clock of the machine, because time in which no host could start does not count.
    fn restart_clocks(&mut self, now: u64) {
        self.state.opened_at.values_mut().for_each(|since| *since = now);
        self.state.since_ms = now;
        self.state.healthy_since_ms = now;
        self.state.gate_passed = false;
    }
}
