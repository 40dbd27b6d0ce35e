//! What is kept of a name's switches: which rollout's attempt, how far it is, what was on before.
//!
//! Invariant: a record is durable before the step it names begins.

use minicbor::{Decode, Encode};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::report::HostState;
use shoal_store::KvError;
use shoal_store::Store;

/// A version of a name on this host.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct InstalledVersion {
    /// Its label.
    #[n(0)]
    pub(crate) version: String,
    /// Its content.
    #[n(1)]
    pub(crate) content: ContentId,
    /// Its place among the versions of the name; 0 when that is not known.
    #[n(2)]
    pub(crate) sequence: u64,
}

/// How far a switch is. A record with a hook's step means: the hook was begun, or is about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum SwitchStep {
    /// The version's folder is being made.
    #[n(0)]
    Prepare,
    /// The hook before the switch.
    #[n(1)]
    PreStop,
    /// The switch itself.
    #[n(2)]
    Switch,
    /// The hook after it.
    #[n(3)]
    PostStart,
    /// Probe and check.
    #[n(4)]
    Verify,
    /// The switch back.
    #[n(5)]
    Undo,
    /// The hook after the switch back.
    #[n(6)]
    UndoStart,
    /// Nothing is under way.
    #[n(7)]
    Done,
}

/// What is kept of a name.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SwitchRecord {
    /// The rollout.
    #[n(0)]
    pub(crate) rollout: JobId,
    /// Its attempt; one more once the host has found the new version ill.
    #[n(1)]
    pub(crate) attempt: u16,
    /// How far.
    #[n(2)]
    pub(crate) step: SwitchStep,
    /// What was on before this attempt.
    #[n(3)]
    pub(crate) from: Option<InstalledVersion>,
    /// What is to be on.
    #[n(4)]
    pub(crate) to: Option<InstalledVersion>,
    /// What was on before the rollout.
    #[n(5)]
    pub(crate) before: Option<InstalledVersion>,
    /// This attempt goes back to that.
    #[n(6)]
    pub(crate) back: bool,
    /// How it ended.
    #[n(7)]
    pub(crate) state: HostState,
    /// Why.
    #[n(8)]
    pub(crate) detail: String,
}

fn key(name: &str) -> String {
    format!("rollout/{name}")
}

impl SwitchRecord {
    /// Writes it, durably.
    pub(crate) fn keep(&self, store: &Store, name: &str) -> Result<(), KvError> {
        store.put_state(&key(name), Some(encode(self)))?;
        store.sync()
    }

    /// All that are kept, by name.
    pub(crate) fn load(store: &Store) -> Vec<(String, Self)> {
        let rows = store.scan_state("rollout/").unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read what was switched");
            Vec::new()
        });
        let read = |(key, bytes): (String, Vec<u8>)| match decode_exact(&bytes) {
            Ok(record) => Some((key["rollout/".len()..].to_string(), record)),
            Err(error) => {
                tracing::error!(key, %error, "cannot read what was switched");
                None
            }
        };
        rows.into_iter().filter_map(read).collect()
    }

    /// The switch has ended.
    pub(crate) fn end(&mut self, state: HostState, detail: impl Into<String>) {
        self.step = SwitchStep::Done;
        self.state = state;
        self.detail = detail.into();
    }

    /// The version on this host as far as this record goes.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &InstalledVersion> {
        [&self.from, &self.to, &self.before].into_iter().flatten()
    }
}
