//! The HTTP/1 transport: plain or TLS, one connection for each exchange, redirects left to the caller.
//!
//! Invariant: connecting, the head of an answer and each next part of its body have deadlines.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The time for the connection and the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for the head of an answer, and for each next part of its body.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// An `http` or `https` URL without a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl {
    /// Whether the scheme is `https`.
    pub https: bool,
    /// Host and port as written.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl HttpUrl {
    /// Returns the URL in `text`, or `None` if it has another scheme or names a user.
    pub fn parse(text: &str) -> Option<Self> {
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

    /// Returns this URL with another path, or the other URL if `location` is a whole one, as in a redirect.
    pub fn join(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            location.parse::<hyper::Uri>().ok()?;
            return Some(Self { path: location.to_string(), ..self.clone() });
        }
        Self::parse(location)
    }

    /// Returns whether the URL names its port.
    pub fn has_port(&self) -> bool {
        self.split_port().1.is_some()
    }

    fn split_port(&self) -> (&str, Option<u16>) {
        // The colons within the brackets of an IPv6 address are no port.
        match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                (host, port.parse().ok())
            }
            _ => (&self.authority, None),
        }
    }

    fn host(&self) -> &str {
        self.split_port().0.trim_start_matches('[').trim_end_matches(']')
    }

    fn port(&self) -> u16 {
        self.split_port().1.unwrap_or(if self.https { 443 } else { 80 })
    }
}

/// The reason for which an exchange failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum HttpError {
    /// No TCP connection came about.
    #[error("cannot reach {url}: {source}")]
    Unreachable { url: String, source: io::Error },
    /// A deadline passed.
    #[error("{0} did not answer in time")]
    Silent(String),
    /// The URL's host is not a name that TLS can check.
    #[error("{url} names no host that TLS can check: {source}")]
    ServerName { url: String, source: InvalidDnsNameError },
    /// The TLS handshake failed.
    #[error("TLS with {url} failed: {source}")]
    Tls { url: String, source: io::Error },
    /// The URL asks for TLS, and the transport has none.
    #[error("{0} asks for TLS, which this client does not use")]
    NoTls(String),
    /// The request cannot be made.
    #[error("the request for {url} is invalid: {source}")]
    Request { url: String, source: hyper::http::Error },
    /// The connection broke within the exchange.
    #[error("the connection to {url} broke: {source}")]
    Broken { url: String, source: hyper::Error },
}

/// The reason for which TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum TlsSettingsError {
    /// The file of an authority cannot be read.
    #[error("cannot read the authorities in {}: {source}", path.display())]
    Read { path: PathBuf, source: pem::Error },
    /// A certificate in the file is not that of an authority.
    #[error("an authority in {} cannot be used: {source}", path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    /// rustls refuses the settings.
    #[error("TLS settings are refused: {0}")]
    Config(#[from] rustls::Error),
}

/// What is sent.
pub struct HttpRequest<'a> {
    /// The target.
    pub url: &'a HttpUrl,
    /// The method.
    pub method: Method,
    /// Headers beside `Host` and `User-Agent`.
    pub headers: HeaderMap,
    /// The body. Empty for a GET.
    pub body: Bytes,
}

/// Makes connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Transport {
    tls: Option<Arc<ClientConfig>>,
}

impl Transport {
    /// Returns a transport without TLS.
    pub fn plain() -> Self {
        Self { tls: None }
    }

