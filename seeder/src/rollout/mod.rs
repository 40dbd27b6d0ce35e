//! Rollouts: a version switched in batch by batch, watched, and taken back when it is not well.
//!
//! Owns: which rollouts there are, their states on disk, and the loop that tells each machine what its hosts say.
//! Invariant: a machine's state is on the disk before a host can hear of it, so a seeder that was killed goes on where it was.
//!
//! Split by meaning: [`spec`] is what is asked for, [`machine`] decides, [`driver`] asks trackers and publishes, [`gate`] asks
//! Prometheus, [`view`] is what the API shows, [`versions`] which host is on which version.

pub mod api;
mod driver;
mod gate;
pub mod machine;
pub mod spec;
pub mod versions;
pub mod view;

use crate::feeds::Feeds;
use crate::jobs::{Jobs, PushError};
use crate::status::{JobStatus, Phase as JobPhase, PushRequest};
use machine::{Command, Input, Machine, State};
use minicbor::{Decode, Encode};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::desired::{Desired, Hosts};
use shoal_proto::ids::{Epoch, HostIndex, JobId};
use shoal_proto::locality::Selector;
use shoal_swarm::membership::Membership;
use spec::RolloutSpec;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc};
use view::{DryRun, RolloutView};

/// Rollouts remembered; the oldest that are over go first.
const ROLLOUTS_MAX: usize = 256;

/// Why a rollout, or a word to one, is refused.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// What is asked for cannot be.
    #[error("{0}")]
    Spec(String),
    /// It selects nobody.
    #[error("no host of the region is `{0}`")]
    NoHosts(String),
    /// A version is not here.
    #[error("version {version} of {name} is not here")]
    NotPushed {
        /// The name.
        name: String,
        /// The version.
        version: String,
    },
    /// Hosts will never get a version's data.
    #[error("{hosts} hosts, e.g. {example}, were not sent version {version}")]
    NotSent {
        /// How many.
        hosts: u32,
        /// One of them.
        example: String,
        /// The version.
        version: String,
    },
    /// Another one is under way.
    #[error("rollout {id} of {name} is not over")]
    Busy {
        /// The name.
        name: String,
        /// That rollout.
        id: JobId,
    },
    /// The version cannot be pushed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// There is none.
    #[error("no rollout `{0}` here")]
    Unknown(String),
    /// Not now.
    #[error("cannot {what} it: {why}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Why not.
        why: String,
    },
    /// The seeder's disk is at fault.
    #[error("cannot keep the rollout: {0}")]
    Store(String),
}

/// What is kept on disk of a rollout.
#[derive(Encode, Decode)]
struct Kept {
    /// What was asked for, as JSON.
    #[n(0)]
    spec: String,
    #[n(1)]
    state: State,
    /// The push of each version.
    #[n(2)]
    pushes: Vec<(String, JobId)>,
    /// A newer rollout of the name has taken over.
    #[n(3)]
    superseded: bool,
}

/// Racks and indices of hosts.
type Order = Arc<Vec<(u32, u32)>>;

struct Row {
    machine: Machine,
    pushes: Vec<(String, JobId)>,
    superseded: bool,
    /// What hosts were last told by this process.
    published: Option<Desired>,
    /// Its state is not on the disk yet.
    unkept: bool,
    /// Racks and indices of its hosts in their order, at an epoch of the membership.
    order: Option<(Epoch, Order)>,
    ask_at: Instant,
    gate_at: Instant,
}

impl Row {
    fn new(machine: Machine, pushes: Vec<(String, JobId)>, superseded: bool) -> Self {
        let now = Instant::now();
        Self { machine, pushes, superseded, published: None, unkept: false, order: None, ask_at: now, gate_at: now }
    }
}

/// The rollouts of a seeder.
pub struct Rollouts {
    jobs: Arc<Jobs>,
    feeds: Arc<Feeds>,
    queue: mpsc::Sender<(JobId, PushRequest)>,
    rows: Mutex<BTreeMap<JobId, Row>>,
    /// Woken when a person asked for something.
    wake: Notify,
}

