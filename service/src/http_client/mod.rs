//! HTTP/1 out of this process: one transport, and a client of the roles' own APIs on top of it.
//!
//! Invariant: each exchange has deadlines and a largest body.
//!
//! Where to look: URLs, TLS and one exchange in [`transport`]; JSON requests and streams of lines here.

pub mod transport;

use crate::http_server::ApiError;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, InvalidHeaderValue};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::Duration;
use transport::{HttpError, HttpRequest, HttpResponse, HttpUrl, TlsSettingsError, Transport};

/// The largest answer of a role, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The largest answer of a service that is not ours, in bytes.
const FOREIGN_ANSWER_BYTES_MAX: u64 = 1024 * 1024;
/// The longest line of a stream, in bytes.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The time for a whole exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason for which a request has no useful answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum ClientError {
    /// The server's URL has another form.
    #[error("`{0}` is not a URL of the form http://host:port or https://host:port")]
    Url(String),
    /// The token cannot stand in a header.
    #[error("the token holds characters that no HTTP header may hold: {0}")]
    Token(#[from] InvalidHeaderValue),
    /// The authorities cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsSettingsError),
    /// The exchange failed.
    #[error("{0}")]
    Http(#[from] HttpError),
    /// The server did not answer in time.
    #[error("{url} did not answer in time")]
    Timeout { url: String },
    /// The server answered with an error.
    #[error("{0}")]
    Refused(ApiError),
    /// The request cannot be written as JSON.
    #[error("the request cannot be written as JSON: {0}")]
    Request(#[source] serde_json::Error),
    /// The answer is not what the API promises.
    #[error("{url} gave an answer that cannot be read: {source}")]
    Malformed { url: String, source: serde_json::Error },
    /// The answer is not UTF-8.
    #[error("{url} gave an answer that is not UTF-8")]
    NotText { url: String },
    /// The answer, or a line of it, is longer than the client reads.
    #[error("{url} gave an answer that is too long")]
    TooLong { url: String },
}

/// A server with the token that it is shown.
#[derive(Clone, Debug)]
pub struct Client {
    /// Without the path.
    url: String,
    base: HttpUrl,
    authorization: Option<HeaderValue>,
    transport: Transport,
}

impl Client {
    /// Returns a client of `http://host:port` or `https://host:port` that shows `token`, if there is one. For `https`
    /// it trusts the system's authorities.
    ///
    /// # Errors
    ///
    /// Fails if the URL has another form or the token cannot stand in a header.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, ClientError> {
        Self::trusting(url, token, None)
    }

    /// Returns a client as [`Client::new`] does, that also trusts the authorities in the PEM file `authority`.
    ///
    /// # Errors
    ///
    /// Fails as [`Client::new`] does, or if the file holds no authority that can be used.
    pub fn trusting(url: &str, token: Option<String>, authority: Option<&Path>) -> Result<Self, ClientError> {
        let bad = || ClientError::Url(url.to_string());
        let trimmed = url.trim_end_matches('/');
        let base = HttpUrl::parse(trimmed).filter(|base| base.path == "/" && base.has_port()).ok_or_else(bad)?;
        let authorization = token.map(|token| HeaderValue::from_str(&format!("Bearer {token}"))).transpose()?;
        // Reading the system's authorities takes milliseconds, so plain clients do without.
        let transport = if base.https { Transport::with_tls(authority)? } else { Transport::plain() };
        Ok(Self { url: trimmed.to_string(), base, authorization, transport })
    }

    /// Returns the server's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a request and returns the answer once its head has arrived.
    async fn send(&self, method: Method, path: &str, body: Body) -> Result<HttpResponse, ClientError> {
        // The path never names another server, so the token goes only to this one.
        let url = HttpUrl { path: path.to_string(), ..self.base.clone() };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(body.content_type));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(self.transport.send(HttpRequest { url: &url, method, headers, body: body.bytes }).await?)
    }

    async fn in_time<T>(&self, exchange: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        let timed_out = |_| ClientError::Timeout { url: self.url.clone() };
        tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await.map_err(timed_out)?
    }

    async fn read_whole(&self, answer: &mut HttpResponse, max: u64) -> Result<Bytes, ClientError> {
        answer.whole(max).await?.ok_or_else(|| ClientError::TooLong { url: self.url.clone() })
    }

    /// Returns the body of a successful answer.
    async fn exchange(&self, method: Method, path: &str, body: Body) -> Result<Bytes, ClientError> {
        self.in_time(async {
            let mut answer = self.send(method, path, body).await?;
            let bytes = self.read_whole(&mut answer, ANSWER_BYTES_MAX).await?;
            if answer.status.is_success() { Ok(bytes) } else { Err(self.refusal(answer.status, &bytes)) }
        })
        .await
    }

    fn refusal(&self, status: StatusCode, bytes: &[u8]) -> ClientError {
        #[derive(serde::Deserialize)]
        struct ErrorBody {
            error: ApiError,
        }
        match serde_json::from_slice::<ErrorBody>(bytes) {
            Ok(ErrorBody { error }) => ClientError::Refused(ApiError { status: status.as_u16(), ..error }),
            Err(_) => ClientError::Refused(ApiError::new(status, format!("{} answered {status}", self.url), "", "")),
        }
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|source| ClientError::Malformed { url: self.url.clone(), source })
    }

    /// Sends a GET and returns the JSON answer.
    ///
    /// # Errors
    ///
    /// Fails if the exchange fails, the server answers with an error, or the answer cannot be read.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parse(&self.exchange(Method::GET, path, Body::NONE).await?)
    }

    /// Sends a GET to a service that is not ours. Returns status and body, whatever they are.
    ///
    /// # Errors
    ///
    /// Fails if the exchange fails or the answer is longer than 1 MiB.
    pub async fn answer(&self, path: &str) -> Result<(u16, Bytes), ClientError> {
        self.in_time(async {
            let mut answer = self.send(Method::GET, path, Body::NONE).await?;
            Ok((answer.status.as_u16(), self.read_whole(&mut answer, FOREIGN_ANSWER_BYTES_MAX).await?))
        })
        .await
    }

    /// Sends a GET and returns the answer as text.
    ///
    /// # Errors
    ///
    /// Fails if the exchange fails, the server answers with an error, or the answer is not UTF-8.
    pub async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let bytes = self.exchange(Method::GET, path, Body::NONE).await?;
        String::from_utf8(bytes.into()).map_err(|_| ClientError::NotText { url: self.url.clone() })
    }

    /// Sends a POST with a JSON body and returns the JSON answer.
    ///
    /// # Errors
    ///
    /// Fails if the exchange fails, the server answers with an error, or the answer cannot be read.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let bytes = serde_json::to_vec(body).map_err(ClientError::Request)?;
        let body = Body { content_type: "application/json", bytes: bytes.into() };
        self.parse(&self.exchange(Method::POST, path, body).await?)
    }

    /// Sends a POST with a binary body and returns the JSON answer.
    ///
    /// # Errors
    ///
    /// Fails if the exchange fails, the server answers with an error, or the answer cannot be read.
    pub async fn post_bytes<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        let body = Body { content_type: "application/octet-stream", bytes: body.into() };
        self.parse(&self.exchange(Method::POST, path, body).await?)
    }

    /// Sends a GET and returns the answer as a stream of JSON lines.
    ///
    /// # Errors
    ///
    /// Fails if the server does not answer in time or answers with an error.
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let answer = self
            .in_time(async {
                let mut answer = self.send(Method::GET, path, Body::NONE).await?;
                if answer.status.is_success() {
                    return Ok(answer);
                }
                let bytes = self.read_whole(&mut answer, ANSWER_BYTES_MAX).await?;
                Err(self.refusal(answer.status, &bytes))
            })
            .await?;
        Ok(Lines { client: self.clone(), answer, buffer: Vec::new() })
    }
}

/// The body of a request.
struct Body {
    content_type: &'static str,
    bytes: Bytes,
}

impl Body {
    const NONE: Self = Self { content_type: "application/json", bytes: Bytes::new() };
}

/// A stream of JSON lines.
pub struct Lines {
    client: Client,
    answer: HttpResponse,
    buffer: Vec<u8>,
}

impl Lines {
    /// Returns the next value, or `None` when the server has ended the stream.
    ///
    /// # Errors
    ///
    /// Fails if the stream is silent for 30 s, a line is too long, or a line cannot be read.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return self.client.parse(&line).map(Some);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(ClientError::TooLong { url: self.client.url.clone() });
            }
            match self.answer.next().await? {
                None => return Ok(None),
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
            }
        }
    }
}
