//! The loop that feeds the machines: it observes hosts, asks gates, stores states and publishes desired states.
//! `reasons` finds out why hosts failed and what a rollout waits for.
//!
//! Invariant: a desired state is published only from a stored machine state.

use super::gate;
use super::machine::{Gate, HostReport, Input, ObservedHost};
use super::reasons::NO_TRACKER;
use super::spec::rules;
use super::targets::{in_order, targets};
use super::{HostOrder, HostPlace, Rollouts, VersionPush, now_ms};
use crate::errors::{StateError, with_sources};
use crate::jobs::JobError;
use shoal_api::jobs::{JobPhase, JobStatus, PushRequest};
use shoal_api::rollouts::{RolloutPhase, RolloutSpec};
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::desired::{Desired, Hosts, Rule, Target, feed_of};
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::locality::Selector;
use shoal_proto::report::HostState;
use shoal_swarm::membership::Membership;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time between two checks which rollouts are due.
const DUE_EVERY: Duration = Duration::from_millis(100);
/// Time between two questions about a rollout that is under way.
const ASK_RUNNING: Duration = Duration::from_millis(200);
/// Time between two questions about a rollout that only waits for hosts that are away.
const ASK_ENDED: Duration = Duration::from_secs(5);
/// Added to the above for each host, because every change is published to all hosts.
const ASK_PER_HOST: Duration = Duration::from_micros(20);
/// Time between two rounds of questions to gates.
const GATES_EVERY: Duration = Duration::from_secs(2);
/// How long one round may take.
const GATES_TIMEOUT: Duration = Duration::from_secs(10);

/// A version of a rollout and its push, which the seeder may have forgotten.
pub(crate) struct PushState {
    pub(crate) version: String,
    pub(crate) push: Option<JobStatus>,
}

