//! Jobs: the table of all jobs of this seeder, on disk and in memory.
//!
//! Owns: the rows, the sequences of names, the contents of versions, and which contents are pinned. This file has one
//! row, `table` the table, `versions` the newest contents and sequences of names, `version_contents` which content each
//! version has, `updates` what ingests, trackers and rollouts report.
//! Invariant: a job's phase only advances, and what is needed to continue after a restart is on disk before the first
//! host learns of the job.

mod table;
mod updates;
mod version_contents;
mod versions;

pub(crate) use table::Jobs;
pub(crate) use updates::ASK_MAX;
pub(crate) use version_contents::VersionError;

use crate::errors::StateError;
use crate::push_roots::PushPathError;
use minicbor::{Decode, Encode};
use shoal_api::jobs::{HostLine, JobPhase, JobStatus, PushRequest};
use shoal_net::admission::system_clock;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::codec::{DecodeError, Document, decode_exact, encode};
use shoal_proto::control::JobRollup;
use shoal_proto::ids::JobId;
use shoal_proto::locality::ParseLocalityError;
use shoal_proto::report::TierBytes;
use shoal_proto::trust::{Envelope, TrustError};
use std::time::{Duration, Instant};

/// Jobs that the seeder remembers. It forgets the oldest ended ones first.
const JOBS_MAX: usize = 1024;

/// A job whose push waits to be ingested.
#[derive(Clone, Debug)]
pub(crate) struct QueuedPush {
    pub(crate) job: JobId,
    pub(crate) request: PushRequest,
}

