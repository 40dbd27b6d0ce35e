//! HTTP to registries, plain or TLS: one connection per request. The caller follows redirects.
//!
//! Invariant: every wait ends: connecting, the answer's head and each further read have a deadline.

use crate::url::HttpUrl;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long connecting and the handshake may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long the head of an answer, or its next bytes, may take to arrive.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("cannot connect to {url}")]
    Connect { url: String, source: io::Error },
    #[error("{url} did not answer in time")]
    Timeout { url: String },
    #[error("the host of {url} is not a name for TLS")]
    ServerName { url: String, source: InvalidDnsNameError },
    #[error("the TLS handshake with {url} failed")]
    Tls { url: String, source: io::Error },
    #[error("the request to {url} cannot be written")]
    Request { url: String, source: hyper::http::Error },
    #[error("the connection to {url} broke")]
    Broken { url: String, source: hyper::Error },
}

/// Why TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsSettingsError {
    #[error("cannot read certificates from {}", .path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{} contains a certificate that cannot be used", .path.display())]
    Certificate { path: PathBuf, source: rustls::Error },
    #[error("the TLS library has no usable protocol version")]
    Versions(#[source] rustls::Error),
}

/// Returns TLS settings that trust the system's authorities, and those in a file.
pub(super) fn tls(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsSettingsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca {
        let pem = |source| TlsSettingsError::Pem { path: path.to_path_buf(), source };
        for certificate in CertificateDer::pem_file_iter(path).map_err(pem)? {
            let added = roots.add(certificate.map_err(pem)?);
            added.map_err(|source| TlsSettingsError::Certificate { path: path.to_path_buf(), source })?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsSettingsError::Versions)?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// A request: a POST of a form, or a GET.
pub(super) struct HttpRequest<'a> {
    pub(super) url: &'a HttpUrl,
    pub(super) headers: HeaderMap,
    pub(super) form: Option<String>,
}

/// An answer's head, and its body as it arrives.
pub(super) struct HttpResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    url: String,
    body: Incoming,
    _connection: Connection,
}

/// The connection's task. It ends with the answer that it serves.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(url: &HttpUrl, tls: &Arc<ClientConfig>) -> Result<Box<dyn Stream>, HttpError> {
    let failed = |source| HttpError::Connect { url: url.to_string(), source };
    let stream = TcpStream::connect((url.host(), url.port())).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    if !url.https {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(url.host().to_string());
    let name = name.map_err(|source| HttpError::ServerName { url: url.to_string(), source })?;
    let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|source| HttpError::Tls { url: url.to_string(), source })?))
}

/// Sends a request and returns the answer once its head has arrived.
pub(super) async fn send(request: HttpRequest<'_>, tls: &Arc<ClientConfig>) -> Result<HttpResponse, HttpError> {
    let HttpRequest { url: target, headers, form } = request;
    let url = target.to_string();
    let timeout = |_| HttpError::Timeout { url: url.clone() };
    let broken = |source| HttpError::Broken { url: url.clone(), source };
    let stream = tokio::time::timeout(CONNECT_MAX, connect(target, tls)).await.map_err(timeout)??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = Connection(tokio::spawn(async move {
        let _ = connection.await; // the answer reports the error
    }));
    let method = if form.is_some() { Method::POST } else { Method::GET };
    let mut request = Request::builder().method(method).uri(&target.path).header(header::HOST, &target.authority);
    if let Some(all) = request.headers_mut() {
        all.extend(headers);
        all.insert(header::USER_AGENT, header::HeaderValue::from_static("shoal"));
    }
    let body = Full::new(Bytes::from(form.unwrap_or_default()));
    let request = request.body(body).map_err(|source| HttpError::Request { url: url.clone(), source })?;
    let sent = tokio::time::timeout(SILENCE_MAX, sender.send_request(request)).await.map_err(timeout)?;
    let (head, body) = sent.map_err(broken)?.into_parts();
    Ok(HttpResponse { status: head.status, headers: head.headers, url, body, _connection: connection })
}

impl HttpResponse {
    /// Returns a header that is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the next bytes of the body, or `None` at its end.
    ///
    /// # Errors
    /// Returns an error if the body is shorter than announced, or nothing arrives for [`SILENCE_MAX`].
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
            match frame.map_err(|_| HttpError::Timeout { url: self.url.clone() })? {
                None => return Ok(None),
                Some(Err(source)) => return Err(HttpError::Broken { url: self.url.clone(), source }),
                Some(Ok(frame)) => {
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
    /// Returns an error like [`HttpResponse::next`].
    pub(super) async fn whole(&mut self, max: u64) -> Result<Option<Bytes>, HttpError> {
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
