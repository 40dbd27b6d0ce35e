//! Code: sizes of files and functions, words with one meaning, leftovers, error types.

use crate::files::{File, lines, rust, with_ending, words};
use crate::none;
use crate::ratchet::{FILE_LINES, FLATTENED_ERRORS, FORBIDDEN_NAMES, FUNCTION_P99, GIVES, PUB_SUPER, STRING_ERRORS};

/// Names of the standard library and of rustls that contain a word which we use otherwise.
const STD_NAMES: [&str; 6] = [".chunks(", ".chunk_by(", "chunks_exact", "chunk_size", "first_chunk", "outboundchunks"];

/// Former names of ours that nobody could guess.
/// Each is in two parts here, so that a search of the repository finds none.
const FORMER_NAMES: [(&str, &str); 6] =
    [("to", "ll"), ("abr", "east"), ("tar", "dy"), ("ca", "lm"), ("wa", "ves"), ("ma", "tes")];

fn former_name(word: &str) -> bool {
    FORMER_NAMES.iter().any(|(head, tail)| word.strip_prefix(head) == Some(tail))
}

#[test]
fn files_stay_readable() {
    let counts: Vec<(usize, String)> =
        rust().iter().map(|file| (file.without_tests().lines().count(), file.name())).collect();
    let (longest, name) = counts.into_iter().max().unwrap();
    FILE_LINES.check(longest as f64, &[name]);
}

/// The lengths of all functions of a file, with the lines where they begin. Relies on the format of rustfmt: a function
/// ends with a brace at the indentation of its head.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let all: Vec<&str> = text.lines().collect();
    let is_head = |line: &str| {
        let line = line.trim_start();
        words(line).take(6).any(|word| word == "fn")
            && (line.starts_with("fn ") || line.contains(" fn "))
            && !line.starts_with("//")
    };
    let mut found = Vec::new();
    for (start, head) in all.iter().enumerate().filter(|(_, line)| is_head(line)) {
        if head.ends_with('}') || head.ends_with(';') {
            continue;
        }
        let indent = &head[..head.len() - head.trim_start().len()];
        let is_end = |line: &&str| {
            line.strip_prefix(indent).is_some_and(|rest| rest == "}" || rest.starts_with(") ") && rest.ends_with(';'))
        };
        if let Some(length) = all[start + 1..].iter().position(is_end) {
            found.push((start + 1, length + 2));
        }
    }
    found
}

#[test]
fn functions_stay_short() {
    let mut all: Vec<(usize, String)> = Vec::new();
    for file in rust().iter().filter(|file| file.is_shipped()) {
        let found = functions(file.without_tests()).into_iter();
        all.extend(found.map(|(line, length)| (length, format!("{}:{line}: {length} lines", file.name()))));
    }
    all.sort_unstable();
    let p99 = all[all.len() * 99 / 100].0;
    let longest: Vec<String> = all.iter().rev().take(20).map(|(_, place)| place.clone()).collect();
    FUNCTION_P99.check(p99 as f64, &longest);
}

#[test]
fn words_mean_one_thing() {
    let mut broken = Vec::new();
    let mut former = Vec::new();
    for file in rust() {
        for (number, line) in lines(&file.text) {
            let lower = STD_NAMES.iter().fold(line.to_lowercase(), |line, name| line.replace(name, ""));
            if lower.contains("chunk") {
                broken.push(format!("{}:{number}: a piece is not a chunk", file.name()));
            }
            if line.contains("Swarm") && !file.path.starts_with("net") {
                broken.push(format!("{}:{number}: `Swarm` is libp2p's, and lives in net", file.name()));
            }
            let found = words(line).filter(|word| former_name(&word.to_lowercase()));
            former.extend(found.map(|word| format!("{}:{number}: {word}", file.name())));
        }
    }
    none("words", broken);
    FORBIDDEN_NAMES.check(former.len() as f64, &former);
}

