//! The registry mirror: the read side of the OCI Distribution API on a loopback port, served from the store.
//!
//! Owns: the port, its connections, the mirror's counters.
//! Invariant: the mirror never makes a pull worse. It refuses at once what it lacks, cuts what stops, and closes its
//! port when the daemon hangs. containerd then continues with the registry.
//!
//! Where to look: parsing of requests in [`request`]; answers in [`handler`] and their bodies in [`body`]; images and
//! blobs in [`crate::images`]; images that the host lacks in [`fetch_through`]; the port in [`listener`]; hanging
//! daemons in [`watchdog`].

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod body;
mod config;
mod fetch_through;
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod listener;
mod metrics;
mod request;
mod watchdog;

pub use config::MirrorConfig;
pub use fetch_through::FetchThrough;

use crate::handle::NodeHandle;
use crate::images::{Images, RecentPulls};
use handler::Handler;
use shoal_service::http_server::bind;
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::Tasks;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use watchdog::Watchdog;

/// A running mirror.
pub struct RunningMirror {
    /// The address that it listens on.
    pub addr: SocketAddr,
    /// The manifests that clients requested.
    pub(crate) pulls: Arc<RecentPulls>,
}

/// Starts the tasks of the mirror. With `fetch_through`, the mirror requests images that the host lacks.
///
/// # Errors
/// Fails if the port is in use or the watchdog's thread cannot start.
pub async fn start(
    config: &MirrorConfig,
    addr: SocketAddr,
    node: &NodeHandle,
    fetch_through: Option<FetchThrough>,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> io::Result<RunningMirror> {
    let listener = bind(addr).await?;
    let addr = listener.local_addr()?;
    let (watchdog, pulls) = (Arc::new(Watchdog::default()), Arc::<RecentPulls>::default());
    let images = Images::new(node.store.clone());
    let handler = Handler::new(config, images, node.arrivals.clone(), pulls.clone(), fetch_through, metrics);
    let token = tasks.token().clone();
    watchdog::start_thread(&watchdog, &token)?;
    tasks.spawn("mirror's pulse", watchdog::pulse(watchdog.clone(), node.clone(), token.clone()));
    tasks.spawn("mirror", listener::run(Arc::new(handler), watchdog, listener, addr, token));
    Ok(RunningMirror { addr, pulls })
}
