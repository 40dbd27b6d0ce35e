//! The text of `hosts.toml` files: lines of shoal between marks, and every byte of others.
//!
//! Invariant: [`Marked::rest`] of a text that [`merge`] returned with marks is the text before it.

use super::toml_text::{first_position, line_start, quoted, table};
use std::fmt;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Begins a block of lines of shoal. The sum of the lines and the flags follow, up to a colon.
const BEGIN: &str = "# shoal begin ";
/// Ends a block.
const END: &str = "# shoal end";
/// Ends the lines of the mirror's table but its head. Other files repeat a block without its mirror.
const MIRROR: &str = "# the mirror of shoal";
/// Digits of the sum.
const SUM_DIGITS: usize = 8;

/// What undo must know of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// There was no file.
    pub(crate) is_new: bool,
    /// There was no folder.
    pub(crate) is_new_folder: bool,
    /// The file took the place of another one, which is the backup.
    pub(crate) is_replacement: bool,
    /// The line feed before the block belongs to it, because the text before had none at its end.
    pub(crate) has_line_feed: bool,
}

impl Flags {
    fn parse(words: &str) -> Self {
        let has = |word: &str| words.split(' ').any(|found| found == word);
        Self {
            is_new: has("new"),
            is_new_folder: has("folder"),
            is_replacement: has("replaced"),
            has_line_feed: has("newline"),
        }
    }

    /// Whether the file has nothing but a block.
    pub(crate) fn is_whole(self) -> bool {
        self.is_new || self.is_replacement
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (self.is_new, " new"),
            (self.is_new_folder, " folder"),
            (self.is_replacement, " replaced"),
            (self.has_line_feed, " newline"),
        ];
        words.into_iter().filter(|(is_set, _)| *is_set).try_for_each(|(_, word)| f.write_str(word))
    }
}

fn sum(lines: &str) -> String {
    blake3::hash(lines.as_bytes()).to_hex()[..SUM_DIGITS].to_string()
}

/// Returns a block with these lines.
pub(crate) fn marked(lines: &str, flags: Flags) -> String {
    let line_feed = if flags.has_line_feed { "\n" } else { "" };
    let (sum, note) = (sum(lines), "written by `shoal containerd setup`, removed by its option --undo");
    format!("{line_feed}{BEGIN}{sum}{flags}: {note}\n{lines}{END}\n")
}

struct Block {
    /// The bytes that undo removes.
    whole: Range<usize>,
    flags: Flags,
    /// Whether the lines are as shoal wrote them.
    is_intact: bool,
}

/// A text with its blocks.
pub(crate) struct Marked<'t> {
    text: &'t str,
    blocks: Vec<Block>,
    /// Whether a mark has no partner.
    is_broken: bool,
}

impl<'t> Marked<'t> {
    pub(crate) fn parse(text: &'t str) -> Self {
        let mut marked = Self { text, blocks: Vec::new(), is_broken: false };
        let mut open: Option<(usize, &str, usize)> = None;
        let mut end = 0;
        for line in text.split_inclusive('\n') {
            let start = end;
            end += line.len();
            if let Some(head) = line.strip_prefix(BEGIN) {
                marked.is_broken |= open.is_some();
                open = Some((start, head, end));
            } else if line.trim_end() == END {
                match open.take() {
                    Some((from, head, lines)) => marked.add(head, from..end, &text[lines..start]),
                    None => marked.is_broken = true,
                }
            }
        }
        marked.is_broken |= open.is_some();
        marked
    }

    fn add(&mut self, head: &str, whole: Range<usize>, lines: &str) {
        let head = head.split(':').next().unwrap_or_default();
        let (expected, words) = head.split_once(' ').unwrap_or((head, ""));
        let flags = Flags::parse(words);
        let has_line_feed = flags.has_line_feed && self.text[..whole.start].ends_with('\n');
        let whole = whole.start - usize::from(has_line_feed)..whole.end;
        self.blocks.push(Block { whole, flags, is_intact: sum(lines) == expected });
    }

    /// Whether shoal wrote nothing in the file.
    pub(crate) fn is_foreign(&self) -> bool {
        self.blocks.is_empty() && !self.is_broken
    }

    /// Whether somebody changed lines or marks of shoal.
    pub(crate) fn is_edited(&self) -> bool {
        self.is_broken || !self.blocks.iter().all(|block| block.is_intact)
    }

    pub(crate) fn flags(&self) -> Flags {
        self.blocks.first().map_or_else(Flags::default, |block| block.flags)
    }

    /// Returns the text without the blocks.
    pub(crate) fn rest(&self) -> String {
        self.with("")
    }

    /// Returns the text with another block in the place of the first one, and without further blocks.
    pub(crate) fn with(&self, block: &str) -> String {
        let (mut out, mut at) = (String::with_capacity(self.text.len() + block.len()), 0);
        for (number, Block { whole, .. }) in self.blocks.iter().enumerate() {
            // Two blocks may claim one line feed after the lines between them are gone.
            out.push_str(&self.text[at..whole.start.max(at)]);
            if number == 0 {
                out.push_str(block);
            }
            at = whole.end;
        }
        out.push_str(&self.text[at..]);
        out
    }
}

/// Whether a file may have blocks, also a file that is not UTF-8.
pub(crate) fn has_mark(bytes: &[u8]) -> bool {
    bytes.windows(BEGIN.len()).any(|window| window == BEGIN.as_bytes())
}

