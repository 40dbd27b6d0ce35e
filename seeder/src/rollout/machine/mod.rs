//! A rollout's controller, as a pure state machine: facts about hosts, results of gates, commands and the time go in; what
//! hosts may do now comes out, as a state that is written down before anybody acts on it.
//!
//! Invariant: at most `per_rack` hosts of a rack are open and unheard of at any time, in whatever attempt; a host that was
//! heard of in an attempt is not opened in it again; going back opens only hosts that were open before.

use super::spec::RolloutSpec;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::report::HostState;
use std::collections::BTreeMap;

/// Events remembered.
const EVENTS_MAX: usize = 256;
/// Attempts of one rollout.
const ATTEMPTS_MAX: u16 = u16::MAX - 4;

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its content is being taken in.
    #[n(0)]
    Preparing,
    /// Its data is on its way to the hosts.
    #[n(1)]
    Staging,
    /// A batch's hosts switch.
    #[n(2)]
    Switching,
    /// They have, and all must be well for a while.
    #[n(3)]
    Soaking,
    /// The wait before the next batch.
    #[n(4)]
    Waiting,
    /// Something is not well; a person decides.
    #[n(5)]
    Stopped,
    /// Hosts that switched go back.
    #[n(6)]
    RollingBack,
    /// Every host that is there has switched or failed within the tolerated number.
    #[n(7)]
    Done,
    /// Every host that is there is back.
    #[n(8)]
    RolledBack,
    /// Called off: hosts stay as they are.
    #[n(9)]
    Cancelled,
    /// It did not get as far as the hosts.
    #[n(10)]
    Failed,
}

impl Phase {
    /// Whether nothing more happens but for hosts that were away.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack | Self::Cancelled | Self::Failed)
    }

    /// Whether hosts may be opened.
    fn is_moving(self) -> bool {
        matches!(self, Self::Staging | Self::Switching | Self::Soaking | Self::Waiting | Self::RollingBack)
    }
}

/// What happened, for people.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Event {
    /// When, Unix milliseconds.
    #[n(0)]
    pub at_ms: u64,
    /// What.
    #[n(1)]
    pub what: String,
}

/// What is known of a targeted host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFact {
    /// Its roster index.
    pub index: u32,
    /// Its rack, by any number.
    pub rack: u32,
    /// Whether it is there.
    pub up: bool,
    /// What it last said of the rollout.
    pub report: Option<(u16, HostState)>,
    /// It will never have the data.
    pub blocked: bool,
}

/// What a gate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// All is well.
    Passed,
    /// Something is not.
    Failed(String),
    /// It cannot be told.
    Undecided(String),
}

/// What a person asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Nobody begins to switch until it is resumed.
    Pause,
    /// Go on; what has failed so far is tolerated_failures.
    Resume,
    /// Call it off; hosts stay as they are.
    Cancel,
    /// Hosts that switched go back.
    Rollback,
    /// Hosts that failed try again.
    RetryFailed,
    /// The next batch, without waiting.
    Promote,
    /// All batches, without waiting.
    PromoteAll,
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The content is here and announced.
    Ready,
    /// It never will be.
    Broken(String),
    /// All targeted hosts, in the order they should switch in.
    Facts(&'a [HostFact]),
    /// A gate's result.
    Gate(Gate),
    /// A person's word.
    Command(Command),
    /// Something else says what hosts should be on. Refused while it is under way.
    Retire,
}

/// The machine's state, written down whole.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// How far.
    #[n(0)]
    pub phase: Phase,
    /// The attempt hosts are asked for.
    #[n(1)]
    pub attempt: u16,
    /// Who may switch in it.
    #[n(2)]
    pub open: Bitmap,
    /// Since when, for those not heard of yet, Unix milliseconds.
    #[n(3)]
    pub opened_at: BTreeMap<u32, u64>,
    /// Who may have switched at any time.
    #[n(4)]
    pub ever_opened: Bitmap,
    /// Failures that are tolerated.
    #[n(5)]
    pub tolerated_failures: Bitmap,
    /// The batch, from 0.
    #[n(6)]
    pub batch: u32,
    /// Since when the phase lasts, Unix milliseconds.
    #[n(7)]
    pub since_ms: u64,
    /// Since when all is well, Unix milliseconds.
    #[n(8)]
    pub healthy_since_ms: u64,
    /// A gate passed since then.
    #[n(9)]
    pub gate_passed: bool,
    /// Nobody begins.
    #[n(10)]
    pub paused: bool,
    /// Why it is not going on as planned.
    #[n(11)]
    pub why: String,
    /// When it was asked for, Unix milliseconds.
    #[n(12)]
    pub began_ms: u64,
    /// What happened, oldest first.
    #[n(13)]
    pub events: Vec<Event>,
    /// Who has failed, as last seen.
    #[n(14)]
    pub failed: Bitmap,
    /// The hosts as they last were.
    #[n(15)]
    pub tally: Tally,
}

