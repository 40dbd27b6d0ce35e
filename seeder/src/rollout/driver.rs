//! The loop behind the machines: hears of hosts from the tracker, asks gates, writes down, publishes.

use super::machine::{Gate, HostFact, Input, Phase};
use super::spec::RolloutSpec;
use super::view::in_order;
use super::{Order, Rollouts, gate, now_ms, targets};
use crate::status::{JobStatus, Phase as JobPhase, PushRequest};
use shoal_net::admission::system_clock;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::Document;
use shoal_proto::control::{JobStates, Request, Response};
use shoal_proto::desired::{Desired, Hosts, Rule, Target, feed_of};
use shoal_proto::ids::{HostIndex, JobId, NodeId};
use shoal_proto::locality::Selector;
use shoal_proto::report::HostState;
use shoal_swarm::membership::Membership;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks at which rollouts are due.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two questions about a rollout that is under way, and about one that only waits for hosts that are away.
const ASK_EVERY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// So much longer for each host: what is published then goes to all of them.
const ASK_A_HOST: Duration = Duration::from_micros(20);
/// Between two rounds of questions to gates.
const GATES_EVERY: Duration = Duration::from_secs(2);
/// How long a round of them may take.
const GATES_WITHIN: Duration = Duration::from_secs(10);

impl Rollouts {
    /// Follows rollouts until the token is cancelled.
    pub async fn run(self: Arc<Self>, token: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
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
        rows.iter().filter(|(_, row)| !row.superseded && row.ask_at <= now).map(|(id, _)| *id).collect()
    }

    /// One look at a rollout.
    async fn step(&self, id: JobId) {
        let (phase, is_final) = match self.rows().get_mut(&id) {
            Some(row) => {
                let phase = row.machine.state().phase;
                let wait = if phase.is_final() { ASK_EVERY.1 } else { ASK_EVERY.0 };
                row.ask_at = Instant::now() + wait + ASK_A_HOST * row.machine.tally().hosts;
                (phase, phase.is_final())
            }
            None => return,
        };
        match phase {
            Phase::Preparing => self.prepare(id),
            Phase::Failed => return,
            _ => {
                let Some(tracker) = self.jobs.tracker() else { return };
                if let Some(facts) = self.facts(tracker, id).await {
                    self.tell(id, Input::Facts(&facts));
                }
                self.ask_gates(id).await;
            }
        }
        self.publish(id).await;
        let ended = self.rows().get(&id).is_some_and(|row| row.machine.state().phase.is_final());
        if ended != is_final || is_final {
            self.jobs.rollout_ended(&id, ended);
        }
    }

    /// Tells the machine something, and writes down what it makes of it before anybody acts on it.
    fn tell(&self, id: JobId, input: Input<'_>) {
        {
            let mut rows = self.rows();
            let Some(row) = rows.get_mut(&id) else { return };
            let before = row.machine.state().clone();
            if let Err(why) = row.machine.handle(now_ms(), input) {
                tracing::error!(rollout = %id, why, "refused");
            }
            let state = row.machine.state();
            if let Some(event) = state.events.last().filter(|_| state.events != before.events) {
                tracing::info!(rollout = %id, name = row.machine.spec().name, what = event.what, "rollout");
            }
            row.unkept |= *state != before;
            if !row.unkept {
                return;
            }
        }
        match self.keep(&id) {
            Ok(()) => drop(self.rows().get_mut(&id).map(|row| row.unkept = false)),
            // Hosts must not hear of what would be forgotten: the next look tries again.
            Err(error) => tracing::error!(rollout = %id, %error, "cannot go on"),
        }
    }

    /// The pushes of a rollout's versions, as they are.
    fn pushes(&self, id: &JobId) -> Vec<(String, Option<JobStatus>)> {
        let pushes = self.rows().get(id).map(|row| row.pushes.clone()).unwrap_or_default();
        pushes.into_iter().map(|(version, job)| (version, self.jobs.status(&job))).collect()
    }