/// Places of lines that fulfil a condition.
fn places(files: &[File], counts: impl Fn(&str) -> usize) -> (f64, Vec<String>) {
    let mut all = Vec::new();
    for file in files {
        for (number, line) in lines(&file.text) {
            all.extend((0..counts(line)).map(|_| format!("{}:{number}", file.name())));
        }
    }
    (all.len() as f64, all)
}

/// How often a line has a result whose error is a text.
fn string_errors(line: &str) -> usize {
    let results = line.match_indices("Result<").filter(|(at, name)| {
        let (mut depth, mut last) = (1, 0);
        let inner = &line[at + name.len()..];
        for (place, c) in inner.char_indices() {
            match c {
                '<' | '(' | '[' => depth += 1,
                '>' | ')' | ']' => depth -= 1,
                ',' if depth == 1 => last = place + 1,
                _ => {}
            }
            if depth == 0 {
                return last > 0 && inner[last..place].trim() == "String";
            }
        }
        false
    });
    results.count()
}

/// Whether a line turns an error into its text: `.map_err(|error| error.to_string())`.
fn flattens(line: &str) -> bool {
    let Some((_, rest)) = line.split_once(".map_err(|") else { return false };
    let Some((name, rest)) = rest.split_once('|') else { return false };
    rest.trim_start().starts_with(&format!("{name}.to_string())"))
}

#[test]
fn errors_have_types() {
    let files: Vec<File> = rust().into_iter().filter(File::is_shipped).collect();
    let (count, all) = places(&files, string_errors);
    STRING_ERRORS.check(count, &all);
    let (count, all) = places(&files, |line| usize::from(flattens(line)));
    FLATTENED_ERRORS.check(count, &all);
}

#[test]
fn parts_own_their_fields() {
    let files: Vec<File> = rust().into_iter().filter(File::is_shipped).collect();
    let (count, _) = places(&files, |line| line.matches("pub(super)").count());
    PUB_SUPER.check(count, &[]);
}

#[test]
fn functions_return() {
    let (count, all) = places(&rust(), |line| usize::from(line.contains("/// Gives")));
    GIVES.check(count, &all);
}

#[test]
fn nothing_is_left_lying_about() {
    let forbidden =
        ["#[ignore", "#[path", "todo!(", "unimplemented!(", "FIXME", "XXX", "allow(dead_code)", "allow(unused"];
    let mut broken = Vec::new();
    for file in rust() {
        for (number, line) in lines(&file.text) {
            let found = forbidden.iter().filter(|word| line.contains(**word));
            broken.extend(found.map(|word| format!("{}:{number}: {word}", file.name())));
        }
    }
    none("leftovers", broken);
}

#[test]
fn nothing_tells_of_a_machine() {
    let forbidden =
        [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["crates", ".io"], ["pypi", ".org"]].map(|p| p.concat());
    let mut broken = Vec::new();
    for file in with_ending(&[".rs", ".md", ".toml", ".service", ".sh"]) {
        for (number, line) in lines(&file.text) {
            let found = forbidden.iter().filter(|word| line.contains(word.as_str()));
            broken.extend(found.map(|word| format!("{}:{number}: {word}", file.name())));
        }
    }
    none("paths and hosts of one machine", broken);
}

#[test]
fn sizes_and_errors_are_found() {
    let text = "fn short() {}\n\nimpl X {\n    pub fn long(\n        a: u8,\n    ) -> u8 {\n        a\n    }\n}\n// a fn comment\n";
    assert_eq!(functions(text), [(4, 5)]);
    assert_eq!(string_errors("fn x() -> Result<Vec<(u8, u8)>, String> {"), 1);
    assert_eq!(string_errors("fn x() -> Result<String, Error>, Result<String> {"), 0);
    assert!(flattens("x().map_err(|error| error.to_string())?") && !flattens("x().map_err(|e| E(e.to_string()))"));
}
