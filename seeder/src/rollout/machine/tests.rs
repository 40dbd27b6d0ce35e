//! The machine against hosts that learn late, report late, fail, vanish and return, in any order.

use super::*;
use crate::rollout::spec;
use proptest::prelude::*;
use shoal_api::rollouts::{Amount, RollbackMode};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::report::Reason;
use std::collections::BTreeSet;
use std::time::Duration;

/// The part of a desired state that a host acts on.
#[derive(Clone, Debug, PartialEq)]
struct DesiredState {
    attempt: u16,
    paused: bool,
    rolls_back: bool,
    open: Bitmap,
}

#[derive(Clone, Debug)]
struct Host {
    rack: u32,
    up: bool,
    desired: Option<DesiredState>,
    /// The last attempt in which the host acted.
    did: u16,
    /// A switch under way: its attempt, and whether it is a rollback.
    switching: Option<(u16, bool)>,
    on_new: bool,
    reports: (u16, HostState),
    observed: Option<(u16, HostState)>,
}

struct World {
    machine: Machine,
    hosts: Vec<Host>,
    desired: DesiredState,
    now: u64,
    per_rack: u32,
    /// Hosts that began to switch, by attempt.
    begun: BTreeSet<(usize, u16)>,
}

fn spec(batch: &str, per_rack: u32, failures: u32, rollback: RollbackMode) -> RolloutSpec {
    let mut spec = RolloutSpec::new("edge/a", "2", vec!["all".into()]);
    spec.batch = batch.split(',').map(|part| part.parse().unwrap()).collect();
    (spec.per_rack, spec.max_failures, spec.rollback) = (per_rack, Amount::Hosts(failures), rollback);
    spec::check(&spec).unwrap();
    spec
}

impl World {
    fn new(racks: u32, hosts_per_rack: u32, spec: RolloutSpec) -> Self {
        let per_rack = spec.per_rack;
        let mut machine = Machine::new(spec, 0);
        machine.handle(0, Input::Ready).unwrap();
        let host = |rack| Host {
            rack,
            up: true,
            desired: None,
            did: 0,
            switching: None,
            on_new: false,
            reports: (0, HostState::Has),
            observed: None,
        };
        let hosts = (0..racks * hosts_per_rack).map(|number| host(number % racks)).collect();
        let desired = Self::desired(&machine);
        Self { machine, hosts, desired, now: 0, per_rack, begun: BTreeSet::new() }
    }

    fn desired(machine: &Machine) -> DesiredState {
        let state = machine.state();
        let (paused, rolls_back) = (machine.is_paused(), machine.is_rolling_back());
        DesiredState { attempt: state.attempt, paused, rolls_back, open: state.open.clone() }
    }

    fn tell(&mut self, input: Input<'_>) {
        let before = self.machine.state().clone();
        let _ = self.machine.handle(self.now, input); // a refusal changes nothing, which is checked below
        // Only the stored state survives, as after a restart.
        let state: State = decode_exact(&encode(self.machine.state())).unwrap();
        let spec = self.machine.spec().clone();
        self.machine = Machine::resume(spec, state);
        self.desired = Self::desired(&self.machine);
        let state = self.machine.state();
        assert!(state.attempt >= before.attempt && state.attempt % 2 == 1);
        for host in state.open.iter() {
            let fresh = state.attempt == before.attempt && !before.open.get(host);
            let observed = self.hosts[host as usize].observed;
            if fresh {
                assert!(observed.is_some_and(|(attempt, state)| state == HostState::Has
                    || attempt < self.desired.attempt
                    || self.desired.rolls_back));
                let again = observed.is_some_and(|(attempt, found)| attempt >= state.attempt && found.is_final());
                assert!(!again, "{host} reported in attempt {} before", state.attempt);
            }
            if self.desired.rolls_back {
                assert!(before.ever_opened.get(host), "{host} was never open");
            }
        }
    }

    fn observed(&self) -> Vec<ObservedHost> {
        let host = |(index, host): (u32, &Host)| ObservedHost {
            index,
            rack: host.rack,
            up: host.up,
            report: host.observed.map(|(attempt, state)| HostReport { attempt, state }),
            blocked: false,
        };
        (0..).zip(&self.hosts).map(host).collect()
    }

    fn observe(&mut self) {
        let hosts = self.observed();
        self.tell(Input::Hosts(&hosts));
    }

    /// The host learns the newest desired state.
    fn learn(&mut self, at: usize) {
        if self.hosts[at].up {
            self.hosts[at].desired = Some(self.desired.clone());
        }
    }