/// Hosts by how far they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Tally {
    /// Targeted.
    #[n(0)]
    pub hosts: u32,
    /// That have the data.
    #[n(1)]
    pub staged: u32,
    /// That may be switching.
    #[n(2)]
    pub switching: u32,
    /// On the new version.
    #[n(3)]
    pub active: u32,
    /// That failed.
    #[n(4)]
    pub failed: u32,
    /// Back on the former version.
    #[n(5)]
    pub rolled_back: u32,
    /// Not there.
    #[n(6)]
    pub away: u32,
}

/// A host in the present attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostStatus {
    Waiting,
    Blocked,
    Switching { late: bool },
    Active,
    Failed,
    Back,
    NeverOpened,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    spec: RolloutSpec,
    state: State,
}

fn ms(span: shoal_service::units::Span) -> u64 {
    u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)
}

impl Machine {
    /// A new rollout.
    pub fn new(spec: RolloutSpec, now: u64) -> Self {
        let state = State {
            phase: Phase::Preparing,
            attempt: 1,
            open: Bitmap::default(),
            opened_at: BTreeMap::new(),
            ever_opened: Bitmap::default(),
            tolerated_failures: Bitmap::default(),
            batch: 0,
            since_ms: now,
            healthy_since_ms: now,
            gate_passed: false,
            paused: false,
            why: String::new(),
            began_ms: now,
            events: Vec::new(),
            failed: Bitmap::default(),
            tally: Tally::default(),
        };
        Self::resume(spec, state)
    }

    /// One that was written down.
    pub fn resume(spec: RolloutSpec, state: State) -> Self {
        Self { spec, state }
    }

    /// The state to write down.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What was asked for.
    pub fn spec(&self) -> &RolloutSpec {
        &self.spec
    }

    /// The hosts as they last were.
    pub fn tally(&self) -> Tally {
        self.state.tally
    }

    /// Nobody may begin to switch.
    pub fn is_paused(&self) -> bool {
        let state = &self.state;
        state.paused || matches!(state.phase, Phase::Stopped | Phase::Cancelled | Phase::Failed)
    }

    /// Hosts go back.
    pub fn is_rolling_back(&self) -> bool {
        matches!(self.state.phase, Phase::RollingBack | Phase::RolledBack)
    }

    /// Hosts that switched keep an eye on themselves.
    pub fn is_watching(&self) -> bool {
        matches!(self.state.phase, Phase::Switching | Phase::Soaking | Phase::Waiting | Phase::Stopped)
    }

    /// The gates should be asked.
    pub fn wants_gates(&self) -> bool {
        self.state.phase == Phase::Soaking && !self.state.paused && !self.spec.verify.is_empty()
    }

    /// The batch is the last.
    fn is_last_batch(&self) -> bool {
        self.spec.goal(self.state.batch, self.state.tally.hosts) >= self.state.tally.hosts
    }

    /// Takes something in. A command and `Retire` can be refused, and it is said why.
    pub fn handle(&mut self, now: u64, input: Input<'_>) -> Result<(), String> {
        match input {
            Input::Ready if self.state.phase == Phase::Preparing => self.enter(now, Phase::Staging, "staging"),
            Input::Broken(why) if self.state.phase == Phase::Preparing => {
                self.state.why.clone_from(&why);
                self.enter(now, Phase::Failed, &format!("failed: {why}"));
            }
            Input::Ready | Input::Broken(_) => {}
            Input::Facts(hosts) => self.on_facts(now, hosts),
            Input::Gate(gate) => self.on_gate(now, gate),
            Input::Command(command) => return self.on_command(now, command),
            Input::Retire if !self.state.phase.is_final() => return Err("it is under way".into()),
            Input::Retire => {
                self.state.paused = true;
                self.say(now, "a plain push has taken over");
            }
        }
        Ok(())
    }

    fn say(&mut self, now: u64, what: &str) {
        if self.state.events.len() >= EVENTS_MAX {
            self.state.events.remove(0);
        }
        self.state.events.push(Event { at_ms: now, what: what.to_string() });
    }

