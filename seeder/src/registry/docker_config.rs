//! The docker-style `config.json` of an operator: which credentials are for which registry and repository.
//!
//! Invariant: a row is for the registry and the repositories that its key names, and for no others. Of several rows the
//! one with the longest key counts.

use super::auth::Credentials;
use super::credential_helper::{self, HelperError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shoal_proto::go_json::GoValue;
use std::io;
use std::path::{Path, PathBuf};

/// Largest `config.json`, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Docker's own registry, as references name it.
const DOCKER_HUB: &str = "docker.io";
/// Docker's own registry, as docker names it to helpers.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";
/// The fields of a row that contain credentials.
const FIELDS: [&str; 5] = ["auth", "username", "password", "identitytoken", "registrytoken"];

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
    #[error("{}: `{field}` is not a map; write it as `docker login` does", .path.display())]
    Form { path: PathBuf, field: &'static str },
    #[error("{}: the row `{key}` has no `auth` of a user and a password; log in to the registry again", .path.display())]
    NoAuth { path: PathBuf, key: String },
    #[error("{}", .path.display())]
    Helper { path: PathBuf, source: Box<HelperError> },
}

/// Where the credentials for a repository are.
#[derive(Debug, PartialEq)]
enum Place<'a> {
    /// In a row of `auths`.
    Row { key: &'a str, row: &'a GoValue },
    /// At a helper, which is asked for this server.
    Helper { name: &'a str, server: String },
}

/// Which repositories a key is for.
struct Scope<'a> {
    host: &'a str,
    /// The beginning of the repositories. Empty for all of the registry.
    path: &'a str,
}

impl<'a> Scope<'a> {
    /// Reads a key: without a scheme, without the version of the API, and Docker's own registry by one name.
    fn of(key: &'a str) -> Self {
        let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (host, path) = key.split_once('/').unwrap_or((key, ""));
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            host => host,
        };
        let path = path.trim_matches('/');
        let path = match path.split_once('/').unwrap_or((path, "")) {
            ("v1" | "v2", rest) => rest.trim_matches('/'),
            _ => path,
        };
        Self { host, path }
    }

    fn includes(&self, host: &str, path: &str) -> bool {
        let inside = path.strip_prefix(self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.host.eq_ignore_ascii_case(host) && (self.path.is_empty() || inside)
    }
}

/// Whether a row of `auths` has no credentials. `docker login` leaves such rows where a helper keeps them.
fn is_empty(row: &GoValue) -> bool {
    FIELDS.iter().all(|field| row.text(field).is_ok_and(str::is_empty))
}

/// Returns the name of a registry for a helper.
fn server_of(host: &str) -> String {
    if host == DOCKER_HUB { DOCKER_HUB_SERVER.to_string() } else { host.to_string() }
}

/// Finds the place of the credentials for a repository. The name of the wrong field is the error.
fn find<'a>(config: &'a GoValue, host: &str, path: &str) -> Result<Option<Place<'a>>, &'static str> {
    let rows = |field: &'static str| config.map(field).map_err(|_| field);
    let (auths, helpers) = (rows("auths")?, rows("credHelpers")?);
    let len_of =
        |key: &str| Some(Scope::of(key)).filter(|scope| scope.includes(host, path)).map(|scope| scope.path.len());
    let mut best: Option<(usize, Place<'a>)> = None;
    let mut offer = |len: usize, place: Place<'a>| {
        if best.as_ref().is_none_or(|(longest, _)| len > *longest) {
            best = Some((len, place));
        }
    };
    for (key, name) in helpers {
        let name = name.as_text(key).map_err(|_| "credHelpers")?;
        if let Some(len) = len_of(key).filter(|_| !name.is_empty()) {
            let server = if len > 0 { key.clone() } else { server_of(host) };
            offer(len, Place::Helper { name, server });
        }
    }
    for (key, row) in auths.iter().filter(|(_, row)| !is_empty(row)) {
        if let Some(len) = len_of(key) {
            offer(len, Place::Row { key, row });
        }
    }
    if let Some((_, place)) = best {
        return Ok(Some(place));
    }
    let store = config.text("credsStore").map_err(|_| "credsStore")?;
    // `docker login` names the servers of the store in empty rows.
    let named = auths.iter().filter_map(|(key, _)| Some((len_of(key)?, key))).max_by_key(|(len, _)| *len);
    let server = named.map_or_else(|| server_of(host), |(_, key)| key.clone());
    Ok((!store.is_empty()).then_some(Place::Helper { name: store, server }))
}

