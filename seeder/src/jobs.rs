//! Jobs: from a path to a signed announcement, then how far the hosts are.
//!
//! Invariant: a job's phase only advances, and what is needed to continue after a restart is on disk before the first
//! host hears of the job.

use crate::config::SeederConfig;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use shoal_net::admission::system_clock;
use shoal_net::control::ControlHandle;
use shoal_peer::node::{Command, NodeHandle};
use shoal_proto::announcement::{Announcement, Kind, is_content_name, is_version};
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::control::{JobRollup, RackRollup, Request, Response};
use shoal_proto::ids::{ContentId, JobId, NodeId};
use shoal_proto::locality::Selector;
use shoal_proto::report::TierBytes;
use shoal_proto::trust::{Envelope, Keypair};
use shoal_store::ingest::{IngestError, IngestOptions, IngestProgress, Ingested};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Jobs remembered; the oldest finished ones go first.
const JOBS_MAX: usize = 1024;
/// How often the tracker is asked about running jobs.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// Pushes taken in at once.
const INGESTS_MAX: usize = 2;

/// A push, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushRequest {
    /// File or directory on the seeder's machine.
    pub path: PathBuf,
    /// Name of the content.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for.
    pub kind: Kind,
    /// Selectors, each an alternative.
    pub to: Vec<String>,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being read, cut and hashed.
    Ingesting,
    /// On its way to the hosts.
    Distributing,
    /// Every host that is there has it or has failed.
    Done,
    /// It did not get as far as the hosts.
    Failed,
}

/// A host worth a line of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLine {
    /// Its locality.
    pub host: String,
    /// How far it is, in words.
    pub state: String,
    /// Pieces verified.
    pub pieces: u32,
    /// Whether the tracker sees it.
    pub away: bool,
    /// Why, in words.
    pub detail: String,
}

/// A job as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub job: JobId,
    /// The push.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for.
    pub kind: Kind,
    /// For which hosts.
    pub to: String,
    /// How far.
    pub phase: Phase,
    /// Why it failed.
    pub error: String,
    /// The content; absent while it is taken in.
    pub content: Option<ContentId>,
    /// Payload bytes read, while it is taken in.
    pub ingested: u64,
    /// Payload bytes.
    pub size: u64,
    /// Pieces.
    pub pieces: u32,
    /// Payload bytes this seeder sent.
    pub seeder_sent: u64,
    /// Payload bytes by source, over all hosts.
    pub tiers: TierBytes,
    /// Racks in order of name.
    pub racks: Vec<RackRollup>,
    /// Hosts that failed, are away or are behind.
    pub lines: Vec<HostLine>,
    /// Seconds since the hosts were told; until the end, once there is one.
    pub elapsed_s: f64,
    /// Seconds to go, when it can be told.
    pub eta_s: Option<f64>,
    /// When it was pushed, Unix seconds.
    pub created_at: u64,
}

impl JobStatus {
    /// Hosts in all, that have it, that switched it in, that failed, that are away.
    pub fn hosts(&self) -> (u32, u32, u32, u32, u32) {
        self.racks.iter().fold((0, 0, 0, 0, 0), |sum, rack| {
            (sum.0 + rack.hosts, sum.1 + rack.has, sum.2 + rack.active, sum.3 + rack.failed, sum.4 + rack.away)
        })
    }

    /// Whether nothing more will happen.
    pub fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed)
    }
}

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
    /// Nothing is there.
    #[error("{0}")]
    Path(String),
    /// Too much at once.
    #[error("{JOBS_MAX} jobs are running")]
    Busy,
}

/// What is kept on disk of a job.
#[derive(Clone, Debug, Encode, Decode)]
struct Kept {
    #[n(0)]
    envelope: Envelope,
    #[n(1)]
    done: bool,
}

struct Job {
    status: JobStatus,
    /// The signed announcement, once there is one.
    envelope: Option<Envelope>,
    announced: Option<Instant>,
    /// The tracker was told.
    opened: bool,
}

