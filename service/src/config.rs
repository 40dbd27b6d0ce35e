//! Layered configuration: a TOML file, then environment variables, then command-line options. Later layers win.
//!
//! Invariant: an unknown key is an error that names the key.

use crate::folder_places::{check_apart, check_place};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The reason for which a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not TOML.
    #[error("{}: {message}", .path.display())]
    Syntax {
        path: PathBuf,
        /// The place and the fault, over several lines.
        message: String,
    },
    /// An override has another form than `key=value`, or its key leads through a value that is not a table.
    #[error("invalid override `{0}`: use key=value, and quotes around a part of the key that contains dots")]
    Override(String),
    /// A key is unknown or missing, or a value has the wrong type or range.
    #[error("{origin}: {message}")]
    Invalid {
        /// The file or the key at fault.
        origin: String,
        message: String,
    },
}

impl ConfigError {
    /// Returns the error of a value that can be parsed and is out of range.
    pub fn invalid(key: &str, why: impl std::fmt::Display) -> Self {
        Self::Invalid { origin: format!("`{key}`"), message: why.to_string() }
    }
}

/// Checks that a role may use these folders, each named by its key, and that none lies in another.
///
/// # Errors
/// [`ConfigError::Invalid`] with the first key at fault.
pub fn check_folders(folders: &[(&str, &Path)]) -> Result<(), ConfigError> {
    for (at, (key, path)) in folders.iter().enumerate() {
        check_place(path).map_err(|error| ConfigError::invalid(key, error))?;
        for (_, other) in &folders[..at] {
            check_apart(path, other).map_err(|error| ConfigError::invalid(key, error))?;
        }
    }
    Ok(())
}

/// The layers to read, in rising precedence.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The TOML file, if there is one.
    pub file: Option<PathBuf>,
    /// The prefix of environment variables. With `SHOAL_PEER_`, the variable `SHOAL_PEER_HTTP` sets `http`. Two
    /// underscores lead into a table.
    pub env_prefix: String,
    /// Pairs `key=value`. Dots in the key lead into tables. Quotes hold a part together, as in TOML:
    /// `registries."127.0.0.1:5000".plain_http=true`.
    pub overrides: Vec<String>,
}

/// Returns the TOML value in `text`, or `text` as a string if it is not TOML.
fn value_of(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(text.to_string()))
}

/// A pair `key=value`, read.
struct Override {
    path: Vec<String>,
    value: Value,
}

/// Reads a pair `key=value`. Returns `None` if it has another form.
fn read_override(pair: &str) -> Option<Override> {
    let mut path = Vec::new();
    let mut rest = pair;
    loop {
        let part = read_part(rest.trim_start())?;
        path.push(part.text);
        rest = part.rest.trim_start();
        if let Some(value) = rest.strip_prefix('=') {
            return Some(Override { path, value: value_of(value.trim()) });
        }
        rest = rest.strip_prefix('.')?;
    }
}

/// One part of a key, and what follows it.
struct KeyPart<'a> {
    text: String,
    rest: &'a str,
}

/// Reads a part of a key: up to the next dot or equals sign, or up to its closing quote.
fn read_part(text: &str) -> Option<KeyPart<'_>> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let Some(quote) = quote else {
        let end = text.find(['.', '=']).unwrap_or(text.len());
        let (part, rest) = text.split_at(end);
        let part = part.trim_end();
        return (!part.is_empty()).then(|| KeyPart { text: part.to_string(), rest });
    };
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' && quote == '"' {
            chars.next(); // an escaped quote does not end the part
        } else if c == quote {
            let (quoted, rest) = text.split_at(at + 1);
            let Value::String(text) = format!("value = {quoted}").parse::<Table>().ok()?.remove("value")? else {
                return None;
            };
            return Some(KeyPart { text, rest });
        }
    }
    None
}

fn set<S: AsRef<str>>(table: &mut Table, path: &[S], value: Value) -> Option<()> {
    let (last, parents) = path.split_last()?;
    let mut at = table;
    for parent in parents {
        at = at.entry(parent.as_ref()).or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
    }
    at.insert(last.as_ref().to_string(), value);
    Some(())
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
    text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_path_buf(),
        message: error.to_string().trim_end().replace('\n', "\n  "),
    })
}

