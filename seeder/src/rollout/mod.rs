//! Rollouts: the staged activation of a version on many hosts, with gates and rollback.
//!
//! Owns: the rollouts of this seeder, their states on disk, and the loop that feeds each machine.
//!
//! Split by meaning: `spec` checks what is asked for, `batches` and `targets` compute sizes, hosts and order,
//! `machine` decides, `driver` asks trackers and gates and publishes desired states, `reasons` finds out why hosts
//! failed, `gate` asks Prometheus, `record` is one rollout on disk, `view` and `versions` are what the API shows.
//! Invariant: a machine's state is on disk before a host can learn of it, so a killed seeder continues where it was.

pub(crate) mod api;
mod batches;
mod driver;
mod gate;
mod machine;
mod reasons;
mod record;
pub(crate) mod spec;
mod targets;
mod versions;
mod view;

use crate::errors::StateError;
use crate::feeds::Feeds;
use crate::jobs::{Jobs, PushError, QueuedPush, new_id};
use crate::publisher::Publisher;
use crate::tracker::Tracker;
use machine::{Input, Machine, Refusal};
use shoal_api::jobs::{JobPhase, JobStatus, PushRequest};
use shoal_api::rollouts::{DryRun, RolloutCommand, RolloutPhase, RolloutSpec, RolloutView};
use shoal_peer::handle::NodeHandle;
use shoal_proto::announcement::{Kind, Order};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::desired::Desired;
use shoal_proto::ids::{Epoch, HostIndex, JobId};
use shoal_proto::locality::Selector;
use shoal_service::access::{Caller, Denied};
use shoal_swarm::membership::Membership;
use spec::SpecError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use targets::{targets, with_version};
use tokio::sync::{Notify, mpsc};

/// Rollouts that the seeder remembers. It forgets the oldest ended ones first.
const ROLLOUTS_MAX: usize = 256;

/// Why a rollout, or a command to one, is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RolloutError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("no host of the region matches `{0}`")]
    NoHosts(String),
    #[error("version {version} of {name} was not pushed to this seeder")]
    NotPushed { name: String, version: String },
    #[error("{hosts} hosts, e.g. {example}, were not sent version {version}")]
    NotSent { hosts: u32, example: String, version: String },
    /// `state` is the phase. Hosts may still switch in a rollout that has ended.
    #[error("rollout {id} of {name} to version {version} is not over, it is {state}")]
    UnderWay { name: String, version: String, id: JobId, state: String },
    #[error("the {what} of {name}@{version} is under way as job {id}, and it is newer than a version of the rollout")]
    JobUnderWay { what: &'static str, name: String, version: String, id: JobId },
    #[error(transparent)]
    Push(#[from] PushError),
    #[error("this seeder has no rollout `{0}`")]
    Unknown(String),
    #[error("cannot {} the rollout", .command.name())]
    Refused { command: RolloutCommand, source: Refusal },
    #[error("cannot {} the rollout: a newer rollout of the name has replaced it", .command.name())]
    Superseded { command: RolloutCommand },
    #[error("cannot store the rollout")]
    Store(#[from] StateError),
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// The push of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VersionPush {
    version: String,
    job: JobId,
}

/// A host in the order of a rollout.
#[derive(Clone, Copy, Debug)]
struct HostPlace {
    /// A number that hosts of one rack share.
    rack: u32,
    /// Roster index.
    index: u32,
}

/// The order of a rollout's hosts at an epoch of the membership.
#[derive(Clone, Debug)]
struct HostOrder {
    epoch: Epoch,
    hosts: Arc<Vec<HostPlace>>,
}

/// A rollout in memory.
struct Rollout {
    machine: Machine,
    pushes: Vec<VersionPush>,
    /// The greatest sequence of the pushes and promotions before the rollout. Hosts on its version ignore those.
    replaces: u64,
    /// A newer rollout of the name replaced this one.
    superseded: bool,
    /// The desired state that this process published last.
    published: Option<Desired>,
    /// The state has changed and is not on disk yet, so hosts must not learn of it.
    is_dirty: bool,
    /// What keeps the rollout from its next step, at the last look. Empty if nothing does.
    trouble: String,
    /// Since when neither the seeder nor a host has the content that staging waits for, milliseconds.
    no_source_since: Option<u64>,
    /// A cache, computed again when the membership changes.
    order: Option<HostOrder>,
    /// When to look at the rollout again.
    ask_at: Instant,
    /// When to ask the gates again.
    gate_at: Instant,
}

impl Rollout {
    fn new(machine: Machine, pushes: Vec<VersionPush>, replaces: u64) -> Self {
        let (ask_at, gate_at) = (Instant::now(), Instant::now());
        let (superseded, published, is_dirty, trouble, order) = (false, None, false, String::new(), None);
        let no_source_since = None;
        Self {
            machine,
            pushes,
            replaces,
            superseded,
            published,
            is_dirty,
            trouble,
            no_source_since,
            order,
            ask_at,
            gate_at,
        }
    }

    /// Why another operation on the name cannot begin.
    fn under_way(&self, id: JobId) -> RolloutError {
        let (spec, phase) = (self.machine.spec(), self.machine.state().phase);
        let still = if phase.is_final() { ", and hosts still switch" } else { "" };
        let state = format!("{}{still}", phase.name());
        RolloutError::UnderWay { name: spec.name.clone(), version: spec.version.clone(), id, state }
    }

    /// Whether the rollout is of this name and not superseded.
    fn is_current_of(&self, name: &str) -> bool {
        self.machine.spec().name == name && !self.superseded
    }
}

/// A checked rollout: its hosts and the pushes that it needs.
struct Checked {
    targets: Bitmap,
    /// Pushes of versions that the seeder has. A version with a path is pushed later.
    pushes: Vec<VersionPush>,
}

/// The rollouts of a seeder.
pub(crate) struct Rollouts {
    jobs: Arc<Jobs>,
    node: NodeHandle,
    publisher: Arc<Publisher>,
    tracker: Tracker,
    feeds: Arc<Feeds>,
    queue: mpsc::Sender<QueuedPush>,
    rows: Mutex<BTreeMap<JobId, Rollout>>,
    /// Woken by a command and by a new rollout.
    wake: Notify,
}

/// The other parts of the seeder that rollouts use.
pub(crate) struct RolloutParts {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) node: NodeHandle,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) tracker: Tracker,
    pub(crate) feeds: Arc<Feeds>,
    /// Takes the pushes of versions that a rollout names by path.
    pub(crate) queue: mpsc::Sender<QueuedPush>,
}

