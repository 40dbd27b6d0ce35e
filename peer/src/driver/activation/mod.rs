//! Activation of versions on this host: after a push, as a desired state asks, and for images.
//!
//! Owns: the newest active sequence of each name, the switches under way, and the names under desired states.
//! Split by meaning: this file switches versions after a push, [`rollouts`] follows desired states, [`images`] has
//! containerd unpack images.
//! Invariant: a name has at most one switch at a time, and a push never replaces a newer version by an older one.

mod images;
mod rollouts;

use super::Context;
use super::blocking_pool::WorkKind;
use super::completions::Completion;
use crate::activation::content_dir::ContentDirError;
use crate::activation::journal::Journal;
use crate::activation::record::SwitchRecord;
use crate::activation::settings;
use crate::prewarm::PrewarmRequests;
use shoal_proto::announcement::{Announcement, Class, Kind};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::desired::Desired;
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::{HostState, Reason};
use shoal_swarm::io::Input;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use tokio::task::{AbortHandle, JoinSet};

/// Detail of a report on a version that a newer one precedes.
const STALE: &str = "a newer version is active here";
/// Prefix of the keys that keep the newest active sequence of each name.
const ACTIVE_PREFIX: &str = "active/";

/// A name of contents of one kind. Sequences of different kinds are independent.
#[derive(Clone, PartialEq, Eq, Hash)]
struct KindAndName {
    kind: Kind,
    name: String,
}

impl KindAndName {
    fn of(announcement: &Announcement) -> Self {
        Self { kind: announcement.kind, name: announcement.name.clone() }
    }
}

/// A name under a desired state.
#[derive(Default)]
struct ManagedName {
    /// The desired state's sequence among those of the name.
    sequence: u64,
    desired: Option<Arc<Desired>>,
    /// The last attempt on this host.
    record: Option<SwitchRecord>,
    is_switching: bool,
    /// The task that probes the active version.
    probe: Option<AbortHandle>,
    /// The content that the desired state protects from eviction.
    pinned: Option<ContentId>,
    /// The id of the prewarm request under way.
    prewarm: Option<JobId>,
}

/// What a rollout's task on this host ended with.
pub enum RolloutEvent {
    /// A switch ended. `record` has its result.
    Switched { name: String, record: SwitchRecord },
    /// A probe failed. `rollout` and `attempt` name the attempt that activated the version.
    Unhealthy { name: String, rollout: JobId, attempt: u16, why: String },
}

/// A switch that a kill interrupted.
struct InterruptedSwitch {
    name: String,
    record: SwitchRecord,
}

/// What is active on this host, and what is about to be.
pub struct Activations {
    /// The newest active sequence.
    newest: HashMap<KindAndName, u64>,
    /// Names with a switch under way, after a push or as a rollout asks.
    switching: HashSet<String>,
    /// Pushes whose names have a switch under way.
    waiting: VecDeque<Arc<Announcement>>,
    /// Names under desired states.
    names: BTreeMap<String, ManagedName>,
    interrupted: Vec<InterruptedSwitch>,
    /// Switches and probes of rollouts.
    tasks: JoinSet<RolloutEvent>,
    settings: settings::Activations,
    journal: Journal,
    /// The prewarm task's requests. `None` without a containerd.
    prewarm: Option<Arc<PrewarmRequests>>,
}

impl Activations {
    pub fn new(settings: settings::Activations, journal: Journal, prewarm: Option<Arc<PrewarmRequests>>) -> Self {
        Self {
            newest: HashMap::new(),
            switching: HashSet::new(),
            waiting: VecDeque::new(),
            names: BTreeMap::new(),
            interrupted: Vec::new(),
            tasks: JoinSet::new(),
            settings,
            journal,
            prewarm,
        }
    }