/// Returns the table of the mirror.
pub(crate) fn mirror_table(url: &str, resolves_tags: bool) -> String {
    let capabilities = if resolves_tags { r#""pull", "resolve""# } else { r#""pull""# };
    format!("[host.\"{url}\"]\n  capabilities = [{capabilities}]  {MIRROR}\n")
}

fn is_of_mirror(line: &str) -> bool {
    line.trim_end().ends_with(MIRROR)
}

/// Returns what a file says apart from the mirror. The lines of shoal for certificates and the server stay.
pub(crate) fn without_mirror(text: &str) -> String {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let is_head = |number: usize, line: &str| {
        line.starts_with("[host.") && lines.get(number + 1).is_some_and(|next| is_of_mirror(next))
    };
    let is_mark = |line: &str| line.starts_with(BEGIN) || line.trim_end() == END;
    let is_kept = |number: usize, line: &str| !is_head(number, line) && !is_of_mirror(line) && !is_mark(line);
    let kept = lines.iter().copied().enumerate().filter(|&(number, line)| is_kept(number, line));
    kept.map(|(_, line)| line).collect()
}

/// Whether two URLs are the same host.
pub(crate) fn is_same_url(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// Returns the hosts of a file in the order in which containerd asks them. A file with a fault has none.
pub(crate) fn hosts(text: &str) -> Vec<String> {
    let Ok(root) = DeTable::parse(text) else { return Vec::new() };
    let Some(hosts) = table(root.get_ref(), "host") else { return Vec::new() };
    let mut found: Vec<(usize, &str)> =
        hosts.iter().map(|(key, value)| (first_position(key, value), &**key.get_ref())).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, host)| host.to_string()).collect()
}

/// Returns `base` with the lines `head` at its beginning, and the mirror's table before its first host.
///
/// # Errors
/// Fails if `base` is not valid TOML.
pub(crate) fn merge(base: &str, head: &str, mirror: &str, has_marks: bool) -> Result<String, toml::de::Error> {
    let root = DeTable::parse(base)?;
    // Nothing may stand before a byte order mark.
    let start = if base.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let at = place_of_table(base, root.get_ref());
    let has_line_feed = at == base.len() && !base.is_empty() && !base.ends_with('\n');
    let block = |lines: &str, has_line_feed: bool| {
        if lines.is_empty() {
            String::new()
        } else if has_marks {
            marked(lines, Flags { has_line_feed, ..Flags::default() })
        } else {
            format!("{}{lines}", if has_line_feed { "\n" } else { "" })
        }
    };
    let (head, mirror) = (block(head, false), block(mirror, has_line_feed));
    Ok(format!("{}{head}{}{mirror}{}", &base[..start], &base[start..at], &base[at..]))
}

/// Returns where the mirror's table goes: before the first table of a host, or to the end.
fn place_of_table(text: &str, root: &DeTable<'_>) -> usize {
    let host = root.get_key_value("host").map(|(key, value)| line_start(text, first_position(key, value)));
    // Before `host."URL".key = value` a table would take the keys that follow.
    let host = host.filter(|at| text[*at..].trim_start().starts_with('['));
    host.map_or(text.len(), |at| with_comments(text, at))
}

/// Returns where the comments above a table begin. Comments at the beginning of a file belong to the file.
fn with_comments(text: &str, table: usize) -> usize {
    let mut at = table;
    while at > 0 {
        let above = line_start(text, at - 1);
        if !text[above..at].trim_start().starts_with('#') {
            return at;
        }
        at = above;
    }
    table
}

/// Whether a merged text says what `base` says, the added keys, and the mirror as its first host.
pub(crate) fn is_merged(base: &str, merged: &str, mirror: &str, added: &[&str]) -> bool {
    let (Ok(former), Ok(mut table)) = (base.parse::<toml::Table>(), merged.parse::<toml::Table>()) else {
        return false;
    };
    for key in added {
        table.remove(*key);
    }
    let Some(toml::Value::Table(hosts)) = table.get_mut("host") else { return false };
    hosts.remove(mirror);
    if hosts.is_empty() && !former.contains_key("host") {
        table.remove("host");
    }
    table == former && hosts_begin_with(merged, mirror)
}

fn hosts_begin_with(text: &str, mirror: &str) -> bool {
    hosts(text).first().is_some_and(|first| first == mirror)
}

/// Returns a text whose relative paths of certificates begin with `prefix`, so that another folder can have it.
///
/// # Errors
/// Fails if the text is not valid TOML.
pub(crate) fn relocate(text: &str, prefix: &str) -> Result<String, toml::de::Error> {
    let root = DeTable::parse(text)?;
    let mut found = Vec::new();
    relative_paths(root.get_ref(), &mut found);
    for host in table(root.get_ref(), "host").into_iter().flat_map(|hosts| hosts.values()) {
        if let DeValue::Table(host) = host.get_ref() {
            relative_paths(host, &mut found);
        }
    }
    // From the end, so that no change moves the place of another one.
    found.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
    let mut out = text.to_string();
    for (place, path) in found {
        out.replace_range(place, &quoted(&format!("{prefix}/{path}")));
    }
    Ok(out)
}

fn relative_paths(table: &DeTable<'_>, found: &mut Vec<(Range<usize>, String)>) {
    for key in ["ca", "client"] {
        if let Some(value) = table.get(key) {
            relative_strings(value, found);
        }
    }
}

fn relative_strings(value: &Spanned<DeValue<'_>>, found: &mut Vec<(Range<usize>, String)>) {
    match value.get_ref() {
        DeValue::String(path) if !path.starts_with('/') => found.push((value.span(), path.to_string())),
        DeValue::Array(items) => items.iter().for_each(|item| relative_strings(item, found)),
        _ => {}
    }
}
