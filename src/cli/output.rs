//! Everything that commands print: results to standard output, notes and errors to standard error.
//!
//! Invariant: a closed output never fails a command, and no text from a host, a registry, a hook or a server reaches
//! the terminal with a character that controls it.

use serde::Serialize;
use shoal_proto::plain_text;
use std::borrow::Cow;
use std::io::Write;

/// Prints a line of the result.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", plain_text::escape_lines(text)); // the reader may have closed the pipe
}

/// Prints a note that is not the command's result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", plain_text::escape_lines(text)); // the reader may have closed the pipe
}

/// Prints an error with its sources.
pub(crate) fn error(error: &anyhow::Error) {
    note(&format!("shoal: {error:#}"));
}

/// Prints one JSON document.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&plain_text::escape_json(&serde_json::to_string_pretty(value)?));
    Ok(())
}

/// Prints one JSON line.
pub(crate) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    line(&plain_text::escape_json(&serde_json::to_string(value)?));
    Ok(())
}

/// Prints rows in columns as wide as their longest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    // A line feed in a cell would make a row that nothing stands for.
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| plain_text::escape(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(padded.join("  ").trim_end());
    };
    print(head.to_vec());
    for row in &rows {
        print(row.iter().map(AsRef::as_ref).collect());
    }
}

/// The age of a Unix time in seconds, such as `5m ago`.
pub(crate) fn ago(unix: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match now.saturating_sub(unix) {
        seconds @ 0..=119 => format!("{seconds}s ago"),
        seconds @ 120..=7_199 => format!("{}m ago", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h ago", seconds / 3600),
        seconds => format!("{}d ago", seconds / 86_400),
    }
}
