//! Jobs: which there are, what is kept of them on disk, and which pushes may begin.
//!
//! Invariant: a job's phase only advances, and what is needed to continue after a restart is on disk before the first
//! host hears of the job.

use crate::config::SeederConfig;
use crate::images::pull::Pulls;
pub use crate::status::{HostLine, ImageRequest, JobStatus, Phase, PushRequest};
use minicbor::{Decode, Encode};
use shoal_net::admission::system_clock;
use shoal_net::control::ControlHandle;
use shoal_peer::driver::setup::RunningNode;
use shoal_peer::handle::NodeHandle;
use shoal_proto::announcement::{Announcement, Kind, Order, is_content_name, is_reserved, is_version};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{ContentId, JobId, NodeId};
use shoal_proto::locality::Selector;
use shoal_proto::trust::{Envelope, Keypair};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};

/// Jobs remembered; the oldest finished ones go first.
const JOBS_MAX: usize = 1024;
/// Pushes taken in at once.
const INGESTS_MAX: usize = 2;

/// Why a push is not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The name cannot be.
    #[error("`{0}` is no content name")]
    Name(String),
    /// The version cannot be.
    #[error("`{0}` is no version")]
    Version(String),
    /// The selector cannot be read.
    #[error("{0}")]
    Selector(String),
    /// It selects nobody.
    #[error("no host of the region is `{0}`")]
    NoHosts(String),
    /// Nothing usable is there.
    #[error("{0}")]
    Path(String),
    /// The image cannot be.
    #[error("{0}")]
    Image(String),
    /// The name collides with another's folder on the hosts.
    #[error("`{name}` cannot stand beside `{other}` ({kind})")]
    Clash {
        /// The name asked for.
        name: String,
        /// The name there is.
        other: String,
        /// The kind of that.
        kind: String,
    },
    /// Too much at once.
    #[error("{JOBS_MAX} jobs are running")]
    Busy,
    /// The seeder's disk is at fault.
    #[error("cannot keep the job: {0}")]
    Store(String),
}

/// What is kept on disk of a job.
#[derive(Clone, Debug, Encode, Decode)]
struct Kept {
    /// Its status then, as JSON.
    #[n(0)]
    status: String,
    /// The push, as JSON, until there is an announcement.
    #[n(1)]
    request: Option<String>,
    /// The signed announcement, once there is one.
    #[n(2)]
    envelope: Option<Envelope>,
    /// Its place among the versions of its name.
    #[n(3)]
    sequence: Option<u64>,
}

pub(crate) struct Job {
    pub(crate) status: JobStatus,
    request: Option<PushRequest>,
    /// The signed announcement, once there is one.
    pub(crate) envelope: Option<Envelope>,
    /// Its place among the versions of its name: in the order they were asked for, whichever is taken in first.
    pub(crate) sequence: Option<u64>,
    pub(crate) announced: Instant,
    pub(crate) expires_at: u64,
    /// The tracker was told.
    pub(crate) opened: bool,
    /// When to ask the tracker again.
    pub(crate) ask_at: Instant,
}

impl Job {
    pub(crate) fn new(status: JobStatus, request: Option<PushRequest>) -> Self {
        let now = Instant::now();
        let (announced, ask_at) = (now, now);
        Self { status, request, envelope: None, sequence: None, announced, expires_at: u64::MAX, opened: false, ask_at }
    }

    fn to_kept(&self) -> Result<Kept, serde_json::Error> {
        let request = self.request.as_ref().filter(|_| self.envelope.is_none());
        Ok(Kept {
            status: serde_json::to_string(&self.status)?,
            request: request.map(serde_json::to_string).transpose()?,
            envelope: self.envelope.clone(),
            sequence: self.sequence,
        })
    }