    /// The host begins to switch if its desired state allows that, by the rules of a real host.
    fn begin(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let Some(desired) = host.desired.clone() else { return };
        if host.switching.is_some() || host.did >= desired.attempt {
            return;
        }
        if host.on_new && !desired.rolls_back && !matches!(host.reports.1, HostState::Failed(_)) {
            (host.did, host.reports) = (desired.attempt, (desired.attempt, HostState::Active));
            return;
        }
        if desired.paused || !desired.open.get(at as u32) {
            return;
        }
        host.did = desired.attempt;
        if desired.rolls_back && !host.on_new {
            host.reports = (desired.attempt, HostState::Failed(Reason::RolledBack));
            return;
        }
        host.switching = Some((desired.attempt, desired.rolls_back));
        assert!(self.begun.insert((at, desired.attempt)), "{at} began attempt {} twice", desired.attempt);
        let rack = self.hosts[at].rack;
        let busy = self.hosts.iter().filter(|host| host.rack == rack && host.switching.is_some()).count();
        assert!(busy as u32 <= self.per_rack, "{busy} hosts of rack {rack} are switching");
    }

    fn end(&mut self, at: usize, well: bool) {
        let host = &mut self.hosts[at];
        let Some((attempt, back)) = host.switching.take() else { return };
        host.reports = match (back, well) {
            (true, true) => {
                host.on_new = false;
                (attempt, HostState::Failed(Reason::RolledBack))
            }
            (false, true) => {
                host.on_new = true;
                (attempt, HostState::Active)
            }
            (_, false) => (attempt, HostState::Failed(Reason::Activation)),
        };
    }

    /// The host fails after its switch.
    fn fail_after_switch(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.switching.is_none() && host.reports.1 == HostState::Active {
            host.reports = (host.reports.0 + 1, HostState::Failed(Reason::Unhealthy));
            host.did = host.reports.0;
        }
    }

    fn report(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.up && host.observed.is_none_or(|observed| host.reports >= observed) {
            host.observed = Some(host.reports);
        }
    }

    /// Lets everything arrive and end until the rollout ends or stops. `well` says which switches succeed.
    fn settle(&mut self, well: impl Fn(usize) -> bool) -> RolloutPhase {
        for _ in 0..1000 {
            self.now += 20_000;
            for at in 0..self.hosts.len() {
                self.hosts[at].up = true;
                self.learn(at);
                self.begin(at);
                let well = well(at) || self.hosts[at].switching.is_some_and(|(_, back)| back);
                self.end(at, well);
                self.report(at);
            }
            self.observe();
            if self.machine.wants_gates() {
                self.tell(Input::Gate(Gate::Passed));
            }
            let phase = self.machine.state().phase;
            if phase.is_final() || phase == RolloutPhase::Stopped {
                return phase;
            }
        }
        panic!("the rollout does not end: {:?}", self.machine);
    }
}

#[test]
fn every_small_case_ends_in_the_right_phase() {
    for outcomes in 0u32..64 {
        for (per_rack, failures) in [(1, 0), (1, 2), (2, 1), (3, 6)] {
            for batch in ["1,100%", "50%", "6"] {
                let mut world = World::new(2, 3, spec(batch, per_rack, failures, RollbackMode::Auto));
                let bad = |at: usize| outcomes >> at & 1 == 1;
                let phase = world.settle(|at| !bad(at));
                let on_new = world.hosts.iter().filter(|host| host.on_new).count() as u32;
                if outcomes.count_ones() <= failures {
                    assert_eq!((phase, on_new), (RolloutPhase::Done, 6 - outcomes.count_ones()));
                } else {
                    assert_eq!((phase, on_new), (RolloutPhase::RolledBack, 0), "{outcomes:b} {batch}");
                }
            }
        }
    }
}

#[test]
fn a_bad_version_stops_in_its_first_wave() {
    let mut world = World::new(4, 4, spec("1,25%,100%", 1, 0, RollbackMode::Auto));
    assert_eq!(world.settle(|_| false), RolloutPhase::RolledBack);
    assert_eq!(world.machine.state().batch, 0);
    assert_eq!(world.begun.iter().filter(|(_, attempt)| *attempt == 1).count(), 1);
}

