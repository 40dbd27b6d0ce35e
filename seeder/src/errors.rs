//! Errors of the seeder's own state.
//!
//! Invariant: an error keeps its cause.

use crate::publisher_keys::SignError;
use shoal_proto::sequence::SequenceError;
pub(crate) use shoal_service::access::SELECTOR_REMEDY;
pub(crate) use shoal_service::error_text::with_sources;
use shoal_store::KvError;

/// Why the seeder cannot store its own state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot write to the store")]
    Store(#[from] KvError),
    #[error("cannot encode the state")]
    Encode(#[from] serde_json::Error),
    #[error("cannot number the version")]
    Sequence(#[from] SequenceError),
    #[error("cannot sign")]
    Sign(#[from] SignError),
    #[error("the system has no random bytes")]
    Random(#[from] getrandom::Error),
    #[error("the seeder is stopping")]
    Stopping,
}

impl StateError {
    /// Whether a clock, a key or the trust document is the cause, and not the disk.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Sequence(_) | Self::Sign(_))
    }
}
