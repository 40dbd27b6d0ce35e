//! Positions and values in TOML texts of others, so that an edit leaves every other byte as it is.
//!
//! Invariant: a position is the number of a byte in the text that was parsed.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Returns where a key first stands, also as a part of the key of a table below it.
pub(crate) fn first_position(key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) -> usize {
    let below = match value.get_ref() {
        DeValue::Table(table) => table.iter().map(|(key, value)| first_position(key, value)).min(),
        _ => None,
    };
    below.map_or(key.span().start, |below| below.min(key.span().start))
}

/// Returns the first byte of the line that has a byte.
pub(crate) fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |end| end + 1)
}

/// Returns the number of the line that has a byte, from 1.
pub(crate) fn line_number(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Returns a table by its key.
pub(crate) fn table<'t, 'i>(table: &'t DeTable<'i>, key: &str) -> Option<&'t DeTable<'i>> {
    table.get(key)?.get_ref().as_table()
}

/// Returns a text as a TOML string.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

/// Returns an error of the parser in one line.
pub(crate) fn message(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().filter(|span| text.is_char_boundary(span.start));
    let line = line.map_or_else(String::new, |span| format!("line {}: ", line_number(text, span.start)));
    format!("{line}{}", error.message().replace('\n', " "))
}
