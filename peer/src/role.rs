//! Starting and running the peer role.

use crate::api;
use crate::config::PeerConfig;
use crate::driver::setup::{Folders, SetupError, start as start_node};
use crate::handle::NodeHandle;
use crate::mirror::{self, FetchThrough};
use crate::prewarm::{PrewarmRequests, PrewarmTask};
use shoal_proto::trust::Role;
use shoal_service::http_server::{AdminToken, Server, TokenError, bind};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, Tasks};
use std::net::SocketAddr;
use std::sync::Arc;

/// Why the role ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] shoal_service::config::ConfigError),
    /// The admin token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The node cannot start.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A port cannot be listened on.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// A task ended that should not have.
    #[error("{0}")]
    Task(String),
}

/// A peer that runs.
pub struct Started {
    /// Where it listens for bulk links.
    pub bulk: Vec<SocketAddr>,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// Where the registry mirror listens, if it does.
    pub mirror: Option<SocketAddr>,
    /// How to reach its driver.
    pub node: NodeHandle,
    /// Its tasks.
    pub tasks: Tasks,
}

/// Starts a peer.
pub async fn start(config: &PeerConfig, token: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    let admin = config.admin_token.as_deref().map(AdminToken::load).transpose()?;
    let metrics = Metrics::with_process();
    let mut tasks = Tasks::new(token);
    let listener = bind(config.http).await?;
    let http = listener.local_addr()?;
    let folders = Folders {
        store: &config.dir,
        content: Some((&config.content_dir, config.keep_versions)),
        activations: config.activation.clone(),
    };
    let board = config.containerd.as_ref().map(|_| Arc::<PrewarmRequests>::default());
    let node = start_node(Role::Peer, &config.node, folders, board.clone(), &metrics, &mut tasks).await?;
    let mirror = match config.mirror.addr()? {
        Some(addr) => {
            let through = config.mirror.fetch_through;
            let fetcher = through.then(|| FetchThrough::new(node.control.clone(), node.tracker.clone()));
            Some(mirror::start(&config.mirror, addr, &node.handle, fetcher, &metrics, &mut tasks).await?)
        }
        None => None,
    };
    if let (Some(containerd), Some(board)) = (&config.containerd, board) {
        let asked = mirror.as_ref().map(|mirror| mirror.asked.clone());
        let warmer = PrewarmTask::new(containerd, board, node.handle.clone(), asked, &metrics);
        tasks.spawn("warmer", warmer.run(tasks.token().clone()));
    }
    let mirror = mirror.map(|mirror| mirror.addr);
    let tracker = node.tracker.clone();
    let check = Arc::new(move || match *tracker.borrow() {
        Some(_) => Vec::new(),
        None => vec!["no tracker can be reached".to_string()],
    });
    let routes = api::routes(node.credential.locality.to_string(), node.handle.clone())
        .merge(crate::feeds::routes(node.handle.feeds.clone()))
        .merge(crate::rate_limits::api::routes(node.limits.clone(), admin));
    let server = Server::new("peer", metrics, check, routes);
    tasks.spawn("http", server.serve(listener, tasks.token().clone()));
    tracing::info!(host = %node.credential.locality, bulk = ?node.bulk_addrs, %http, ?mirror, "peer started");
    Ok(Started { bulk: node.bulk_addrs, http, mirror, node: node.handle, tasks })
}

/// Runs a peer until the token is cancelled.
pub async fn run(config: &PeerConfig, token: CancellationToken) -> Result<(), RunError> {
    let mut started = start(config, token).await?;
    let ended = started.tasks.run().await;
    started.tasks.stop(STOP_DEADLINE).await;
    ended.map_err(RunError::Task)
}