/// Reads the credentials in a row.
fn credentials(row: &GoValue) -> Option<Credentials> {
    let text = |field| row.text(field).ok();
    let (token, user) = (text("identitytoken")?, text("username")?);
    if !token.is_empty() {
        return Some(Credentials::Refresh(token.to_string()));
    }
    if !user.is_empty() {
        return Some(Credentials::Password(user.to_string(), text("password")?.to_string()));
    }
    let decoded = String::from_utf8(STANDARD.decode(text("auth")?.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    (!user.is_empty()).then(|| Credentials::Password(user.to_string(), password.to_string()))
}

fn read(path: &Path) -> Result<GoValue, DockerConfigError> {
    let unread = |source| DockerConfigError::Read { path: path.to_path_buf(), source };
    let size = std::fs::metadata(path).map_err(unread)?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(DockerConfigError::TooLarge { path: path.to_path_buf(), size });
    }
    let text = std::fs::read(path).map_err(unread)?;
    let json = |line| DockerConfigError::Json { path: path.to_path_buf(), line };
    let config: GoValue = serde_json::from_slice(&text).map_err(|error| json(error.line()))?;
    if matches!(config, GoValue::Map(_)) { Ok(config) } else { Err(json(1)) }
}

/// Returns the credentials that a `config.json` has for a repository. Asks a credential helper if the file says so.
///
/// # Errors
/// Returns an error if the file cannot be read, its entry for the registry cannot be used, or the helper fails.
pub async fn credentials_for(file: &Path, host: &str, path: &str) -> Result<Option<Credentials>, DockerConfigError> {
    let config = read(file)?;
    let place =
        find(&config, host, path).map_err(|field| DockerConfigError::Form { path: file.to_path_buf(), field })?;
    match place {
        None => Ok(None),
        Some(Place::Row { key, row }) => match credentials(row) {
            Some(found) => Ok(Some(found)),
            None => Err(DockerConfigError::NoAuth { path: file.to_path_buf(), key: key.to_string() }),
        },
        Some(Place::Helper { name, server }) => {
            let asked = credential_helper::get(name, &server).await;
            asked.map_err(|source| DockerConfigError::Helper { path: file.to_path_buf(), source: Box::new(source) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password(user.into(), password.into()))
    }

    async fn of(text: &str, host: &str, path: &str) -> Result<Option<Credentials>, DockerConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, text).unwrap();
        credentials_for(&file, host, path).await
    }

    #[tokio::test]
    async fn docker_configs_are_read() {
        let text = r#"{"auths":{"r.example:5000":{"auth":"dTpwOnE=","email":null},"https://index.docker.io/v1/":
            {"username":"a","password":"b","auth":null},"t.example":{"identitytoken":"x"},"null.example":null,
            "empty.example":{},"broken.example":{"auth":"%"}},"HttpHeaders":{"User-Agent":"x"},"credHelpers":null}"#;
        let found = async |host: &str| of(text, host, "a/b").await;
        assert!(found("r.example:5000").await.unwrap() == password("u", "p:q"));
        assert!(found("docker.io").await.unwrap() == password("a", "b"));
        assert!(found("t.example").await.unwrap() == Some(Credentials::Refresh("x".into())));
        for none in ["r.example", "null.example", "empty.example"] {
            assert!(found(none).await.unwrap().is_none(), "{none}");
        }
        assert!(found("broken.example").await.unwrap_err().to_string().contains("`broken.example`"));
        for bad in ["{\"auths\": \"secret\"}", "[\"secret\"]", "{\"auths\":{\"r\":secret"] {
            let error = crate::errors::with_sources(&of(bad, "r.example", "a").await.unwrap_err());
            assert!(error.contains("config.json") && !error.contains("secret"), "{error}");
        }
        for null in ["{}", r#"{"auths":null,"credsStore":null}"#] {
            assert!(of(null, "r.example", "a").await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn the_longest_key_counts() {
        // user:p of each row, in base64.
        let text = r#"{"auths":{
            "r.example/team-a":{"auth":"YTpw"},
            "r.example/team-a/app":{"auth":"Yjpw"},
            "https://r.example/v2/team-c/":{"auth":"Yzpw"},
            "r.example":{"auth":"cjpw"},
            "r.example/team-d":{},
            "only.example/team":{"auth":"dDpw"}}}"#;
        for (host, path, user) in [
            ("r.example", "team-a/other", "a"),
            ("r.example", "team-a", "a"),
            ("r.example", "team-a/app", "b"),
            ("r.example", "team-a/app/deep", "b"),
            ("r.example", "team-a/apple", "a"),
            ("r.example", "team-ab/app", "r"),
            ("r.example", "team-c/app", "c"),
            ("r.example", "team-d/app", "r"),
            ("only.example", "team/x", "t"),
        ] {
            assert!(of(text, host, path).await.unwrap() == password(user, "p"), "{host}/{path}");
        }
        assert!(of(text, "only.example", "other/x").await.unwrap().is_none());
    }

    #[test]
    fn helpers_are_chosen_by_registry() {
        let config: GoValue = serde_json::from_str(
            r#"{"auths":{"https://stored.example/v1/":{},"own.example":{"auth":"dTpw"},"both.example":{"auth":"dTpw"}},
                "credHelpers":{"cloud.example":"cloud","both.example":"cloud","docker.io":"hub","n.example/team":"team",
                "off.example":""},"credsStore":"desktop"}"#,
        )
        .unwrap();
        let helper = |host: &str, path: &str| match find(&config, host, path).unwrap() {
            Some(Place::Helper { name, server }) => format!("{name} {server}"),
            Some(Place::Row { key, .. }) => format!("row {key}"),
            None => String::new(),
        };
        for (host, path, expected) in [
            ("cloud.example", "a", "cloud cloud.example"),
            ("both.example", "a", "cloud both.example"),
            ("docker.io", "library/nginx", "hub https://index.docker.io/v1/"),
            ("n.example", "team/app", "team n.example/team"),
            ("n.example", "other/app", "desktop n.example"),
            ("own.example", "a", "row own.example"),
            ("stored.example", "a", "desktop https://stored.example/v1/"),
            ("off.example", "a", "desktop off.example"),
        ] {
            assert_eq!(helper(host, path), expected, "{host}/{path}");
        }
        let wrong: GoValue = serde_json::from_str(r#"{"credHelpers":{"r.example":7}}"#).unwrap();
        assert_eq!(find(&wrong, "r.example", "a"), Err("credHelpers"));
    }
}
