//! Layered configuration: a TOML file, the environment over it, flags over both.
//!
//! Invariant: a key nobody knows is an error that names it, never silently ignored.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// An override is not `key=value`, or goes through a key that is not a table.
    #[error("`{0}` is not key=value with a key that can be set")]
    Override(String),
    /// A key is unknown or missing, or a value is of the wrong kind.
    #[error("{origin}: {message}")]
    Invalid {
        /// Which layers were read.
        origin: String,
        /// What is wrong.
        message: String,
    },
}

impl ConfigError {
    /// A value that parses but cannot be.
    pub fn invalid(key: &str, why: impl std::fmt::Display) -> Self {
        Self::Invalid { origin: format!("`{key}`"), message: why.to_string() }
    }
}

/// What to read, in rising precedence.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The TOML file, if any.
    pub file: Option<PathBuf>,
    /// Prefix of environment variables, e.g. `SHOAL_PEER_`: `SHOAL_PEER_HTTP` sets `http`, `__` goes into a table.
    pub env_prefix: String,
    /// `key=value` pairs; dots in the key go into tables.
    pub overrides: Vec<String>,
}

/// A value as TOML if it is that, else as the text itself.
fn value_of(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(text.to_string()))
}

fn set(table: &mut Table, path: &[&str], value: Value) -> Option<()> {
    let (last, parents) = path.split_last()?;
    let mut at = table;
    for parent in parents {
        at = at.entry(*parent).or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
    }
    at.insert((*last).to_string(), value);
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

/// Reads and merges all layers. `env` is the environment, passed in so that it can be tested.
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
        let (key, text) = pair.split_once('=').ok_or_else(bad)?;
        let path: Vec<&str> = key.trim().split('.').collect();
        set(&mut table, &path, value_of(text.trim())).ok_or_else(bad)?;
    }
    T::deserialize(table).map_err(|error| ConfigError::Invalid {
        origin: sources.file.as_ref().map_or_else(|| "configuration".into(), |path| path.display().to_string()),
        message: error.to_string().trim_end().to_string(),
    })
}

/// The configuration as TOML, every default filled in.
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