impl Rollouts {
    /// Drives all rollouts until the token is cancelled.
    pub(crate) async fn run(self: Arc<Self>, token: CancellationToken) {
        let mut tick = tokio::time::interval(DUE_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                _ = tick.tick() => {}
                () = self.wake.notified() => {}
            }
            for id in self.due() {
                tokio::select! {
                    () = token.cancelled() => return,
                    () = self.step(id) => {}
                }
            }
        }
    }

    fn due(&self) -> Vec<JobId> {
        let now = Instant::now();
        let rows = self.rows();
        let due = rows.iter().filter(|(_, rollout)| !rollout.superseded && rollout.ask_at <= now);
        due.map(|(id, _)| *id).collect()
    }

    /// Looks at one rollout once.
    async fn step(&self, id: JobId) {
        let phase = match self.rows().get_mut(&id) {
            Some(rollout) => {
                let phase = rollout.machine.state().phase;
                let wait = if phase.is_final() { ASK_ENDED } else { ASK_RUNNING };
                rollout.ask_at = Instant::now() + wait + ASK_PER_HOST * rollout.machine.tally().hosts;
                phase
            }
            None => return,
        };
        let mut trouble = String::new();
        match phase {
            RolloutPhase::Preparing => self.prepare(id),
            RolloutPhase::Failed => return,
            _ => {
                let Some(tracker) = self.tracker.current() else { return self.set_trouble(&id, NO_TRACKER.into()) };
                trouble = self.look_at_hosts(tracker, id).await;
                self.ask_gates(id).await;
            }
        }
        let unpublished = self.publish(id).await;
        self.set_trouble(&id, unpublished.unwrap_or(trouble));
        let has_ended = self.rows().get(&id).is_some_and(|rollout| rollout.machine.state().phase.is_final());
        if has_ended != phase.is_final() || phase.is_final() {
            self.jobs.rollout_ended(&id, has_ended);
        }
    }

    /// Feeds the machine its hosts. Returns what keeps the rollout from its next step.
    async fn look_at_hosts(&self, tracker: NodeId, id: JobId) -> String {
        let Some(hosts) = self.observe(tracker, id).await else { return self.why_unobserved(&id) };
        // Before the machine reacts: a rollback covers what hosts say of their failures.
        self.note_failures(tracker, id, &hosts).await;
        self.tell(id, Input::Hosts(&hosts));
        self.look_at_staging(id, &hosts)
    }

    /// Feeds the machine an input and stores the new state.
    pub(crate) fn tell(&self, id: JobId, input: Input<'_>) {
        {
            let mut rows = self.rows();
            let Some(rollout) = rows.get_mut(&id) else { return };
            let before = rollout.machine.state().clone();
            if let Err(error) = rollout.machine.handle(now_ms(), input) {
                tracing::error!(rollout = %id, %error, "the rollout refused an input");
            }
            let state = rollout.machine.state();
            if let Some(event) = state.events.last().filter(|_| state.events != before.events) {
                tracing::info!(rollout = %id, name = rollout.machine.spec().name, event = event.what, "rollout event");
            }
            rollout.is_dirty |= *state != before;
            if !rollout.is_dirty {
                return;
            }
        }
        match self.store(&id) {
            Ok(()) => drop(self.rows().get_mut(&id).map(|rollout| rollout.is_dirty = false)),
            // The state stays dirty, so hosts do not learn of it, and the next step tries again.
            Err(error) => tracing::error!(rollout = %id, error = with_sources(&error), "cannot store a rollout"),
        }
    }

    pub(crate) fn pushes(&self, id: &JobId) -> Vec<PushState> {
        let pushes = self.rows().get(id).map(|rollout| rollout.pushes.clone()).unwrap_or_default();
        let state = |VersionPush { version, job }| PushState { push: self.jobs.status(&job), version };
        pushes.into_iter().map(state).collect()
    }

    /// Waits until the contents are ingested, then opens the rollout as a job.
    fn prepare(&self, id: JobId) {
        let mut all_ingested = true;
        for PushState { version, push } in self.pushes(&id) {
            let Some(push) = push else {
                return self.tell(id, Input::Broken(format!("the seeder no longer knows the push of {version}")));
            };
            if push.phase == JobPhase::Failed {
                return self.tell(id, Input::Broken(format!("the push of {version} failed: {}", push.error)));
            }
            all_ingested &= push.content.is_some();
        }
        if all_ingested {
            match self.follow(id) {
                Ok(()) => self.tell(id, Input::Ready),
                Err(error) => self.tell(id, Input::Broken(with_sources(&error))),
            }
        }
    }

    /// Adds the rollout to the jobs under its own id, because hosts report on it as on a job.
    fn follow(&self, id: JobId) -> Result<(), JobError> {
        let spec = match self.rows().get(&id) {
            Some(rollout) => rollout.machine.spec().clone(),
            None => return Ok(()),
        };
        let pushed = self.pushes(&id).into_iter().find(|state| state.version == spec.version);
        let pushed = pushed.and_then(|state| state.push).ok_or(JobError::Forgotten)?;
        let content = pushed.content.ok_or(JobError::NotIngested)?;
        let source = self.jobs.announcement(&pushed.job).ok_or(JobError::NotIngested)?;
        let times = self.publisher.times();
        let announcement = Announcement {
            job: id,
            content,
            selector: Selector::parse(&spec.to)?,
            created_at: times.created_at,
            expires_at: times.expires_at,
            staged: false,
            ..source
        };
        let request = PushRequest {
            path: spec.path.unwrap_or_default(),
            name: spec.name,
            version: spec.version,
            kind: announcement.kind,
            to: spec.to,
            staged: false,
            image: None,
            replace: spec.replace,
        };
        let envelope = self.publisher.seal(&announcement).map_err(StateError::from)?;
        Ok(self.jobs.follow_rollout(&request, &announcement, envelope, pushed.pieces)?)
    }

    /// Returns the rollout's hosts in their order, or `None` while the tracker does not answer.
    async fn observe(&self, tracker: NodeId, id: JobId) -> Option<Vec<ObservedHost>> {
        let (spec, pushes) = {
            let rows = self.rows();
            let rollout = rows.get(&id)?;
            (rollout.machine.spec().clone(), rollout.pushes.clone())
        };
        if !self.tracker.open_job(tracker, id).await {
            return None;
        }
        let states = self.tracker.host_states(tracker, id).await?;
        let mut failed_push = Bitmap::default();
        for push in &pushes {
            // The tracker may have forgotten an old push. Its hosts have the content then.
            let Some(states) = self.tracker.host_states(tracker, push.job).await else { continue };
            for set in states.sets.iter().filter(|set| matches!(set.state, HostState::Failed(_))) {
                failed_push.grow(set.hosts.len());
                failed_push.union(&set.hosts);
            }
        }
        let mut reports: BTreeMap<u32, HostReport> = BTreeMap::new();
        for set in &states.sets {
            let report = HostReport { attempt: set.attempt, state: set.state };
            reports.extend(set.hosts.iter().map(|host| (host, report)));
        }
        let membership = self.membership();
        let observed = |&HostPlace { rack, index }: &HostPlace| {
            let report = reports.get(&index).copied();
            // A failed push matters only to a host that did not get the content from another push.
            let blocked = failed_push.get(index) && report.is_none();
            ObservedHost { index, rack, up: membership.is_up(HostIndex(index)), report, blocked }
        };
        Some(self.order(&id, &spec, &membership).iter().map(observed).collect())
    }

    /// Returns the hosts in the order in which they switch. Computes it again when the membership has changed.
    fn order(&self, id: &JobId, spec: &RolloutSpec, membership: &Membership) -> Arc<Vec<HostPlace>> {
        let epoch = membership.epoch();
        let cached = self.rows().get(id).and_then(|rollout| rollout.order.clone());
        if let Some(order) = cached.filter(|order| order.epoch == epoch) {
            return order.hosts;
        }
        let hosts = in_order(&spec.name, membership, &targets(spec, membership));
        let places = hosts.iter().map(|host| HostPlace { rack: host.rack, index: host.member.index.0 });
        let hosts = Arc::new(places.collect::<Vec<_>>());
        if let Some(rollout) = self.rows().get_mut(id) {
            rollout.order = Some(HostOrder { epoch, hosts: hosts.clone() });
        }
        hosts
    }

    async fn ask_gates(&self, id: JobId) {
        let (server, queries) = {
            let mut rows = self.rows();
            let Some(rollout) = rows.get_mut(&id).filter(|rollout| rollout.machine.wants_gates()) else { return };
            if rollout.gate_at > Instant::now() {
                return;
            }
            rollout.gate_at = Instant::now() + GATES_EVERY;
            let spec = rollout.machine.spec();
            let Some(server) = spec.prometheus.clone() else { return };
            (server, spec.verify.clone())
        };
        let asked = tokio::time::timeout(GATES_TIMEOUT, gate::ask(&server, &queries)).await;
        let gate = asked.unwrap_or_else(|_| {
            Gate::Undecided(format!("{server} did not answer within {} s", GATES_TIMEOUT.as_secs()))
        });
        self.tell(id, Input::Gate(gate));
    }

    /// Returns the desired state that hosts should have now, or `None` before the contents are ingested.
    fn desired(&self, id: &JobId) -> Option<Desired> {
        let pushes = self.pushes(id);
        let rows = self.rows();
        let rollout = rows.get(id)?;
        let (spec, state) = (rollout.machine.spec(), rollout.machine.state());
        if matches!(state.phase, RolloutPhase::Preparing | RolloutPhase::Failed) || rollout.is_dirty {
            return None;
        }
        let target = |version: &str| {
            let push = pushes.iter().find(|state| state.version == version)?.push.as_ref()?;
            let announcement = self.jobs.announcement(&push.job)?;
            let (content, sequence) = (announcement.content, announcement.sequence);
            Some(Target { version: version.to_string(), content, sequence })
        };
        let rules = rules(spec).ok()?.into_iter();
        let rules = rules.map(|rule| Some(Rule { target: target(&rule.version)?, hosts: rule.hosts }));
        Some(Desired {
            name: spec.name.clone(),
            rollout: *id,
            attempt: state.attempt,
            paused: rollout.machine.is_paused(),
            back: rollout.machine.is_rolling_back(),
            watch: rollout.machine.is_watching(),
            rules: rules.collect::<Option<_>>()?,
            open: Hosts::Indices(state.open.clone()),
            replaces: rollout.replaces,
        })
    }

    /// Publishes the desired state if it has changed. Returns why that is impossible.
    async fn publish(&self, id: JobId) -> Option<String> {
        let Some(desired) = self.desired(&id) else { return self.why_undesired(&id) };
        let to = match self.rows().get(&id) {
            Some(rollout) if rollout.published.as_ref() != Some(&desired) => rollout.machine.spec().to.clone(),
            _ => return None,
        };
        let bytes = desired.to_bytes();
        if bytes.len() > Desired::BYTES_MAX {
            let (bytes, bytes_max) = (bytes.len(), Desired::BYTES_MAX);
            let why =
                format!("the desired state has {bytes} bytes, at most {bytes_max} fit; use fewer or shorter rules");
            return Some(why);
        }
        let (Some(feed), Ok(to)) = (feed_of(&desired.name), Selector::parse(&to)) else { return None };
        match self.feeds.publish(&feed, Kind::Gslb, bytes.into(), &to).await {
            Ok(sequence) => {
                tracing::debug!(rollout = %id, sequence, attempt = desired.attempt, "published a desired state");
                if let Some(rollout) = self.rows().get_mut(&id) {
                    rollout.published = Some(desired);
                }
                None
            }
            Err(error) => Some(format!("cannot publish the desired state: {}", with_sources(&error))),
        }
    }
}