    fn enter(&mut self, now: u64, phase: Phase, what: &str) {
        self.state.phase = phase;
        self.state.since_ms = now;
        self.say(now, what);
    }

    fn host_status(&self, now: u64, host: &HostFact) -> HostStatus {
        let state = &self.state;
        let late = || {
            let since = state.opened_at.get(&host.index).copied().unwrap_or(now);
            HostStatus::Switching { late: now.saturating_sub(since) >= ms(self.spec.switch_timeout) }
        };
        if self.is_rolling_back() {
            return match host.report {
                _ if !state.ever_opened.get(host.index) => HostStatus::NeverOpened,
                Some((attempt, HostState::Failed(reason))) if attempt >= state.attempt => match reason {
                    shoal_proto::report::Reason::RolledBack => HostStatus::Back,
                    _ => HostStatus::Failed,
                },
                _ if state.open.get(host.index) => late(),
                _ => HostStatus::Waiting,
            };
        }
        match host.report {
            // One that is open and was not heard of in this attempt may be switching in it: it may have fallen ill since it
            // was active, or have been told to go back.
            Some((attempt, HostState::Active | HostState::Stored))
                if attempt >= state.attempt || !state.open.get(host.index) =>
            {
                HostStatus::Active
            }
            Some((attempt, HostState::Failed(_))) if attempt >= state.attempt => HostStatus::Failed,
            _ if state.open.get(host.index) => late(),
            _ if host.blocked => HostStatus::Blocked,
            _ => HostStatus::Waiting,
        }
    }

    fn on_facts(&mut self, now: u64, hosts: &[HostFact]) {
        let statuses: Vec<HostStatus> = hosts.iter().map(|host| self.host_status(now, host)).collect();
        self.count(hosts, &statuses);
        // Heard of: their time no longer runs.
        for (host, host_status) in hosts.iter().zip(&statuses) {
            if !matches!(host_status, HostStatus::Switching { .. }) {
                self.state.opened_at.remove(&host.index);
            }
        }
        let failures = self.failures(hosts, &statuses);
        let tolerated_failures = self.spec.max_failures.at_most(self.state.tally.hosts);
        let forward = matches!(self.state.phase, Phase::Staging | Phase::Switching | Phase::Soaking | Phase::Waiting);
        if forward && failures > tolerated_failures {
            let why =
                format!("{failures} of {} hosts failed, {tolerated_failures} are tolerated", self.state.tally.hosts);
            return self.gate_failed(now, &why);
        }
        let deadline = self.spec.deadline.map(ms).filter(|_| forward);
        if deadline.is_some_and(|deadline| now.saturating_sub(self.state.began_ms) >= deadline) {
            return self.gate_failed(now, "the deadline has passed");
        }
        if self.state.paused {
            return;
        }
        match self.state.phase {
            Phase::Staging => self.stage(now, hosts, &statuses),
            Phase::Switching => self.batch(now, hosts, &statuses),
            Phase::Soaking => self.soak(now),
            Phase::Waiting if now.saturating_sub(self.state.since_ms) >= ms(self.spec.wait_between) => {
                self.next_batch(now);
            }
            Phase::RollingBack => {
                let opened = self.open(now, hosts, &statuses, u32::MAX);
                let under_way = |host_status: &HostStatus| *host_status == HostStatus::Switching { late: false };
                if !opened && !statuses.iter().any(under_way) {
                    let why = self.state.why.clone();
                    self.enter(now, Phase::RolledBack, &format!("rolled back: {why}"));
                }
            }
            // Hosts that were away come back, new ones appear.
            Phase::Done if failures <= tolerated_failures => drop(self.open(now, hosts, &statuses, u32::MAX)),
            Phase::RolledBack => drop(self.open(now, hosts, &statuses, u32::MAX)),
            _ => {}
        }
    }

    fn count(&mut self, hosts: &[HostFact], statuses: &[HostStatus]) {
        let count =
            |test: fn(&HostStatus) -> bool| statuses.iter().filter(|host_status| test(host_status)).count() as u32;
        let staged = |host: &&HostFact| host.report.is_some_and(|(_, state)| state >= HostState::Has);
        self.state.tally = Tally {
            hosts: hosts.len() as u32,
            staged: hosts.iter().filter(staged).count() as u32,
            switching: count(|host_status| matches!(host_status, HostStatus::Switching { .. })),
            active: hosts
                .iter()
                .filter(|host| matches!(host.report, Some((_, HostState::Active | HostState::Stored))))
                .count() as u32,
            failed: count(|host_status| {
                matches!(host_status, HostStatus::Failed | HostStatus::Blocked | HostStatus::Switching { late: true })
            }),
            rolled_back: count(|host_status| *host_status == HostStatus::Back),
            away: hosts.iter().filter(|host| !host.up).count() as u32,
        };
    }

