//! Errors as one text.
//!
//! Invariant: the text of an error contains every cause once.

use std::error::Error;

/// Returns an error and its causes in one text, for people who see only the text.
pub fn with_sources(error: &dyn Error) -> String {
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