#[test]
fn a_host_that_fails_in_the_soak_time_stops_the_rollout() {
    let mut world = World::new(1, 3, spec("1,100%", 1, 0, RollbackMode::Manual));
    while world.machine.state().phase != RolloutPhase::Soaking {
        (0..3).for_each(|at| {
            world.learn(at);
            world.begin(at);
            world.end(at, true);
            world.report(at);
        });
        world.observe();
    }
    let failing = world.hosts.iter().position(|host| host.on_new).unwrap();
    world.fail_after_switch(failing);
    world.report(failing);
    world.observe();
    assert_eq!(world.machine.state().phase, RolloutPhase::Stopped);
    world.tell(Input::Command(RolloutCommand::RetryFailed));
    assert_eq!(world.settle(|_| true), RolloutPhase::Done);
    assert!(world.hosts.iter().all(|host| host.on_new));
}

#[test]
fn a_host_that_may_begin_again_occupies_its_rack() {
    let mut world = World::new(1, 3, spec("50%", 1, 0, RollbackMode::Auto));
    world.hosts[1].up = false;
    (0..3).for_each(|at| world.report(at));
    world.observe();
    world.learn(0);
    world.begin(0);
    world.end(0, true);
    world.report(0);
    // Sent before the next observation, so host 0 stays open in the new attempt.
    world.tell(Input::Command(RolloutCommand::RetryFailed));
    world.learn(0);
    world.observe();
    world.learn(2);
    world.begin(2);
    world.fail_after_switch(0);
    // `begin` panics if host 0 begins while host 2 is switching.
    world.begin(0);
    world.settle(|_| true);
}

#[test]
fn gates_must_pass_for_the_whole_soak_time() {
    let mut gated = spec("1,100%", 1, 0, RollbackMode::Auto);
    (gated.verify, gated.prometheus) = (vec!["up == 1".into()], Some("http://127.0.0.1:9".into()));
    gated.soak = Span(Duration::from_secs(60));
    let mut world = World::new(1, 2, gated);
    let mut rounds = 0;
    while world.machine.state().phase != RolloutPhase::Soaking {
        (0..2).for_each(|at| {
            world.learn(at);
            world.begin(at);
            world.end(at, true);
            world.report(at);
        });
        world.observe();
        rounds += 1;
        assert!(rounds < 10);
    }
    for _ in 0..5 {
        world.now += 50_000;
        world.tell(Input::Gate(Gate::Undecided("no answer".into())));
        world.observe();
        assert_eq!(world.machine.state().phase, RolloutPhase::Soaking, "an undecided gate restarts the soak time");
    }
    world.now += 59_000;
    world.tell(Input::Gate(Gate::Passed));
    world.observe();
    assert_eq!(world.machine.state().phase, RolloutPhase::Soaking);
    world.now += 1_000;
    world.observe();
    assert_eq!(world.machine.state().phase, RolloutPhase::Switching);
    world.settle(|_| true);
    let mut world2 = World::new(1, 2, world.machine.spec().clone());
    while world2.machine.state().phase != RolloutPhase::Soaking {
        (0..2).for_each(|at| {
            world2.learn(at);
            world2.begin(at);
            world2.end(at, true);
            world2.report(at);
        });
        world2.observe();
    }
    world2.tell(Input::Gate(Gate::Failed("`up == 1` is not met: 0".into())));
    assert_eq!(world2.machine.state().phase, RolloutPhase::RollingBack);
    assert_eq!(world2.settle(|_| true), RolloutPhase::RolledBack);
    assert!(world2.machine.state().why.contains("up == 1"));
}

#[test]
fn commands_do_what_they_say() {
    let mut world = World::new(2, 2, spec("1,100%", 1, 0, RollbackMode::Auto));
    let command = |world: &mut World, command| world.machine.handle(world.now, Input::Command(command));
    assert!(command(&mut world, RolloutCommand::Resume).is_err());
    assert!(command(&mut world, RolloutCommand::Promote).is_err());
    command(&mut world, RolloutCommand::Pause).unwrap();
    (0..4).for_each(|at| world.report(at));
    world.observe();
    assert!(world.desired.paused && world.machine.state().phase == RolloutPhase::Staging);
    command(&mut world, RolloutCommand::Resume).unwrap();
    world.observe();
    world.observe();
    assert_eq!(world.desired.open.count(), 1);
    command(&mut world, RolloutCommand::PromoteAll).unwrap();
    world.observe();
    assert_eq!(world.desired.open.count(), 2, "one host per rack");
    assert_eq!(world.settle(|_| true), RolloutPhase::Done);
    assert!(command(&mut world, RolloutCommand::Cancel).is_err());
    command(&mut world, RolloutCommand::Rollback).unwrap();
    assert_eq!(world.settle(|_| true), RolloutPhase::RolledBack);
    assert!(world.hosts.iter().all(|host| !host.on_new));
    command(&mut world, RolloutCommand::RetryFailed).unwrap();
    assert_eq!(world.settle(|_| true), RolloutPhase::Done);
    assert!(world.hosts.iter().all(|host| host.on_new));
    let mut world = World::new(2, 2, spec("1,100%", 1, 0, RollbackMode::Auto));
    (0..4).for_each(|at| world.report(at));
    world.observe();
    command(&mut world, RolloutCommand::Cancel).unwrap();
    world.observe();
    assert!(world.desired.paused);
}

