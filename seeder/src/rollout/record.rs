//! One rollout in memory and on disk.
//!
//! Invariant: [`Rollout::to_record`] followed by [`Rollout::from_record`] gives the same machine.

use super::machine::{Machine, State};
use minicbor::{Decode, Encode};
use shoal_api::rollouts::RolloutSpec;
use shoal_proto::codec::{DecodeError, decode_exact, encode};
use shoal_proto::desired::Desired;
use shoal_proto::ids::{Epoch, JobId};
use std::sync::Arc;
use std::time::Instant;

/// The push of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VersionPush {
    pub(super) version: String,
    pub(super) job: JobId,
}

/// A host in the order of a rollout.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostPlace {
    /// A number that hosts of one rack share.
    pub(super) rack: u32,
    /// Roster index.
    pub(super) index: u32,
}

/// The order of a rollout's hosts at an epoch of the membership.
#[derive(Clone, Debug)]
pub(super) struct HostOrder {
    pub(super) epoch: Epoch,
    pub(super) hosts: Arc<Vec<HostPlace>>,
}

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
}

/// Why a rollout on disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the record is not CBOR of a rollout: {0}")]
    Cbor(#[from] DecodeError),
    #[error("the record's specification cannot be read: {0}")]
    Spec(#[from] serde_json::Error),
}

/// A rollout in memory.
pub(super) struct Rollout {
    pub(super) machine: Machine,
    pub(super) pushes: Vec<VersionPush>,
    /// A newer rollout or a plain push of the name replaced this one.
    pub(super) superseded: bool,
    /// The desired state that this process published last.
    pub(super) published: Option<Desired>,
    /// The state has changed and is not on disk yet, so hosts must not learn of it.
    pub(super) is_dirty: bool,
    /// A cache, computed again when the membership changes.
    pub(super) order: Option<HostOrder>,
    /// When to look at the rollout again.
    pub(super) ask_at: Instant,
    /// When to ask the gates again.
    pub(super) gate_at: Instant,
}

impl Rollout {
    pub(super) fn new(machine: Machine, pushes: Vec<VersionPush>, superseded: bool) -> Self {
        let now = Instant::now();
        Self { machine, pushes, superseded, published: None, is_dirty: false, order: None, ask_at: now, gate_at: now }
    }

    pub(super) fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Record = decode_exact(bytes)?;
        let spec: RolloutSpec = serde_json::from_str(&record.spec)?;
        let pushes = record.pushes.into_iter().map(|(version, job)| VersionPush { version, job }).collect();
        Ok(Self::new(Machine::resume(spec, record.state), pushes, record.superseded))
    }

    pub(super) fn to_record(&self) -> Result<Vec<u8>, serde_json::Error> {
        Ok(encode(&Record {
            spec: serde_json::to_string(self.machine.spec())?,
            state: self.machine.state().clone(),
            pushes: self.pushes.iter().map(|push| (push.version.clone(), push.job)).collect(),
            superseded: self.superseded,
        }))
    }

    /// Whether the rollout is of this name and not superseded.
    pub(super) fn is_current_of(&self, name: &str) -> bool {
        self.machine.spec().name == name && !self.superseded
    }
}