    fn from_kept(kept: Kept) -> Result<Self, String> {
        let json = |error: serde_json::Error| error.to_string();
        let status: JobStatus = serde_json::from_str(&kept.status).map_err(json)?;
        let request = kept.request.map(|text| serde_json::from_str(&text)).transpose().map_err(json)?;
        let mut job = Self::new(status, request);
        job.sequence = kept.sequence;
        if let Some(envelope) = kept.envelope {
            let announcement: Announcement = envelope.open().map_err(|error| error.to_string())?;
            let age = Duration::from_secs(system_clock().saturating_sub(announcement.created_at));
            job.announced = job.announced.checked_sub(age).unwrap_or(job.announced);
            job.expires_at = announcement.expires_at;
            job.envelope = Some(envelope);
        } else if job.status.phase == Phase::Distributing || (!job.status.is_final() && job.request.is_none()) {
            return Err("neither a push nor an announcement".into());
        }
        Ok(job)
    }
}

/// The jobs of a seeder.
pub struct Jobs {
    pub(crate) config: SeederConfig,
    pub(crate) publisher: Keypair,
    pub(crate) me: NodeId,
    handle: NodeHandle,
    control: ControlHandle,
    tracker: watch::Receiver<Option<NodeId>>,
    rows: Mutex<BTreeMap<JobId, Job>>,
    /// Woken when a job changed.
    pub changed: Notify,
    pub(crate) ingests: Semaphore,
    pub(crate) pulls: Pulls,
}

fn key(job: &JobId) -> String {
    format!("job/{job}")
}

impl Jobs {
    /// Continues with the jobs on disk.
    pub fn open(config: SeederConfig, publisher: Keypair, running: &RunningNode) -> Arc<Self> {
        let jobs = Self {
            pulls: Pulls::new(&config.dir),
            config,
            publisher,
            me: running.credential.node,
            handle: running.handle.clone(),
            control: running.control.clone(),
            tracker: running.tracker.clone(),
            rows: Mutex::default(),
            changed: Notify::new(),
            ingests: Semaphore::new(INGESTS_MAX),
        };
        for (key, bytes) in jobs.handle.store.scan_state("job/").unwrap_or_default() {
            let kept = decode_exact(&bytes).map_err(|error| error.to_string());
            match kept.and_then(Job::from_kept) {
                Ok(job) => {
                    jobs.rows().insert(job.status.job, job);
                }
                Err(error) => {
                    tracing::warn!(key, %error, "dropped a kept job");
                    let _gone = jobs.handle.store.put_state(&key, None);
                }
            }
        }
        Arc::new(jobs)
    }

    /// Pushes that were not taken in before the seeder stopped.
    pub fn unfinished(&self) -> Vec<(JobId, PushRequest)> {
        let rows = self.rows();
        let pushes = rows.values().filter(|row| row.status.is_coming());
        pushes.filter_map(|row| Some((row.status.job, row.request.clone()?))).collect()
    }

