//! Requests to one registry: redirects, challenges and tokens.
//!
//! Invariant: credentials are sent to the registry and to the token server that the registry itself names, never to
//! another server and never along a redirect. Another server's challenge is answered anonymously.

use super::auth::{self, Challenge, Credentials};
use super::docker_config;
use super::error::{RegistryError, retry_after};
use crate::config::{RegistrySettings, SeederConfig};
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use shoal_proto::go_json::GoValue;
use shoal_proto::image::Reference;
use shoal_service::http_client::transport::{HttpRequest, HttpResponse, HttpUrl, Transport};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Redirects that one request follows.
const REDIRECTS_MAX: usize = 5;
/// Servers whose challenge was answered and that are remembered.
const SERVERS_MAX: usize = 16;
/// Bytes that are read of a refusal.
const REFUSAL_BYTES_MAX: u64 = 16 * 1024;
/// Errors of a refusal that are shown.
const REFUSALS_SHOWN_MAX: usize = 3;
/// Characters of a refusal that are shown.
const REFUSAL_SHOWN_CHARS: usize = 200;
/// Longest answer of a token server, bytes.
const TOKEN_BYTES_MAX: u64 = 256 * 1024;

/// A server, and the `Authorization` header that it accepted last.
struct Accepted {
    server: HttpUrl,
    header: HeaderValue,
}

/// The way to one repository of one registry.
pub struct Exchange {
    /// The registry as references name it.
    registry: String,
    /// The repository.
    path: String,
    /// The registry's address, or that of its mirror.
    base: HttpUrl,
    /// The same address without TLS, for a registry on this machine that the operator did not describe.
    without_tls: Option<HttpUrl>,
    /// Set once the registry has answered without TLS.
    is_without_tls: AtomicBool,
    transport: Transport,
    credentials: Option<Credentials>,
    accepted: Mutex<Vec<Accepted>>,
}

impl Exchange {
    /// Returns the way to the repository of a reference. Reads the credentials each time, because an operator may
    /// change them.
    ///
    /// # Errors
    /// Returns an error if the settings for the registry cannot be used.
    pub async fn open(config: &SeederConfig, reference: &Reference) -> Result<Self, RegistryError> {
        let registry = reference.host.clone();
        let none = RegistrySettings::default();
        let settings = config.registries.get(&registry).unwrap_or(&none);
        let scheme = if settings.plain_http { "http" } else { "https" };
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { &registry };
        let url = settings.url.clone().unwrap_or_else(|| format!("{scheme}://{host}"));
        let base = HttpUrl::parse(&url).ok_or_else(|| RegistryError::Url { registry: registry.clone(), url })?;
        // Docker, containerd and skopeo try plain HTTP on loopback too.
        let is_undescribed = settings.url.is_none() && settings.ca.is_none() && base.https && base.is_loopback();
        let without_tls = is_undescribed.then(|| HttpUrl { https: false, ..base.clone() });
        let credentials = match &config.docker_config {
            Some(file) => docker_config::credentials_for(file, &registry, &reference.path).await.map_err(|source| {
                RegistryError::Credentials { registry: registry.clone(), source: Box::new(source) }
            })?,
            None => None,
        };
        let transport = Transport::with_tls(settings.ca.as_deref())
            .map_err(|source| RegistryError::TlsSettings { registry: registry.clone(), source })?;
        let (path, is_without_tls, accepted) = (reference.path.clone(), AtomicBool::new(false), Mutex::default());
        Ok(Self { registry, path, base, without_tls, is_without_tls, transport, credentials, accepted })
    }

