//! The files of the repository, and small tools to read them.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the repository.
pub(crate) struct File {
    /// Relative to the repository.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl File {
    /// The path as text.
    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The text without its inline test module.
    pub(crate) fn without_tests(&self) -> &str {
        self.text.find("#[cfg(test)]\nmod tests {").map_or(&self.text[..], |cut| &self.text[..cut])
    }

    /// Whether the file is part of a crate's program or library, and not of its tests or benchmarks.
    pub(crate) fn is_shipped(&self) -> bool {
        let name = self.name();
        let in_src = name.starts_with("src/") || name.contains("/src/");
        in_src && !name.ends_with("tests.rs") && !name.contains("/tests/") && !name.starts_with("testkit/")
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with one of these endings, in the order of their paths. Build outputs and hidden folders are left out.
pub(crate) fn with_ending(endings: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).unwrap() {
            let path = item.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push(File { path: path.strip_prefix(root()).unwrap().to_path_buf(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty());
    found
}

/// All Rust files except the tidy tests, which name what they forbid.
pub(crate) fn rust() -> Vec<File> {
    with_ending(&[".rs"]).into_iter().filter(|file| !file.path.starts_with("tests/tidy")).collect()
}

/// The lines of a text with their numbers, from 1.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(number, line)| (number + 1, line))
}

/// The words of a text: letters, digits and underscores.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The comment at the end of a Rust line, without its slashes. A `//` inside a string counts as a comment; that is
/// rare.
pub(crate) fn comment(line: &str) -> Option<&str> {
    let (before, comment) = line.split_once("//")?;
    // The address of a web page is not a comment.
    (!before.ends_with(':')).then(|| comment.trim_start_matches(['/', '!']))
}