    pub(crate) fn rows(&self) -> MutexGuard<'_, BTreeMap<JobId, Job>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn node(&self) -> &NodeHandle {
        &self.handle
    }

    pub(crate) fn control(&self) -> &ControlHandle {
        &self.control
    }

    /// The tracker in use.
    pub(crate) fn tracker(&self) -> Option<NodeId> {
        *self.tracker.borrow()
    }

    /// Writes a job to the disk. A failure is told, not fatal: the job goes on until the next restart.
    pub(crate) fn keep(&self, job: &JobId) {
        if let Err(error) = self.try_keep(job) {
            tracing::error!(%job, %error, "cannot keep a job");
        }
    }

    pub(crate) fn try_keep(&self, job: &JobId) -> Result<(), String> {
        let kept = match self.rows().get(job) {
            Some(row) => row.to_kept().map_err(|error| error.to_string())?,
            None => return Ok(()),
        };
        self.handle.store.put_state(&key(job), Some(encode(&kept))).map_err(|error| error.to_string())
    }

    /// Checks a push and gives it a job, which is on the disk then. [`Jobs::work_on_push`] does the rest. Blocks.
    pub fn create(&self, request: &PushRequest) -> Result<JobId, PushError> {
        if !is_content_name(&request.name) || is_reserved(&request.name) {
            return Err(PushError::Name(request.name.clone()));
        }
        if !is_version(&request.version) {
            return Err(PushError::Version(request.version.clone()));
        }
        if !request.image.as_ref().is_some_and(|image| image.pull) {
            let fault = |why: &dyn std::fmt::Display| PushError::Path(format!("{}{why}", request.path.display()));
            if !request.path.is_absolute() {
                return Err(fault(&" is not an absolute path"));
            }
            std::fs::metadata(&request.path).map_err(|error| fault(&format!(": {error}")))?;
        }
        self.selected(&request.to)?;
        let selector = Selector::parse(&request.to).map_err(|error| PushError::Selector(error.to_string()))?;
        let mut id = [0u8; 16];
        getrandom::fill(&mut id).map_err(|error| PushError::Store(error.to_string()))?;
        let job = JobId(id);
        let mut rows = self.rows();
        if let Some(other) = rows.values().find(|row| clashes(&row.status, request)) {
            let (name, other, kind) = (request.name.clone(), other.status.name.clone(), other.status.kind.to_string());
            return Err(PushError::Clash { name, other, kind });
        }
        self.make_way(&mut rows)?;
        let status = JobStatus::new(job, request, selector.to_string(), system_clock());
        let mut row = Job::new(status, Some(request.clone()));
        row.sequence = Some(self.next_sequence(request).map_err(PushError::Store)?);
        rows.insert(job, row);
        drop(rows);
        self.try_keep(&job).map_err(PushError::Store)?;
        // Once it is promised, a kill must not lose it.
        self.handle.store.sync().map_err(|error| PushError::Store(error.to_string()))?;
        Ok(job)
    }

    /// How many hosts a selector names; none is an error, unless there is no membership yet.
    pub(crate) fn selected(&self, to: &[String]) -> Result<u32, PushError> {
        let selector = Selector::parse(to).map_err(|error| PushError::Selector(error.to_string()))?;
        let membership = self.handle.membership.borrow().clone();
        let hosts = membership.select(&selector);
        // Without any membership there is no tracker yet, and nothing can be said.
        if !membership.is_empty() && hosts.none() {
            return Err(PushError::NoHosts(selector.to_string()));
        }
        Ok(hosts.count())
    }

    /// Forgets the oldest finished job where there are too many.
    fn make_way(&self, rows: &mut BTreeMap<JobId, Job>) -> Result<(), PushError> {
        if rows.len() >= JOBS_MAX {
            let oldest = rows.values().filter(|row| row.status.is_final()).min_by_key(|row| row.status.created_at);
            let oldest = oldest.map(|row| row.status.job).ok_or(PushError::Busy)?;
            rows.remove(&oldest);
            let _gone = self.handle.store.put_state(&key(&oldest), None);
        }
        Ok(())
    }

    /// Takes a job in that is announced already.
    pub(crate) fn insert(&self, row: Job) -> Result<(), String> {
        let mut rows = self.rows();
        self.make_way(&mut rows).map_err(|error| error.to_string())?;
        rows.insert(row.status.job, row);
        Ok(())
    }

    /// Follows a rollout like a job, so that what hosts say of it is shown and told to the hub.
    pub(crate) fn follow_rollout(
        &self,
        request: &PushRequest,
        announcement: &Announcement,
        pieces: u32,
    ) -> Result<(), String> {
        let job = announcement.job;
        let mut status = JobStatus::new(job, request, announcement.selector.to_string(), system_clock());
        status.rollout = true;
        status.announced(announcement, pieces);
        let mut row = Job::new(status, None);
        row.envelope = Some(Envelope::seal(announcement, &self.publisher));
        row.expires_at = announcement.expires_at;
        self.rows().insert(job, row);
        self.try_keep(&job)
    }

    /// A rollout has ended, or goes on after all.
    pub(crate) fn rollout_ended(&self, job: &JobId, ended: bool) {
        let phase = if ended { Phase::Done } else { Phase::Distributing };
        match self.rows().get_mut(job) {
            Some(row) if row.status.phase != phase && row.status.phase != Phase::Failed => row.status.phase = phase,
            _ => return,
        }
        self.keep(job);
        self.changed.notify_waiters();
    }

    /// The announcement of a job, once there is one.
    pub(crate) fn announcement(&self, job: &JobId) -> Option<Announcement> {
        let envelope = self.rows().get(job)?.envelope.clone()?;
        envelope.open().ok()
    }

    /// A job's status.
    pub fn status(&self, job: &JobId) -> Option<JobStatus> {
        let rows = self.rows();
        rows.get(job).map(|row| shown(row, &demoted(&rows)))
    }

    /// All jobs, newest first.
    pub fn all(&self) -> Vec<JobStatus> {
        let rows = self.rows();
        let demoted = demoted(&rows);
        let mut all: Vec<JobStatus> = rows.values().map(|row| shown(row, &demoted)).collect();
        all.sort_by_key(|row| std::cmp::Reverse((row.created_at, row.job)));
        all
    }
}

