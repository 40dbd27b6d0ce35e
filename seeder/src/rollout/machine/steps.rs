//! How a rollout moves as hosts report and gates answer: stage, switch a batch, soak, next batch, or roll back.
//!
//! Invariant: [`Machine::open_hosts`] is the only place that opens a host, so the bounds per rack and per batch hold
//! everywhere.

use super::host_status::HostStatus;
use super::{Gate, Machine, ObservedHost, TEXT_BYTES_MAX, clip, ms};
use crate::rollout::batches::goal;
use shoal_api::rollouts::{HostTally, RollbackMode, RolloutPhase};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::report::HostState;
use std::collections::BTreeMap;

fn has_content(host: &ObservedHost) -> bool {
    host.report.is_some_and(|report| report.state >= HostState::Has)
}

/// Whether staging waits for a host.
fn lacks_content(host: &ObservedHost, status: HostStatus) -> bool {
    host.up && !has_content(host) && status != HostStatus::Blocked
}

/// What staging waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StagingWait {
    /// Roster indices of the hosts that lack the content, in the order of the rollout.
    pub(crate) hosts: Vec<u32>,
    /// Some host has the content.
    pub(crate) has_source: bool,
}

impl Machine {
    pub(super) fn on_hosts(&mut self, now: u64, hosts: &[ObservedHost]) {
        let statuses: Vec<HostStatus> = hosts.iter().map(|host| self.host_status(now, host)).collect();
        self.count(hosts, &statuses);
        // A host that has reported no longer occupies its rack.
        for (host, status) in hosts.iter().zip(&statuses) {
            if !status.is_switching() {
                self.state.opened_at.remove(&host.index);
            }
        }
        let failures = self.untolerated_failures(hosts, &statuses);
        let tolerated = self.spec.max_failures.at_most(self.state.tally.hosts);
        let is_forward = matches!(
            self.state.phase,
            RolloutPhase::Staging | RolloutPhase::Switching | RolloutPhase::Soaking | RolloutPhase::Waiting
        );
        if is_forward && failures > tolerated {
            let failure = self.newest_failure().map_or_else(String::new, |failure| format!(": {failure}"));
            let hosts = self.state.tally.hosts;
            let why = format!("{failures} of {hosts} hosts failed, {tolerated} are tolerated{failure}");
            return self.gate_failed(now, &why);
        }
        let deadline = self.spec.deadline.map(ms).filter(|_| is_forward);
        if deadline.is_some_and(|deadline| now.saturating_sub(self.state.began_ms) >= deadline) {
            return self.gate_failed(now, "the deadline has passed");
        }
        if self.state.paused {
            return;
        }
        match self.state.phase {
            RolloutPhase::Staging => self.stage(now, hosts, &statuses),
            RolloutPhase::Switching => self.switch_batch(now, hosts, &statuses),
            RolloutPhase::Soaking => self.soak(now),
            RolloutPhase::Waiting if now.saturating_sub(self.state.since_ms) >= ms(self.spec.wait_between) => {
                self.next_batch(now);
            }
            RolloutPhase::RollingBack => {
                let opened = self.open_hosts(now, hosts, &statuses, u32::MAX);
                if !opened && !statuses.iter().any(|status| status.is_awaited()) {
                    let why = self.state.why.clone();
                    self.enter(now, RolloutPhase::RolledBack, &format!("rolled back: {why}"));
                }
            }
            // Hosts that were away return, and new hosts appear. They follow after the end, with the same bound per
            // rack.
            RolloutPhase::Done if failures <= tolerated => drop(self.open_hosts(now, hosts, &statuses, u32::MAX)),
            RolloutPhase::RolledBack => drop(self.open_hosts(now, hosts, &statuses, u32::MAX)),
            _ => {}
        }
    }

