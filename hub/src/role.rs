//! Starting and running the hub role.

use crate::api::{Shared, routes};
use crate::config::HubConfig;
use crate::ledger::{Ledger, LedgerError};
use shoal_proto::trust::{Trust, TrustError};
use shoal_service::http_server::{Server, bind};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, Tasks};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why the role ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] shoal_service::config::ConfigError),
    /// The trust document cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The trust document cannot be used.
    #[error("{}: {source}", .path.display())]
    Trust {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TrustError,
    },
    /// The records cannot be opened.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The port cannot be listened on.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// A task ended that should not have.
    #[error("{0}")]
    Task(String),
}

/// A hub that runs.
pub struct Started {
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// Its tasks.
    pub tasks: Tasks,
}

/// Starts a hub.
pub async fn start(config: &HubConfig, token: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    let path = config.trust.clone();
    let bytes = std::fs::read(&path).map_err(|source| RunError::Read { path: path.clone(), source })?;
    let trust = Trust::open(&bytes, None).map_err(|source| RunError::Trust { path, source })?;
    let ledger = Ledger::open(&config.dir, config.jobs_max)?;
    let db = ledger.db();
    let listener = bind(config.http).await?;
    let http = listener.local_addr()?;
    let metrics = Metrics::with_process();
    let shared = Arc::new(Shared::new(ledger, trust, &metrics));
    let server = Server::new("hub", metrics.clone(), Arc::new(Vec::new), routes(shared));
    let (bytes_in, gauge) = (server.bytes_in(), metrics.gauge("shoal_hub_bytes_in", "Bytes read from clients, all in"));
    metrics.refresh(move || {
        gauge.set(bytes_in.load(Ordering::Relaxed) as i64);
    });
    let mut tasks = Tasks::new(token);
    let source: shoal_service::backup::Source = Arc::new(move |out, _| crate::backup::write(&db, out));
    tasks.spawn("backups", shoal_service::backup::serve(config.dir.clone(), "hub", source, tasks.token().clone()));
    tasks.spawn("http", server.serve(listener, tasks.token().clone()));
    tracing::info!(%http, "hub started");
    Ok(Started { http, tasks })
}

/// Runs a hub until the token is cancelled.
pub async fn run(config: &HubConfig, token: CancellationToken) -> Result<(), RunError> {
    let mut started = start(config, token).await?;
    let ended = started.tasks.run().await;
    started.tasks.stop(STOP_DEADLINE).await;
    ended.map_err(RunError::Task)
}
