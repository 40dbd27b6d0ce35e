//! What a check found: refusals, and warnings that refuse nothing.
//!
//! Invariant: every finding names its subject and says what to do.

use super::output;
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// The role cannot start, or must not.
    Refused,
    Warning,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// A key of the configuration.
    pub(crate) key: String,
    pub(crate) message: String,
}

/// All findings of a check.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    rows: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, severity: Severity, key: &str, message: String) {
        // Several checks may open the same file. Its fault is one finding.
        if self.rows.iter().all(|row| row.message != message) {
            self.rows.push(Finding { severity, key: key.to_string(), message });
        }
    }

    pub(crate) fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.add(Severity::Refused, key, message.into());
    }

    pub(crate) fn warn(&mut self, key: &str, message: impl Into<String>) {
        self.add(Severity::Warning, key, message.into());
    }

    /// Refuses an error with its causes. Returns what succeeded.
    pub(crate) fn check<T, E: Into<anyhow::Error>>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(key, format!("{:#}", error.into()));
                None
            }
        }
    }

    pub(crate) fn rows(&self) -> &[Finding] {
        &self.rows
    }

    pub(crate) fn count(&self, severity: Severity) -> usize {
        self.rows.iter().filter(|row| row.severity == severity).count()
    }

    /// Prints each finding as a note.
    pub(crate) fn print(&self) {
        for Finding { severity, key, message } in &self.rows {
            let word = match severity {
                Severity::Refused => "refused",
                Severity::Warning => "warning",
            };
            // A configuration error names its key itself.
            let key = if message.contains(&format!("`{key}`")) { String::new() } else { format!("`{key}`: ") };
            output::note(&format!("{word}: {key}{message}"));
        }
    }
}
