//! Errors of the seeder's own state, and errors as one text.
//!
//! Invariant: the text of an error contains every cause once.

use crate::publisher_keys::SignError;
use shoal_proto::sequence::SequenceError;
use shoal_store::KvError;
use std::error::Error;

/// What to do about an invalid selector.
pub(crate) const SELECTOR_REMEDY: &str = "use all, region=R, site=S, rack=R, host=H or label=value, joined by `,`";

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

/// Returns an error and its causes in one text, for people who see only the text.
pub(crate) fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors already repeat their cause.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file: {source}")]
    struct Repeats {
        source: std::io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the push failed")]
    struct Outer(#[source] Repeats);

    #[test]
    fn every_cause_appears_once() {
        let error = Outer(Repeats { source: std::io::Error::other("no such disk") });
        assert_eq!(with_sources(&error), "the push failed: cannot read the file: no such disk");
    }
}
