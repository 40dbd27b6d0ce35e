//! A rollout's controller, as a pure state machine.
//!
//! Observed hosts, gate results, commands and the time go in. The set of hosts that may switch comes out, as a
//! [`State`] that the caller stores before any host learns of it. Nothing here has IO, so the tests reach every order
//! of events.
//!
//! Split by meaning: `state` is what is stored, `host_status` classifies one host, `failures` keeps who failed and why,
//! `steps` moves forward and back as hosts report, `commands` obeys operators.
//! Invariant: at most `per_rack` hosts of a rack are open without a report, in every attempt. A host that reported in
//! an attempt is not opened in it again. A rollback opens only hosts that were open before.

mod commands;
mod failures;
mod host_status;
mod state;
mod steps;

pub(crate) use failures::{FAILURES_MAX, FailedHost, FailureCause};
pub(crate) use state::State;

use shoal_api::rollouts::{HostFailure, HostTally, RolloutCommand, RolloutEvent, RolloutPhase, RolloutSpec};
use shoal_api::units::Span;
use shoal_proto::report::HostState;

/// Events that a rollout remembers.
const EVENTS_MAX: usize = 256;
/// Longest text of an event or a reason, bytes. A gate's text has labels that a Prometheus server sends.
const TEXT_BYTES_MAX: usize = 1024;

/// What one targeted host looks like now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ObservedHost {
    /// Roster index.
    pub(crate) index: u32,
    /// A number that hosts of one rack share.
    pub(crate) rack: u32,
    /// The tracker sees the host.
    pub(crate) up: bool,
    /// The host's last report about the rollout.
    pub(crate) report: Option<HostReport>,
    /// The push to this host failed, so the host never gets the content.
    pub(crate) blocked: bool,
}

/// A host's report about a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostReport {
    pub(crate) attempt: u16,
    pub(crate) state: HostState,
}

/// The result of asking all gates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Passed,
    /// A condition is not met. The text says which.
    Failed(String),
    /// A gate gave no usable answer. The text says why.
    Undecided(String),
}

/// What the machine reacts to.
#[derive(Clone, Debug)]
pub(crate) enum Input<'a> {
    /// The content is ingested and announced.
    Ready,
    /// The content cannot be ingested, or is gone before a host switched. The text says why.
    Broken(String),
    /// All targeted hosts, in the order in which they should switch.
    Hosts(&'a [ObservedHost]),
    /// Hosts that failed, with their own words.
    Failures(&'a [HostFailure]),
    Gate(Gate),
    Command(RolloutCommand),
    /// A plain push or a promotion takes over the name.
    Retire,
}

/// Why the machine refuses an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the rollout is {}{}", .phase.name(), if *.paused { " and paused" } else { "" })]
    Phase { phase: RolloutPhase, paused: bool },
    #[error("the rollout has used up its attempts; begin a new rollout")]
    AttemptsUsedUp,
    #[error("the rollout is under way")]
    UnderWay,
    #[error("a push or a promotion of the name has replaced the rollout; begin a new rollout")]
    Retired,
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    spec: RolloutSpec,
    state: State,
}

/// Returns the beginning of a text, at most this many bytes.
fn clip(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_string()
}

fn ms(span: Span) -> u64 {
    u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)
}

impl Machine {
    /// Returns the machine of a new rollout.
    pub(crate) fn new(spec: RolloutSpec, now: u64) -> Self {
        Self::resume(spec, State::new(now))
    }

    /// Returns the machine of a stored rollout.
    pub(crate) fn resume(spec: RolloutSpec, state: State) -> Self {
        Self { spec, state }
    }

    /// Returns the state to store.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn spec(&self) -> &RolloutSpec {
        &self.spec
    }

    /// Returns the counts of the last observation.
    pub(crate) fn tally(&self) -> HostTally {
        self.state.tally
    }

    /// Whether no further host may start to switch.
    pub(crate) fn is_paused(&self) -> bool {
        let stopped =
            matches!(self.state.phase, RolloutPhase::Stopped | RolloutPhase::Cancelled | RolloutPhase::Failed);
        self.state.paused || stopped
    }

    /// Whether hosts return to their former version.
    pub(crate) fn is_rolling_back(&self) -> bool {
        matches!(self.state.phase, RolloutPhase::RollingBack | RolloutPhase::RolledBack)
    }

    /// Whether hosts that switched watch their own health and report a failure.
    pub(crate) fn is_watching(&self) -> bool {
        matches!(
            self.state.phase,
            RolloutPhase::Switching | RolloutPhase::Soaking | RolloutPhase::Waiting | RolloutPhase::Stopped
        )
    }

    /// Whether the gates should be asked now.
    pub(crate) fn wants_gates(&self) -> bool {
        self.state.phase == RolloutPhase::Soaking && !self.state.paused && !self.spec.verify.is_empty()
    }

    /// Reacts to an input at the time `now`, in Unix milliseconds.
    ///
    /// # Errors
    /// Returns why a command or [`Input::Retire`] is refused. Other inputs are never refused.
    pub(crate) fn handle(&mut self, now: u64, input: Input<'_>) -> Result<(), Refusal> {
        match input {
            Input::Ready if self.state.phase == RolloutPhase::Preparing => {
                self.enter(now, RolloutPhase::Staging, "staging");
            }
            Input::Broken(why) if matches!(self.state.phase, RolloutPhase::Preparing | RolloutPhase::Staging) => {
                self.state.why = clip(&why, TEXT_BYTES_MAX);
                self.enter(now, RolloutPhase::Failed, &format!("failed: {why}"));
            }
            Input::Ready | Input::Broken(_) => {}
            Input::Hosts(hosts) => self.on_hosts(now, hosts),
            Input::Failures(failures) => self.keep_failures(failures),
            Input::Gate(gate) => self.on_gate(now, gate),
            Input::Command(command) => return self.on_command(now, command),
            Input::Retire if !self.state.phase.is_final() => return Err(Refusal::UnderWay),
            Input::Retire if self.state.retired => {}
            Input::Retire => {
                (self.state.paused, self.state.retired) = (true, true);
                self.note(now, "a push or a promotion of the name replaces the rollout");
            }
        }
        Ok(())
    }

    fn note(&mut self, now: u64, what: &str) {
        if self.state.events.len() >= EVENTS_MAX {
            self.state.events.remove(0);
        }
        self.state.events.push(RolloutEvent { at_ms: now, what: clip(what, TEXT_BYTES_MAX) });
    }

    fn enter(&mut self, now: u64, phase: RolloutPhase, what: &str) {
        self.state.phase = phase;
        self.state.since_ms = now;
        self.note(now, what);
    }
}

#[cfg(test)]
mod tests;