/// The jobs of a seeder.
pub struct Jobs {
    config: SeederConfig,
    publisher: Keypair,
    node: NodeId,
    handle: NodeHandle,
    control: ControlHandle,
    tracker: watch::Receiver<Option<NodeId>>,
    rows: Mutex<BTreeMap<JobId, Job>>,
    /// Woken when a job changed.
    pub changed: Notify,
    ingests: tokio::sync::Semaphore,
}

impl Jobs {
    /// Continues with the jobs on disk.
    pub fn open(
        config: SeederConfig,
        publisher: Keypair,
        node: NodeId,
        running: &shoal_peer::node::setup::Running,
    ) -> Arc<Self> {
        let jobs = Self {
            config,
            publisher,
            node,
            handle: running.handle.clone(),
            control: running.control.clone(),
            tracker: running.tracker.clone(),
            rows: Mutex::default(),
            changed: Notify::new(),
            ingests: tokio::sync::Semaphore::new(INGESTS_MAX),
        };
        jobs.load();
        Arc::new(jobs)
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<JobId, Job>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self) {
        for (key, bytes) in self.handle.store.scan_state("job/").unwrap_or_default() {
            let kept = decode_exact::<Kept>(&bytes).map_err(|error| error.to_string());
            let opened = kept.and_then(|kept| {
                let announcement = kept.envelope.open::<Announcement>().map_err(|error| error.to_string())?;
                Ok((kept, announcement))
            });
            match opened {
                Ok((kept, announcement)) => {
                    let pieces = self.handle.store.manifest(&announcement.content).map_or(0, |m| m.piece_count());
                    let mut status = status_of(&announcement, pieces);
                    status.phase = if kept.done { Phase::Done } else { Phase::Distributing };
                    let job =
                        Job { status, envelope: Some(kept.envelope), announced: Some(Instant::now()), opened: false };
                    self.rows().insert(announcement.job, job);
                }
                Err(error) => {
                    tracing::warn!(key, %error, "dropped a kept job");
                    let _ = self.handle.store.put_state(&key, None);
                }
            }
        }
    }

    /// Checks a push and gives it a job. [`Jobs::take_in`] does the rest.
    pub fn create(&self, request: &PushRequest) -> Result<JobId, PushError> {
        if !is_content_name(&request.name) {
            return Err(PushError::Name(request.name.clone()));
        }
        if !is_version(&request.version) {
            return Err(PushError::Version(request.version.clone()));
        }
        let selector = Selector::parse(&request.to).map_err(|error| PushError::Selector(error.to_string()))?;
        std::fs::metadata(&request.path)
            .map_err(|error| PushError::Path(format!("{}: {error}", request.path.display())))?;
        let mut id = [0u8; 16];
        getrandom::fill(&mut id).map_err(|error| PushError::Path(error.to_string()))?;
        let job = JobId(id);
        let mut rows = self.rows();
        if rows.len() >= JOBS_MAX {
            let oldest = rows.values().filter(|row| row.status.is_final()).min_by_key(|row| row.status.created_at);
            let oldest = oldest.map(|row| row.status.job).ok_or(PushError::Busy)?;
            rows.remove(&oldest);
            let _ = self.handle.store.put_state(&format!("job/{oldest}"), None);
        }
        let status = JobStatus {
            job,
            name: request.name.clone(),
            version: request.version.clone(),
            kind: request.kind,
            to: selector.to_string(),
            phase: Phase::Ingesting,
            error: String::new(),
            content: None,
            ingested: 0,
            size: 0,
            pieces: 0,
            seeder_sent: 0,
            tiers: TierBytes::default(),
            racks: Vec::new(),
            lines: Vec::new(),
            elapsed_s: 0.0,
            eta_s: None,
            created_at: system_clock(),
        };
        rows.insert(job, Job { status, envelope: None, announced: None, opened: false });
        Ok(job)
    }