#[test]
fn a_host_that_was_away_follows_after_the_end() {
    let mut world = World::new(1, 3, spec("100%", 1, 0, RollbackMode::Auto));
    (0..3).for_each(|at| world.report(at));
    world.hosts[1].up = false;
    world.hosts[2].up = false;
    for _ in 0..20 {
        world.now += 20_000;
        world.learn(0);
        world.begin(0);
        world.end(0, true);
        world.report(0);
        world.observe();
    }
    assert_eq!(world.machine.state().phase, RolloutPhase::Done);
    world.hosts[1].up = true;
    world.hosts[2].up = true;
    world.observe();
    assert_eq!(world.machine.state().opened_at.len(), 1, "one host per rack, also among returning hosts");
    assert_eq!(world.settle(|_| true), RolloutPhase::Done);
}

/// A failure as the driver explains it.
fn failure(host: &str, attempt: u16, detail: &str) -> HostFailure {
    HostFailure { host: host.into(), attempt, reason: "activation".into(), detail: detail.into(), at_ms: 1 }
}

#[test]
fn why_a_host_failed_outlives_the_rollback() {
    let mut world = World::new(2, 3, spec("100%", 3, 0, RollbackMode::Auto));
    (0..6).for_each(|at| world.report(at));
    world.observe();
    (0..6).for_each(|at| {
        world.learn(at);
        world.begin(at);
        world.end(at, at != 4);
        world.report(at);
    });
    let hosts = world.observed();
    let failed = world.machine.failed_hosts(world.now, &hosts);
    assert_eq!(failed, [FailedHost { index: 4, attempt: 1, cause: FailureCause::Reported(Reason::Activation) }]);
    let words = failure("r/s/k/h4", 1, "check failed: config line 17: unknown directive");
    world.tell(Input::Failures(std::slice::from_ref(&words)));
    world.observe();
    assert_eq!(world.settle(|_| true), RolloutPhase::RolledBack);
    let state = world.machine.state();
    assert_eq!(state.failures, [words], "the record is stored and outlives the rollback");
    assert!(state.why.contains("1 of 6 hosts failed") && state.why.contains("line 17"), "{}", state.why);
    assert_eq!((state.tally.failed, state.tally.rolled_back), (1, 5), "hosts that only went back did not fail");
    // After a retry the next rollback counts only its own failures.
    world.tell(Input::Command(RolloutCommand::RetryFailed));
    assert_eq!(world.settle(|_| true), RolloutPhase::Done);
    assert_eq!((world.machine.tally().failed, world.machine.state().failures.len()), (0, 1));
}

#[test]
fn the_first_failures_are_kept_within_bounds() {
    let mut machine = Machine::new(spec("100%", 1, 0, RollbackMode::Auto), 0);
    let many: Vec<HostFailure> = (0..100).map(|host| failure(&format!("h{host}"), 1, &"ö".repeat(400))).collect();
    for _ in 0..2 {
        machine.handle(1, Input::Failures(&many)).unwrap();
    }
    let kept = &machine.state().failures;
    assert_eq!((kept.len(), &*kept[0].host, &*kept[31].host), (FAILURES_MAX, "h0", "h31"));
    assert!(kept.iter().all(|failure| failure.detail.len() <= shoal_proto::limits::DETAIL_BYTES_MAX));
    machine.handle(2, Input::Broken("x".repeat(5000))).unwrap();
    assert_eq!((machine.state().phase, machine.state().why.len()), (RolloutPhase::Failed, TEXT_BYTES_MAX));
}

#[test]
fn a_replaced_rollout_obeys_no_command() {
    let mut world = World::new(1, 2, spec("100%", 2, 0, RollbackMode::Auto));
    assert_eq!(world.machine.handle(0, Input::Retire), Err(Refusal::UnderWay));
    assert_eq!(world.settle(|_| true), RolloutPhase::Done);
    world.machine.handle(world.now, Input::Retire).unwrap();
    assert!(world.machine.is_paused() && world.machine.state().retired);
    for command in [RolloutCommand::Resume, RolloutCommand::Rollback, RolloutCommand::RetryFailed] {
        assert_eq!(world.machine.handle(world.now, Input::Command(command)), Err(Refusal::Retired));
    }
}