    fn count(&mut self, hosts: &[ObservedHost], statuses: &[HostStatus]) {
        let with_status = |test: fn(HostStatus) -> bool| statuses.iter().filter(|status| test(**status)).count() as u32;
        let on_new = |host: &&ObservedHost| {
            host.report.is_some_and(|report| matches!(report.state, HostState::Active | HostState::Stored))
        };
        // A rollback covers the reports of failures. A host that failed before it has not only gone back.
        let failed_before = |host: &ObservedHost| self.is_rolling_back() && self.state.ever_failed.get(host.index);
        let has_failed = |(host, status): &(&ObservedHost, &HostStatus)| status.is_failure() || failed_before(host);
        let went_back =
            |(host, status): &(&ObservedHost, &HostStatus)| **status == HostStatus::RolledBack && !failed_before(host);
        self.state.tally = HostTally {
            hosts: hosts.len() as u32,
            staged: hosts.iter().filter(|host| has_content(host)).count() as u32,
            switching: with_status(HostStatus::is_switching),
            active: hosts.iter().filter(on_new).count() as u32,
            failed: hosts.iter().zip(statuses).filter(has_failed).count() as u32,
            rolled_back: hosts.iter().zip(statuses).filter(went_back).count() as u32,
            away: hosts.iter().filter(|host| !host.up).count() as u32,
        };
    }

    /// Notes which hosts have failed, and returns how many of these failures no operator accepted.
    fn untolerated_failures(&mut self, hosts: &[ObservedHost], statuses: &[HostStatus]) -> u32 {
        let failed = hosts.iter().zip(statuses).filter(|(_, status)| status.is_failure());
        self.state.failed = failed.map(|(host, _)| host.index).collect();
        self.state.ever_failed.grow(self.state.failed.len());
        self.state.ever_failed.union(&self.state.failed);
        let mut untolerated = self.state.failed.clone();
        untolerated.subtract(&self.state.tolerated_failures);
        untolerated.count()
    }

    /// Ends staging once every host that is up has the content. Before that no host switches.
    fn stage(&mut self, now: u64, hosts: &[ObservedHost], statuses: &[HostStatus]) {
        let lacks = |(host, status): (&ObservedHost, &HostStatus)| lacks_content(host, *status);
        if !hosts.iter().zip(statuses).any(lacks) && hosts.iter().any(has_content) {
            self.enter(now, RolloutPhase::Switching, "every host has the content; batch 1 switches");
            self.switch_batch(now, hosts, statuses);
        }
    }

    /// Returns what staging waits for. `None` in any other phase.
    pub(crate) fn staging_wait(&self, now: u64, hosts: &[ObservedHost]) -> Option<StagingWait> {
        if self.state.phase != RolloutPhase::Staging {
            return None;
        }
        let lacking = hosts.iter().filter(|host| lacks_content(host, self.host_status(now, host)));
        Some(StagingWait { hosts: lacking.map(|host| host.index).collect(), has_source: hosts.iter().any(has_content) })
    }

    fn switch_batch(&mut self, now: u64, hosts: &[ObservedHost], statuses: &[HostStatus]) {
        let goal = goal(&self.spec, self.state.batch, self.state.tally.hosts);
        let opened = self.open_hosts(now, hosts, statuses, goal);
        if !opened && !statuses.iter().any(|status| status.is_awaited()) {
            self.state.healthy_since_ms = now;
            self.state.gate_passed = false;
            let (batch, active) = (self.state.batch + 1, self.state.tally.active);
            let what = format!("batch {batch} has switched, {active} hosts are active; the soak time begins");
            self.enter(now, RolloutPhase::Soaking, &what);
        }
    }

