//! Starting, running and stopping a hub.
//!
//! Invariant: a hub that started can be reached, and every task of it ends with its token.

use crate::api::{Hub, routes};
use crate::backup;
use crate::config::HubConfig;
use crate::ledger::Ledger;
use shoal_kv::KvError;
use shoal_net::admission::{Admission, reload_on_hangup, system_clock};
use shoal_net::trust_file::{TrustFile, TrustFileError};
use shoal_service::config::ConfigError;
use shoal_service::folders::{self, FolderError};
use shoal_service::http_server::{KnownAddresses, Server, TlsFilesError, bind};
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::{CancellationToken, STOP_DEADLINE, TaskError, Tasks};
use shoal_service::trust_metrics;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why a hub cannot start, or stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Trust(#[from] TrustFileError),
    #[error("cannot use the hub's folder {}", .dir.display())]
    Ledger {
        dir: PathBuf,
        #[source]
        source: KvError,
    },
    /// The certificate of the HTTP API cannot be used.
    #[error(transparent)]
    HttpTls(#[from] TlsFilesError),
    #[error("cannot start the HTTP server")]
    Http(#[source] io::Error),
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A task ended that runs as long as the hub.
    #[error("{0}")]
    Task(#[from] TaskError),
}

/// A running hub.
#[allow(missing_docs, reason = "the names say it")]
pub struct Started {
    /// Address of the HTTP API, with the port that the kernel chose.
    pub http: SocketAddr,
    pub tasks: Tasks,
}

/// Starts a hub and returns once trackers can reach it. The hub stops when `token` is cancelled.
///
/// # Errors
/// [`RunError`] if a setting, the trust document, the folder or the address cannot be used.
pub async fn start(config: &HubConfig, token: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    folders::private(&config.dir)?;
    let file = TrustFile::new(&config.trust, &config.dir);
    let trust = Arc::new(file.load(None)?);
    // The hub has no links, so it shows no credential.
    let admission = Admission::new(trust, Vec::new(), system_clock).with_file(file);
    let ledger = Ledger::open(&config.dir, config.jobs_max)
        .map_err(|source| RunError::Ledger { dir: config.dir.clone(), source })?;
    let database = ledger.database();
    let listener = bind(config.http).await.map_err(RunError::Http)?;
    let http = listener.local_addr().map_err(RunError::Http)?;
    let metrics = Metrics::with_process();
    let known = KnownAddresses::default();
    let hub = Arc::new(Hub::new(ledger, admission.clone(), known.clone(), &metrics));
    let server = Server::new("hub", metrics.clone(), Arc::new(Vec::new), routes(hub))
        .with_access(&config.http_access)?
        .with_known(known);
    let bytes_in = server.bytes_in();
    let received = metrics.counter("shoal_hub_received_bytes", "Bytes received from clients since the start");
    metrics.refresh(move || received.inner().store(bytes_in.load(Ordering::Relaxed), Ordering::Relaxed));
    let mut tasks = Tasks::new(token);
    let in_force = admission.clone();
    trust_metrics::register(&metrics, move || in_force.trust());
    tasks.spawn("trust document", reload_on_hangup(admission, tasks.token().clone()));
    let source: shoal_service::backup::Source = Arc::new(move |out, _| backup::write(&*database, out));
    tasks.spawn("backups", shoal_service::backup::serve(config.dir.clone(), "hub", source, tasks.token().clone()));
    tasks.spawn("http", server.serve(listener, tasks.token().clone()));
    tracing::info!(%http, "hub started");
    Ok(Started { http, tasks })
}

/// Runs a hub until the token is cancelled.
///
/// # Errors
/// As [`start`], and [`RunError::Task`] if a task ended before the token was cancelled.
pub async fn run(config: &HubConfig, token: CancellationToken) -> Result<(), RunError> {
    let mut started = start(config, token).await?;
    let ended = started.tasks.run().await;
    started.tasks.stop(STOP_DEADLINE).await;
    Ok(ended?)
}