fn key(id: &JobId) -> String {
    format!("rollout/{id}")
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Rollouts {
    /// Continues with those on disk. Versions to be pushed go into `queue`.
    pub fn open(jobs: Arc<Jobs>, feeds: Arc<Feeds>, queue: mpsc::Sender<(JobId, PushRequest)>) -> Arc<Self> {
        let mut rows = BTreeMap::new();
        for (key, bytes) in jobs.node().store.scan_state("rollout/").unwrap_or_default() {
            let id = key["rollout/".len()..].parse::<JobId>().map_err(|error| error.to_string());
            let kept = decode_exact::<Kept>(&bytes).map_err(|error| error.to_string());
            let read = id.and_then(|id| {
                let kept = kept?;
                let spec: RolloutSpec = serde_json::from_str(&kept.spec).map_err(|error| error.to_string())?;
                Ok((id, Row::new(Machine::resume(spec, kept.state), kept.pushes, kept.superseded)))
            });
            match read {
                Ok((id, row)) => drop(rows.insert(id, row)),
                Err(error) => tracing::error!(key, %error, "cannot read a rollout"),
            }
        }
        Arc::new(Self { jobs, feeds, queue, rows: Mutex::new(rows), wake: Notify::new() })
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<JobId, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn membership(&self) -> Arc<Membership> {
        self.jobs.node().membership.borrow().clone()
    }

    /// Writes a rollout down, durably.
    fn keep(&self, id: &JobId) -> Result<(), RolloutError> {
        let fault = |error: &dyn std::fmt::Display| RolloutError::Store(error.to_string());
        let bytes = match self.rows().get(id) {
            Some(row) => encode(&Kept {
                spec: serde_json::to_string(row.machine.spec()).map_err(|error| fault(&error))?,
                state: row.machine.state().clone(),
                pushes: row.pushes.clone(),
                superseded: row.superseded,
            }),
            None => return Ok(()),
        };
        let store = &self.jobs.node().store;
        store.put_state(&key(id), Some(bytes)).and_then(|()| store.sync()).map_err(|error| fault(&error))
    }

    /// What a rollout would do now.
    pub fn dry_run(&self, spec: &RolloutSpec) -> Result<DryRun, RolloutError> {
        let (targets, _) = self.check(spec)?;
        Ok(view::dry(spec, &self.membership(), &targets))
    }

    /// Checks a rollout; gives its hosts, and the pushes of the versions that are here.
    fn check(&self, spec: &RolloutSpec) -> Result<(Bitmap, Vec<(String, JobId)>), RolloutError> {
        spec.validate().map_err(RolloutError::Spec)?;
        let rules = spec.rules().map_err(RolloutError::Spec)?;
        let membership = self.membership();
        let targets = targets(spec, &membership);
        if targets.none() {
            return Err(RolloutError::NoHosts(spec.to.join(" or ")));
        }
        let rows = self.rows();
        let others = rows.iter().filter(|(_, row)| row.machine.spec().name == spec.name && !row.superseded);
        for (id, row) in others {
            let state = row.machine.state();
            let switching = state.opened_at.keys().any(|host| membership.is_up(HostIndex(*host)));
            if !state.phase.is_final() || (switching && state.phase != machine::Phase::Cancelled) {
                return Err(RolloutError::Busy { name: spec.name.clone(), id: *id });
            }
        }
        drop(rows);
        let mut pushes: Vec<(String, JobId)> = Vec::new();
        let jobs = self.jobs.all();
        for (_, version) in &rules {
            let known = pushes.iter().any(|(other, _)| other == version);
            if known || (*version == spec.version && spec.path.is_some()) {
                continue;
            }
            // One that is still being taken in is waited for.
            let usable = |job: &&JobStatus| {
                (&job.name, &job.version) == (&spec.name, version) && !job.rollout && job.phase != JobPhase::Failed
            };
            let Some(job) = jobs.iter().find(usable) else {
                return Err(RolloutError::NotPushed { name: spec.name.clone(), version: version.clone() });
            };
            let sent = Selector::parse(&[&job.to]).map(|to| membership.select(&to)).unwrap_or_default();
            let mut left_out = with_version(spec, &membership, &targets, version);
            left_out.subtract(&sent);
            if let Some(first) = left_out.iter().next() {
                let example = membership.get(HostIndex(first)).map(|member| member.locality.to_string());
                return Err(RolloutError::NotSent {
                    hosts: left_out.count(),
                    example: example.unwrap_or_default(),
                    version: version.clone(),
                });
            }
            pushes.push((version.clone(), job.job));
        }
        Ok((targets, pushes))
    }

    /// Begins a rollout.
    pub fn create(&self, spec: RolloutSpec) -> Result<JobId, RolloutError> {
        let (_, mut pushes) = self.check(&spec)?;
        let mut id = [0u8; 16];
        getrandom::fill(&mut id).map_err(|error| RolloutError::Store(error.to_string()))?;
        let id = JobId(id);
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
            };
            let job = self.jobs.create(&request)?;
            permit.send((job, request));
            pushes.push((spec.version.clone(), job));
        }
        let name = spec.name.clone();
        let former: Vec<JobId> = {
            let mut rows = self.rows();
            let former = rows.iter_mut().filter(|(_, row)| row.machine.spec().name == name && !row.superseded);
            let former = former.map(|(id, row)| {
                row.superseded = true;
                *id
            });
            let former = former.collect();
            rows.insert(id, Row::new(Machine::new(spec, now_ms()), pushes, false));
            former
        };
        self.keep(&id)?;
        for other in former {
            self.keep(&other)?;
        }
        self.forget_oldest();
        self.wake.notify_one();
        tracing::info!(rollout = %id, name, "rollout begins");
        Ok(id)
    }

    fn forget_oldest(&self) {
        let mut rows = self.rows();
        while rows.len() > ROLLOUTS_MAX {
            let over = rows.iter().filter(|(_, row)| row.machine.state().phase.is_final());
            let oldest = over.min_by_key(|(_, row)| (!row.superseded, row.machine.state().began_ms));
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            rows.remove(&oldest);
            let _gone = self.jobs.node().store.put_state(&key(&oldest), None);
        }
    }

    /// Finds a rollout by its id, or the newest of a name.
    pub fn find(&self, of: &str) -> Result<JobId, RolloutError> {
        let rows = self.rows();
        let by_id = of.parse::<JobId>().ok().filter(|id| rows.contains_key(id));
        let named = rows.iter().filter(|(_, row)| row.machine.spec().name == of);
        let newest = named.max_by_key(|(id, row)| (row.machine.state().began_ms, **id)).map(|(id, _)| *id);
        by_id.or(newest).ok_or_else(|| RolloutError::Unknown(of.to_string()))
    }

    /// A person's word to a rollout.
    pub fn command(&self, of: &str, command: Command) -> Result<RolloutView, RolloutError> {
        let id = self.find(of)?;
        let what = serde_json::to_value(command).ok().and_then(|word| Some(word.as_str()?.to_string()));
        let what = what.unwrap_or_default();
        {
            let mut rows = self.rows();
            let row = rows.get_mut(&id).ok_or_else(|| RolloutError::Unknown(of.to_string()))?;
            let refused = |why: String| RolloutError::Refused { what: what.clone(), why };
            if row.superseded {
                return Err(refused("a newer rollout of the name has taken over".into()));
            }
            row.machine.handle(now_ms(), Input::Command(command)).map_err(refused)?;
            row.ask_at = Instant::now();
        }
        self.keep(&id)?;
        tracing::info!(rollout = %id, what, "told");
        self.wake.notify_one();
        self.view(&id).ok_or_else(|| RolloutError::Unknown(of.to_string()))
    }

    /// A plain push of a name: it switches at once, so a rollout that is under way is in its way, and one that is over must
    /// no longer bring hosts that come back to its own version.
    pub fn make_way(&self, name: &str) -> Result<(), RolloutError> {
        let found: Vec<JobId> = {
            let mut rows = self.rows();
            let named = rows.iter_mut().filter(|(_, row)| row.machine.spec().name == name && !row.superseded);
            let mut found = Vec::new();
            for (id, row) in named {
                row.machine
                    .handle(now_ms(), Input::Retire)
                    .map_err(|_| RolloutError::Busy { name: name.to_string(), id: *id })?;
                row.ask_at = Instant::now();
                found.push(*id);
            }
            found
        };
        found.iter().try_for_each(|id| self.keep(id))
    }

    /// A rollout as the API shows it.
    pub fn view(&self, id: &JobId) -> Option<RolloutView> {
        self.rows().get(id).map(|row| RolloutView::new(*id, &row.machine, row.superseded))
    }

    /// All, newest first; of one name if given.
    pub fn all(&self, name: Option<&str>) -> Vec<RolloutView> {
        let rows = self.rows();
        let named = rows.iter().filter(|(_, row)| name.is_none_or(|name| row.machine.spec().name == name));
        let mut all: Vec<RolloutView> =
            named.map(|(id, row)| RolloutView::new(*id, &row.machine, row.superseded)).collect();
        all.sort_by_key(|row| std::cmp::Reverse(row.began_ms));
        all
    }
}

/// The hosts a rollout is for.
fn targets(spec: &RolloutSpec, membership: &Membership) -> Bitmap {
    let Ok(selector) = Selector::parse(&spec.to) else { return Bitmap::default() };
    let rules = spec.rules().unwrap_or_default();
    let mut hosts = membership.select(&selector);
    for host in hosts.clone().iter() {
        let member = membership.get(HostIndex(host));
        let ruled = |member| rules.iter().any(|(hosts, _): &(Hosts, String)| hosts.has(&spec.name, member));
        if !member.is_some_and(ruled) {
            hosts.unset(host);
        }
    }
    hosts
}

/// Those of them that get a version.
fn with_version(spec: &RolloutSpec, membership: &Membership, targets: &Bitmap, version: &str) -> Bitmap {
    let rules = spec.rules().unwrap_or_default();
    let gets = |host: &u32| {
        let member = membership.get(HostIndex(*host))?;
        let rule = rules.iter().find(|(hosts, _)| hosts.has(&spec.name, member))?;
        Some(rule.1 == version)
    };
    let mut hosts = Bitmap::new(targets.len());
    targets.iter().filter(|host| gets(host) == Some(true)).for_each(|host| {
        hosts.set(host);
    });
    hosts
}
