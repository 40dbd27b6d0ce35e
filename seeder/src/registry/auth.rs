//! Authentication at a registry: credentials from a docker-style `config.json`, challenges and tokens.
//!
//! Invariant: no error and no debug output contains a credential.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Largest `config.json`, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DockerConfigError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has {size} bytes, the limit is {CONFIG_BYTES_MAX}", .path.display())]
    TooLarge { path: PathBuf, size: u64 },
    /// Without the JSON error's text, which may repeat a password.
    #[error("{} is not a docker config.json (line {line})", .path.display())]
    Json { path: PathBuf, line: usize },
    #[error("{}: `{key}` has no usable `auth`; credential helpers are not supported", .path.display())]
    NoAuth { path: PathBuf, key: String },
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User and password.
    Password(String, String),
    /// A refresh token, which the token server exchanges for a token.
    Refresh(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
}

#[derive(Default, Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

/// Returns the registry of a key of `auths`: without scheme and path, and Docker's own registry by one name.
fn host_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match key.split('/').next().unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Returns the credentials that a `config.json` has for a registry.
///
/// # Errors
/// Returns an error if the file cannot be read, or its entry for the registry cannot be used.
pub fn from_docker_config(path: &Path, host: &str) -> Result<Option<Credentials>, DockerConfigError> {
    let read = |source| DockerConfigError::Read { path: path.to_path_buf(), source };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(DockerConfigError::TooLarge { path: path.to_path_buf(), size });
    }
    let text = std::fs::read(path).map_err(read)?;
    let json = |error: serde_json::Error| DockerConfigError::Json { path: path.to_path_buf(), line: error.line() };
    let config: DockerConfig = serde_json::from_slice(&text).map_err(json)?;
    let Some((key, row)) = config.auths.into_iter().find(|(key, _)| host_of(key) == host) else { return Ok(None) };
    if !row.identitytoken.is_empty() {
        return Ok(Some(Credentials::Refresh(row.identitytoken)));
    }
    if !row.username.is_empty() {
        return Ok(Some(Credentials::Password(row.username, row.password)));
    }
    let decoded = STANDARD.decode(row.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((user, password)) if !user.is_empty() => Ok(Some(Credentials::Password(user.into(), password.into()))),
        _ => Err(DockerConfigError::NoAuth { path: path.to_path_buf(), key }),
    }
}

/// Returns the header of basic authentication.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// How a registry asks for authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Returns the challenge of `WWW-Authenticate` headers. A token is preferred to a password.
pub fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut best = None;
    for header in headers {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            let mut params = params(rest);
            if let Some(realm) = params.remove("realm") {
                return Some(Challenge::Bearer {
                    realm,
                    service: params.remove("service"),
                    scope: params.remove("scope"),
                });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            best = Some(Challenge::Basic);
        }
    }
    best
}

/// Parses `key="value"` pairs that commas join. A backslash escapes a character in quotes.
fn params(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut chars = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => value.extend(chars.next().map(|(_, c)| c)),
                        c => value.push(c),
                    }
                }
                (value, &quoted[end..])
            }
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_string(), &after[end..])
            }
        };
        found.insert(key, value);
        rest = next;
    }
    found
}

/// A token server's answer. Servers use either name.
#[derive(Deserialize)]
pub struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl TokenAnswer {
    pub fn token(self) -> Option<String> {
        [self.token, self.access_token].into_iter().find(|token| !token.is_empty())
    }
}

/// Percent-encodes a value for a query or a form.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(str::to_string),
                scope: scope.map(str::to_string),
            })
        };
        let table = [
            (
                r#"Bearer realm="https://a.example/token",service="r.example",scope="repository:lab/app:pull,push""#,
                bearer("https://a.example/token", Some("r.example"), Some("repository:lab/app:pull,push")),
            ),
            (r#"bearer realm="https://a/\"x", service=r"#, bearer("https://a/\"x", Some("r"), None)),
            ("Bearer service=\"x\"", None),
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("Digest realm=\"x\"", None),
            ("", None),
            ("Bearer realm=\"", bearer("", None, None)),
            ("Bearer realm=\"\\", bearer("", None, None)),
        ];
        for (header, expected) in table {
            assert_eq!(challenge([header].into_iter()), expected, "{header}");
        }
        assert!(matches!(challenge(["Basic", "Bearer realm=x"].into_iter()), Some(Challenge::Bearer { .. })));
    }

    #[test]
    fn docker_configs_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let text = r#"{"auths":{"r.example:5000":{"auth":"dTpwOnE="},"https://index.docker.io/v1/":{"username":"a",
            "password":"b"},"t.example":{"identitytoken":"x"},"helper.example":{}},"credsStore":"desktop"}"#;
        std::fs::write(&path, text).unwrap();
        let of = |host| from_docker_config(&path, host);
        assert!(of("r.example:5000").unwrap() == Some(Credentials::Password("u".into(), "p:q".into())));
        assert!(of("docker.io").unwrap() == Some(Credentials::Password("a".into(), "b".into())));
        assert!(of("t.example").unwrap() == Some(Credentials::Refresh("x".into())));
        assert!(of("r.example").unwrap().is_none());
        assert!(of("helper.example").unwrap_err().to_string().contains("helper.example"));
        std::fs::write(&path, "{\"auths\": \"secret\"}").unwrap();
        let error = crate::errors::with_sources(&of("r.example").unwrap_err());
        assert!(error.contains("not a docker config.json") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn values_are_escaped() {
        assert_eq!(escape("repository:a/b:pull&x"), "repository%3Aa%2Fb%3Apull%26x");
    }
}