/// Contents on which the newest word is that they are demoted.
fn demoted(rows: &BTreeMap<JobId, Job>) -> BTreeSet<ContentId> {
    let mut newest: BTreeMap<ContentId, (Option<u64>, bool)> = BTreeMap::new();
    for row in rows.values().filter(|row| row.status.phase != Phase::Failed) {
        let Some(content) = row.status.content else { continue };
        let word = (row.sequence, row.status.order == Some(Order::Demote));
        newest.entry(content).and_modify(|former| *former = word.max(*former)).or_insert(word);
    }
    newest.into_iter().filter(|(_, (_, demoted))| *demoted).map(|(content, _)| content).collect()
}

/// A job's status as the API shows it.
fn shown(row: &Job, demoted: &BTreeSet<ContentId>) -> JobStatus {
    let demoted = row.status.content.is_some_and(|content| demoted.contains(&content));
    JobStatus { demoted, ..row.status.clone() }
}

/// On the hosts a name is a folder of versions: it cannot be of two kinds, nor lie within another name's folder. Images have
/// no folder.
fn clashes(other: &JobStatus, request: &PushRequest) -> bool {
    let within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
    let (name, former) = (&request.name, &other.name);
    let same = name == former && request.kind != other.kind;
    let folders = other.kind != Kind::Image && request.kind != Kind::Image;
    other.phase != Phase::Failed && (same || (folders && (within(name, former) || within(former, name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(name: &str, kind: Kind) -> PushRequest {
        let to = vec!["all".into()];
        PushRequest { path: "/".into(), name: name.into(), version: "1".into(), kind, to, staged: false, image: None }
    }

    #[test]
    fn names_are_folders_of_versions() {
        let there = |name, kind| JobStatus::new(JobId([0; 16]), &push(name, kind), "all".into(), 0);
        let main = there("gslb/main", Kind::Gslb);
        assert!(!clashes(&main, &push("gslb/main", Kind::Gslb)), "another version of it");
        assert!(clashes(&main, &push("gslb/main", Kind::Blob)));
        assert!(clashes(&main, &push("gslb", Kind::Gslb)), "`main` would be a version of `gslb`");
        assert!(clashes(&main, &push("gslb/main/x", Kind::Gslb)));
        assert!(!clashes(&main, &push("gslb/mainz", Kind::Blob)));
        assert!(!clashes(&main, &push("gslb/other", Kind::Blob)));
        let app = there("r.example/app/v1", Kind::Image);
        assert!(!clashes(&app, &push("r.example/app/v1/v2", Kind::Image)), "a repository below another");
        assert!(clashes(&app, &push("r.example/app/v1", Kind::Blob)));
        let mut failed = there("a", Kind::Blob);
        failed.fail("no such file");
        assert!(!clashes(&failed, &push("a", Kind::Config)), "what failed left no folder");
    }

    #[test]
    fn a_kept_job_is_read_back() {
        let request = push("a", Kind::Blob);
        let mut job = Job::new(JobStatus::new(JobId([7; 16]), &request, "all".into(), 5), Some(request.clone()));
        let back = Job::from_kept(job.to_kept().unwrap()).unwrap();
        assert_eq!((back.status, back.request), (job.status.clone(), Some(request)));
        job.status.fail("unreadable");
        let back = Job::from_kept(job.to_kept().unwrap()).unwrap();
        assert_eq!(back.status.error, "unreadable");
        job.status.phase = Phase::Distributing;
        assert!(Job::from_kept(job.to_kept().unwrap()).is_err(), "announced, and no announcement");
    }
}
