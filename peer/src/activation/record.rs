//! The durable state of a name's last switch: the rollout, the attempt, the step, and the versions before and after.
//!
//! Invariant: a record is durable before the step it names begins.

use minicbor::{Decode, Encode};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::HostState;
use shoal_store::{KvError, Store};

/// Prefix of the records' keys in the store's state.
const KEY_PREFIX: &str = "rollout/";

/// A version of a name in the content folder.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct InstalledVersion {
    #[n(0)]
    pub(crate) version: String,
    #[n(1)]
    pub(crate) content: ContentId,
    /// 0 if the sequence is unknown.
    #[n(2)]
    pub(crate) sequence: u64,
}

/// The step of a switch that runs or runs next. A hook of this step may have been started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum SwitchStep {
    /// Builds the folder of the new version.
    #[n(0)]
    Prepare,
    /// Runs the hook before the switch.
    #[n(1)]
    PreStop,
    /// Points `current` at the new version.
    #[n(2)]
    Switch,
    /// Runs the hook after the switch.
    #[n(3)]
    PostStart,
    /// Runs the probe and the check.
    #[n(4)]
    Verify,
    /// Points `current` at the former version again.
    #[n(5)]
    Undo,
    /// Runs the hook after the undo.
    #[n(6)]
    UndoStart,
    #[n(7)]
    Done,
}

/// The state of a name's switch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SwitchRecord {
    #[n(0)]
    pub(crate) rollout: JobId,
    /// The attempt of the rollout. Grows by one when a probe finds an active version unhealthy.
    #[n(1)]
    pub(crate) attempt: u16,
    #[n(2)]
    pub(crate) step: SwitchStep,
    /// The version before this attempt.
    #[n(3)]
    pub(crate) from: Option<InstalledVersion>,
    /// The version that this attempt installs.
    #[n(4)]
    pub(crate) to: Option<InstalledVersion>,
    /// The version before the rollout, for a rollback.
    #[n(5)]
    pub(crate) before: Option<InstalledVersion>,
    /// True if this attempt is a rollback.
    #[n(6)]
    pub(crate) back: bool,
    /// The result, once `step` is `Done`.
    #[n(7)]
    pub(crate) state: HostState,
    /// The reason of `state`, for operators.
    #[n(8)]
    pub(crate) detail: String,
}

impl SwitchRecord {
    /// Writes the record. Returns once it is durable.
    pub(crate) fn save(&self, store: &Store, name: &str) -> Result<(), KvError> {
        store.put_state(&format!("{KEY_PREFIX}{name}"), Some(encode(self)))?;
        store.sync()
    }

    /// Returns all saved records with their names.
    pub(crate) fn load(store: &Store) -> Vec<(String, Self)> {
        let rows = store.scan_state(KEY_PREFIX).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the records of switches");
            Vec::new()
        });
        let read = |(key, bytes): (String, Vec<u8>)| match decode_exact(&bytes) {
            Ok(record) => Some((key[KEY_PREFIX.len()..].to_string(), record)),
            Err(error) => {
                tracing::error!(key, %error, "cannot decode the record of a switch");
                None
            }
        };
        rows.into_iter().filter_map(read).collect()
    }

    /// Ends the switch with a result.
    pub(crate) fn end(&mut self, state: HostState, detail: impl Into<String>) {
        self.step = SwitchStep::Done;
        self.state = state;
        self.detail = detail.into();
    }

    /// Returns the versions that this record refers to.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &InstalledVersion> {
        [&self.from, &self.to, &self.before].into_iter().flatten()
    }
}
