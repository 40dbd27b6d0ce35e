//! What the doctor found, row by row.
//!
//! Invariant: every row that is not fine says what to do.

use crate::cli::findings::{Finding, Severity};
use crate::cli::output;
use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ok,
    Warning,
    Failed,
}

/// One check and its result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    check: &'static str,
    status: Status,
    found: String,
    /// What to do. Empty where everything is fine.
    #[serde(rename = "do")]
    remedy: String,
}

/// All rows, in the order of the checks.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    fn add(&mut self, check: &'static str, status: Status, found: String, remedy: String) {
        self.rows.push(Row { check, status, found, remedy });
    }

    pub(crate) fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(check, Status::Ok, found.into(), String::new());
    }

    pub(crate) fn warn(&mut self, check: &'static str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Status::Warning, found.into(), remedy.into());
    }

    pub(crate) fn fail(&mut self, check: &'static str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Status::Failed, found.into(), remedy.into());
    }

    /// Adds a finding of the configuration's check. Its message says what to do.
    pub(crate) fn finding(&mut self, finding: &Finding) {
        let Finding { severity, key, message } = finding;
        let remedy = format!("mend `{key}`, then run `shoal config check`");
        match severity {
            Severity::Refused => self.fail("configuration", message, remedy),
            Severity::Warning => self.warn("configuration", message, remedy),
        }
    }

    pub(crate) fn failed(&self) -> usize {
        self.rows.iter().filter(|row| row.status == Status::Failed).count()
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Prints a table, and below it what to do about each row that is not fine.
    pub(crate) fn print(&self) {
        let word = |status| match status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "FAILED",
        };
        let cells = |row: &Row| vec![word(row.status).into(), row.check.into(), row.found.clone()];
        output::table(&["STATUS", "CHECK", "FOUND"], &self.rows.iter().map(cells).collect::<Vec<_>>());
        for row in self.rows.iter().filter(|row| row.status != Status::Ok) {
            output::line(&format!("{}: {}", row.check, row.remedy));
        }
    }
}