#[test]
fn staging_says_which_hosts_it_waits_for_and_ends_when_the_content_is_gone() {
    let mut world = World::new(1, 3, spec("100%", 1, 0, RollbackMode::Auto));
    world.report(0);
    world.observe();
    let wait = world.machine.staging_wait(world.now, &world.observed()).unwrap();
    assert_eq!((wait.hosts, wait.has_source), (vec![1, 2], true));
    world.tell(Input::Broken("the content is gone".into()));
    assert_eq!(world.machine.state().phase, RolloutPhase::Failed);
    assert!(world.machine.staging_wait(world.now, &[]).is_none());
}

#[derive(Clone, Debug)]
enum Act {
    Learn(usize),
    Begin(usize),
    End(usize, bool),
    FailAfterSwitch(usize),
    Report(usize),
    Observe,
    Pass(u16),
    Vanish(usize),
    Return(usize),
    Tell(RolloutCommand),
    Gate(u8),
}

fn act() -> impl Strategy<Value = Act> {
    let host = || 0usize..9;
    prop_oneof![
        6 => host().prop_map(Act::Learn),
        6 => host().prop_map(Act::Begin),
        6 => (host(), prop::bool::weighted(0.8)).prop_map(|(host, well)| Act::End(host, well)),
        1 => host().prop_map(Act::FailAfterSwitch),
        6 => host().prop_map(Act::Report),
        8 => Just(Act::Observe),
        3 => any::<u16>().prop_map(Act::Pass),
        1 => host().prop_map(Act::Vanish),
        2 => host().prop_map(Act::Return),
        1 => prop::sample::select(vec![
            RolloutCommand::Pause,
            RolloutCommand::Resume,
            RolloutCommand::Cancel,
            RolloutCommand::Rollback,
            RolloutCommand::RetryFailed,
            RolloutCommand::Promote,
            RolloutCommand::PromoteAll,
        ])
        .prop_map(Act::Tell),
        1 => (0u8..3).prop_map(Act::Gate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_order_of_events_breaks_the_invariants(
        acts in prop::collection::vec(act(), 0..300),
        (racks, hosts_per_rack, per_rack, failures) in (1u32..=3, 1u32..=3, 1u32..=2, 0u32..=3),
        manual in any::<bool>(),
        batch in prop::sample::select(vec!["1,25%,100%", "50%", "100%", "2"]),
    ) {
        let rollback = if manual { RollbackMode::Manual } else { RollbackMode::Auto };
        let mut world = World::new(racks, hosts_per_rack, spec(batch, per_rack, failures, rollback));
        let count = world.hosts.len();
        for act in acts {
            match act {
                Act::Learn(at) => world.learn(at % count),
                Act::Begin(at) => world.begin(at % count),
                Act::End(at, well) => world.end(at % count, well),
                Act::FailAfterSwitch(at) => world.fail_after_switch(at % count),
                Act::Report(at) => world.report(at % count),
                Act::Observe => world.observe(),
                Act::Pass(ms) => world.now += u64::from(ms) * 10,
                Act::Vanish(at) => world.hosts[at % count].up = false,
                Act::Return(at) => world.hosts[at % count].up = true,
                Act::Tell(command) => world.tell(Input::Command(command)),
                Act::Gate(which) => world.tell(Input::Gate(match which {
                    0 => Gate::Passed,
                    1 => Gate::Failed("no".into()),
                    _ => Gate::Undecided("?".into()),
                })),
            }
        }
        // Then every host is healthy: the rollout ends, and no host is left in the middle of a switch.
        if world.machine.state().paused {
            world.tell(Input::Command(RolloutCommand::Resume));
        }
        let mut phase = world.settle(|_| true);
        for _ in 0..3 {
            if phase == RolloutPhase::Stopped {
                world.tell(Input::Command(RolloutCommand::RetryFailed));
                phase = world.settle(|_| true);
            }
        }
        prop_assert!(phase.is_final(), "{phase:?}");
        prop_assert!(world.hosts.iter().all(|host| host.switching.is_none()));
        if phase == RolloutPhase::RolledBack {
            // Hosts that were away at the end of the rollback roll back when they return.
            for _ in 0..20 {
                world.settle(|_| true);
            }
            // Except for hosts that failed to roll back and reported that.
            let could_not = HostState::Failed(Reason::Activation);
            prop_assert!(world.hosts.iter().all(|host| !host.on_new || host.reports.1 == could_not));
        }
    }
}