fn key(id: &JobId) -> String {
    format!("rollout/{id}")
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Rollouts {
    /// Continues with the rollouts on disk. A record that cannot be read is logged and skipped.
    pub(crate) fn open(parts: RolloutParts) -> Arc<Self> {
        let RolloutParts { jobs, node, publisher, tracker, feeds, queue } = parts;
        let mut rows = BTreeMap::new();
        for (key, bytes) in node.store.scan_state("rollout/").unwrap_or_default() {
            let Ok(id) = key["rollout/".len()..].parse::<JobId>() else {
                tracing::error!(key, "a stored rollout has an invalid id");
                continue;
            };
            match Rollout::from_record(&bytes) {
                Ok(rollout) => drop(rows.insert(id, rollout)),
                Err(error) => tracing::error!(key, %error, "cannot read a stored rollout"),
            }
        }
        let (rows, wake) = (Mutex::new(rows), Notify::new());
        Arc::new(Self { jobs, node, publisher, tracker, feeds, queue, rows, wake })
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<JobId, Rollout>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn membership(&self) -> Arc<Membership> {
        self.node.membership.borrow().clone()
    }

    /// Stores a rollout durably.
    fn store(&self, id: &JobId) -> Result<(), StateError> {
        let bytes = match self.rows().get(id) {
            Some(rollout) => rollout.to_record()?,
            None => return Ok(()),
        };
        self.node.store.put_state(&key(id), Some(bytes))?;
        Ok(self.node.store.sync()?)
    }

    /// Returns what a rollout would do now.
    ///
    /// # Errors
    /// Returns why the rollout would be refused.
    pub(crate) fn dry_run(&self, spec: &RolloutSpec) -> Result<DryRun, RolloutError> {
        let checked = self.check(spec)?;
        Ok(view::dry_run(spec, &self.membership(), &checked.targets))
    }

    fn check(&self, spec: &RolloutSpec) -> Result<Checked, RolloutError> {
        spec::check(spec)?;
        let membership = self.membership();
        let targets = targets(spec, &membership);
        if targets.none() {
            return Err(RolloutError::NoHosts(spec.to.join(" or ")));
        }
        self.check_none_under_way(&spec.name, &membership)?;
        let mut pushes: Vec<VersionPush> = Vec::new();
        let jobs = self.jobs.all();
        for rule in spec::rules(spec)? {
            let version = rule.version;
            let is_known = pushes.iter().any(|push| push.version == version);
            if is_known || (version == spec.version && spec.path.is_some()) {
                continue;
            }
            // A push that is still being ingested is usable: the rollout waits for it.
            let is_usable = |job: &&JobStatus| {
                let is_push = !job.rollout && job.order != Some(Order::Demote) && job.phase != JobPhase::Failed;
                is_push && (&job.name, &job.version) == (&spec.name, &version)
            };
            let Some(job) = jobs.iter().find(is_usable) else {
                return Err(RolloutError::NotPushed { name: spec.name.clone(), version });
            };
            check_sent(spec, &membership, &targets, job)?;
            pushes.push(VersionPush { version, job: job.job });
        }
        self.check_no_newer_job(&spec.name, &pushes, &jobs)?;
        Ok(Checked { targets, pushes })
    }

    /// A push or a promotion that is newer than a version of the rollout would replace that version on its hosts.
    fn check_no_newer_job(&self, name: &str, pushes: &[VersionPush], jobs: &[JobStatus]) -> Result<(), RolloutError> {
        let Some(oldest) = pushes.iter().filter_map(|push| self.jobs.sequence(&push.job)).min() else { return Ok(()) };
        let is_newer = |job: &&JobStatus| {
            job.name == name && switches_hosts(job) && !job.is_final() && self.jobs.sequence(&job.job) > Some(oldest)
        };
        let Some(job) = jobs.iter().find(is_newer) else { return Ok(()) };
        let what = if job.order == Some(Order::Promote) { "promotion" } else { "push" };
        Err(RolloutError::JobUnderWay { what, name: job.name.clone(), version: job.version.clone(), id: job.job })
    }

    /// A rollout blocks others of its name until it has ended and no host that is up may still switch.
    fn check_none_under_way(&self, name: &str, membership: &Membership) -> Result<(), RolloutError> {
        let rows = self.rows();
        for (id, rollout) in rows.iter().filter(|(_, rollout)| rollout.is_current_of(name)) {
            let state = rollout.machine.state();
            let may_switch = state.opened_at.keys().any(|host| membership.is_up(HostIndex(*host)));
            if !state.phase.is_final() || (may_switch && state.phase != RolloutPhase::Cancelled) {
                return Err(rollout.under_way(*id));
            }
        }
        Ok(())
    }

    /// Checks that a caller may replace the rollouts of a name, which concerns all their hosts.
    fn check_caller(&self, name: &str, caller: &Caller) -> Result<(), RolloutError> {
        let rows = self.rows();
        let mut current = rows.values().filter(|rollout| rollout.is_current_of(name));
        Ok(current.try_for_each(|rollout| caller.check(name, &rollout.machine.spec().to))?)
    }

    /// Begins a rollout.
    ///
    /// # Errors
    /// Returns why the rollout is refused. Nothing has begun then, except that its push may have been accepted.
    pub(crate) fn create(&self, spec: RolloutSpec, caller: &Caller) -> Result<JobId, RolloutError> {
        caller.check(&spec.name, &spec.to)?;
        self.check_caller(&spec.name, caller)?;
        let mut pushes = self.check(&spec)?.pushes;
        let id = new_id().map_err(StateError::from)?;
        if let Some(path) = &spec.path {
            let permit = self.queue.try_reserve().map_err(|_| PushError::Busy)?;
            let request = PushRequest {
                path: path.clone(),
                name: spec.name.clone(),
                version: spec.version.clone(),
                kind: spec.kind,
                to: spec.to.clone(),
                staged: true,
                image: None,
                replace: spec.replace,
            };
            let job = self.jobs.create(&request)?;
            permit.send(QueuedPush { job, request });
            pushes.push(VersionPush { version: spec.version.clone(), job });
        }
        let name = spec.name.clone();
        let replaces = self.newest_switch(&name);
        let mut changed = vec![id];
        {
            let mut rows = self.rows();
            for (other, rollout) in rows.iter_mut().filter(|(_, rollout)| rollout.is_current_of(&name)) {
                rollout.superseded = true;
                changed.push(*other);
            }
            rows.insert(id, Rollout::new(Machine::new(spec, now_ms()), pushes, replaces));
        }
        changed.iter().try_for_each(|id| self.store(id))?;
        self.forget_oldest();
        self.wake.notify_one();
        tracing::info!(rollout = %id, name, "a rollout begins");
        Ok(id)
    }

    /// Returns the greatest sequence of the pushes and promotions that switch hosts to a version of a name.
    fn newest_switch(&self, name: &str) -> u64 {
        let jobs = self.jobs.all();
        let of_name = jobs.iter().filter(|job| job.name == name && switches_hosts(job));
        of_name.filter_map(|job| self.jobs.sequence(&job.job)).max().unwrap_or(0)
    }

    fn forget_oldest(&self) {
        let mut rows = self.rows();
        while rows.len() > ROLLOUTS_MAX {
            let ended = rows.iter().filter(|(_, rollout)| rollout.machine.state().phase.is_final());
            // Superseded ones first: a current one still brings hosts that return to its version.
            let oldest = ended.min_by_key(|(_, rollout)| (!rollout.superseded, rollout.machine.state().began_ms));
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            tracing::info!(rollout = %oldest, rollouts_max = ROLLOUTS_MAX, "forgot the oldest rollout that has ended");
            rows.remove(&oldest);
            let _ = self.node.store.put_state(&key(&oldest), None); // a record that stays is forgotten after a restart
        }
    }

    /// Returns the rollout with this id, or the newest rollout of this name.
    ///
    /// # Errors
    /// Returns [`RolloutError::Unknown`] if there is none.
    pub(crate) fn find(&self, of: &str) -> Result<JobId, RolloutError> {
        let rows = self.rows();
        let by_id = of.parse::<JobId>().ok().filter(|id| rows.contains_key(id));
        let named = rows.iter().filter(|(_, rollout)| rollout.machine.spec().name == of);
        let newest = named.max_by_key(|(id, rollout)| (rollout.machine.state().began_ms, **id)).map(|(id, _)| *id);
        by_id.or(newest).ok_or_else(|| RolloutError::Unknown(of.to_string()))
    }

    /// Obeys an operator's command. Returns the rollout after it.
    ///
    /// # Errors
    /// Returns why the command is refused.
    pub(crate) fn command(
        &self,
        of: &str,
        command: RolloutCommand,
        caller: &Caller,
    ) -> Result<RolloutView, RolloutError> {
        let id = self.find(of)?;
        if let Some(rollout) = self.rows().get(&id) {
            let spec = rollout.machine.spec();
            caller.check(&spec.name, &spec.to)?;
        }
        {
            let mut rows = self.rows();
            let rollout = rows.get_mut(&id).ok_or_else(|| RolloutError::Unknown(of.to_string()))?;
            if rollout.superseded {
                return Err(RolloutError::Superseded { command });
            }
            let handled = rollout.machine.handle(now_ms(), Input::Command(command));
            handled.map_err(|source| RolloutError::Refused { command, source })?;
            rollout.ask_at = Instant::now();
        }
        self.store(&id)?;
        tracing::info!(rollout = %id, command = command.name(), "an operator sent a command");
        self.wake.notify_one();
        self.view(&id).ok_or_else(|| RolloutError::Unknown(of.to_string()))
    }

    /// Prepares a name for a plain push or a promotion, which switch hosts at once. Blocks.
    ///
    /// A rollout that has ended no longer brings returning hosts to its own version.
    ///
    /// # Errors
    /// Returns [`RolloutError::UnderWay`] if a rollout of the name has not ended, and [`RolloutError::Denied`] if one
    /// had hosts that are not the caller's.
    pub(crate) fn retire(&self, name: &str, caller: &Caller) -> Result<(), RolloutError> {
        self.check_caller(name, caller)?;
        let mut retired = Vec::new();
        for (id, rollout) in self.rows().iter_mut().filter(|(_, rollout)| rollout.is_current_of(name)) {
            if rollout.machine.handle(now_ms(), Input::Retire).is_err() {
                return Err(rollout.under_way(*id));
            }
            rollout.ask_at = Instant::now();
            retired.push(*id);
        }
        Ok(retired.iter().try_for_each(|id| self.store(id))?)
    }

    /// Returns a rollout as the API shows it.
    pub(crate) fn view(&self, id: &JobId) -> Option<RolloutView> {
        self.rows().get(id).map(|rollout| view::view(*id, rollout))
    }

    /// Returns all rollouts, or those of a name, newest first.
    pub(crate) fn all(&self, name: Option<&str>) -> Vec<RolloutView> {
        let rows = self.rows();
        let named = rows.iter().filter(|(_, rollout)| name.is_none_or(|name| rollout.machine.spec().name == name));
        let mut all: Vec<RolloutView> = named.map(|(id, rollout)| view::view(*id, rollout)).collect();
        all.sort_by_key(|view| std::cmp::Reverse(view.began_ms));
        all
    }
}

/// Whether a job switches hosts as soon as they have its content. Images have no folder that is switched.
fn switches_hosts(job: &JobStatus) -> bool {
    job.kind != Kind::Image && !job.staged && !job.rollout && job.order != Some(Order::Demote)
}

/// Checks that a push reaches every target that gets its version.
fn check_sent(
    spec: &RolloutSpec,
    membership: &Membership,
    targets: &Bitmap,
    push: &JobStatus,
) -> Result<(), RolloutError> {
    let sent = Selector::parse(&[&push.to]).map(|to| membership.select(&to)).unwrap_or_default();
    let mut left_out = with_version(spec, membership, targets, &push.version);
    left_out.subtract(&sent);
    let Some(first) = left_out.iter().next() else { return Ok(()) };
    let example = membership.get(HostIndex(first)).map(|member| member.locality.to_string());
    Err(RolloutError::NotSent {
        hosts: left_out.count(),
        example: example.unwrap_or_default(),
        version: push.version.clone(),
    })
}