/// Why a push is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushError {
    #[error("invalid content name `{0}`")]
    Name(String),
    #[error("invalid version `{0}`")]
    Version(String),
    #[error(transparent)]
    Selector(#[from] ParseLocalityError),
    #[error("no host of the region matches `{0}`")]
    NoHosts(String),
    #[error(transparent)]
    Path(#[from] PushPathError),
    /// On the hosts a name is a folder of versions.
    #[error("name `{name}` conflicts with the name `{other}` of kind {kind}")]
    Conflict { name: String, other: String, kind: Kind },
    #[error("{JOBS_MAX} jobs are running, or too many pushes wait")]
    Busy,
    #[error("cannot store the job")]
    Store(#[from] StateError),
}

/// Why a rollout cannot be followed as a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error("the seeder no longer knows the push")]
    Forgotten,
    #[error("the push's content is not ingested")]
    NotIngested,
    #[error(transparent)]
    Selector(#[from] ParseLocalityError),
    #[error(transparent)]
    Store(#[from] StateError),
}

/// Returns a random id.
///
/// # Errors
/// Returns an error if the system has no random bytes.
pub(crate) fn new_id() -> Result<JobId, getrandom::Error> {
    let mut id = [0u8; 16];
    getrandom::fill(&mut id)?;
    Ok(JobId(id))
}

/// Why a job on disk cannot be continued.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("the record is not CBOR of a job: {0}")]
    Cbor(#[from] DecodeError),
    #[error("the record's JSON cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the announcement cannot be opened: {0}")]
    Announcement(#[from] TrustError),
    #[error("the job has neither a push nor an announcement")]
    Empty,
}

/// A job on disk.
#[derive(Clone, Debug, Encode, Decode)]
struct Record {
    /// JSON of the status.
    #[n(0)]
    status: String,
    /// JSON of the push, until there is an announcement.
    #[n(1)]
    request: Option<String>,
    #[n(2)]
    envelope: Option<Envelope>,
    #[n(3)]
    sequence: Option<u64>,
}

/// Whether the tracker has to be sent a job's announcement.
pub(crate) enum EnvelopeForTracker {
    /// The tracker has it.
    Known,
    /// The encoded envelope to send.
    Send(Vec<u8>),
    /// The job is not announced yet, or is forgotten.
    None,
}

/// A job in memory.
#[derive(Clone)]
pub(crate) struct Job {
    status: JobStatus,
    request: Option<PushRequest>,
    /// The signed announcement, once there is one.
    envelope: Option<Envelope>,
    /// The job's place among the versions of its name. It is drawn when the push is accepted, so the order of requests
    /// counts, not the order in which ingests end.
    sequence: Option<u64>,
    /// When the job was announced.
    announced: Instant,
    /// When hosts forget the job, Unix seconds.
    expires_at: u64,
    /// The tracker has the announcement.
    is_opened: bool,
    /// When to ask the tracker about the job again.
    ask_at: Instant,
}

impl Job {
    fn new(status: JobStatus, request: Option<PushRequest>) -> Self {
        let now = Instant::now();
        let (announced, ask_at) = (now, now);
        let expires_at = u64::MAX;
        Self { status, request, envelope: None, sequence: None, announced, expires_at, is_opened: false, ask_at }
    }

    /// Returns the job of a demotion or promotion that is about to be announced.
    pub(crate) fn of_order(announcement: &Announcement, envelope: Envelope, to: String, pieces: u32) -> Self {
        let request = PushRequest {
            path: "".into(),
            name: announcement.name.clone(),
            version: announcement.version.clone(),
            kind: announcement.kind,
            to: Vec::new(),
            staged: false,
            image: None,
            replace: false,
        };
        let mut status = new_status(announcement.job, &request, to, announcement.created_at);
        status.order = announcement.order;
        let mut job = Self::new(status, None);
        job.sequence = Some(announcement.sequence);
        job.set_announced(announcement, envelope, pieces);
        job
    }

    fn to_record(&self) -> Result<Vec<u8>, serde_json::Error> {
        let request = self.request.as_ref().filter(|_| self.envelope.is_none());
        Ok(encode(&Record {
            status: serde_json::to_string(&self.status)?,
            request: request.map(serde_json::to_string).transpose()?,
            envelope: self.envelope.clone(),
            sequence: self.sequence,
        }))
    }

    /// Whether the bytes are the record of a job.
    pub(crate) fn is_record(bytes: &[u8]) -> bool {
        Self::from_record(bytes).is_ok()
    }

    fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Record = decode_exact(bytes)?;
        let status: JobStatus = serde_json::from_str(&record.status)?;
        let request = record.request.map(|text| serde_json::from_str(&text)).transpose()?;
        let mut job = Self::new(status, request);
        job.sequence = record.sequence;
        if let Some(envelope) = record.envelope {
            let announcement: Announcement = envelope.open()?;
            let age = Duration::from_secs(system_clock().saturating_sub(announcement.created_at));
            job.announced = job.announced.checked_sub(age).unwrap_or(job.announced);
            job.expires_at = announcement.expires_at;
            job.envelope = Some(envelope);
        } else if job.status.phase == JobPhase::Distributing || (!job.status.is_final() && job.request.is_none()) {
            return Err(RecordError::Empty);
        }
        Ok(job)
    }

    /// Returns the opened announcement, once there is one.
    pub(crate) fn announcement(&self) -> Option<Announcement> {
        self.envelope.as_ref()?.open().ok()
    }

    pub(crate) fn status(&self) -> &JobStatus {
        &self.status
    }

    fn envelope_for_tracker(&self) -> EnvelopeForTracker {
        match &self.envelope {
            _ if self.is_opened => EnvelopeForTracker::Known,
            Some(envelope) => EnvelopeForTracker::Send(envelope.to_bytes()),
            None => EnvelopeForTracker::None,
        }
    }

    /// Whether the content is still to be ingested.
    fn is_pending(&self) -> bool {
        matches!(self.status.phase, JobPhase::Pulling | JobPhase::Ingesting | JobPhase::Waiting)
    }

    /// Whether hosts may still report: the job is under way, or hosts that were away at its end may return.
    fn may_change(&self) -> bool {
        let status = &self.status;
        let may_return = status.phase == JobPhase::Done && self.unfinished_hosts() > 0;
        status.phase == JobPhase::Distributing || status.rollout || may_return
    }

    /// Returns how many hosts neither have what the job brings nor have failed or gone back, up or away.
    fn unfinished_hosts(&self) -> u32 {
        let totals = self.status.totals();
        let done = if self.status.staged { totals.has } else { totals.active + totals.stored };
        totals.hosts.saturating_sub(done + totals.failed + totals.rolled_back)
    }

    fn set_announced(&mut self, announcement: &Announcement, envelope: Envelope, pieces: u32) {
        let status = &mut self.status;
        status.phase = JobPhase::Distributing;
        status.content = Some(announcement.content);
        (status.ingested, status.size, status.pieces) = (announcement.size, announcement.size, pieces);
        self.envelope = Some(envelope);
        self.announced = Instant::now();
        self.expires_at = announcement.expires_at;
    }

    /// Takes over the tracker's counts. The job is done when every host that is up has the content or has failed.
    fn fold(&mut self, rollup: JobRollup, seeder_sent: u64, elapsed_s: f64) {
        let status = &mut self.status;
        status.seeder_sent = status.seeder_sent.max(seeder_sent);
        status.tiers = TierBytes::default();
        status.racks = rollup.racks;
        for rack in &mut status.racks {
            // The tracker may claim any number, as the hosts may.
            rack.tiers = rack.tiers.capped(TierBytes::most_of(status.size).saturating_mul(u64::from(rack.hosts)));
            rack.pieces = rack.pieces.min(u64::from(status.pieces).saturating_mul(u64::from(rack.hosts)));
            status.tiers.add(&rack.tiers);
        }
        let line = |line: shoal_proto::control::HostLine| HostLine {
            host: line.host,
            state: line.state.to_string(),
            pieces: line.pieces_have,
            away: line.away,
            detail: line.detail,
        };
        status.lines = rollup.lines.into_iter().map(line).collect();
        if !status.is_final() {
            status.elapsed_s = elapsed_s;
        }
        let totals = status.totals();
        let have = status.racks.iter().map(|rack| rack.pieces).sum::<u64>() as f64;
        let all = f64::from(status.pieces) * f64::from(totals.hosts.saturating_sub(totals.failed));
        status.eta_s = (have > 0.0 && all > have).then(|| elapsed_s * (all - have) / have);
        let unfinished = self.unfinished_hosts();
        // A rollout is excluded: its machine knows when it has ended.
        if unfinished <= totals.away && unfinished < totals.hosts && !self.status.rollout {
            self.status.phase = JobPhase::Done;
            self.status.eta_s = None;
        }
    }

    fn fail(&mut self, why: impl Into<String>) {
        self.status.phase = JobPhase::Failed;
        self.status.error = why.into();
        self.status.eta_s = None;
    }
}

/// Returns the status of a job that is still to be ingested.
fn new_status(job: JobId, request: &PushRequest, to: String, created_at: u64) -> JobStatus {
    let is_pull = request.image.as_ref().is_some_and(|image| image.pull);
    JobStatus {
        job,
        name: request.name.clone(),
        version: request.version.clone(),
        kind: request.kind,
        to,
        phase: if is_pull { JobPhase::Pulling } else { JobPhase::Ingesting },
        error: String::new(),
        content: None,
        ingested: 0,
        size: 0,
        pieces: 0,
        seeder_sent: 0,
        tiers: TierBytes::default(),
        racks: Vec::new(),
        lines: Vec::new(),
        failures: Vec::new(),
        elapsed_s: 0.0,
        eta_s: None,
        created_at,
        order: None,
        demoted: false,
        staged: request.staged,
        rollout: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::control::RackRollup;

    fn push(name: &str, kind: Kind) -> PushRequest {
        let to = vec!["all".into()];
        let (path, name, version) = ("/".into(), name.into(), "1".into());
        PushRequest { path, name, version, kind, to, staged: false, image: None, replace: false }
    }

    fn rollup(active: u32, away: u32) -> JobRollup {
        JobRollup {
            racks: vec![RackRollup { hosts: 3, active, away, ..RackRollup::default() }],
            ..JobRollup::default()
        }
    }

    #[test]
    fn a_host_that_is_back_and_not_yet_done_is_waited_for() {
        let status = new_status(JobId([1; 16]), &push("big", Kind::Blob), "all".into(), 0);
        let mut job = Job::new(status, None);
        job.status.phase = JobPhase::Distributing;
        job.fold(rollup(0, 3), 0, 1.0);
        assert_eq!(job.status.phase, JobPhase::Distributing, "no host is done");
        job.fold(rollup(2, 1), 0, 1.0);
        assert_eq!((job.status.phase, job.may_change()), (JobPhase::Done, true), "the host that is away may return");
        job.fold(rollup(2, 0), 0, 2.0);
        assert_eq!((job.status.phase, job.may_change()), (JobPhase::Done, true), "the host has returned and fetches");
        job.fold(rollup(3, 0), 0, 3.0);
        assert_eq!((job.status.phase, job.may_change()), (JobPhase::Done, false));
    }

    #[test]
    fn a_stored_job_is_read_back() {
        let request = push("a", Kind::Blob);
        let mut job = Job::new(new_status(JobId([7; 16]), &request, "all".into(), 5), Some(request.clone()));
        let back = Job::from_record(&job.to_record().unwrap()).unwrap();
        assert_eq!((back.status, back.request), (job.status.clone(), Some(request)));
        job.fail("unreadable");
        let back = Job::from_record(&job.to_record().unwrap()).unwrap();
        assert_eq!(back.status.error, "unreadable");
        job.status.phase = JobPhase::Distributing;
        assert!(Job::from_record(&job.to_record().unwrap()).is_err(), "distributing without an announcement");
    }
}
