//! The HTTP server of each role: `/healthz`, `/metrics`, and the routes that the role adds.
//!
//! Invariant: the number of connections (in all and for each address), the time for heads and bodies, and the size of
//! bodies are bounded.

mod admin_token;
mod api_error;
mod connection;
#[doc(hidden)]
pub mod fuzzing;

use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::routes::Routes;
pub use admin_token::{AdminToken, TokenError, require_token};
pub use api_error::ApiError;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use connection::{AddressLimiter, CountedStream, with_body_deadline};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use shoal_api::service::{Health, Route};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Connections served at a time. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
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
        Self { role, metrics, check, routes, bytes_in: Arc::default() }
    }

    /// Returns the counter of all bytes read from clients, with heads.
    pub fn bytes_in(&self) -> Arc<AtomicU64> {
        self.bytes_in.clone()
    }

    /// Serves until the token is cancelled. Running requests then have 2 s to end.
    pub async fn serve(self, listener: TcpListener, token: CancellationToken) {
        let bytes_in = self.bytes_in.clone();
        let app = self.into_router();
        let (permits, addresses) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), AddressLimiter::default());
        let graceful = GracefulShutdown::new();
        let mut connections = tokio::task::JoinSet::new();
        let builder = connection_builder();
        loop {
            let accepted = tokio::select! {
                biased;
                () = token.cancelled() => break,
                accepted = accept(&listener, &permits) => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Some(Accepted { stream, permit }) = accepted else { continue };
            let Some(address_permit) = addresses.try_acquire(&stream) else { continue };
            let io = TokioIo::new(CountedStream::new(stream, bytes_in.clone()));
            let connection = builder.serve_connection(io, TowerToHyperService::new(app.clone()));
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "an HTTP connection failed");
                }
                drop((permit, address_permit));
            });
        }
        let _ = tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown()).await; // the rest is cut off
        connections.shutdown().await;
    }

    /// Returns the router of the role's own routes and of those that every role has.
    fn into_router(self) -> Router {
        let Self { role, metrics, check, routes, .. } = self;
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
    }
}

/// Returns the settings of one connection.
fn connection_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    builder
}

struct Accepted {
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
}

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> Option<Accepted> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            let _ = stream.set_nodelay(true); // the connection works without it
            Some(Accepted { stream, permit })
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