/// Reads and merges all layers. Tests pass an environment of their own.
///
/// # Errors
///
/// Fails if the file cannot be read or parsed, an override is invalid, or a key or value is invalid.
pub fn load<T: DeserializeOwned>(
    sources: &Sources,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let mut table = match &sources.file {
        Some(path) => read(path)?,
        None => Table::new(),
    };
    let mut vars: Vec<(String, String)> = env
        .into_iter()
        .filter_map(|(name, text)| Some((name.strip_prefix(&sources.env_prefix)?.to_lowercase(), text)))
        .collect();
    vars.sort();
    for (name, text) in vars {
        let path: Vec<&str> = name.split("__").collect();
        set(&mut table, &path, value_of(&text)).ok_or_else(|| ConfigError::Override(name.clone()))?;
    }
    for pair in &sources.overrides {
        let bad = || ConfigError::Override(pair.clone());
        let Override { path, value } = read_override(pair).ok_or_else(bad)?;
        set(&mut table, &path, value).ok_or_else(bad)?;
    }
    T::deserialize(table).map_err(|error| ConfigError::Invalid {
        origin: sources.file.as_ref().map_or_else(|| "configuration".into(), |path| path.display().to_string()),
        message: error.to_string().trim_end().to_string(),
    })
}

/// Returns the configuration as TOML with every default.
///
/// # Errors
///
/// Fails if a value cannot be written as TOML.
pub fn render<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(config)
        .map_err(|error| ConfigError::Invalid { origin: "configuration".into(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        listen: String,
        quota: crate::units::ByteSize,
        nested: Nested,
    }

    #[derive(Debug, PartialEq, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Nested {
        depth: u32,
    }

    impl Default for Example {
        fn default() -> Self {
            Self { listen: "127.0.0.1:1".into(), quota: crate::units::ByteSize(7), nested: Nested::default() }
        }
    }

    fn sources(file: Option<&Path>, overrides: &[&str]) -> Sources {
        Sources {
            file: file.map(Path::to_path_buf),
            env_prefix: "SHOAL_TEST_".into(),
            overrides: overrides.iter().map(|text| text.to_string()).collect(),
        }
    }

    #[test]
    fn later_layers_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "listen = 'a'\nquota = '1 MiB'\n[nested]\ndepth = 1\n").unwrap();
        let env = [("SHOAL_TEST_NESTED__DEPTH", "2"), ("OTHER", "x"), ("SHOAL_TEST_QUOTA", "2 MiB")];
        let env = env.map(|(name, text)| (name.to_string(), text.to_string()));
        let loaded: Example = load(&sources(Some(&path), &["quota=3 MiB"]), env).unwrap();
        assert_eq!(loaded.listen, "a");
        assert_eq!(loaded.nested.depth, 2);
        assert_eq!(loaded.quota.0, 3 << 20);
    }

    #[test]
    fn quotes_hold_a_part_of_a_key_together() {
        let path = |pair: &str| read_override(pair).map(|read| (read.path, read.value));
        let parts = |parts: &[&str]| parts.iter().map(|part| part.to_string()).collect::<Vec<_>>();
        let table = [
            (r#"registries."127.0.0.1:5000".plain_http=true"#, &["registries", "127.0.0.1:5000", "plain_http"][..]),
            (r#"registries.'127.0.0.1:5000'.plain_http = true"#, &["registries", "127.0.0.1:5000", "plain_http"]),
            (r#"  a . "b=c" . 'd\' =true"#, &["a", "b=c", "d\\"]),
            (r#"a."q\"uo.te"=true"#, &["a", "q\"uo.te"]),
            ("a.b-c.d_e=true", &["a", "b-c", "d_e"]),
            ("a.x:5000=true", &["a", "x:5000"]),
        ];
        for (pair, expected) in table {
            assert_eq!(path(pair), Some((parts(expected), Value::Boolean(true))), "{pair}");
        }
        let text = path("a='x=y'").unwrap().1;
        assert_eq!(text, Value::String("x=y".into()));
        for bad in ["", "=1", "a", "a.=1", ".a=1", "a..b=1", "a.\"b=1", "a.\"b\"c=1", "a.'b", "\"\\q\"=1"] {
            assert!(path(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let text = |overrides: &[&str]| load::<Example>(&sources(None, overrides), []).unwrap_err().to_string();
        assert!(text(&["lisen=a"]).contains("lisen"));
        assert!(text(&["quota=lots"]).contains("lots"));
        assert!(text(&["listen.deep.er=1", "listen=2"]).contains("invalid type") || !text(&["listen=2"]).is_empty());
        assert!(text(&["novalue"]).contains("novalue"));
        let missing = load::<Example>(&sources(Some(Path::new("/no/such")), &[]), []).unwrap_err().to_string();
        assert!(missing.contains("/no/such"));
    }
}