    /// Waits for the contents; then the tracker is told of the rollout.
    fn prepare(&self, id: JobId) {
        let mut all_here = true;
        let others = self.jobs.all();
        for (version, push) in self.pushes(&id) {
            // On the hosts a version is a folder: two contents cannot be in it.
            let differs = |push: &JobStatus| {
                let same_label = |other: &&JobStatus| (&other.name, &other.version) == (&push.name, &version);
                let mut contents = others.iter().filter(same_label).filter_map(|other| other.content);
                // An image's tag may move: it has no folder.
                push.kind != Kind::Image && push.content.is_some_and(|content| contents.any(|other| other != content))
            };
            match push {
                Some(push) if differs(&push) => {
                    let why = format!("version {version} was pushed with other content before: give it another label");
                    return self.tell(id, Input::Broken(why));
                }
                None => return self.tell(id, Input::Broken(format!("the push of {version} is forgotten"))),
                Some(push) if push.phase == JobPhase::Failed => {
                    return self.tell(id, Input::Broken(format!("the push of {version} failed: {}", push.error)));
                }
                Some(push) => all_here &= push.content.is_some(),
            }
        }
        if all_here {
            match self.follow(id) {
                Ok(()) => self.tell(id, Input::Ready),
                Err(why) => self.tell(id, Input::Broken(why)),
            }
        }
    }

    /// A rollout is followed like a job, under its own id.
    fn follow(&self, id: JobId) -> Result<(), String> {
        let spec = match self.rows().get(&id) {
            Some(row) => row.machine.spec().clone(),
            None => return Ok(()),
        };
        let pushed = self.pushes(&id).into_iter().find(|(version, _)| *version == spec.version);
        let pushed = pushed.and_then(|(_, status)| status).ok_or("its push is forgotten")?;
        let content = pushed.content.ok_or("its content is not here")?;
        let source = self.jobs.announcement(&pushed.job).ok_or("its announcement is not here")?;
        let now = system_clock();
        let announcement = Announcement {
            job: id,
            content,
            selector: Selector::parse(&spec.to).map_err(|error| error.to_string())?,
            created_at: now,
            expires_at: now + self.jobs.config.job_lifetime.0.as_secs(),
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
        };
        self.jobs.follow_rollout(&request, &announcement, pushed.pieces)
    }

    async fn states(&self, tracker: NodeId, job: JobId) -> Option<JobStates> {
        match self.jobs.control().request(tracker, Request::HostStates { job }).await {
            Ok(Response::States(states)) => Some(states),
            Ok(other) => {
                tracing::debug!(%job, ?other, "the tracker cannot say how hosts are");
                None
            }
            Err(error) => {
                tracing::debug!(%job, %error, "cannot ask the tracker how hosts are");
                None
            }
        }
    }

    /// What is known of a rollout's hosts; `None` when that cannot be told now.
    async fn facts(&self, tracker: NodeId, id: JobId) -> Option<Vec<HostFact>> {
        let (spec, pushes) = {
            let rows = self.rows();
            let row = rows.get(&id)?;
            (row.machine.spec().clone(), row.pushes.clone())
        };
        if !self.jobs.open_at(tracker, id).await {
            return None;
        }
        let states = self.states(tracker, id).await?;
        let mut blocked = Bitmap::default();
        for (_, push) in &pushes {
            // The tracker may have forgotten an old push; its hosts have the data then.
            let Some(states) = self.states(tracker, *push).await else { continue };
            for set in states.sets.iter().filter(|set| matches!(set.state, HostState::Failed(_))) {
                blocked.grow(set.hosts.len());
                blocked.union(&set.hosts);
            }
        }
        let mut reports: BTreeMap<u32, (u16, HostState)> = BTreeMap::new();
        for set in &states.sets {
            reports.extend(set.hosts.iter().map(|host| (host, (set.attempt, set.state))));
        }
        let membership = self.membership();
        let order = self.order(&id, &spec, &membership);
        let fact = |&(rack, index): &(u32, u32)| {
            let report = reports.get(&index).copied();
            // Having failed one push of a content matters only to who does not have it.
            let blocked = blocked.get(index) && report.is_none();
            HostFact { index, rack, up: membership.is_up(HostIndex(index)), report, blocked }
        };
        Some(order.iter().map(fact).collect())
    }