    /// Opens waiting hosts in order until `goal` hosts have switched or are switching. Returns whether it opened one.
    fn open_hosts(&mut self, now: u64, hosts: &[ObservedHost], statuses: &[HostStatus], goal: u32) -> bool {
        let mut switching_by_rack: BTreeMap<u32, u32> = BTreeMap::new();
        let mut counted = 0;
        for (host, status) in hosts.iter().zip(statuses) {
            let is_switching = status.is_switching();
            *switching_by_rack.entry(host.rack).or_default() += u32::from(is_switching);
            counted += u32::from(is_switching || matches!(status, HostStatus::Active | HostStatus::Failed));
        }
        let mut opened = false;
        for (host, status) in hosts.iter().zip(statuses) {
            if counted >= goal || *status != HostStatus::Waiting || !host.up || !has_content(host) {
                continue;
            }
            let in_rack = switching_by_rack.entry(host.rack).or_default();
            if *in_rack >= self.spec.per_rack {
                continue;
            }
            *in_rack += 1;
            counted += 1;
            opened = true;
            self.state.open.grow(host.index + 1);
            self.state.open.set(host.index);
            self.state.ever_opened.grow(host.index + 1);
            self.state.ever_opened.set(host.index);
            self.state.opened_at.insert(host.index, now);
        }
        opened
    }

    /// Whether no further batch follows the present one.
    pub(super) fn is_last_batch(&self) -> bool {
        goal(&self.spec, self.state.batch, self.state.tally.hosts) >= self.state.tally.hosts
    }

    fn soak(&mut self, now: u64) {
        let soaked = now.saturating_sub(self.state.healthy_since_ms) >= ms(self.spec.soak);
        if !soaked || (self.wants_gates() && !self.state.gate_passed) {
            return;
        }
        if self.is_last_batch() {
            let HostTally { active, hosts, failed, away, .. } = self.state.tally;
            self.state.why.clear();
            let what = format!("done: {active} of {hosts} hosts are active, {failed} failed, {away} are away");
            self.enter(now, RolloutPhase::Done, &what);
        } else if self.spec.wait_between.0.is_zero() {
            self.next_batch(now);
        } else {
            self.enter(now, RolloutPhase::Waiting, "the soak time has passed; waiting before the next batch");
        }
    }

    pub(super) fn next_batch(&mut self, now: u64) {
        self.state.batch += 1;
        let batch = self.state.batch + 1;
        self.state.why.clear();
        self.enter(now, RolloutPhase::Switching, &format!("batch {batch} switches"));
    }

    pub(super) fn on_gate(&mut self, now: u64, gate: Gate) {
        if !self.wants_gates() {
            return;
        }
        match gate {
            Gate::Passed => self.state.gate_passed = true,
            Gate::Failed(why) => self.gate_failed(now, &why),
            Gate::Undecided(why) => {
                let why = clip(&why, TEXT_BYTES_MAX);
                // Every host must stay healthy for the whole soak time, and an unanswered gate proves nothing.
                self.state.healthy_since_ms = now;
                self.state.gate_passed = false;
                if self.state.why != why {
                    self.note(now, &why);
                    self.state.why = why;
                }
            }
        }
    }

    fn gate_failed(&mut self, now: u64, why: &str) {
        match self.spec.rollback {
            RollbackMode::Auto => self.roll_back(now, why),
            RollbackMode::Manual => {
                self.state.why = clip(why, TEXT_BYTES_MAX);
                self.enter(now, RolloutPhase::Stopped, &format!("stopped: {why}"));
            }
        }
    }

    pub(super) fn roll_back(&mut self, now: u64, why: &str) {
        self.next_attempt(now);
        self.state.paused = false;
        self.state.why = clip(why, TEXT_BYTES_MAX);
        self.enter(now, RolloutPhase::RollingBack, &format!("rolling back: {why}"));
    }

    /// Begins a new attempt. Hosts that may still switch in the former attempt stay open, so they keep their place in
    /// their rack until they report.
    pub(super) fn next_attempt(&mut self, now: u64) {
        self.state.attempt += 2;
        let len = self.state.open.len();
        self.state.open = Bitmap::new(len);
        for host in self.state.opened_at.keys() {
            self.state.open.set(*host);
        }
        self.state.opened_at.values_mut().for_each(|since| *since = now);
    }
}
