//! Warming: once an image is whole in the store, containerd is made to have it unpacked, and to keep it.
//!
//! Owns: which images are wished for, the few that are being warmed, and the pins.
//! Invariant: a job's image is called warm only when containerd has the very manifest the job names, unpacked and
//! pinned. Pins of jobs that are over are taken away.
//!
//! The driver states wishes on a [`PrewarmRequests`]; a task of its own fulfils them and tells the driver. Where to look: one
//! image's way in [`worker`]; disk headroom in [`disk_space`].

mod disk_space;
mod requests;
mod worker;

use crate::handle::{DriverCommand, Failure, NodeHandle};
use crate::images::{Images, RecentPulls};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
pub use requests::{PrewarmFault, PrewarmRequests};
use serde::{Deserialize, Serialize};
use shoal_containerd::Containerd;
use shoal_proto::ids::JobId;
use shoal_service::config::ConfigError;
use shoal_service::metrics::Metrics;
use shoal_service::units::{ByteSize, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

/// How soon pins are looked at again when containerd did not answer.
const PINS_AGAIN: Duration = Duration::from_secs(5);

/// How containerd gets an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pull {
    /// By CRI where it is served, else directly.
    #[default]
    Auto,
    /// CRI pulls it through the mirror.
    Cri,
    /// The peer hands containerd the blobs, without any registry's API.
    Direct,
}

/// Which containerd to warm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerdConfig {
    /// Its socket. Default `/run/containerd/containerd.sock`.
    pub socket: PathBuf,
    /// The namespace whose images count. Default `k8s.io`, the only one CRI knows.
    pub namespace: String,
    /// What images are unpacked with. Default `overlayfs`.
    pub snapshotter: String,
    /// How it gets images. Default `auto`.
    pub pull: Pull,
    /// Images warmed at a time. Default 1.
    pub concurrency: usize,
    /// How long one image may take, unpacking included. Default 30 min.
    pub timeout: Span,
    /// How long a containerd that does not answer is waited for. Default 10 min.
    pub patience: Span,
    /// Bytes to leave free on containerd's disk. Default 1 GiB.
    pub min_free: ByteSize,
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            socket: "/run/containerd/containerd.sock".into(),
            namespace: "k8s.io".into(),
            snapshotter: "overlayfs".into(),
            pull: Pull::Auto,
            concurrency: 1,
            timeout: Span(Duration::from_secs(30 * 60)),
            patience: Span(Duration::from_secs(10 * 60)),
            min_free: ByteSize(1 << 30),
        }
    }
}

impl ContainerdConfig {
    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        check(self.socket.is_absolute(), "containerd.socket", "an absolute path")?;
        check(plain(&self.namespace), "containerd.namespace", "letters, digits, `.`, `-`, `_`")?;
        check(plain(&self.snapshotter), "containerd.snapshotter", "letters, digits, `.`, `-`, `_`")?;
        check((1..=16).contains(&self.concurrency), "containerd.concurrency", "from 1 to 16")?;
        let cri = self.pull != Pull::Cri || self.namespace == "k8s.io";
        check(cri, "containerd.namespace", "CRI knows only `k8s.io`; set pull = \"direct\" for another")
    }
}

/// The warmer's counters.
#[derive(Clone)]
struct Counters {
    warmed: Counter,
    failed: Counter,
    past_mirror: Counter,
    running: Gauge,
}

/// What one image's way needs.
#[derive(Clone)]
struct Tools {
    client: Containerd,
    config: ContainerdConfig,
    images: Images,
    /// What the mirror was asked for, when there is one.
    asked: Option<Arc<RecentPulls>>,
    counters: Counters,
}

/// The task that fulfils wishes.
pub(crate) struct PrewarmTask {
    board: Arc<PrewarmRequests>,
    node: NodeHandle,
    tools: Tools,
}

impl PrewarmTask {
    /// For the containerd of `config`.
    pub(crate) fn new(
        config: &ContainerdConfig,
        board: Arc<PrewarmRequests>,
        node: NodeHandle,
        asked: Option<Arc<RecentPulls>>,
        metrics: &Metrics,
    ) -> Self {
        let counters = Counters {
            warmed: metrics.counter("shoal_images_warmed", "Images found or made unpacked in containerd"),
            failed: metrics.counter("shoal_images_not_warmed", "Images that could not be warmed"),
            past_mirror: metrics.counter("shoal_images_past_mirror", "Images containerd got without asking the mirror"),
            running: metrics.gauge("shoal_images_warming", "Images being warmed"),
        };
        let client = Containerd::new(&config.socket, &config.namespace, &config.snapshotter);
        let tools = Tools { client, config: config.clone(), images: Images::new(node.store.clone()), asked, counters };
        Self { board, node, tools }
    }