    /// Racks and indices of a rollout's hosts in the order they should switch in; made anew when membership changes.
    fn order(&self, id: &JobId, spec: &RolloutSpec, membership: &Membership) -> Order {
        let epoch = membership.epoch();
        let known = self.rows().get(id).and_then(|row| row.order.clone());
        if let Some((_, order)) = known.filter(|(of, _)| *of == epoch) {
            return order;
        }
        let order = in_order(&spec.name, membership, &targets(spec, membership));
        let order: Order = Arc::new(order.into_iter().map(|(rack, member)| (rack, member.index.0)).collect());
        if let Some(row) = self.rows().get_mut(id) {
            row.order = Some((epoch, order.clone()));
        }
        order
    }

    async fn ask_gates(&self, id: JobId) {
        let asked = {
            let mut rows = self.rows();
            let Some(row) = rows.get_mut(&id).filter(|row| row.machine.wants_gates()) else { return };
            if row.gate_at > Instant::now() {
                return;
            }
            row.gate_at = Instant::now() + GATES_EVERY;
            let spec = row.machine.spec();
            spec.prometheus.clone().map(|server| (server, spec.verify.clone()))
        };
        let Some((server, queries)) = asked else { return };
        let asked = tokio::time::timeout(GATES_WITHIN, gate::ask(&server, &queries)).await;
        let gate = asked.unwrap_or_else(|_| Gate::Undecided(format!("{server} gave no answer in time")));
        self.tell(id, Input::Gate(gate));
    }

    /// The document hosts should have now; `None` before the contents are here.
    fn desired(&self, id: &JobId) -> Option<Desired> {
        let pushes = self.pushes(id);
        let rows = self.rows();
        let row = rows.get(id)?;
        let (spec, state) = (row.machine.spec(), row.machine.state());
        if matches!(state.phase, Phase::Preparing | Phase::Failed) || row.unkept {
            return None;
        }
        let target = |version: &str| {
            let (_, push) = pushes.iter().find(|(other, _)| other == version)?;
            let push = push.as_ref()?;
            let announcement = self.jobs.announcement(&push.job)?;
            Some(Target {
                version: version.to_string(),
                content: announcement.content,
                sequence: announcement.sequence,
            })
        };
        let rules = spec.rules().ok()?.into_iter();
        let rules =
            rules.map(|(hosts, version)| Some(Rule { hosts, target: target(&version)? })).collect::<Option<_>>()?;
        Some(Desired {
            name: spec.name.clone(),
            rollout: *id,
            attempt: state.attempt,
            paused: row.machine.is_paused(),
            back: row.machine.is_rolling_back(),
            watch: row.machine.is_watching(),
            rules,
            open: Hosts::Indices(state.open.clone()),
        })
    }

    /// Publishes what hosts do not know yet.
    async fn publish(&self, id: JobId) {
        let Some(desired) = self.desired(&id) else { return };
        let to = match self.rows().get(&id) {
            Some(row) if row.published.as_ref() != Some(&desired) => row.machine.spec().to.clone(),
            _ => return,
        };
        let bytes = desired.to_bytes();
        if bytes.len() > Desired::BYTES_MAX {
            tracing::error!(rollout = %id, bytes = bytes.len(), "the desired state is too large: use fewer or shorter rules");
            return;
        }
        let (Some(feed), Ok(to)) = (feed_of(&desired.name), Selector::parse(&to)) else { return };
        match self.feeds.publish(&feed, Kind::Gslb, bytes.into(), &to).await {
            Ok(sequence) => {
                tracing::debug!(rollout = %id, sequence, attempt = desired.attempt, "published");
                if let Some(row) = self.rows().get_mut(&id) {
                    row.published = Some(desired);
                }
            }
            Err(error) => tracing::error!(rollout = %id, %error, "cannot publish a desired state"),
        }
    }
}