    /// Takes a push's content in, signs it and hands it to the driver.
    pub async fn take_in(self: Arc<Self>, job: JobId, request: PushRequest) {
        let Ok(_permit) = self.ingests.acquire().await else { return };
        let progress = Arc::new(IngestProgress::default());
        let options = IngestOptions {
            average: self.average_of(&request),
            data: self.config.data_shards,
            parity: self.config.parity_shards,
            lanes: self.config.lanes,
        };
        let (store, path, shown) = (self.handle.store.clone(), request.path.clone(), progress.clone());
        let mut work = tokio::task::spawn_blocking(move || store.ingest(&path, &options, &shown));
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let result: Result<Ingested, IngestError> = loop {
            tokio::select! {
                done = &mut work => break done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
                _ = tick.tick() => {
                    if let Some(row) = self.rows().get_mut(&job) {
                        row.status.ingested = progress.done.load(Ordering::Relaxed);
                        row.status.size = progress.total.load(Ordering::Relaxed);
                    }
                    self.changed.notify_waiters();
                }
            }
        };
        let announced = match result {
            Ok(ingested) => self.announce(job, &request, &ingested).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = announced {
            tracing::warn!(%job, %error, "push failed");
            if let Some(row) = self.rows().get_mut(&job) {
                row.status.phase = Phase::Failed;
                row.status.error = error;
            }
        }
        self.changed.notify_waiters();
    }

    /// Versions of a name are cut alike, so that they share pieces.
    fn average_of(&self, request: &PushRequest) -> Option<u32> {
        let content = self
            .rows()
            .values()
            .filter(|row| row.status.name == request.name && row.status.kind == request.kind)
            .filter_map(|row| Some((row.status.created_at, row.status.content?)))
            .max()?
            .1;
        Some(self.handle.store.manifest(&content)?.piece_bytes_avg)
    }

    async fn announce(&self, job: JobId, request: &PushRequest, ingested: &Ingested) -> Result<(), String> {
        let selector = Selector::parse(&request.to).map_err(|error| error.to_string())?;
        let now = system_clock();
        let announcement = Announcement {
            job,
            content: ingested.content,
            kind: request.kind,
            name: request.name.clone(),
            version: request.version.clone(),
            sequence: self.next_sequence(request).map_err(|error| error.to_string())?,
            selector,
            origin: self.node,
            manifest_bytes: ingested.manifest_bytes,
            size: ingested.manifest.size(),
            created_at: now,
            expires_at: now + self.config.job_lifetime.0.as_secs(),
        };
        let envelope = Envelope::seal(&announcement, &self.publisher);
        let kept = encode(&Kept { envelope: envelope.clone(), done: false });
        let store = &self.handle.store;
        store.put_state(&format!("job/{job}"), Some(kept)).map_err(|error| error.to_string())?;
        // The latest content of a name is not evicted while it is the latest.
        store.pin(&announcement.content, true).map_err(|error| error.to_string())?;
        store.sync().map_err(|error| error.to_string())?;
        if let Some(row) = self.rows().get_mut(&job) {
            let created_at = row.status.created_at;
            row.status = status_of(&announcement, ingested.manifest.piece_count());
            row.status.created_at = created_at;
            row.envelope = Some(envelope.clone());
            row.announced = Some(Instant::now());
        }
        self.open_at_tracker(job).await;
        let command = Command::Publish { envelope, announcement: Arc::new(announcement) };
        self.handle.commands.send(command).await.map_err(|_| "the node is stopping".to_string())
    }

    /// Grows with every push of a name, across restarts and seeders whose clocks agree.
    fn next_sequence(&self, request: &PushRequest) -> Result<u64, String> {
        let key = format!("sequence/{}/{}", request.kind, request.name);
        let store = &self.handle.store;
        let last = store.get_state(&key).map_err(|error| error.to_string())?;
        let last = last.and_then(|bytes| decode_exact::<u64>(&bytes).ok()).unwrap_or(0);
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let next = clock.map_or(0, |since| since.as_millis() as u64).max(last + 1);
        store.put_state(&key, Some(encode(&next))).map_err(|error| error.to_string())?;
        Ok(next)
    }

    async fn open_at_tracker(&self, job: JobId) {
        let tracker = *self.tracker.borrow();
        let envelope = self.rows().get(&job).and_then(|row| row.envelope.as_ref().map(Document::to_bytes));
        let (Some(tracker), Some(envelope)) = (tracker, envelope) else { return };
        match self.control.request(tracker, Request::OpenJob { envelope }).await {
            Ok(Response::Done) => {
                if let Some(row) = self.rows().get_mut(&job) {
                    row.opened = true;
                }
            }
            Ok(other) => tracing::warn!(%job, ?other, "the tracker does not take the job"),
            Err(error) => tracing::debug!(%job, %error, "cannot open the job at the tracker"),
        }
    }

    /// Asks the tracker about running jobs until the token is cancelled.
    pub async fn poll(self: Arc<Self>, token: CancellationToken) {
        let mut tick = tokio::time::interval(POLL_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut former = None;
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                _ = tick.tick() => {}
            }
            let tracker = *self.tracker.borrow();
            if tracker != former {
                // Another tracker, or one that was restarted, may not know our jobs.
                self.rows().values_mut().for_each(|row| row.opened = false);
                former = tracker;
            }
            let Some(tracker) = tracker else { continue };
            let running: Vec<(JobId, bool)> = self
                .rows()
                .values()
                .filter(|row| row.status.phase == Phase::Distributing)
                .map(|row| (row.status.job, row.opened))
                .collect();
            for (job, opened) in running {
                if !opened {
                    self.open_at_tracker(job).await;
                }
                let sent = self.handle.sent(job).await;
                if let Ok(Response::Rollup(rollup)) = self.control.request(tracker, Request::JobStatus { job }).await {
                    self.fold(job, rollup, sent);
                }
            }
        }
    }

