//! Language: the length and form of sentences, archaic idioms, the width of lines. `docs/STYLE.md` has the rules.

use crate::files::{File, comment, lines, root, rust, with_ending};
use crate::none;
use crate::ratchet::{
    ARCHAIC_COMMENTS, ARCHAIC_DOCS, JOINED_SENTENCES, LONG_SENTENCES, Ratchet, WIDE_COMMENTS, WIDE_MARKDOWN,
};

/// Words in a sentence that is not long.
const WORDS_MAX: usize = 35;
/// Columns of a line of text.
const COLUMNS_MAX: usize = 120;

/// Phrases that a reader must decode. `is no` counts only before a lower-case word.
const ARCHAIC: [&str; 11] =
    ["whoever", "whom", "nobody", "borne", "of late", "in vain", "be had", "is told", "are told", "anew", "is no"];

/// Words, and how many of which kind.
#[derive(Default)]
struct Count {
    words: usize,
    sentences: usize,
    long: Vec<String>,
    joined: Vec<String>,
    archaic: Vec<String>,
}

/// Documents: all Markdown files but the language rules, which name what they forbid.
fn documents() -> Vec<File> {
    let all = with_ending(&[".md"]).into_iter();
    all.filter(|file| !["docs/STYLE.md"].contains(&file.name().as_str())).collect()
}

fn is_list_item(line: &str) -> Option<&str> {
    let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let numbered = (number.len() < line.len()).then(|| number.strip_prefix(". ")).flatten();
    line.strip_prefix("- ").or_else(|| line.strip_prefix("* ")).or(numbered)
}

/// The paragraphs and list items of a document, without code, tables and headings.
fn paragraphs(text: &str) -> Vec<String> {
    let (mut all, mut current, mut in_code) = (Vec::new(), String::new(), false);
    for line in text.lines().map(str::trim) {
        let is_fence = line.starts_with("```");
        let ends = is_fence || line.is_empty() || line.starts_with(['#', '|', '<']) || is_list_item(line).is_some();
        if ends && !in_code {
            all.push(std::mem::take(&mut current));
        }
        in_code ^= is_fence;
        if in_code || is_fence || line.is_empty() || line.starts_with(['#', '|', '<']) {
            continue;
        }
        current.push_str(without_lead_in(is_list_item(line).unwrap_or(line), is_list_item(line).is_some()));
        current.push(' ');
    }
    all.push(current);
    all.retain(|text| !text.trim().is_empty());
    all
}

/// A list item such as `**term**: text` without its term.
fn without_lead_in(text: &str, is_item: bool) -> &str {
    match text.split_once(": ") {
        Some((term, rest)) if is_item && term.len() <= 60 && !term.contains(['.', ',']) => rest,
        _ => text,
    }
}

/// The text without code spans, link targets and emphasis.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for (number, part) in text.split('`').enumerate() {
        out.push_str(if number % 2 == 1 { "CODE" } else { part });
    }
    while let Some(start) = out.find("](") {
        let end = out[start..].find(')').map_or(out.len(), |end| start + end + 1);
        out.replace_range(start..end, "");
    }
    out.replace(['*', '['], "")
}

/// The sentences of a paragraph. A sentence ends with `.`, `!` or `?` before a capital, a digit, a quote or a bracket.
fn sentences(paragraph: &str) -> Vec<String> {
    let (mut all, mut current) = (Vec::new(), String::new());
    let mut words = paragraph.split_whitespace().peekable();
    while let Some(word) = words.next() {
        current.push_str(word);
        current.push(' ');
        let begins =
            |next: &&str| next.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit() || "\"(".contains(c));
        if word.ends_with(['.', '!', '?']) && words.peek().is_none_or(begins) {
            all.push(std::mem::take(&mut current));
        }
    }
    all.push(current);
    all.retain(|text| text.contains(char::is_alphanumeric));
    all
}

/// Archaic phrases in a text, with their surroundings.
fn archaic(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    let mut found = Vec::new();
    for phrase in ARCHAIC {
        for (at, _) in lower.match_indices(phrase) {
            let (before, after) = (lower[..at].chars().next_back(), &lower[at + phrase.len()..]);
            let followed =
                phrase != "is no" || after.trim_start_matches(' ').starts_with(|c: char| c.is_ascii_lowercase());
            // `there is no x`, `is no longer` and `is no more than` are plain English.
            let usual = phrase == "is no"
                && (lower[..at].ends_with("there ")
                    || [" longer", " more", " less"].iter().any(|word| after.starts_with(word)));
            if is_edge(before) && is_edge(after.chars().next()) && followed && !usual {
                found.push(phrase.to_string());
            }
        }
    }
    found
}

