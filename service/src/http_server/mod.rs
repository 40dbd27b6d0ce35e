//! The HTTP server every role opens: `/healthz`, `/metrics`, and what the role adds.
//!
//! Invariant: connections (in all and by address), the time for heads and bodies, and body sizes are bounded; a request that may change something carries the admin
//! token.

use crate::metrics::Metrics;
use crate::routes::Routes;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use shoal_api::service::{ErrorAnswer, ErrorBody, Health, Route};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// A client must send its request's head within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// And its body within this one.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections from one address; more are closed.
const CONNECTIONS_PER_ADDR_MAX: usize = CONNECTIONS_MAX / 4;
/// Largest request body unless a route says otherwise, bytes.
const BODY_MAX: usize = 1024 * 1024;

/// An error as the API tells it: what happened, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct ApiError {
    /// HTTP status.
    #[serde(skip, default = "server_error")]
    pub status: u16,
    /// What happened, to what.
    pub what: String,
    /// Why.
    #[serde(default)]
    pub why: String,
    /// What to do about it.
    #[serde(default, rename = "do")]
    pub remedy: String,
}

fn server_error() -> u16 {
    500
}

impl ApiError {
    /// An error with everything a person needs.
    pub fn new(status: StatusCode, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: status.as_u16(), what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    /// The request is wrong.
    pub fn bad_request(what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, what, why, remedy)
    }

    /// No such thing.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, what, "", "")
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let error = ErrorBody { what: self.what, why: self.why, remedy: self.remedy };
        (status, Json(ErrorAnswer { error })).into_response()
    }
}

/// Gives what is amiss with the role; nothing when all is well.
pub type HealthCheck = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// A role's HTTP server before it starts.
pub struct Server {
    role: &'static str,
    metrics: Metrics,
    check: HealthCheck,
    routes: Routes,
    bytes_in: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Common {
    role: &'static str,
    metrics: Metrics,
    check: HealthCheck,
    started: Instant,
    /// Every route of the server, in order of path.
    routes: Arc<[Route]>,
}

/// Returns the router of a role's own routes and those of every role.
fn app(mut common: Common, own: Routes) -> Router {
    let (own, mut table) = own.into_parts();
    let routes = Routes::new().get("/healthz", healthz).get("/metrics", metrics).get("/v1/routes", list_routes);
    let (shared, more) = routes.into_parts();
    table.extend(more);
    table.sort_by(|a, b| (&a.path, &a.method).cmp(&(&b.path, &b.method)));
    common.routes = table.into();
    shared.with_state(common).merge(own)
}

impl Server {
    /// For a role; `routes` are its own.
    pub fn new(role: &'static str, metrics: Metrics, check: HealthCheck, routes: Routes) -> Self {
        Self { role, metrics, check, routes, bytes_in: Arc::default() }
    }

    /// Counts every byte read from clients, headers and all.
    pub fn bytes_in(&self) -> Arc<AtomicU64> {
        self.bytes_in.clone()
    }

    /// Serves until the token is cancelled, then lets running requests end (for at most two seconds).
    pub async fn serve(self, listener: TcpListener, token: CancellationToken) {
        let common = Common {
            role: self.role,
            metrics: self.metrics,
            check: self.check,
            started: Instant::now(),
            routes: Arc::default(),
        };
        let app = app(common, self.routes)
            .fallback(not_found)
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .layer(axum::middleware::map_request(hurried));
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let places = Places::default();
        let graceful = GracefulShutdown::new();
        let mut connections = tokio::task::JoinSet::new();
        let builder = {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_headers(64);
            builder
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = token.cancelled() => break,
                accepted = accept(&listener, &permits) => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Some((stream, permit)) = accepted else { continue };
            let Some(place) = Place::take(&places, &stream) else { continue };
            let io = TokioIo::new(Counted { stream, bytes_in: self.bytes_in.clone() });
            let connection = builder.serve_connection(io, TowerToHyperService::new(app.clone()));
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "http connection");
                }
                drop((permit, place));
            });
        }
        let _ = tokio::time::timeout(Duration::from_secs(2), graceful.shutdown()).await;
        connections.shutdown().await;
    }
}