    /// Runs until the token is cancelled.
    pub(crate) async fn run(self, token: CancellationToken) {
        let mut running: JoinSet<Result<(), PrewarmFault>> = JoinSet::new();
        let mut busy: BTreeMap<JobId, (CancellationToken, Id)> = BTreeMap::new();
        let mut done: BTreeSet<JobId> = BTreeSet::new();
        let mut swept: Option<BTreeSet<JobId>> = None;
        loop {
            let (wanted, known) = {
                let state = self.board.state();
                (state.wanted.clone(), state.known.clone())
            };
            done.retain(|job| wanted.contains_key(job));
            busy.iter().filter(|(job, _)| !wanted.contains_key(job)).for_each(|(_, (stop, _))| stop.cancel());
            for (job, content) in &wanted {
                if busy.len() >= self.tools.config.concurrency {
                    break;
                }
                if !done.contains(job) && !busy.contains_key(job) {
                    let stop = token.child_token();
                    let (content, tools, stopped) = (*content, self.tools.clone(), stop.clone());
                    let job = *job;
                    let task = running.spawn(async move {
                        stopped
                            .run_until_cancelled(tools.warm(job, content))
                            .await
                            .unwrap_or(Err(PrewarmFault::Stopped))
                    });
                    busy.insert(job, (stop, task.id()));
                }
            }
            self.tools.counters.running.set(busy.len() as i64);
            if known.is_some() && known != swept && self.sweep(known.as_ref()).await {
                swept = known.clone();
            }
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(ended) = running.join_next_with_id(), if !running.is_empty() => {
                    let (task, result) = match ended {
                        Ok((task, result)) => (task, result),
                        // It was printed.
                        Err(panic) => (panic.id(), Err(PrewarmFault::Failed("a fault of shoal's own; see the log".into()))),
                    };
                    let Some(job) = busy.iter().find(|(_, row)| row.1 == task).map(|(job, _)| *job) else { continue };
                    busy.remove(&job);
                    done.insert(job);
                    // Its pin may have come after its job went.
                    swept = swept.filter(|_| wanted.contains_key(&job));
                    self.tell(job, result).await;
                }
                () = self.board.changed.notified() => {}
                () = tokio::time::sleep(PINS_AGAIN), if known != swept => {}
            }
        }
        running.shutdown().await;
    }

    async fn tell(&self, job: JobId, result: Result<(), PrewarmFault>) {
        let counters = &self.tools.counters;
        match &result {
            Ok(()) => counters.warmed.inc(),
            Err(PrewarmFault::Stopped) => return,
            Err(_) => counters.failed.inc(),
        };
        let outcome = result.map_err(|fault| Failure::new(fault.reason(), fault));
        let _ = self.node.commands.send(DriverCommand::ImagePrewarmed { job, outcome }).await; // the driver is gone
    }

    /// Takes pins away that no job holds any more; gives whether all went.
    async fn sweep(&self, known: Option<&BTreeSet<JobId>>) -> bool {
        let Some(known) = known else { return true };
        let pins = match self.tools.client.pins().await {
            Ok(pins) => pins,
            Err(error) => {
                tracing::debug!(%error, "cannot look at the pins in containerd");
                return false;
            }
        };
        let mut all = true;
        for (pin, image) in pins {
            if pin.parse::<JobId>().is_ok_and(|job| !known.contains(&job)) {
                match self.tools.client.unpin(&pin, &image).await {
                    Ok(()) => tracing::info!(job = %pin, %image, "an image is no longer kept"),
                    Err(error) => {
                        tracing::warn!(%image, %error, "cannot take a pin away");
                        all = false;
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_that_cannot_be_run_are_refused() {
        assert!(ContainerdConfig::default().validate().is_ok());
        let refused = |change: fn(&mut ContainerdConfig)| {
            let mut config = ContainerdConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(refused(|config| config.socket = "containerd.sock".into()).contains("containerd.socket"));
        assert!(refused(|config| config.namespace = "a b".into()).contains("containerd.namespace"));
        assert!(refused(|config| config.concurrency = 0).contains("containerd.concurrency"));
        let other = refused(|config| (config.pull, config.namespace) = (Pull::Cri, "default".into()));
        assert!(other.contains("k8s.io"));
    }
}
