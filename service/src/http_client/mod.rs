//! A small HTTP/1 client for the roles' own APIs: JSON or bytes in, JSON or lines out.
//!
//! Invariant: every exchange has a deadline and an upper size.

use crate::http_server::ApiError;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::net::TcpStream;

/// Largest answer read whole, bytes.
const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// Largest answer taken from a service that is not ours, bytes.
const FOREIGN_MAX: usize = 1024 * 1024;
/// Longest line of a stream, bytes.
const LINE_MAX: usize = 4 * 1024 * 1024;
/// How long a whole exchange, or the wait for a stream's next bytes, may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not `http://host:port`.
    #[error("`{0}` is not a URL of the form http://host:port")]
    Url(String),
    /// Nobody is there.
    #[error("cannot reach {url}: {why}")]
    Unreachable {
        /// The server.
        url: String,
        /// Why.
        why: String,
    },
    /// The server said no.
    #[error("{0}")]
    Refused(ApiError),
    /// The answer is not what the API promises.
    #[error("{url} gave an answer that cannot be read: {why}")]
    Malformed {
        /// The server.
        url: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A server to talk to.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
    authority: String,
    token: Option<String>,
}

impl Client {
    /// For `http://host:port`, showing `token` if given.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, ClientError> {
        let bad = || ClientError::Url(url.to_string());
        let url = url.trim_end_matches('/');
        let authority = url.strip_prefix("http://").ok_or_else(bad)?;
        if authority.is_empty() || authority.contains(['/', '@', ' ']) || !authority.contains(':') {
            return Err(bad());
        }
        Ok(Self { url: url.to_string(), authority: authority.to_string(), token })
    }

    /// The server's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Unreachable { url: self.url.clone(), why: why.to_string() }
    }

    fn malformed(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Malformed { url: self.url.clone(), why: why.to_string() }
    }

    /// Sends a request on a connection of its own; gives the answer once its head is here.
    async fn send(&self, method: Method, path: &str, body: Option<(&str, Bytes)>) -> Result<Answer, ClientError> {
        let stream = TcpStream::connect(&self.authority).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(e))?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.authority);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let (kind, bytes) = body.unwrap_or(("application/json", Bytes::new()));
        let request = request.header(header::CONTENT_TYPE, kind).body(Full::new(bytes));
        let request = request.map_err(|error| ClientError::Url(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| self.unreachable(error))?;
        Ok(Answer { response, driver: AbortOnDrop(driver) })
    }

    async fn whole(&self, method: Method, path: &str, body: Option<(&str, Bytes)>) -> Result<Bytes, ClientError> {
        let exchange = async {
            let answer = self.send(method, path, body).await?;
            let status = answer.response.status();
            let body = Limited::new(answer.response.into_body(), ANSWER_MAX);
            let bytes = body.collect().await.map_err(|error| self.malformed(error))?.to_bytes();
            if status.is_success() { Ok(bytes) } else { Err(self.refusal(status, &bytes)) }
        };
        tokio::time::timeout(DEADLINE, exchange).await.map_err(|_| self.unreachable("no answer in time"))?
    }

    fn refusal(&self, status: StatusCode, bytes: &[u8]) -> ClientError {
        #[derive(serde::Deserialize)]
        struct Wrapped {
            error: ApiError,
        }
        match serde_json::from_slice::<Wrapped>(bytes) {
            Ok(Wrapped { error }) => ClientError::Refused(ApiError { status: status.as_u16(), ..error }),
            Err(_) => ClientError::Refused(ApiError::new(status, format!("{} answered {status}", self.url), "", "")),
        }
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|error| self.malformed(error))
    }

    /// GET, JSON out.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parse(&self.whole(Method::GET, path, None).await?)
    }

    /// GET; status and body, whatever they are. For asking services that are not ours.
    pub async fn answer(&self, path: &str) -> Result<(u16, Bytes), ClientError> {
        let exchange = async {
            let answer = self.send(Method::GET, path, None).await?;
            let status = answer.response.status().as_u16();
            let body = Limited::new(answer.response.into_body(), FOREIGN_MAX);
            Ok((status, body.collect().await.map_err(|error| self.malformed(error))?.to_bytes()))
        };
        tokio::time::timeout(DEADLINE, exchange).await.map_err(|_| self.unreachable("no answer in time"))?
    }

    /// GET, text out.
    pub async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let bytes = self.whole(Method::GET, path, None).await?;
        String::from_utf8(bytes.into()).map_err(|error| self.malformed(error))
    }

    /// POST, JSON in and out.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let bytes = serde_json::to_vec(body).map_err(|error| self.malformed(error))?;
        self.parse(&self.whole(Method::POST, path, Some(("application/json", bytes.into()))).await?)
    }

    /// POST, bytes in, JSON out.
    pub async fn post_bytes<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        self.parse(&self.whole(Method::POST, path, Some(("application/octet-stream", body.into()))).await?)
    }

    /// GET, a stream of JSON lines out.
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let sent = tokio::time::timeout(DEADLINE, self.send(Method::GET, path, None)).await;
        let answer = sent.map_err(|_| self.unreachable("no answer in time"))??;
        let status = answer.response.status();
        if !status.is_success() {
            let body = Limited::new(answer.response.into_body(), ANSWER_MAX).collect();
            let bytes =
                tokio::time::timeout(DEADLINE, body).await.map_err(|_| self.unreachable("no answer in time"))?;
            let bytes = bytes.map_err(|error| self.malformed(error))?.to_bytes();
            return Err(self.refusal(status, &bytes));
        }
        Ok(Lines {
            client: self.clone(),
            body: answer.response.into_body(),
            buffer: Vec::new(),
            _driver: answer.driver,
        })
    }
}

struct Answer {
    response: Response<Incoming>,
    driver: AbortOnDrop,
}

/// The connection's task ends with the answer it serves.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream of JSON lines.
pub struct Lines {
    client: Client,
    body: Incoming,
    buffer: Vec<u8>,
    _driver: AbortOnDrop,
}

impl Lines {
    /// The next value; `None` when the server has ended the stream.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return self.client.parse(&line).map(Some);
            }
            if self.buffer.len() > LINE_MAX {
                return Err(self.client.malformed("a line is too long"));
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await;
            match frame.map_err(|_| self.client.unreachable("the stream fell silent"))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.client.unreachable(error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}
