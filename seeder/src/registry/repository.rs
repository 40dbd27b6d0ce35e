//! One repository of one registry: documents by tag or digest, and blobs.
//!
//! Invariant: credentials are sent to the registry and to its token server only, never along a redirect.

use super::auth::{self, Challenge, Credentials, TokenAnswer};
use super::error::{Patience, RegistryError};
use crate::config::{RegistrySettings, SeederConfig};
use crate::oci_documents::{DOCUMENT_BYTES_MAX, Descriptor, digest_of};
use bytes::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use hyper::header::{InvalidHeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use shoal_proto::image::{DOCKER_INDEX, DOCKER_MANIFEST, Digest, OCI_INDEX, OCI_MANIFEST, Reference};
use shoal_service::http_client::transport::{HttpRequest, HttpResponse, HttpUrl, Transport};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::Mutex;

/// Redirects that one request follows.
const REDIRECTS_MAX: usize = 5;
/// Bytes that are read of a refusal.
const REFUSAL_BYTES_MAX: u64 = 16 * 1024;
/// Errors of a refusal that are shown.
const REFUSALS_SHOWN_MAX: usize = 3;
/// Characters of a refusal that are shown.
const REFUSAL_SHOWN_CHARS: usize = 200;
/// Longest answer of a token server, bytes.
const TOKEN_BYTES_MAX: u64 = 256 * 1024;

/// A manifest or index.
pub(crate) struct Document {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// What a reference names: a manifest or index.
pub(crate) struct Root {
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Bytes,
}

/// One repository of one registry.
pub(crate) struct Repository {
    /// The registry as references name it.
    pub(super) registry: String,
    path: String,
    /// The registry's address, or that of its mirror.
    base: HttpUrl,
    transport: Transport,
    credentials: Option<Credentials>,
    /// How long a failing request is repeated.
    pub(super) patience: Duration,
    /// The `Authorization` header that the registry accepted last.
    accepted: Mutex<Option<HeaderValue>>,
}

impl Repository {
    /// Returns the repository of a reference. Reads the credentials each time, because an operator may change them.
    ///
    /// # Errors
    /// Returns an error if the settings for the registry cannot be used.
    pub(crate) fn open(config: &SeederConfig, reference: &Reference) -> Result<Self, RegistryError> {
        let registry = reference.host.clone();
        let none = RegistrySettings::default();
        let settings = config.registries.get(&registry).unwrap_or(&none);
        let scheme = if settings.plain_http { "http" } else { "https" };
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { &registry };
        let url = settings.url.clone().unwrap_or_else(|| format!("{scheme}://{host}"));
        let base = HttpUrl::parse(&url).ok_or_else(|| RegistryError::Url { registry: registry.clone(), url })?;
        let credentials = match &config.docker_config {
            Some(path) => auth::from_docker_config(path, &registry)
                .map_err(|source| RegistryError::Credentials { registry: registry.clone(), source })?,
            None => None,
        };
        let transport = Transport::with_tls(settings.ca.as_deref())
            .map_err(|source| RegistryError::TlsSettings { registry: registry.clone(), source })?;
        let (path, patience) = (reference.path.clone(), config.pull_patience.0);
        Ok(Self { registry, path, patience, base, transport, credentials, accepted: Mutex::default() })
    }

    pub fn malformed(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Malformed { registry: self.registry.clone(), why: why.into() }
    }

    fn header(&self, value: Result<HeaderValue, InvalidHeaderValue>) -> Result<HeaderValue, RegistryError> {
        value.map_err(|error| self.malformed(format!("it asks for an invalid header: {error}")))
    }

    /// Returns the manifest or index that a reference names.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve it, or its digest is wrong.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Root, RegistryError> {
        let name = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        };
        let Document { media_type, bytes } = self.document(&name).await?;
        let digest = digest_of(&bytes);
        if let Some(expected) = reference.digest
            && expected != digest
        {
            return Err(RegistryError::WrongDigest { registry: self.registry.clone(), expected, found: digest });
        }
        let size = bytes.len() as u64;
        let descriptor = Descriptor { media_type, digest, size, platform: None, annotations: BTreeMap::new() };
        Ok(Root { descriptor, bytes })
    }

    /// Returns a manifest or index by tag or digest. The caller that asks by digest checks the digest.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve it.
    pub(crate) async fn document(&self, name: &str) -> Result<Document, RegistryError> {
        let mut headers = HeaderMap::new();
        let types = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
        headers.insert(ACCEPT, self.header(HeaderValue::try_from(types))?);
        let what = format!("{}:{name}", self.path);
        let path = format!("/v2/{}/manifests/{name}", self.path);
        let mut patience = Patience::new(self.patience);
        loop {
            match self.try_document(&what, &path, &headers).await {
                Ok(found) => return Ok(found),
                Err(error) => patience.after(error).await?,
            }
        }
    }

    async fn try_document(&self, what: &str, path: &str, headers: &HeaderMap) -> Result<Document, RegistryError> {
        let mut answer = self.get(what, path, headers).await?;
        let too_large = || self.malformed(format!("the manifest of {what} exceeds {DOCUMENT_BYTES_MAX} bytes"));
        let announced = answer.header("content-length").and_then(|len| len.parse::<u64>().ok());
        if announced.is_some_and(|len| len > DOCUMENT_BYTES_MAX) {
            return Err(too_large());
        }
        let bytes = answer.whole(DOCUMENT_BYTES_MAX).await?.ok_or_else(too_large)?;
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
        Ok(Document { media_type, bytes })
    }

    /// Asks for a blob from the byte `from` on.
    pub async fn blob_from(&self, digest: &Digest, from: u64) -> Result<HttpResponse, RegistryError> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            headers.insert(RANGE, self.header(HeaderValue::try_from(format!("bytes={from}-")))?);
        }
        self.get(&format!("blob {digest}"), &format!("/v2/{}/blobs/{digest}", self.path), &headers).await
    }

    /// Sends a request once, and again with credentials if the registry asks for them. Returns an answer of success.
    async fn get(&self, what: &str, path: &str, headers: &HeaderMap) -> Result<HttpResponse, RegistryError> {
        let url = self.base.join(path).ok_or_else(|| self.malformed(format!("invalid path `{path}`")))?;
        let accepted = self.accepted.lock().await.clone();
        let answer = self.follow(&url, headers, accepted.as_ref()).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return self.check_status(what, answer).await;
        }
        let values: Vec<String> = answer
            .headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_string))
            .collect();
        let challenge = auth::challenge(values.iter().map(String::as_str));
        drop(answer);
        let fresh = self.authorization(challenge).await?;
        *self.accepted.lock().await = Some(fresh.clone());
        let answer = self.follow(&url, headers, Some(&fresh)).await?;
        self.check_status(what, answer).await
    }

    /// Sends a GET and follows redirects. Only the registry itself receives the credentials.
    async fn follow(
        &self,
        url: &HttpUrl,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<HttpResponse, RegistryError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut headers = headers.clone();
            let is_registry = (url.https, &url.authority) == (self.base.https, &self.base.authority);
            if let Some(authorization) = authorization.filter(|_| is_registry) {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            let request = HttpRequest { url: &url, method: Method::GET, headers, body: Bytes::new() };
            let answer = self.transport.send(request).await?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            // A redirect from https to http would send the request in the clear.
            let next = url.join(location).filter(|next| next.https || !url.https);
            url = next.ok_or_else(|| self.malformed(format!("it redirects to `{location}`, which is not followed")))?;
        }
        Err(self.malformed(format!("it redirects more than {REDIRECTS_MAX} times")))
    }

    /// Returns the `Authorization` header that answers a challenge.
    async fn authorization(&self, challenge: Option<Challenge>) -> Result<HeaderValue, RegistryError> {
        let refused = |why: &str| RegistryError::Unauthorized { registry: self.registry.clone(), why: why.to_string() };
        let header = match challenge {
            None => return Err(refused("it does not say how to authenticate")),
            Some(Challenge::Basic) => match &self.credentials {
                Some(Credentials::Password(user, password)) => auth::basic(user, password),
                _ => {
                    return Err(refused(
                        "it needs a user and a password; add it under `auths` in the seeder's docker_config",
                    ));
                }
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.path));
                format!("Bearer {}", self.token(&realm, service.as_deref(), &scope).await?)
            }
        };
        let mut value = self.header(HeaderValue::try_from(header))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Fetches a token at the registry's token server.
    async fn token(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<String, RegistryError> {
        let url = HttpUrl::parse(realm)
            .ok_or_else(|| self.malformed(format!("its token server has the invalid URL `{realm}`")))?;
        if self.base.https && !url.https && self.credentials.is_some() {
            return Err(self.malformed(format!("its token server {realm} would receive the password in the clear")));
        }
        let mut query = format!("scope={}", auth::escape(scope));
        if let Some(service) = service {
            query.push_str(&format!("&service={}", auth::escape(service)));
        }
        let mut headers = HeaderMap::new();
        let mut form = None;
        let mut url = url;
        // A refresh token is posted as a form (OAuth 2), anything else goes into the query of a GET.
        match &self.credentials {
            Some(Credentials::Refresh(token)) => {
                form = Some(format!(
                    "{query}&grant_type=refresh_token&client_id=shoal&refresh_token={}",
                    auth::escape(token)
                ));
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            }
            other => {
                let joint = if url.path.contains('?') { '&' } else { '?' };
                url.path = format!("{}{joint}{query}", url.path);
                if let Some(Credentials::Password(user, password)) = other {
                    headers.insert(AUTHORIZATION, self.header(HeaderValue::try_from(auth::basic(user, password)))?);
                }
            }
        }
        let method = if form.is_some() { Method::POST } else { Method::GET };
        let body = Bytes::from(form.unwrap_or_default());
        let answer = self.transport.send(HttpRequest { url: &url, method, headers, body }).await?;
        self.read_token(realm, answer).await
    }

    async fn read_token(&self, realm: &str, mut answer: HttpResponse) -> Result<String, RegistryError> {
        if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
            let why = match self.credentials {
                Some(_) => format!("its token server {realm} refuses the credentials in docker_config; correct them"),
                None => format!("its token server {realm} needs credentials; add the registry to docker_config"),
            };
            return Err(RegistryError::Unauthorized { registry: self.registry.clone(), why });
        }
        if !answer.status.is_success() {
            let refusal = self.check_status("a token", answer).await.err();
            return Err(refusal.unwrap_or_else(|| self.malformed("it sent no token")));
        }
        let body = answer.whole(TOKEN_BYTES_MAX).await?;
        let token = body.and_then(|body| serde_json::from_slice::<TokenAnswer>(&body).ok()?.token());
        token.ok_or_else(|| self.malformed(format!("its token server {realm} sent no token")))
    }

    /// Returns an answer of success. Makes any other answer an error.
    async fn check_status(&self, what: &str, mut answer: HttpResponse) -> Result<HttpResponse, RegistryError> {
        let status = answer.status;
        if status.is_success() {
            return Ok(answer);
        }
        let retry_after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = answer.whole(REFUSAL_BYTES_MAX).await.ok().flatten().unwrap_or_default();
        let (registry, what, why) = (self.registry.clone(), what.to_string(), refusal_text(&body));
        Err(match status {
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized {
                registry,
                why: format!("it refuses the credentials in docker_config for {what}: {why}"),
            },
            StatusCode::FORBIDDEN => RegistryError::Denied { registry, what, why },
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what, why },
            _ => RegistryError::Refused {
                registry,
                status: status.as_u16(),
                what,
                why,
                retry_after: retry_after.map(Duration::from_secs),
            },
        })
    }
}

/// Returns the registry's own explanation of a refusal, without control characters.
fn refusal_text(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusals {
        errors: Vec<Refusal>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let rows = serde_json::from_slice::<Refusals>(body).map(|errors| errors.errors).unwrap_or_default();
    let texts: Vec<String> =
        rows.iter().take(REFUSALS_SHOWN_MAX).map(|row| format!("{} {}", row.code, row.message)).collect();
    let text: String = texts.join("; ").chars().filter(|c| !c.is_control()).take(REFUSAL_SHOWN_CHARS).collect();
    if text.is_empty() { "it gives no reason".into() } else { text }
}
