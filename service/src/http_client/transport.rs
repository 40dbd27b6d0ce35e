//! The HTTP/1 transport: plain or TLS, one connection for each exchange, redirects left to the caller.
//!
//! Invariant: connecting, the head of an answer and each next part of its body have deadlines.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The time for the connection, and again for the TLS handshake.
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
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // `http://host?query` has no path.
        let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
        (!authority.contains('@')).then(|| Self { https, authority: authority.to_string(), path })
    }

    /// Returns the URL that a reference means at this URL, by the rules of RFC 3986, section 5. A `Location` is one.
    ///
    /// Returns `None` for another scheme than `http` and `https`, for a URL with a user, and for what is no reference.
    /// Blanks and bytes beyond ASCII are escaped, because servers send them as they are.
    pub fn join(&self, reference: &str) -> Option<Self> {
        let escaped = escape_loose(reference.trim());
        let reference = escaped.split('#').next().unwrap_or_default();
        if has_scheme(reference) {
            let url = Self::parse(reference)?;
            return url.with_path(&url.path);
        }
        if reference.starts_with("//") {
            let url = Self::parse(&format!("{}:{reference}", if self.https { "https" } else { "http" }))?;
            return url.with_path(&url.path);
        }
        let base = self.path.split('?').next().unwrap_or_default();
        match reference.chars().next() {
            None => Some(self.clone()),
            Some('/') => self.with_path(reference),
            Some('?') => self.with_path(&format!("{base}{reference}")),
            Some(_) => {
                let folder = base.rfind('/').map_or("/", |slash| &base[..=slash]);
                self.with_path(&format!("{folder}{reference}"))
            }
        }
    }

    /// Returns the URL with another path and query. Resolves `.` and `..` in the path.
    fn with_path(&self, path: &str) -> Option<Self> {
        let (path, query) = path.find('?').map_or((path, ""), |at| path.split_at(at));
        let path = format!("{}{query}", without_dots(path));
        path.parse::<PathAndQuery>().ok()?;
        Some(Self { path, ..self.clone() })
    }

    /// Returns whether both URLs lead to the same server: the same scheme, host and port.
    pub fn is_same_server(&self, other: &Self) -> bool {
        self.https == other.https && self.port() == other.port() && self.host().eq_ignore_ascii_case(other.host())
    }

    /// Returns whether the URL names this machine by a loopback address or as `localhost`.
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
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

/// Whether a reference begins with a scheme. The scheme ends with the first colon, before any slash or query.
fn has_scheme(reference: &str) -> bool {
    let Some((scheme, _)) = reference.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// Escapes blanks and bytes beyond ASCII.
fn escape_loose(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte == b' ' || !byte.is_ascii() {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            out.push(char::from(byte));
        }
    }
    out
}

/// Removes the segments `.` and `..` from an absolute path (RFC 3986, section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
        ends_open = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    if ends_open {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
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
    /// The TLS handshake did not end in time.
    #[error("{0} did not end the TLS handshake in time")]
    SlowTls(String),
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

impl HttpError {
    /// Whether the server may speak plain HTTP: it answered no TLS, ended the handshake or left it open.
    ///
    /// A server whose certificate is refused, or that sends a TLS alert, speaks TLS.
    pub fn is_answer_without_tls(&self) -> bool {
        match self {
            Self::SlowTls(_) => true,
            Self::Tls { source, .. } => {
                match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                    Some(error) => matches!(error, rustls::Error::InvalidMessage(_)),
                    None => true,
                }
            }
            _ => false,
        }
    }
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
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((url.host(), url.port()))).await;
        let stream = connecting.map_err(|_| HttpError::Silent(url.to_string()))?.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        if !url.https {
            return Ok(Box::new(stream));
        }
        let tls = self.tls.clone().ok_or_else(|| HttpError::NoTls(url.to_string()))?;
        let name = ServerName::try_from(url.host().to_string());
        let name = name.map_err(|source| HttpError::ServerName { url: url.to_string(), source })?;
        let handshake = tokio::time::timeout(CONNECT_TIMEOUT, TlsConnector::from(tls).connect(name, stream)).await;
        let stream = handshake.map_err(|_| HttpError::SlowTls(url.to_string()))?;
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
        let stream = self.connect(target).await?;
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
        assert_eq!(HttpUrl::parse("http://r.example?a").unwrap().path, "/?a");
        for bad in ["ftp://x/", "https://user:pw@r.example/", "//user@x/y", "https://", "//", "/a\r\nb"] {
            assert!(url.join(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn references_are_resolved_as_the_standard_says() {
        let base = HttpUrl::parse("http://a/b/c/d;p?q").unwrap();
        // The examples of RFC 3986, sections 5.4.1 and 5.4.2, without fragments.
        let table = [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            ("g?y#s", "http://a/b/c/g?y"),
            (";x", "http://a/b/c/;x"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("./", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../..", "http://a/"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("/../g", "http://a/g"),
            ("g.", "http://a/b/c/g."),
            ("..g", "http://a/b/c/..g"),
            ("./g/.", "http://a/b/c/g/"),
            ("g/../h", "http://a/b/c/h"),
            ("g;x=1/../y", "http://a/b/c/y"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
            ("https://b//c/../d", "https://b//d"),
            ("/a b/\u{e9}", "http://a/a%20b/%C3%A9"),
            ("/v2/a/blobs/sha256:00", "http://a/v2/a/blobs/sha256:00"),
        ];
        for (reference, resolved) in table {
            assert_eq!(base.join(reference).map(|url| url.to_string()).as_deref(), Some(resolved), "{reference}");
        }
    }

    #[test]
    fn servers_are_compared_and_loopback_is_known() {
        let url = |text: &str| HttpUrl::parse(text).unwrap();
        assert!(url("https://R.example/a").is_same_server(&url("https://r.example:443/b")));
        assert!(!url("https://r.example/").is_same_server(&url("http://r.example:443/")));
        assert!(!url("https://r.example/").is_same_server(&url("https://r.example:5000/")));
        for here in ["http://localhost:1/", "https://127.8.9.1/", "http://[::1]:5000/"] {
            assert!(url(here).is_loopback(), "{here}");
        }
        for elsewhere in ["http://localhost.example/", "http://10.0.0.1/", "http://127.0.0.1.example/"] {
            assert!(!url(elsewhere).is_loopback(), "{elsewhere}");
        }
    }

    #[test]
    fn a_server_without_tls_is_told_from_one_with_a_bad_certificate() {
        let tls = |source| HttpError::Tls { url: "https://x/".into(), source };
        let wrapped = |error: rustls::Error| tls(io::Error::new(io::ErrorKind::InvalidData, error));
        assert!(
            wrapped(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)).is_answer_without_tls()
        );
        assert!(tls(io::ErrorKind::ConnectionReset.into()).is_answer_without_tls());
        assert!(tls(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")).is_answer_without_tls());
        assert!(HttpError::SlowTls("https://x/".into()).is_answer_without_tls());
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        assert!(!wrapped(expired).is_answer_without_tls());
        assert!(
            !wrapped(rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure)).is_answer_without_tls()
        );
        assert!(!HttpError::Silent("https://x/".into()).is_answer_without_tls());
    }
}
