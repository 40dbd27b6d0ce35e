//! Who we are to a registry: credentials from a docker-style `config.json`, challenges, tokens.
//!
//! Invariant: a password goes to the registry it is for, or to the token server that registry names, never in the clear
//! unless the registry itself is spoken to in the clear.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest `config.json`, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// How we may show who we are.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// User and password.
    Password(String, String),
    /// A refresh token, to be exchanged at the token server.
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
    auths: BTreeMap<String, AuthRow>,
}

#[derive(Default, Deserialize)]
struct AuthRow {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

/// A key of `auths` without scheme and path; Docker's own registry by one name.
fn host_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match key.split('/').next().unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// The credentials a `config.json` has for a registry.
pub(crate) fn from_docker_config(path: &Path, host: &str) -> Result<Option<Credentials>, String> {
    let fault = |why: String| format!("{}: {why}", path.display());
    let size = std::fs::metadata(path).map_err(|error| fault(error.to_string()))?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(fault(format!("{size} bytes, the limit is {CONFIG_BYTES_MAX}")));
    }
    let text = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
    // What is in it stays out of the error: it may be a password.
    let config: DockerConfig = serde_json::from_slice(&text)
        .map_err(|error| fault(format!("not a docker config.json (line {})", error.line())))?;
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
        _ => Err(fault(format!("`{key}` has no usable `auth` (credential helpers are not asked)"))),
    }
}

/// The header of basic authentication.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenge of some `WWW-Authenticate` headers; a token is preferred to a password.
pub(crate) fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
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

/// `key="value"` pairs joined by commas.
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

/// A token server's answer.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl TokenAnswer {
    pub(crate) fn token(self) -> Option<String> {
        [self.token, self.access_token].into_iter().find(|token| !token.is_empty())
    }
}

/// A value in a query or form.
pub(crate) fn escape(text: &str) -> String {
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
        assert!(of("helper.example").unwrap_err().contains("helper.example"));
        std::fs::write(&path, "{\"auths\": \"secret\"}").unwrap();
        let error = of("r.example").unwrap_err();
        assert!(error.contains("not a docker config.json") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn values_are_escaped() {
        assert_eq!(escape("repository:a/b:pull&x"), "repository%3Aa%2Fb%3Apull%26x");
    }
}
