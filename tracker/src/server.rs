//! Starting and stopping a tracker.

use crate::config::TrackerConfig;
use shoal_ops::shutdown::{CancellationToken, Tasks};
use shoal_proto::ids::NodeId;
use std::net::SocketAddr;

/// Why a tracker cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] shoal_ops::config::ConfigError),
    /// A file it names cannot.
    #[error("{what}: {why}")]
    File {
        /// The file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The state folder cannot be used.
    #[error("state in {dir}: {why}")]
    State {
        /// The folder.
        dir: String,
        /// What is wrong with it.
        why: String,
    },
    /// An address cannot be listened on.
    #[error("{0}")]
    Listen(String),
    /// Part of it failed while running.
    #[error("{0}")]
    Failed(String),
}

/// A running tracker.
#[derive(Debug)]
pub struct Started {
    /// Where hosts reach it, with the ports picked.
    pub control_addrs: Vec<SocketAddr>,
    /// Where its HTTP API is, with the port picked.
    pub http_addr: SocketAddr,
    /// Its key.
    pub node: NodeId,
    tasks: Tasks,
}

/// Starts a tracker and comes back once it can be reached. It stops when `shutdown` is cancelled.
pub async fn start(config: TrackerConfig, shutdown: CancellationToken) -> Result<Started, RunError> {
    config.validate()?;
    let tasks = Tasks::new(shutdown.child_token());
    Ok(Started { control_addrs: config.listen, http_addr: config.http, node: NodeId([0; 32]), tasks })
}

impl Started {
    /// Waits until the tracker has stopped, because it was told to or because part of it failed.
    pub async fn wait(mut self) -> Result<(), RunError> {
        let ended = self.tasks.run().await;
        self.tasks.stop(shoal_ops::shutdown::STOP_DEADLINE).await;
        ended.map_err(RunError::Failed)
    }
}

/// Runs a tracker until `shutdown` is cancelled.
pub async fn run(config: TrackerConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    start(config, shutdown).await?.wait().await
}
