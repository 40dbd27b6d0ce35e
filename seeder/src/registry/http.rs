//! HTTP to registries: plain or TLS, one connection a request, redirects left to the caller.
//!
//! Invariant: no wait is without an end: connecting, the answer's head and each next byte have their deadlines.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long connecting and the handshake may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long the head of an answer, or its next bytes, may take.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A `http` or `https` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) https: bool,
    /// Host and port as written.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl Url {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: hyper::Uri = text.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_string();
        (!authority.contains('@')).then(|| Self { https, authority: authority.to_string(), path })
    }

    /// With another path, or the URL a redirect gives.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            location.parse::<hyper::Uri>().ok()?;
            return Some(Self { path: location.to_string(), ..self.clone() });
        }
        Self::parse(location)
    }

    fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }

    fn port(&self) -> u16 {
        let port = self.authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.unwrap_or(if self.https { 443 } else { 80 })
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("cannot reach {url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("no answer of {0} in time")]
    Silent(String),
    #[error("{url}: {why}")]
    Tls { url: String, why: String },
    #[error("the connection to {url} broke: {why}")]
    Broken { url: String, why: String },
}

/// TLS settings: the system's authorities and perhaps one's own.
pub(crate) fn tls(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca {
        let fault = |why: String| format!("{}: {why}", path.display());
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| fault(error.to_string()))?;
            roots.add(certificate).map_err(|error| fault(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// What is asked.
pub(crate) struct Ask<'a> {
    pub(crate) url: &'a Url,
    pub(crate) headers: HeaderMap,
    /// A form to post; without one it is a GET.
    pub(crate) form: Option<String>,
}

/// An answer's head, and its body as it comes.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    url: String,
    body: Incoming,
    _connection: Connection,
}

/// The connection's task ends with the answer it serves.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(url: &Url, tls: &Arc<ClientConfig>) -> Result<Box<dyn Stream>, HttpError> {
    let unreachable = |error: std::io::Error| HttpError::Unreachable { url: url.to_string(), why: error.to_string() };
    let stream = TcpStream::connect((url.host(), url.port())).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    if !url.https {
        return Ok(Box::new(stream));
    }
    let fault = |why: String| HttpError::Tls { url: url.to_string(), why };
    let name = ServerName::try_from(url.host().to_string()).map_err(|error| fault(error.to_string()))?;
    let stream =
        TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(|error| fault(error.to_string()))?;
    Ok(Box::new(stream))
}

/// Asks, and gives the answer once its head is here.
pub(crate) async fn send(ask: Ask<'_>, tls: &Arc<ClientConfig>) -> Result<Answer, HttpError> {
    let url = ask.url.to_string();
    let silent = |_| HttpError::Silent(url.clone());
    let broken = |error: hyper::Error| HttpError::Broken { url: url.clone(), why: error.to_string() };
    let stream = tokio::time::timeout(CONNECT_MAX, connect(ask.url, tls)).await.map_err(silent)??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = Connection(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let method = if ask.form.is_some() { Method::POST } else { Method::GET };
    let mut request = Request::builder().method(method).uri(&ask.url.path).header(header::HOST, &ask.url.authority);
    if let Some(headers) = request.headers_mut() {
        headers.extend(ask.headers);
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static("shoal"));
    }
    let body = Full::new(Bytes::from(ask.form.unwrap_or_default()));
    let request =
        request.body(body).map_err(|error| HttpError::Unreachable { url: url.clone(), why: error.to_string() })?;
    let sent = tokio::time::timeout(SILENCE_MAX, sender.send_request(request)).await.map_err(silent)?;
    let (head, body) = sent.map_err(broken)?.into_parts();
    Ok(Answer { status: head.status, headers: head.headers, url, body, _connection: connection })
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The next bytes of the body; `None` at its end. A body shorter than announced is an error.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
            match frame.map_err(|_| HttpError::Silent(self.url.clone()))? {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(HttpError::Broken { url: self.url.clone(), why: error.to_string() });
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body; `None` if it is longer than `max`.
    pub(crate) async fn whole(&mut self, max: u64) -> Result<Option<Bytes>, HttpError> {
        let mut bytes = Vec::new();
        while let Some(more) = self.next().await? {
            if (bytes.len() + more.len()) as u64 > max {
                return Ok(None);
            }
            bytes.extend_from_slice(&more);
        }
        Ok(Some(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_joined() {
        let url = Url::parse("https://r.example:5000/v2/?a=b").unwrap();
        assert_eq!((url.host(), url.port(), &*url.path), ("r.example", 5000, "/v2/?a=b"));
        assert_eq!(Url::parse("http://r.example").unwrap().port(), 80);
        assert_eq!(Url::parse("https://[::1]:5000/").unwrap().host(), "::1");
        assert_eq!(url.join("/other").unwrap().to_string(), "https://r.example:5000/other");
        assert_eq!(url.join("http://cdn.example/x?y").unwrap().to_string(), "http://cdn.example/x?y");
        for bad in ["ftp://x/", "r.example/v2", "https://user:pw@r.example/", "//x/y", "", "https://r example/"] {
            assert!(url.join(bad).is_none(), "{bad}");
        }
    }
}
