//! A rollout on disk.
//!
//! Invariant: [`Rollout::to_record`] followed by [`Rollout::from_record`] gives the same machine.

use super::machine::{Machine, State};
use super::{Rollout, VersionPush};
use minicbor::{Decode, Encode};
use shoal_api::rollouts::RolloutSpec;
use shoal_proto::codec::{DecodeError, decode_exact, encode};
use shoal_proto::ids::JobId;

/// A rollout on disk.
#[derive(Encode, Decode)]
struct Record {
    /// JSON, as an operator sent it.
    #[n(0)]
    spec: String,
    #[n(1)]
    state: State,
    /// Version and job of each push.
    #[n(2)]
    pushes: Vec<(String, JobId)>,
    #[n(3)]
    superseded: bool,
    /// See [`Rollout::replaces`].
    #[n(4)]
    #[cbor(default)]
    replaces: u64,
}

/// Why a rollout on disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the record is not CBOR of a rollout: {0}")]
    Cbor(#[from] DecodeError),
    #[error("the record's specification cannot be read: {0}")]
    Spec(#[from] serde_json::Error),
}

impl Rollout {
    pub(super) fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Record = decode_exact(bytes)?;
        let spec: RolloutSpec = serde_json::from_str(&record.spec)?;
        let pushes = record.pushes.into_iter().map(|(version, job)| VersionPush { version, job }).collect();
        let mut rollout = Self::new(Machine::resume(spec, record.state), pushes, record.replaces);
        rollout.superseded = record.superseded;
        Ok(rollout)
    }

    pub(super) fn to_record(&self) -> Result<Vec<u8>, serde_json::Error> {
        Ok(encode(&Record {
            spec: serde_json::to_string(self.machine.spec())?,
            state: self.machine.state().clone(),
            pushes: self.pushes.iter().map(|push| (push.version.clone(), push.job)).collect(),
            superseded: self.superseded,
            replaces: self.replaces,
        }))
    }
}
