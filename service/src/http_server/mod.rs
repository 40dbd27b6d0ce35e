//! The HTTP server of each role: `/healthz`, `/metrics`, and the routes that the role adds.
//!
//! Invariant: the number of connections (in all and for each address), the time for heads, bodies and unread answers,
//! and the size of bodies are bounded. A full server lets the least active connection go and stays reachable.

mod access;
mod admin_token;
mod api_error;
mod connection;
#[doc(hidden)]
pub mod fuzzing;
mod host_check;
mod places;

use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::routes::Routes;
use access::Tls;
pub use access::{HttpAccess, TlsFiles, TlsFilesError};
pub use admin_token::{AdminToken, TokenError, require_token};
pub use api_error::ApiError;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
pub use connection::RemoteAddr;
use connection::{ConnectionService, CountedStream, with_body_deadline};
pub use host_check::HostNames;
use host_check::check_host;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
pub use places::KnownAddresses;
use places::Places;
use shoal_api::service::{Health, Route};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// The time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest body of a request in bytes. A route may set another limit.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// The time for running requests when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after the operating system refused to accept. Mostly it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Returns the problems of the role, or nothing if the role can do its work.
pub type HealthCheck = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The HTTP server of a role before it starts.
pub struct Server {
    role: &'static str,
    metrics: Metrics,
    check: HealthCheck,
    routes: Routes,
    bytes_in: Arc<AtomicU64>,
    known: KnownAddresses,
    names: HostNames,
    tls: Option<Tls>,
}

/// The state of the routes that every role has.
#[derive(Clone)]
struct RoleState {
    role: &'static str,
    metrics: Metrics,
    check: HealthCheck,
    started: Instant,
    /// Every route of the server, in order of path.
    routes: Arc<[Route]>,
}

impl Server {
    /// Returns the server of a role. `routes` are the role's own.
    pub fn new(role: &'static str, metrics: Metrics, check: HealthCheck, routes: Routes) -> Self {
        let (bytes_in, known, names) = (Arc::default(), KnownAddresses::default(), HostNames::new(&[]));
        Self { role, metrics, check, routes, bytes_in, known, names, tls: None }
    }

    /// Sets the names and the TLS of the server.
    ///
    /// # Errors
    ///
    /// Fails if the certificate or its key cannot be used.
    pub fn with_access(self, access: &HttpAccess) -> Result<Self, TlsFilesError> {
        let tls = access.tls.as_ref().map(Tls::load).transpose()?;
        Ok(Self { names: HostNames::new(&access.names), tls, ..self })
    }

    /// Returns the counter of all bytes read from clients, with heads.
    pub fn bytes_in(&self) -> Arc<AtomicU64> {
        self.bytes_in.clone()
    }

    /// Sets the addresses whose connections have places of their own.
    pub fn with_known(self, known: KnownAddresses) -> Self {
        Self { known, ..self }
    }

    /// Serves until the token is cancelled. Running requests then have 2 s to end.
    pub async fn serve(self, listener: TcpListener, token: CancellationToken) {
        let (bytes_in, places, tls) = (self.bytes_in.clone(), Places::new(self.known.clone()), self.tls.clone());
        let app = self.into_router();
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = token.cancelled() => break,
                accepted = accept(&listener) => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Some((stream, remote)) = accepted else { continue };
            let Some(place) = places.take(remote.ip()) else { continue };
            let stream = CountedStream::new(stream, bytes_in.clone(), place.activity.clone());
            let service =
                ConnectionService { app: app.clone(), activity: place.activity.clone(), remote: RemoteAddr(remote) };
            let (tls, token) = (tls.as_ref().map(Tls::acceptor), token.clone());
            connections.spawn(async move {
                let connection = async {
                    match tls {
                        None => serve_connection(stream, service, &token).await,
                        Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                            Ok(Ok(stream)) => serve_connection(stream, service, &token).await,
                            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                            Err(_) => tracing::debug!("a TLS handshake took too long"),
                        },
                    }
                };
                let _ = place.end.run_until_cancelled(connection).await; // either way the place is free
            });
        }
        let all_ended = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_TIMEOUT, all_ended).await; // the rest is cut off
        connections.shutdown().await;
    }

    /// Returns the router of the role's own routes and of those that every role has.
    fn into_router(self) -> Router {
        let Self { role, metrics, check, routes, names, .. } = self;
        let (own, mut table) = routes.into_parts();
        let shared =
            Routes::new().get("/healthz", get_health).get("/metrics", get_metrics).get("/v1/routes", list_routes);
        let (shared, shared_table) = shared.into_parts();
        table.extend(shared_table);
        table.sort_by(|a, b| (&a.path, &a.method).cmp(&(&b.path, &b.method)));
        let state = RoleState { role, metrics, check, started: Instant::now(), routes: table.into() };
        shared
            .with_state(state)
            .merge(own)
            .fallback(not_found)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(axum::middleware::map_request(with_body_deadline))
            .layer(axum::middleware::from_fn_with_state(names, check_host))
    }
}

/// Returns the settings of one connection.
fn connection_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    builder
}

/// Serves the requests of one connection. When the token is cancelled, the running request is the last.
async fn serve_connection<S>(stream: S, service: ConnectionService, token: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = std::pin::pin!(connection_builder().serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = token.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection failed");
    }
}

async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok((stream, remote)) => {
            let _ = stream.set_nodelay(true); // the connection works without it
            Some((stream, remote))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept an HTTP connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn list_routes(State(state): State<RoleState>) -> Json<Vec<Route>> {
    Json(state.routes.to_vec())
}

async fn not_found(uri: Uri) -> ApiError {
    let what = format!("this server has no route {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, what, "", "list the routes with GET /v1/routes")
}

async fn get_health(State(state): State<RoleState>) -> Response {
    let problems = (state.check)();
    let health = Health {
        role: state.role.to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        uptime_s: state.started.elapsed().as_secs(),
        ok: problems.is_empty(),
        problems,
    };
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

async fn get_metrics(State(state): State<RoleState>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], state.metrics.render()).into_response()
}

/// Returns a listener on `addr`.
///
/// # Errors
///
/// Fails if the operating system refuses. The error names the address.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}")))
}