impl Count {
    fn add(&mut self, name: &str, paragraph: &str) {
        for sentence in sentences(&plain(paragraph)) {
            let words = sentence.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
            self.sentences += 1;
            self.words += words;
            let text = sentence.trim();
            let place = || format!("{name}: {text}");
            if words > WORDS_MAX {
                self.long.push(place());
            }
            // A colon at the end introduces a list, a table or code.
            let inner = text.trim_end_matches(':');
            if inner.split_whitespace().any(|word| word.ends_with([';', ':'])) {
                self.joined.push(place());
            }
            self.archaic.extend(archaic(text).into_iter().map(|phrase| format!("{name}: `{phrase}` in: {text}")));
        }
    }

    fn per_cent(&self, of: &[String]) -> f64 {
        100.0 * of.len() as f64 / self.sentences.max(1) as f64
    }

    fn per_thousand_words(&self) -> f64 {
        1000.0 * self.archaic.len() as f64 / self.words.max(1) as f64
    }
}

#[test]
fn documents_are_easy_to_read() {
    let mut count = Count::default();
    for file in documents() {
        paragraphs(&file.text).iter().for_each(|paragraph| count.add(&file.name(), paragraph));
    }
    LONG_SENTENCES.check(count.per_cent(&count.long), &count.long);
    JOINED_SENTENCES.check(count.per_cent(&count.joined), &count.joined);
    ARCHAIC_DOCS.check(count.per_thousand_words(), &count.archaic);
}

#[test]
fn comments_are_plain_english() {
    let mut count = Count::default();
    for file in rust() {
        let comments: Vec<&str> = file.text.lines().filter_map(comment).collect();
        count.add(&file.name(), &comments.join(" "));
    }
    ARCHAIC_COMMENTS.check(count.per_thousand_words(), &count.archaic);
}

/// Lines that are too wide.
fn wide(ratchet: &Ratchet, files: &[File], counts: impl Fn(&str) -> bool) {
    let mut wide = Vec::new();
    for file in files {
        let mut in_code = false;
        for (number, line) in lines(&file.text) {
            in_code ^= line.trim_start().starts_with("```");
            if !in_code && line.chars().count() > COLUMNS_MAX && counts(line) {
                wide.push(format!("{}:{number}", file.name()));
            }
        }
    }
    ratchet.check(wide.len() as f64, &wide);
}

#[test]
fn lines_are_at_most_120_columns_wide() {
    wide(&WIDE_COMMENTS, &rust(), |line| comment(line).is_some() && line.trim_start().starts_with("//"));
    wide(&WIDE_MARKDOWN, &documents(), |line| {
        let line = line.trim_start();
        !line.starts_with('|') && !line.contains("](") && !line.contains("http")
    });
}

#[test]
fn sentences_are_found() {
    let text = "# Head\n\nOne is `a; b`. Two: it\nis joined, e.g. here.\n\n- **Term**: an item\n  of two lines;\n- `x`: y.\n```\ncode; code.\n```\n| table; cell. |\nThis introduces:\n";
    let mut count = Count::default();
    paragraphs(text).iter().for_each(|paragraph| count.add("x.md", paragraph));
    assert_eq!((count.sentences, count.joined.len()), (5, 2), "{:?}", count.joined);
    assert_eq!(
        archaic("Nobody is told. It is no name. There is no name. It is no longer so; annew."),
        ["nobody", "is told", "is no"]
    );
    let long = "word ".repeat(36) + ".";
    count.add("x.md", &long);
    assert_eq!(count.long.len(), 1);
}

/// The threat model names tests and fuzz targets. A test that was renamed or removed holds nothing.
#[test]
fn the_threat_model_names_what_exists() {
    let text = std::fs::read_to_string(root().join("docs/SECURITY.md")).unwrap();
    let mut missing = Vec::new();
    let mut named = 0;
    for name in text.split('`').skip(1).step_by(2) {
        let (file, function) = match (name.split_once("::"), name.strip_prefix("fuzz ")) {
            (Some((file, function)), _) if file.ends_with(".rs") => (file.to_string(), format!("fn {function}(")),
            (None, Some(target)) => (format!("fuzz/fuzz_targets/{target}.rs"), "fuzz_target!".to_string()),
            (None, None) if name.ends_with(".rs") && name.contains('/') => (name.to_string(), "#[test]".to_string()),
            _ => continue,
        };
        named += 1;
        if !std::fs::read_to_string(root().join(file)).is_ok_and(|code| code.contains(&function)) {
            missing.push(format!("`{name}`"));
        }
    }
    assert!(named > 20, "{named} tests are named");
    none("tests that docs/SECURITY.md names", missing);
}
