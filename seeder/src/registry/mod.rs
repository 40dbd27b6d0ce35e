//! A client of image registries (the OCI Distribution API): what a name leads to, its documents, its blobs.
//!
//! Owns: talking to one registry about one repository: authentication, redirects, retries. [`http`] is the transport,
//! [`auth`] who we are, [`fetch`] how a blob comes to the disk.
//! Invariant: bytes are given out only if their digest is right, and every way a registry can fail ends, with a word on what
//! to do.

pub(crate) mod auth;
pub(crate) mod fetch;
pub(crate) mod http;

use crate::config::{RegistrySettings, SeederConfig};
use crate::images::documents::{DOCUMENT_BYTES_MAX, Descriptor, digest_of};
use auth::{Challenge, Credentials, TokenAnswer};
use bytes::Bytes;
use http::{Answer, Ask, HttpError, Url};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{StatusCode, header};
use rustls::ClientConfig;
use serde::Deserialize;
use shoal_proto::image::{DOCKER_INDEX, DOCKER_MANIFEST, Digest, OCI_INDEX, OCI_MANIFEST, Reference};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The wait after the first failure; doubled after each.
const WAIT_FIRST: Duration = Duration::from_millis(250);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Redirects followed from one request.
const REDIRECTS_MAX: usize = 5;
/// Bytes read of an answer that says no.
const REFUSAL_BYTES_MAX: u64 = 16 * 1024;
/// Longest answer of a token server.
const TOKEN_BYTES_MAX: u64 = 256 * 1024;

/// Why a registry did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The seeder's settings for it cannot be used.
    #[error("the settings for {registry} cannot be used: {why}")]
    Settings {
        /// The registry.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// It wants to know who we are, or does not believe it.
    #[error("{registry} refuses us (401): {why}")]
    Unauthorized {
        /// The registry.
        registry: String,
        /// What to do.
        why: String,
    },
    /// We may not have it.
    #[error("{registry} does not let us have {what} (403): {why}")]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its words.
        why: String,
    },
    /// It has none.
    #[error("{registry} has no {what} (404): {why}")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its words.
        why: String,
    },
    /// It says no, also when asked again, where that makes sense.
    #[error("{registry} answered {status} to {what}: {why}")]
    Refused {
        /// The registry.
        registry: String,
        /// Its status.
        status: u16,
        /// What was asked for.
        what: String,
        /// Its words.
        why: String,
        /// How long it asked us to wait.
        after: Option<Duration>,
    },
    /// It cannot be reached, or breaks off, also when asked again.
    #[error("{0}")]
    Unreachable(String),
    /// TLS does not come about, and will not by trying again.
    #[error(
        "{0}; if it speaks plain http say so in `registries` (plain_http), if its certificate is of an authority of your own name that there (ca)"
    )]
    Tls(String),
    /// What it gave is not what its digest says.
    #[error("{registry} gave other bytes than {expected}: {found}")]
    WrongDigest {
        /// The registry.
        registry: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: String,
    },
    /// What it gave cannot be used.
    #[error("{registry}: {why}")]
    Malformed {
        /// The registry.
        registry: String,
        /// What is wrong with it.
        why: String,
    },
    /// Our own disk.
    #[error("cannot write {path}: {source}")]
    Disk {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl RegistryError {
    /// Whether it may go better in a moment.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { status, .. } => *status == 429 || (*status >= 500 && *status != 501),
            _ => false,
        }
    }
}

/// Waits between attempts, until it has been in vain for too long.
struct Patience {
    until: Instant,
    wait: Duration,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { until: Instant::now() + limit, wait: WAIT_FIRST }
    }

    /// Waits, or gives the error back when it is no use or enough.
    async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let asked = if let RegistryError::Refused { after, .. } = &error { *after } else { None };
        let again = Instant::now() + self.wait.min(WAIT_MAX).max(asked.unwrap_or_default());
        if !error.is_passing() || again > self.until {
            return Err(error);
        }
        tracing::info!(%error, "trying again");
        tokio::time::sleep_until(again).await;
        self.wait *= 2;
        Ok(())
    }
}

/// One repository of one registry.
pub(crate) struct Repository {
    /// As the image's name says it.
    registry: String,
    path: String,
    base: Url,
    tls: Arc<ClientConfig>,
    credentials: Option<Credentials>,
    /// How long a failing request is tried again.
    patience: Duration,
    /// The header that was let in last.
    shown: Mutex<Option<HeaderValue>>,
}