    /// Returns a transport that trusts the system's authorities, and those in the PEM file `authority` if it is given.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read or holds a certificate that is not an authority's.
    pub fn with_tls(authority: Option<&Path>) -> Result<Self, TlsSettingsError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if let Some(path) = authority {
            let read = |source| TlsSettingsError::Read { path: path.to_path_buf(), source };
            for certificate in CertificateDer::pem_file_iter(path).map_err(read)? {
                let unusable = |source| TlsSettingsError::Authority { path: path.to_path_buf(), source };
                roots.add(certificate.map_err(read)?).map_err(unusable)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Self { tls: Some(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())) })
    }

    async fn connect(&self, url: &HttpUrl) -> Result<Box<dyn Stream>, HttpError> {
        let unreachable = |source| HttpError::Unreachable { url: url.to_string(), source };
        let stream = TcpStream::connect((url.host(), url.port())).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        if !url.https {
            return Ok(Box::new(stream));
        }
        let tls = self.tls.clone().ok_or_else(|| HttpError::NoTls(url.to_string()))?;
        let name = ServerName::try_from(url.host().to_string());
        let name = name.map_err(|source| HttpError::ServerName { url: url.to_string(), source })?;
        let stream = TlsConnector::from(tls).connect(name, stream).await;
        Ok(Box::new(stream.map_err(|source| HttpError::Tls { url: url.to_string(), source })?))
    }

    /// Sends a request on a connection of its own. Returns the answer once its head has arrived.
    ///
    /// # Errors
    ///
    /// Fails if the connection or the TLS handshake fails, or the head does not arrive in time.
    pub async fn send(&self, exchange: HttpRequest<'_>) -> Result<HttpResponse, HttpError> {
        let HttpRequest { url: target, method, headers, body } = exchange;
        let url = target.to_string();
        let silent = |_| HttpError::Silent(url.clone());
        let broken = |source: hyper::Error| HttpError::Broken { url: url.clone(), source };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(target)).await.map_err(silent)??;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(broken)?;
        let connection = ConnectionTask(tokio::spawn(async move {
            let _ = connection.await; // the sender reports the error
        }));
        let mut request = Request::builder().method(method).uri(&target.path).header(HOST, &target.authority);
        if let Some(all) = request.headers_mut() {
            all.extend(headers);
            all.insert(USER_AGENT, HeaderValue::from_static("shoal"));
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|source| HttpError::Request { url: url.clone(), source })?;
        let sent = tokio::time::timeout(SILENCE_TIMEOUT, sender.send_request(request)).await.map_err(silent)?;
        let (head, body) = sent.map_err(broken)?.into_parts();
        Ok(HttpResponse { status: head.status, headers: head.headers, url, body, _connection: connection })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The task of a connection. It ends with the answer that it serves.
struct ConnectionTask(tokio::task::JoinHandle<()>);

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The head of an answer, and its body as it arrives.
pub struct HttpResponse {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    url: String,
    body: Incoming,
    _connection: ConnectionTask,
}

impl HttpResponse {
    /// Returns a header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the next bytes of the body, or `None` at its end.
    ///
    /// # Errors
    ///
    /// Fails if the connection breaks, the body is shorter than announced, or no bytes arrive for 30 s.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(SILENCE_TIMEOUT, self.body.frame()).await;
            match frame.map_err(|_| HttpError::Silent(self.url.clone()))? {
                None => return Ok(None),
                Some(Err(source)) => return Err(HttpError::Broken { url: self.url.clone(), source }),
                Some(Ok(frame)) => {
                    // A frame of trailers has no data.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Returns the whole body, or `None` if it is longer than `max` bytes.
    ///
    /// # Errors
    ///
    /// As [`HttpResponse::next`].
    pub async fn whole(&mut self, max: u64) -> Result<Option<Bytes>, HttpError> {
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
        let url = HttpUrl::parse("https://r.example:5000/v2/?a=b").unwrap();
        assert_eq!((url.host(), url.port(), &*url.path), ("r.example", 5000, "/v2/?a=b"));
        assert_eq!(HttpUrl::parse("http://r.example").unwrap().port(), 80);
        let ipv6 = HttpUrl::parse("https://[::1]:5000/").unwrap();
        assert!(ipv6.host() == "::1" && ipv6.has_port());
        assert!(!HttpUrl::parse("http://[::1]/").unwrap().has_port());
        assert_eq!(url.join("/other").unwrap().to_string(), "https://r.example:5000/other");
        assert_eq!(url.join("http://cdn.example/x?y").unwrap().to_string(), "http://cdn.example/x?y");
        for bad in ["ftp://x/", "r.example/v2", "https://user:pw@r.example/", "//x/y", "", "https://r example/"] {
            assert!(url.join(bad).is_none(), "{bad}");
        }
    }
}