/// Connections by address.
type Places = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One connection's place among those of its address.
struct Place {
    places: Places,
    addr: IpAddr,
}

impl Place {
    fn take(places: &Places, stream: &TcpStream) -> Option<Self> {
        let addr = stream.peer_addr().ok()?.ip();
        let mut rows = places.lock().unwrap_or_else(PoisonError::into_inner);
        let count = rows.entry(addr).or_default();
        if *count >= CONNECTIONS_PER_ADDR_MAX {
            return None;
        }
        *count += 1;
        Some(Self { places: places.clone(), addr })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut rows = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = rows.get_mut(&self.addr) {
            *count -= 1;
            if *count == 0 {
                rows.remove(&self.addr);
            }
        }
    }
}

/// A body that must be there in time.
struct Hurried {
    body: Body,
    deadline: Pin<Box<tokio::time::Sleep>>,
}

impl http_body::Body for Hurried {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        self.deadline.as_mut().poll(context).map(|()| {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the request's body did not come in time");
            Some(Err(axum::Error::new(late)))
        })
    }
}

async fn hurried(request: Request) -> Request {
    request.map(|body| Body::new(Hurried { body, deadline: Box::pin(tokio::time::sleep(BODY_TIMEOUT)) }))
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            let _ = stream.set_nodelay(true);
            Some((stream, permit))
        }
        Err(error) => {
            // Out of file descriptors, mostly: wait for some to be closed.
            tracing::warn!(%error, "cannot accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn list_routes(State(common): State<Common>) -> Json<Vec<Route>> {
    Json(common.routes.to_vec())
}

async fn not_found(uri: Uri) -> ApiError {
    let what = format!("this server has no route {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, what, "", "list the routes with GET /v1/routes")
}

async fn healthz(State(common): State<Common>) -> Response {
    let problems = (common.check)();
    let health = Health {
        role: common.role.to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        uptime_s: common.started.elapsed().as_secs(),
        ok: problems.is_empty(),
        problems,
    };
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

async fn metrics(State(common): State<Common>) -> Response {
    ([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], common.metrics.render()).into_response()
}

/// A secret that requests must show as `Authorization: Bearer ...`.
#[derive(Clone)]
pub struct AdminToken {
    token: Arc<str>,
}

/// Why an admin token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the admin token {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than the owner can read the file.
    #[error("the admin token {path} is readable by others (mode {mode:o}); run `chmod 600 {path}`")]
    Exposed {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no usable secret.
    #[error("the admin token {path} is shorter than 16 characters")]
    Short {
        /// The file.
        path: String,
    },
}

impl AdminToken {
    /// From a file of mode 0600.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        let name = path.display().to_string();
        let read = |source| TokenError::Read { path: name.clone(), source };
        let mode = std::fs::metadata(path).map_err(read)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Exposed { path: name, mode });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let token = text.trim();
        if token.len() < 16 {
            return Err(TokenError::Short { path: name });
        }
        Ok(Self { token: token.into() })
    }

    /// The secret, for a client to show.
    pub fn secret(&self) -> &str {
        &self.token
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let Some(shown) = shown.and_then(|value| value.strip_prefix(b"Bearer ")) else { return false };
        // Every byte is compared, so the time taken tells nothing of where they differ.
        let ours = self.token.as_bytes();
        let differ = shown.iter().zip(ours).fold(shown.len() ^ ours.len(), |acc, (a, b)| acc | usize::from(a ^ b));
        differ == 0
    }
}

/// Middleware that refuses requests without the admin token.
pub async fn require_token(State(token): State<AdminToken>, request: Request, next: Next) -> Response {
    if token.admits(request.headers()) {
        return next.run(request).await;
    }
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "not allowed",
        "the request shows no valid admin token",
        "pass the cluster's admin.token with --token-file",
    )
    .into_response()
}

/// Binds a listener, with an error that names the address.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}")))
}

struct Counted {
    stream: TcpStream,
    bytes_in: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.bytes_in.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