    fn fold(&self, job: JobId, rollup: JobRollup, sent: u64) {
        let mut rows = self.rows();
        let Some(row) = rows.get_mut(&job) else { return };
        let status = &mut row.status;
        let before = status.clone();
        status.seeder_sent = status.seeder_sent.max(sent);
        status.tiers = TierBytes::default();
        for rack in &rollup.racks {
            status.tiers.add(&rack.tiers);
        }
        status.racks = rollup.racks;
        status.lines = rollup
            .lines
            .into_iter()
            .map(|line| HostLine {
                host: line.host,
                state: line.state.to_string(),
                pieces: line.pieces_have,
                away: line.away,
                detail: line.detail,
            })
            .collect();
        let (hosts, _, active, failed, away) = status.hosts();
        status.elapsed_s = row.announced.map_or(0.0, |at| at.elapsed().as_secs_f64());
        let (have, all) = (
            status.racks.iter().map(|rack| rack.pieces).sum::<u64>() as f64,
            f64::from(status.pieces) * f64::from(hosts - failed.min(hosts)),
        );
        status.eta_s = (have > 0.0 && all > have).then(|| status.elapsed_s * (all - have) / have);
        if active + failed + away >= hosts && active + failed > 0 {
            status.phase = Phase::Done;
            status.eta_s = None;
            let envelope = row.envelope.clone();
            if let Some(envelope) = envelope {
                let kept = encode(&Kept { envelope, done: true });
                if let Err(error) = self.handle.store.put_state(&format!("job/{job}"), Some(kept)) {
                    tracing::error!(%job, %error, "cannot keep that a job is done");
                }
            }
        }
        let changed = row.status != before;
        drop(rows);
        if changed {
            self.changed.notify_waiters();
        }
    }

    /// A job's status.
    pub fn status(&self, job: &JobId) -> Option<JobStatus> {
        self.rows().get(job).map(|row| row.status.clone())
    }

    /// All jobs, newest first.
    pub fn all(&self) -> Vec<JobStatus> {
        let mut all: Vec<JobStatus> = self.rows().values().map(|row| row.status.clone()).collect();
        all.sort_by_key(|row| std::cmp::Reverse((row.created_at, row.job)));
        all
    }
}

fn status_of(announcement: &Announcement, pieces: u32) -> JobStatus {
    JobStatus {
        job: announcement.job,
        name: announcement.name.clone(),
        version: announcement.version.clone(),
        kind: announcement.kind,
        to: announcement.selector.to_string(),
        phase: Phase::Distributing,
        error: String::new(),
        content: Some(announcement.content),
        ingested: announcement.size,
        size: announcement.size,
        pieces,
        seeder_sent: 0,
        tiers: TierBytes::default(),
        racks: Vec::new(),
        lines: Vec::new(),
        elapsed_s: 0.0,
        eta_s: None,
        created_at: announcement.created_at,
    }
}