    /// Notes who has failed; gives how many of them are not tolerated_failures yet.
    fn failures(&mut self, hosts: &[HostFact], statuses: &[HostStatus]) -> u32 {
        let failed = hosts.iter().zip(statuses).filter(|(_, host_status)| {
            matches!(host_status, HostStatus::Failed | HostStatus::Blocked | HostStatus::Switching { late: true })
        });
        self.state.failed = failed.map(|(host, _)| host.index).collect();
        let mut fresh = self.state.failed.clone();
        fresh.subtract(&self.state.tolerated_failures);
        fresh.count()
    }

    /// Data is on every host that is there before any switches.
    fn stage(&mut self, now: u64, hosts: &[HostFact], statuses: &[HostStatus]) {
        let has = |host: &HostFact| host.report.is_some_and(|(_, state)| state >= HostState::Has);
        let waits = hosts
            .iter()
            .zip(statuses)
            .any(|(host, host_status)| host.up && !has(host) && *host_status != HostStatus::Blocked);
        if !waits && hosts.iter().any(has) {
            self.enter(now, Phase::Switching, "the data is on every host; batch 1");
            self.batch(now, hosts, statuses);
        }
    }

    fn batch(&mut self, now: u64, hosts: &[HostFact], statuses: &[HostStatus]) {
        let goal = self.spec.goal(self.state.batch, self.state.tally.hosts);
        let opened = self.open(now, hosts, statuses, goal);
        let under_way = |host_status: &HostStatus| *host_status == HostStatus::Switching { late: false };
        if !opened && !statuses.iter().any(under_way) {
            self.state.healthy_since_ms = now;
            self.state.gate_passed = false;
            let (batch, active) = (self.state.batch + 1, self.state.tally.active);
            self.enter(now, Phase::Soaking, &format!("batch {batch} has switched: {active} hosts; all must be well"));
        }
    }

    /// Opens waiting hosts, within the racks' and the batch's bounds; true when there was one.
    fn open(&mut self, now: u64, hosts: &[HostFact], statuses: &[HostStatus], goal: u32) -> bool {
        let mut racks: BTreeMap<u32, u32> = BTreeMap::new();
        let mut spoken_for = 0;
        for (host, host_status) in hosts.iter().zip(statuses) {
            let switching = matches!(host_status, HostStatus::Switching { .. });
            *racks.entry(host.rack).or_default() += u32::from(switching);
            spoken_for += u32::from(switching || matches!(host_status, HostStatus::Active | HostStatus::Failed));
        }
        let mut opened = false;
        for (host, host_status) in hosts.iter().zip(statuses) {
            let ready = host.up && host.report.is_some_and(|(_, state)| state >= HostState::Has);
            if spoken_for >= goal || *host_status != HostStatus::Waiting || !ready {
                continue;
            }
            let rack = racks.entry(host.rack).or_default();
            if *rack >= self.spec.per_rack {
                continue;
            }
            *rack += 1;
            spoken_for += 1;
            opened = true;
            self.state.open.grow(host.index + 1);
            self.state.open.set(host.index);
            self.state.ever_opened.grow(host.index + 1);
            self.state.ever_opened.set(host.index);
            self.state.opened_at.insert(host.index, now);
        }
        opened
    }

    fn soak(&mut self, now: u64) {
        let soaked = now.saturating_sub(self.state.healthy_since_ms) >= ms(self.spec.soak);
        if !soaked || (self.wants_gates() && !self.state.gate_passed) {
            return;
        }
        if self.is_last_batch() {
            let Tally { active, hosts, failed, away, .. } = self.state.tally;
            self.state.why.clear();
            self.enter(now, Phase::Done, &format!("done: {active} of {hosts} hosts, {failed} failed, {away} away"));
        } else if self.spec.wait_between.0.is_zero() {
            self.next_batch(now);
        } else {
            self.enter(now, Phase::Waiting, "all is well; waiting before the next batch");
        }
    }

    fn next_batch(&mut self, now: u64) {
        self.state.batch += 1;
        let batch = self.state.batch + 1;
        self.state.why.clear();
        self.enter(now, Phase::Switching, &format!("batch {batch}"));
    }