    /// Returns the registry as references name it.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn malformed(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Malformed { registry: self.registry.clone(), why: why.into() }
    }

    /// Makes a text the value of a header.
    pub fn header(&self, text: String) -> Result<HeaderValue, RegistryError> {
        HeaderValue::try_from(text).map_err(|error| self.malformed(format!("it asks for an invalid header: {error}")))
    }

    fn accepted(&self) -> MutexGuard<'_, Vec<Accepted>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the address at which the registry answers.
    fn base(&self) -> &HttpUrl {
        match &self.without_tls {
            Some(url) if self.is_without_tls.load(Ordering::Relaxed) => url,
            _ => &self.base,
        }
    }

    /// Sends a GET, follows redirects and answers challenges. Returns an answer of success.
    ///
    /// # Errors
    /// Returns an error if the registry does not serve what is asked for.
    pub async fn get(&self, what: &str, path: &str, headers: &HeaderMap) -> Result<HttpResponse, RegistryError> {
        let start = HttpUrl { path: path.to_string(), ..self.base().clone() };
        self.get_url(what, start, headers).await
    }

    /// Does the same from a URL that the registry gave, relative to one of its paths.
    pub async fn get_next(&self, what: &str, path: &str, link: &str) -> Result<HttpResponse, RegistryError> {
        let at = HttpUrl { path: path.to_string(), ..self.base().clone() };
        let next = at.join(link).filter(|next| next.is_same_server(self.base()));
        let next = next.ok_or_else(|| self.malformed(format!("it continues at `{link}`, which is not followed")))?;
        self.get_url(what, next, &HeaderMap::new()).await
    }

    async fn get_url(&self, what: &str, start: HttpUrl, headers: &HeaderMap) -> Result<HttpResponse, RegistryError> {
        let mut url = start;
        let mut answered: Vec<HttpUrl> = Vec::new();
        let mut redirects = 0;
        loop {
            let answer = self.send(&mut url, headers).await?;
            if answer.status == StatusCode::UNAUTHORIZED && !answered.iter().any(|server| server.is_same_server(&url)) {
                answered.push(url.clone());
                let challenge = challenge_of(&answer);
                drop(answer);
                let header = self.answer_challenge(&url, challenge).await?;
                self.remember(&url, header);
                continue;
            }
            if !answer.status.is_redirection() {
                return self.check_status(what, &url, answer).await;
            }
            redirects += 1;
            if redirects > REDIRECTS_MAX {
                return Err(self.malformed(format!("it redirects more than {REDIRECTS_MAX} times")));
            }
            url = self.redirect(&url, &answer)?;
        }
    }

    /// Returns where an answer redirects to.
    fn redirect(&self, from: &HttpUrl, answer: &HttpResponse) -> Result<HttpUrl, RegistryError> {
        let location = answer.headers.get(LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let location = location.filter(|location| !location.trim().is_empty());
        let location = location.ok_or_else(|| self.malformed("it redirects without saying where to"))?;
        // A redirect from https to http would send the request in the clear.
        let next = from.join(&location).filter(|next| next.https || !from.https);
        next.ok_or_else(|| {
            let shown: String = location.chars().take(REFUSAL_SHOWN_CHARS).collect();
            self.malformed(format!("it redirects to `{}`, which is not followed", shown.escape_debug()))
        })
    }

    /// Sends one GET. A registry on this machine that speaks no TLS is asked again without TLS, and `url` becomes its
    /// address then.
    async fn send(&self, url: &mut HttpUrl, headers: &HeaderMap) -> Result<HttpResponse, RegistryError> {
        let error = match self.transport.send(self.request(url, headers)).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let plain = self.without_tls.as_ref().filter(|_| error.is_answer_without_tls());
        let Some(plain) = plain.filter(|_| url.is_same_server(&self.base)) else { return Err(error.into()) };
        let plain = HttpUrl { path: url.path.clone(), ..plain.clone() };
        // If this fails too, the first failure says more about the registry.
        let Ok(answer) = self.transport.send(self.request(&plain, headers)).await else { return Err(error.into()) };
        if !self.is_without_tls.swap(true, Ordering::Relaxed) {
            tracing::info!(registry = %self.registry, "a registry on this machine speaks no TLS, so it is used without");
        }
        *url = plain;
        Ok(answer)
    }

    /// Returns a GET with the header that this server accepted before, if there is one.
    fn request<'a>(&self, url: &'a HttpUrl, headers: &HeaderMap) -> HttpRequest<'a> {
        let mut headers = headers.clone();
        if let Some(accepted) = self.accepted().iter().find(|accepted| accepted.server.is_same_server(url)) {
            headers.insert(AUTHORIZATION, accepted.header.clone());
        }
        HttpRequest { url, method: Method::GET, headers, body: Bytes::new() }
    }

    fn remember(&self, server: &HttpUrl, header: HeaderValue) {
        let mut accepted = self.accepted();
        accepted.retain(|other| !other.server.is_same_server(server));
        if accepted.len() >= SERVERS_MAX {
            accepted.remove(0);
        }
        accepted.push(Accepted { server: server.clone(), header });
    }

    fn unauthorized(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Unauthorized { registry: self.registry.clone(), why: why.into() }
    }

    /// Returns the `Authorization` header that answers the challenge of a server.
    async fn answer_challenge(
        &self,
        server: &HttpUrl,
        challenge: Option<Challenge>,
    ) -> Result<HeaderValue, RegistryError> {
        let is_registry = server.is_same_server(self.base());
        let credentials = self.credentials.as_ref().filter(|_| is_registry);
        let header = match (challenge, credentials) {
            (None, _) => return Err(self.unauthorized("it does not say how to authenticate")),
            (Some(Challenge::Basic), Some(Credentials::Password(user, password))) => auth::basic(user, password),
            (Some(Challenge::Basic), _) if is_registry => {
                return Err(self.unauthorized(
                    "it needs a user and a password; add it under `auths` in the seeder's docker_config",
                ));
            }
            (Some(Challenge::Basic), _) => {
                return Err(self.unauthorized(format!(
                    "it redirects to {}, which needs a password; name that registry in the reference instead",
                    server.authority
                )));
            }
            (Some(Challenge::Bearer { realm, service, scope }), credentials) => {
                let request = TokenRequest {
                    realm: server.join(&realm).ok_or_else(|| {
                        self.malformed(format!("its token server has the invalid URL `{}`", realm.escape_debug()))
                    })?,
                    service,
                    scope: scope.unwrap_or_else(|| format!("repository:{}:pull", self.path)),
                    credentials,
                };
                format!("Bearer {}", self.token(request).await?)
            }
        };
        let mut value = self.header(header)?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Fetches a token at a token server.
    async fn token(&self, request: TokenRequest<'_>) -> Result<String, RegistryError> {
        let realm = request.realm.clone();
        // A registry without TLS on this machine is no reason to send its password over the network without TLS.
        let stays_here = !self.base().https && realm.is_loopback();
        if self.base.https && !realm.https && !stays_here && request.credentials.is_some() {
            return Err(self.malformed(format!("its token server {realm} would receive the password in the clear")));
        }
        let has_credentials = request.credentials.is_some();
        let mut answer = self.ask_for_token(request).await?;
        if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
            return Err(self.unauthorized(if has_credentials {
                format!("its token server {realm} refuses the credentials in docker_config; correct them")
            } else if self.credentials.is_some() {
                format!("token server {realm} of another host refuses an anonymous request; name that host instead")
            } else {
                format!("its token server {realm} needs credentials; add the registry to docker_config")
            }));
        }
        if !answer.status.is_success() {
            let refusal = self.check_status("a token", &realm, answer).await.err();
            return Err(refusal.unwrap_or_else(|| self.malformed("it sent no token")));
        }
        let body = answer.whole(TOKEN_BYTES_MAX).await?;
        let token = body.and_then(|body| auth::token(&body));
        token.ok_or_else(|| self.malformed(format!("its token server {realm} sent no token")))
    }

    /// Sends the request for a token. A refresh token is posted as a form (OAuth 2), and anything else goes into the
    /// query of a GET. Only the token server itself gets the credentials, and no redirect of it.
    async fn ask_for_token(&self, request: TokenRequest<'_>) -> Result<HttpResponse, RegistryError> {
        let TokenRequest { realm, service, scope, credentials } = request;
        let mut query = format!("scope={}", auth::escape(&scope));
        if let Some(service) = service {
            query.push_str(&format!("&service={}", auth::escape(&service)));
        }
        let mut headers = HeaderMap::new();
        if let Some(Credentials::Refresh(token)) = credentials {
            let token = auth::escape(token);
            let form = format!("{query}&grant_type=refresh_token&client_id=shoal&refresh_token={token}");
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            let request = HttpRequest { url: &realm, method: Method::POST, headers, body: Bytes::from(form) };
            return Ok(self.transport.send(request).await?);
        }
        if let Some(Credentials::Password(user, password)) = credentials {
            let mut basic = self.header(auth::basic(user, password))?;
            basic.set_sensitive(true);
            headers.insert(AUTHORIZATION, basic);
        }
        let joint = if realm.path.contains('?') { '&' } else { '?' };
        let mut url = HttpUrl { path: format!("{}{joint}{query}", realm.path), ..realm.clone() };
        for _ in 0..=REDIRECTS_MAX {
            if !url.is_same_server(&realm) {
                headers.remove(AUTHORIZATION);
            }
            let request = HttpRequest { url: &url, method: Method::GET, headers: headers.clone(), body: Bytes::new() };
            let answer = self.transport.send(request).await?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            url = self.redirect(&url, &answer)?;
        }
        Err(self.malformed(format!("its token server {realm} redirects more than {REDIRECTS_MAX} times")))
    }

    /// Returns an answer of success. Makes any other answer an error.
    async fn check_status(
        &self,
        what: &str,
        from: &HttpUrl,
        mut answer: HttpResponse,
    ) -> Result<HttpResponse, RegistryError> {
        let status = answer.status;
        if status.is_success() {
            return Ok(answer);
        }
        let asked = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = asked.and_then(|asked| retry_after(asked, SystemTime::now()));
        let body = answer.whole(REFUSAL_BYTES_MAX).await.ok().flatten().unwrap_or_default();
        let (registry, what, why) = (self.registry.clone(), what.to_string(), refusal_text(&body));
        Err(match status {
            StatusCode::UNAUTHORIZED if from.is_same_server(self.base()) => {
                self.unauthorized(format!("it refuses the credentials in docker_config for {what}: {why}"))
            }
            StatusCode::UNAUTHORIZED => self.unauthorized(format!(
                "it redirects {what} to {}, which refuses an anonymous request: {why}; name that registry instead",
                from.authority
            )),
            StatusCode::FORBIDDEN => RegistryError::Denied { registry, what, why },
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what, why },
            _ => RegistryError::Refused { registry, status: status.as_u16(), what, why, retry_after },
        })
    }
}

fn challenge_of(answer: &HttpResponse) -> Option<Challenge> {
    let values = answer.headers.get_all(WWW_AUTHENTICATE).iter();
    auth::challenge(values.filter_map(|value| value.to_str().ok()))
}

/// What a token server is asked for.
struct TokenRequest<'a> {
    realm: HttpUrl,
    service: Option<String>,
    scope: String,
    /// `None` for an anonymous request.
    credentials: Option<&'a Credentials>,
}

/// Returns the registry's own explanation of a refusal, without control characters.
fn refusal_text(body: &[u8]) -> String {
    let answer: GoValue = serde_json::from_slice(body).unwrap_or_default();
    let rows = answer.list("errors").unwrap_or_default().iter().take(REFUSALS_SHOWN_MAX);
    let text = |row: &GoValue, field| row.text(field).unwrap_or_default().to_string();
    let texts: Vec<String> = rows.map(|row| format!("{} {}", text(row, "code"), text(row, "message"))).collect();
    let text: String = texts.join("; ").chars().filter(|c| !c.is_control()).take(REFUSAL_SHOWN_CHARS).collect();
    if text.trim().is_empty() { "it gives no reason".into() } else { text }
}