impl Repository {
    /// Of an image's name. Reads the credentials anew each time: they may have been changed.
    pub(crate) fn open(config: &SeederConfig, reference: &Reference) -> Result<Self, RegistryError> {
        let registry = reference.host.clone();
        let fault = |why: String| RegistryError::Settings { registry: registry.clone(), why };
        let none = RegistrySettings::default();
        let settings = config.registries.get(&registry).unwrap_or(&none);
        let scheme = if settings.plain_http { "http" } else { "https" };
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { &registry };
        let url = settings.url.clone().unwrap_or_else(|| format!("{scheme}://{host}"));
        let base = Url::parse(&url).ok_or_else(|| fault(format!("`{url}` is no URL")))?;
        let credentials = match &config.docker_config {
            Some(path) => auth::from_docker_config(path, &registry).map_err(&fault)?,
            None => None,
        };
        let tls = http::tls(settings.ca.as_deref()).map_err(&fault)?;
        let (path, patience) = (reference.path.clone(), config.pull_patience.0);
        Ok(Self { registry, path, patience, base, tls, credentials, shown: Mutex::default() })
    }

    fn malformed(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Malformed { registry: self.registry.clone(), why: why.into() }
    }

    /// What a name leads to, and its bytes.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<(Descriptor, Bytes), RegistryError> {
        let name = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        };
        let (media_type, bytes) = self.document(&name).await?;
        let digest = digest_of(&bytes);
        if let Some(expected) = reference.digest
            && expected != digest
        {
            return Err(RegistryError::WrongDigest {
                registry: self.registry.clone(),
                expected,
                found: digest.to_string(),
            });
        }
        let size = bytes.len() as u64;
        Ok((Descriptor { media_type, digest, size, platform: None, annotations: BTreeMap::new() }, bytes))
    }

    /// A manifest or index by tag or digest: its media type and bytes. Whoever asked by digest checks it.
    pub(crate) async fn document(&self, name: &str) -> Result<(String, Bytes), RegistryError> {
        let mut headers = HeaderMap::new();
        let types = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        headers.insert(ACCEPT, HeaderValue::try_from(types).map_err(|error| self.malformed(error.to_string()))?);
        let what = format!("{}:{name}", self.path);
        let path = format!("/v2/{}/manifests/{name}", self.path);
        let mut patience = Patience::new(self.patience);
        loop {
            let error = match self.try_document(&what, &path, &headers).await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            patience.after(error).await?;
        }
    }

    async fn try_document(
        &self,
        what: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(String, Bytes), RegistryError> {
        let mut answer = self.ask(what, path, headers).await?;
        let over = || self.malformed(format!("the manifest of {what} is over the limit of {DOCUMENT_BYTES_MAX} bytes"));
        let announced = answer.header("content-length").and_then(|len| len.parse::<u64>().ok());
        if announced.is_some_and(|len| len > DOCUMENT_BYTES_MAX) {
            return Err(over());
        }
        let bytes = answer.whole(DOCUMENT_BYTES_MAX).await.map_err(passing)?.ok_or_else(over)?;
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "mediaType")]
            media_type: Option<String>,
        }
        let head: Head = serde_json::from_slice(&bytes)
            .map_err(|error| self.malformed(format!("the manifest of {what} cannot be read: {error}")))?;
        let header =
            answer.header("content-type").map(|kind| kind.split(';').next().unwrap_or(kind).trim().to_string());
        let media_type = head.media_type.or(header).unwrap_or_default();
        Ok((media_type, bytes))
    }

    /// A blob from `from` on.
    async fn blob_from(&self, digest: &Digest, from: u64) -> Result<Answer, RegistryError> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            let range = HeaderValue::try_from(format!("bytes={from}-"));
            headers.insert(RANGE, range.map_err(|error| self.malformed(error.to_string()))?);
        }
        self.ask(&format!("blob {digest}"), &format!("/v2/{}/blobs/{digest}", self.path), &headers).await
    }

    /// Asks once; shows who we are if that is wanted. Gives an answer that says yes.
    async fn ask(&self, what: &str, path: &str, headers: &HeaderMap) -> Result<Answer, RegistryError> {
        let url = self.base.join(path).ok_or_else(|| self.malformed(format!("`{path}` is no path")))?;
        let shown = self.shown.lock().await.clone();
        let answer = self.follow(&url, headers, shown.as_ref()).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return self.judge(what, answer).await;
        }
        let values: Vec<String> = answer
            .headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_string))
            .collect();
        let challenge = auth::challenge(values.iter().map(String::as_str));
        drop(answer);
        let fresh = self.answer_to(challenge).await?;
        *self.shown.lock().await = Some(fresh.clone());
        let answer = self.follow(&url, headers, Some(&fresh)).await?;
        self.judge(what, answer).await
    }

    /// Follows redirects. Who we are is told to the registry alone.
    async fn follow(
        &self,
        url: &Url,
        headers: &HeaderMap,
        shown: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut headers = headers.clone();
            if let Some(shown) =
                shown.filter(|_| (url.https, &url.authority) == (self.base.https, &self.base.authority))
            {
                headers.insert(AUTHORIZATION, shown.clone());
            }
            let answer = http::send(Ask { url: &url, headers, form: None }, &self.tls).await.map_err(passing)?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let next = url.join(location).filter(|next| next.https || !url.https);
            url = next.ok_or_else(|| self.malformed(format!("it redirects to `{location}`, which is not followed")))?;
        }
        Err(self.malformed("it redirects in circles"))
    }

    /// What the registry wants to see.
    async fn answer_to(&self, challenge: Option<Challenge>) -> Result<HeaderValue, RegistryError> {
        let no = |why: &str| RegistryError::Unauthorized { registry: self.registry.clone(), why: why.to_string() };
        let header = match challenge {
            None => return Err(no("it does not say what it wants to see")),
            Some(Challenge::Basic) => match &self.credentials {
                Some(Credentials::Password(user, password)) => auth::basic(user, password),
                _ => {
                    return Err(no(
                        "it wants a user and password: name it under `auths` in the seeder's docker_config",
                    ));
                }
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.path));
                format!("Bearer {}", self.token(&realm, service.as_deref(), &scope).await?)
            }
        };
        let mut value = HeaderValue::try_from(header).map_err(|error| self.malformed(error.to_string()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn token(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<String, RegistryError> {
        let url = Url::parse(realm).ok_or_else(|| self.malformed(format!("its token server `{realm}` is no URL")))?;
        if self.base.https && !url.https && self.credentials.is_some() {
            return Err(self.malformed(format!("its token server {realm} would get our password in the clear")));
        }
        let mut query = format!("scope={}", auth::escape(scope));
        if let Some(service) = service {
            query.push_str(&format!("&service={}", auth::escape(service)));
        }
        let mut headers = HeaderMap::new();
        let mut form = None;
        let mut url = url;
        match &self.credentials {
            Some(Credentials::Refresh(token)) => {
                form = Some(format!(
                    "{query}&grant_type=refresh_token&client_id=shoal&refresh_token={}",
                    auth::escape(token)
                ));
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            }
            other => {
                let joint = if url.path.contains('?') { '&' } else { '?' };
                url.path = format!("{}{joint}{query}", url.path);
                if let Some(Credentials::Password(user, password)) = other {
                    let basic = HeaderValue::try_from(auth::basic(user, password));
                    headers.insert(AUTHORIZATION, basic.map_err(|error| self.malformed(error.to_string()))?);
                }
            }
        }
        let mut answer = http::send(Ask { url: &url, headers, form }, &self.tls).await.map_err(passing)?;
        let what = "a token";
        if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
            let why = match self.credentials {
                Some(_) => format!("its token server {realm} does not take the credentials in docker_config"),
                None => format!("its token server {realm} wants credentials: name the registry in docker_config"),
            };
            return Err(RegistryError::Unauthorized { registry: self.registry.clone(), why });
        }
        if !answer.status.is_success() {
            return Err(self.judge(what, answer).await.err().unwrap_or_else(|| self.malformed("no token")));
        }
        let body = answer.whole(TOKEN_BYTES_MAX).await.map_err(passing)?;
        let token = body.and_then(|body| serde_json::from_slice::<TokenAnswer>(&body).ok()?.token());
        token.ok_or_else(|| self.malformed(format!("its token server {realm} gave no token")))
    }

    /// An answer that says yes, or why not.
    async fn judge(&self, what: &str, mut answer: Answer) -> Result<Answer, RegistryError> {
        let status = answer.status;
        if status.is_success() {
            return Ok(answer);
        }
        let after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let words = answer.whole(REFUSAL_BYTES_MAX).await.ok().flatten().unwrap_or_default();
        let (registry, what, why) = (self.registry.clone(), what.to_string(), its_words(&words));
        Err(match status {
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized {
                registry,
                why: format!("it does not take the credentials in docker_config for {what}: {why}"),
            },
            StatusCode::FORBIDDEN => RegistryError::Denied { registry, what, why },
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what, why },
            _ => RegistryError::Refused {
                registry,
                status: status.as_u16(),
                what,
                why,
                after: after.map(Duration::from_secs),
            },
        })
    }
}

/// The registry's own explanation, if it gave one.
fn its_words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let rows = serde_json::from_slice::<Errors>(body).map(|errors| errors.errors).unwrap_or_default();
    let words: Vec<String> = rows.iter().take(3).map(|row| format!("{} {}", row.code, row.message)).collect();
    let words: String = words.join("; ").chars().filter(|c| !c.is_control()).take(200).collect();
    if words.is_empty() { "it does not say why".into() } else { words }
}

fn passing(error: HttpError) -> RegistryError {
    match error {
        HttpError::Tls { .. } => RegistryError::Tls(error.to_string()),
        _ => RegistryError::Unreachable(error.to_string()),
    }
}
