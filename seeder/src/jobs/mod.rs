//! Jobs: the table of all jobs of this seeder, on disk and in memory.
//!
//! Owns: the rows, the sequences of names, and which contents are pinned. `job` is one row, `table` the table, `versions`
//! the newest contents and sequences of names, `updates` what ingests, trackers and rollouts report about a job.
//! Invariant: a job's phase only advances, and what is needed to continue after a restart is on disk before the first
//! host learns of the job.

mod job;
mod table;
mod updates;
mod versions;

pub(crate) use job::{EnvelopeForTracker, Job};
pub(crate) use table::Jobs;
pub(crate) use updates::ASK_MAX;

use crate::errors::StateError;
use shoal_api::jobs::PushRequest;
use shoal_proto::announcement::Kind;
use shoal_proto::ids::JobId;
use shoal_proto::locality::ParseLocalityError;
use std::io;
use std::path::PathBuf;

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
    #[error("{} is not an absolute path", .0.display())]
    RelativePath(PathBuf),
    #[error("cannot read {}", .path.display())]
    Path { path: PathBuf, source: io::Error },
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
