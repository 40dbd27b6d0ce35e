//! The files that a configuration of containerd imports: relative paths and patterns, as containerd resolves them.
//!
//! Invariant: the number of files is bounded, whatever a pattern matches.

use super::files::ENTRIES_MAX;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of one configuration that are read at most.
pub(crate) const FILES_MAX: usize = 64;

/// Returns the files of the `imports` of the file `parent`.
pub(crate) fn resolve(parent: &Path, imports: &[String]) -> Vec<PathBuf> {
    let folder = parent.parent().unwrap_or(Path::new(""));
    let files = imports.iter().flat_map(|import| {
        let path = folder.join(import);
        // containerd takes other signs of patterns only beside an asterisk.
        if import.contains('*') { matching(&path) } else { vec![path] }
    });
    files.take(FILES_MAX).collect()
}

/// Returns the files that match a pattern, in the order of their names.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let part = part.as_os_str();
        let pattern = part.to_str().filter(|part| part.contains(['*', '?', '[']));
        let next: Vec<PathBuf> = match pattern {
            Some(pattern) => found.iter().flat_map(|folder| entries(folder, pattern)).take(FILES_MAX).collect(),
            None => found.iter().map(|folder| folder.join(part)).collect(),
        };
        found = next;
    }
    found.retain(|path| path.exists());
    found
}

/// Returns the entries of a folder whose names match a pattern, in the order of their names.
fn entries(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let at = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let names = fs::read_dir(at).into_iter().flatten().flatten().take(ENTRIES_MAX).map(|entry| entry.file_name());
    let mut names: Vec<_> = names.filter(|name| name.to_str().is_some_and(|name| is_match(pattern, name))).collect();
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// Whether a whole name matches a pattern. An asterisk that fails takes one more character, so the time is bounded.
fn is_match(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut in_name) = (0, 0);
    let mut asterisk: Option<(usize, usize)> = None;
    while in_name < name.len() {
        if pattern.get(at) == Some(&'*') {
            asterisk = Some((at + 1, in_name));
            at += 1;
        } else if let Some(length) = matched_length(&pattern[at..], name[in_name]) {
            at += length;
            in_name += 1;
        } else if let Some((after, from)) = asterisk {
            asterisk = Some((after, from + 1));
            (at, in_name) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

/// Returns how many characters of the pattern stand for one character, or `None` if they stand for others.
fn matched_length(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', literal, ..] => (*literal == c).then_some(2),
        ['[', rest @ ..] => {
            let end = rest.iter().position(|c| *c == ']')?;
            let (is_negated, class) = match &rest[..end] {
                ['^', class @ ..] => (true, class),
                class => (false, class),
            };
            (is_in_class(class, c) != is_negated).then_some(end + 2)
        }
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

fn is_in_class(class: &[char], c: char) -> bool {
    match class {
        [low, '-', high, rest @ ..] => (*low..=*high).contains(&c) || is_in_class(rest, c),
        [one, rest @ ..] => *one == c || is_in_class(rest, c),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_containerd() {
        let matched = ["*.toml", "a*.toml", "*a*b*.toml", "a?b.toml", "a[a-z]b.toml", "a[^0-9]b.toml", r"\a*"];
        for pattern in matched {
            assert!(is_match(pattern, "axb.toml"), "{pattern}");
        }
        for pattern in ["*.tom", "b*", "a[0-9]b.toml", "a[^x]b.toml", "a[xb.toml", "axb.toml?", ""] {
            assert!(!is_match(pattern, "axb.toml"), "{pattern}");
        }
        // A pattern with many asterisks ends soon.
        assert!(!is_match(&"*a".repeat(200), &"a".repeat(199)));
    }

    #[test]
    fn imports_are_relative_to_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        for name in ["conf.d/b.toml", "conf.d/a.toml", "conf.d/note", "more/x/z.toml"] {
            fs::create_dir_all(at.join(name).parent().unwrap()).unwrap();
            fs::write(at.join(name), "").unwrap();
        }
        let absolute = at.join("more/*/*.toml").display().to_string();
        let imports = ["conf.d/*.toml".to_string(), "own.toml".into(), absolute, "none/*".into()];
        let expected = ["conf.d/a.toml", "conf.d/b.toml", "own.toml", "more/x/z.toml"].map(|name| at.join(name));
        assert_eq!(resolve(&at.join("config.toml"), &imports), expected);
    }
}
