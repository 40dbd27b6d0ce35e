//! The registry mirror: the read side of the OCI Distribution API on a loopback port, out of the store.
//!
//! Owns: the port, who is connected to it, what is counted.
//! Invariant: the mirror helps or stays out of the way. What it cannot give is refused at once, what stops is cut, and
//! when the daemon hangs the port is closed, so that containerd goes on to the registry.
//!
//! Where to look: what is asked in [`request`]; the answers in [`handler`] and their bodies in [`body`]; images and their
//! pieces in [`crate::images`]; images that are not here in [`fetch_through`]; containerd's files in [`hosts_toml`]; the port in [`listener`]; the watchdog in [`watchdog`].

mod body;
mod fetch_through;
mod handler;
pub mod hosts_toml;
mod listener;
mod request;
mod watchdog;

pub use fetch_through::FetchThrough;

use crate::handle::NodeHandle;
use crate::images::{Images, RecentPulls};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde::{Deserialize, Serialize};
use shoal_service::config::ConfigError;
use shoal_service::metrics::Metrics;
use shoal_service::shutdown::Tasks;
use shoal_service::units::Span;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use watchdog::Health;

/// Blobs sent at once: each holds up to two pieces in memory.
const STREAMS_MAX: usize = 24;
/// Pieces read at once.
const READERS_MAX: usize = 4;

/// How to run the mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MirrorConfig {
    /// Where it listens: a loopback address and a port, or empty for no mirror. Default `127.0.0.1:7703`.
    pub listen: String,
    /// How long a puller waits for a blob's first byte before it is sent on to the registry, and how long an image on its way
    /// here may stand still before its pulls are cut. Default 5 s.
    pub budget: Span,
    /// Whether an image that is not here is asked of the region's seeder, which may refuse. Default false.
    pub fetch_through: bool,
}

impl Default for MirrorConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7703".into(), budget: Span(Duration::from_secs(5)), fetch_through: false }
    }
}

impl MirrorConfig {
    /// Where to listen; `None` for no mirror.
    pub fn addr(&self) -> Result<Option<SocketAddr>, ConfigError> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        let bad = |why: &str| ConfigError::invalid("mirror.listen", why);
        let addr: SocketAddr = self.listen.parse().map_err(|_| bad("not an address and a port, nor empty"))?;
        if !addr.ip().is_loopback() {
            return Err(bad("only a loopback address: whoever reaches the mirror can read every image here"));
        }
        Ok(Some(addr))
    }

    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.addr()?;
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&self.budget.0) {
            return Err(ConfigError::invalid("mirror.budget", "between 100ms and 60s"));
        }
        Ok(())
    }
}

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum What {
    Base,
    Manifest,
    Blob,
    Referrers,
    Other,
}

/// How it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Outcome {
    Hit,
    Miss,
    Refused,
    Unavailable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    what: What,
    outcome: Outcome,
}

/// What the mirror counts.
#[derive(Clone)]
struct Counters {
    requests: Family<Labels, Counter>,
    bytes: Counter,
    cut: Counter,
}

impl Counters {
    fn new(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.counters("shoal_mirror_requests", "Requests to the registry mirror"),
            bytes: metrics.counter("shoal_mirror_sent_bytes", "Bytes of blobs and manifests the mirror sent"),
            cut: metrics.counter("shoal_mirror_cut", "Blobs the mirror cut short"),
        }
    }

    fn count(&self, what: What, outcome: Outcome) {
        self.requests.get_or_create(&Labels { what, outcome }).inc();
    }
}

/// The mirror.
struct Mirror {
    images: Images,
    health: Arc<Health>,
    asked: Arc<RecentPulls>,
    counters: Counters,
    budget: Duration,
    /// Asks the region for what is not here.
    fetcher: Option<FetchThrough>,
    streams: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

/// A mirror that runs.
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it was asked for.
    pub(crate) asked: Arc<RecentPulls>,
}

/// Starts the mirror's tasks. With a `fetcher` images that are not here are asked for.
pub async fn start(
    config: &MirrorConfig,
    addr: SocketAddr,
    node: &NodeHandle,
    fetcher: Option<FetchThrough>,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> std::io::Result<Running> {
    let listener = shoal_service::http_server::bind(addr).await?;
    let addr = listener.local_addr()?;
    let health = Arc::new(Health::default());
    let asked = Arc::new(RecentPulls::default());
    let mirror = Arc::new(Mirror {
        images: Images::new(node.store.clone()),
        health: health.clone(),
        asked: asked.clone(),
        counters: Counters::new(metrics),
        budget: config.budget.0,
        fetcher,
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        readers: Arc::new(Semaphore::new(READERS_MAX)),
    });
    let token = tasks.token().clone();
    watchdog::guard(&health, &token)?;
    tasks.spawn("mirror's pulse", watchdog::pulse(health.clone(), node.clone(), token.clone()));
    tasks.spawn("mirror", listener::run(mirror, listener, addr, token));
    Ok(Running { addr, asked })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on() {
        let of = |listen: &str| MirrorConfig { listen: listen.into(), ..Default::default() };
        assert_eq!(of("").addr().unwrap(), None);
        assert_eq!(of("127.0.0.1:7703").addr().unwrap().unwrap().port(), 7703);
        assert!(of("[::1]:1").addr().unwrap().is_some());
        for bad in ["0.0.0.0:7703", "10.0.0.1:7703", "7703", "localhost"] {
            assert!(of(bad).validate().unwrap_err().to_string().contains("mirror.listen"), "{bad}");
        }
        let slow = MirrorConfig { budget: Span(Duration::from_secs(600)), ..Default::default() };
        assert!(slow.validate().is_err());
    }
}