    /// Reads the newest active sequences that the store keeps, and reports the current versions.
    pub fn load(&mut self, cx: &Context) {
        let rows = cx.store.scan_state(ACTIVE_PREFIX).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the active versions");
            Vec::new()
        });
        for (key, value) in rows {
            let Some((kind, name)) = key[ACTIVE_PREFIX.len()..].split_once('/') else { continue };
            if let (Ok(kind), Ok(sequence)) = (kind.parse::<Kind>(), decode_exact::<u64>(&value)) {
                self.newest.insert(KindAndName { kind, name: name.to_string() }, sequence);
                let current = cx.content_dir.as_ref().and_then(|folder| folder.current(name));
                cx.reporter.set_current(name, current.as_deref().unwrap_or_default());
            }
        }
    }

    /// Whether a newer version of the name is active here.
    pub fn is_stale(&self, announcement: &Announcement) -> bool {
        self.newest.get(&KindAndName::of(announcement)).is_some_and(|newest| announcement.sequence < *newest)
    }

    /// Reports a stale push, and lets the core forget its content if no other job needs it here.
    pub fn refuse_stale(&self, cx: &mut Context, announcement: &Announcement) {
        let content = announcement.content;
        cx.reporter.reach(&announcement.job, HostState::Failed(Reason::Stale), STALE);
        let is_needed = cx.jobs.pushes_of(&content).iter().any(|job| !self.is_stale(job));
        // A rack share stays: the rack may need it for a promotion.
        let is_stored = cx.store.is_complete(&content) || cx.store.rack_share(&content).is_some();
        if !is_needed && !is_stored {
            cx.tell(Input::ContentRefused { content });
        }
    }

    /// Activates a complete content for all of its jobs, and checks which desired states waited for it.
    pub fn on_complete(&mut self, cx: &mut Context, content: &ContentId) {
        for announcement in cx.jobs.pushes_of(content) {
            self.activate(cx, announcement);
        }
        self.evaluate_all(cx);
    }

    fn activate(&mut self, cx: &mut Context, announcement: Arc<Announcement>) {
        let is_image = images::is_image(cx, &announcement.content);
        if is_image {
            images::save_sequence(cx, &announcement.content, announcement.sequence);
        }
        // A desired state activates staged contents.
        if announcement.staged {
            return;
        }
        let Some(state) = cx.reporter.state(&announcement.job) else { return };
        if is_image {
            self.prewarm_push(cx, &announcement);
            return;
        }
        let Some(folder) = cx.content_dir.clone() else { return };
        if self.is_stale(&announcement) {
            // A job that was active before stays active in the reports.
            cx.reporter.reach(&announcement.job, HostState::Failed(Reason::Stale), STALE);
            return;
        }
        let is_switching = self.switching.contains(&announcement.name);
        if is_switching {
            let is_waiting = self.waiting.iter().any(|waiting| waiting.job == announcement.job);
            if state != HostState::Active && !is_waiting {
                self.waiting.push_back(announcement);
            }
            return;
        }
        self.switching.insert(announcement.name.clone());
        let store = cx.store.clone();
        cx.pool.run(WorkKind::Activate, Class::from(announcement.kind), move || {
            let result = folder.activate(&store, &announcement.content, &announcement.name, &announcement.version);
            Completion::Activated { announcement, result }
        });
    }

    /// Reports the result of a switch after a push.
    pub fn on_activated(&mut self, cx: &mut Context, announcement: &Announcement, result: Result<(), ContentDirError>) {
        let (name, version) = (&announcement.name, &announcement.version);
        match result {
            Ok(()) => {
                self.save_newest(cx, KindAndName::of(announcement), announcement.sequence);
                cx.reporter.set_current(name, version);
                tracing::info!(name, version, "active");
                cx.reporter.reach(&announcement.job, HostState::Active, "");
            }
            Err(error) => {
                tracing::error!(name, version, %error, "cannot activate");
                cx.reporter.reach(&announcement.job, HostState::Failed(Reason::Activation), &error.to_string());
            }
        }
        self.end_switch(cx, name);
        self.evaluate(cx, name);
    }

    /// Ends a name's switch and starts what waited for it.
    fn end_switch(&mut self, cx: &mut Context, name: &str) {
        self.switching.remove(name);
        let waiting = std::mem::take(&mut self.waiting);
        let (mut next, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|waiting| waiting.name == name);
        self.waiting = rest.into();
        // The oldest begins its switch. The others wait again, in their order.
        next.sort_by_key(|waiting| waiting.sequence);
        for waiting in next {
            self.activate(cx, waiting);
        }
    }

    fn save_newest(&mut self, cx: &Context, key: KindAndName, sequence: u64) {
        let state_key = format!("{ACTIVE_PREFIX}{}/{}", key.kind, key.name);
        let newest = self.newest.entry(key).or_default();
        *newest = sequence.max(*newest);
        if let Err(error) = cx.store.put_state(&state_key, Some(encode(&*newest))) {
            tracing::error!(%error, "cannot save which version is active");
        }
    }

    /// Tells the prewarm task which jobs exist. It removes containerd's pins of all others.
    pub fn update_known_jobs(&self, cx: &Context) {
        if let Some(prewarm) = &self.prewarm {
            let pushes = cx.jobs.announcements().map(|announcement| announcement.job);
            let known: BTreeSet<JobId> = pushes.chain(self.prewarm_ids()).collect();
            prewarm.set_jobs(known);
        }
    }
}
