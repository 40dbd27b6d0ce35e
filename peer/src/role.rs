//! Starts and runs the peer role.
//!
//! Invariant: a task that ends early ends the role.

use crate::api;
use crate::config::PeerConfig;
use crate::driver::setup::{Folders, SetupError, start as start_node};
use crate::handle::NodeHandle;
use crate::mirror::{self, FetchThrough};
use crate::prewarm::{PrewarmRequests, PrewarmTask};
use shoal_proto::trust::Role;
use shoal_service::http_server::{AdminToken, Server, TlsFilesError, TokenError, bind};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, TaskError, Tasks};
use std::net::SocketAddr;
use std::sync::Arc;

/// Why the role cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] shoal_service::config::ConfigError),
    /// The certificate of the HTTP API cannot be used.
    #[error(transparent)]
    HttpTls(#[from] TlsFilesError),
    /// The file of the admin token is unusable.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The node cannot start.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The HTTP port or the mirror's port cannot be opened.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// A task ended before the role stopped.
    #[error("{0}")]
    Task(#[from] TaskError),
}

/// A running peer.
pub struct Started {
    /// The addresses on which links are accepted.
    pub bulk: Vec<SocketAddr>,
    /// The address of the HTTP API.
    pub http: SocketAddr,
    /// The address of the registry mirror, if there is one.
    pub mirror: Option<SocketAddr>,
    /// The way to the driver.
    pub node: NodeHandle,
    /// The tasks of the peer.
    pub tasks: Tasks,
}

/// Starts the tasks of a peer.
///
/// # Errors
/// Fails if the configuration, a file or a port is unusable.
pub async fn start(config: &PeerConfig, token: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    let admin = config.admin_token.as_deref().map(AdminToken::load).transpose()?;
    let metrics = Metrics::with_process();
    let mut tasks = Tasks::new(token);
    let listener = bind(config.http).await?;
    let http = listener.local_addr()?;
    let folders =
        Folders { store: &config.dir, content: Some(config.content()), activations: config.activation.clone() };
    let requests = config.containerd.as_ref().map(|_| Arc::<PrewarmRequests>::default());
    let node = start_node(Role::Peer, &config.node, folders, requests.clone(), &metrics, &mut tasks).await?;
    let mirror = match config.mirror.addr()? {
        Some(addr) => {
            let enabled = config.mirror.fetch_through;
            let fetch_through = enabled.then(|| FetchThrough::new(node.control.clone(), node.tracker.clone()));
            Some(mirror::start(&config.mirror, addr, &node.handle, fetch_through, &metrics, &mut tasks).await?)
        }
        None => None,
    };
    if let (Some(containerd), Some(requests)) = (&config.containerd, requests) {
        let pulls = mirror.as_ref().map(|mirror| mirror.pulls.clone());
        let task = PrewarmTask::new(containerd, requests, node.handle.clone(), pulls, &metrics);
        tasks.spawn("prewarm", task.run(tasks.token().clone()));
    }
    let mirror = mirror.map(|mirror| mirror.addr);
    let tracker = node.tracker.clone();
    let check = Arc::new(move || match *tracker.borrow() {
        Some(_) => Vec::new(),
        None => vec!["the host has joined no tracker".to_string()],
    });
    let routes = api::routes(node.credential.locality.to_string(), node.handle.clone())
        .merge(crate::feeds::routes(node.handle.feeds.clone()))
        .merge(crate::rate_limits::api::routes(node.limits.clone(), admin));
    let server = Server::new("peer", metrics, check, routes).with_access(&config.http_access)?;
    tasks.spawn("http", server.serve(listener, tasks.token().clone()));
    tracing::info!(host = %node.credential.locality, bulk = ?node.bulk_addrs, %http, ?mirror, "peer started");
    Ok(Started { bulk: node.bulk_addrs, http, mirror, node: node.handle, tasks })
}

/// Runs a peer until the token is cancelled.
///
/// # Errors
/// Fails if the peer cannot start, or if a task ends early.
pub async fn run(config: &PeerConfig, token: CancellationToken) -> Result<(), RunError> {
    let mut started = start(config, token).await?;
    let ended = started.tasks.run().await;
    started.tasks.stop(STOP_DEADLINE).await;
    Ok(ended?)
}