    fn on_gate(&mut self, now: u64, gate: Gate) {
        if !self.wants_gates() {
            return;
        }
        match gate {
            Gate::Passed => self.state.gate_passed = true,
            Gate::Failed(why) => self.gate_failed(now, &why),
            Gate::Undecided(why) => {
                // All must be well for the whole time: it begins anew.
                self.state.healthy_since_ms = now;
                self.state.gate_passed = false;
                if self.state.why != why {
                    self.say(now, &why);
                    self.state.why = why;
                }
            }
        }
    }

    fn gate_failed(&mut self, now: u64, why: &str) {
        match self.spec.rollback {
            super::spec::RollbackMode::Auto => self.roll_back(now, why),
            super::spec::RollbackMode::Manual => {
                self.state.why = why.to_string();
                self.enter(now, Phase::Stopped, &format!("stopped: {why}"));
            }
        }
    }

    /// A new attempt. Who may be switching in the last one stays open: it cannot be known otherwise when it has ended.
    fn next_attempt(&mut self, now: u64) {
        self.state.attempt += 2;
        let len = self.state.open.len();
        self.state.open = Bitmap::new(len);
        for host in self.state.opened_at.keys() {
            self.state.open.set(*host);
        }
        self.state.opened_at.values_mut().for_each(|since| *since = now);
    }

    fn roll_back(&mut self, now: u64, why: &str) {
        self.next_attempt(now);
        self.state.paused = false;
        self.state.why = why.to_string();
        self.enter(now, Phase::RollingBack, &format!("rolling back: {why}"));
    }

    fn on_command(&mut self, now: u64, command: Command) -> Result<(), String> {
        let phase = self.state.phase;
        let again = matches!(command, Command::Rollback | Command::RetryFailed);
        if again && self.state.attempt >= ATTEMPTS_MAX {
            return Err("it was tried too often; begin a new rollout".into());
        }
        match command {
            Command::Pause if phase.is_moving() && !self.state.paused => {
                self.state.paused = true;
                self.say(now, "paused");
            }
            Command::Resume if self.state.paused => {
                self.restart_clocks(now);
                self.state.paused = false;
                self.say(now, "resumed");
            }
            Command::Resume if phase == Phase::Stopped => {
                self.restart_clocks(now);
                self.state.why.clear();
                self.state.tolerated_failures = self.state.failed.clone();
                self.enter(now, Phase::Switching, "resumed: the failures so far are tolerated");
            }
            Command::Cancel if !phase.is_final() => self.enter(now, Phase::Cancelled, "cancelled"),
            Command::Rollback
                if matches!(
                    phase,
                    Phase::Switching
                        | Phase::Soaking
                        | Phase::Waiting
                        | Phase::Stopped
                        | Phase::Done
                        | Phase::Cancelled
                ) =>
            {
                self.roll_back(now, "asked for");
            }
            Command::RetryFailed
                if matches!(
                    phase,
                    Phase::Switching | Phase::Soaking | Phase::Stopped | Phase::Done | Phase::RolledBack
                ) =>
            {
                if phase == Phase::RolledBack {
                    self.state.batch = 0;
                }
                self.next_attempt(now);
                self.state.tolerated_failures = Bitmap::default();
                self.state.paused = false;
                self.state.why.clear();
                self.enter(now, Phase::Switching, "failed hosts try again");
            }
            Command::Promote if matches!(phase, Phase::Soaking | Phase::Waiting) => {
                self.say(now, "promoted");
                if self.is_last_batch() {
                    self.enter(now, Phase::Done, "done");
                } else {
                    self.next_batch(now);
                }
            }
            Command::PromoteAll if matches!(phase, Phase::Switching | Phase::Soaking | Phase::Waiting) => {
                let hosts = self.state.tally.hosts;
                while self.spec.goal(self.state.batch, hosts) < hosts {
                    self.state.batch += 1;
                }
                self.enter(now, Phase::Switching, "promoted to all hosts");
            }
            _ => {
                let phase = serde_json::to_value(phase).ok();
                let phase = phase.as_ref().and_then(|phase| phase.as_str()).unwrap_or_default().to_string();
                return Err(format!("it is {phase}{}", if self.state.paused { " and paused" } else { "" }));
            }
        }
        Ok(())
    }

    /// Time that passed while nobody might begin does not count.
    fn restart_clocks(&mut self, now: u64) {
        self.state.opened_at.values_mut().for_each(|since| *since = now);
        self.state.since_ms = now;
        self.state.healthy_since_ms = now;
        self.state.gate_passed = false;
    }
}

#[cfg(test)]
mod tests;
