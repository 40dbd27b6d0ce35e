//! Prewarm: containerd unpacks a complete image before it is needed, and keeps it.
//!
//! Owns: the schedule of the wanted images, the work on each image, and the pins.
//! Invariant: a job's image counts as prewarmed only if containerd has exactly the job's manifest, unpacked and pinned.
//! A signature or another artifact is only kept. Pins of finished jobs are removed.
//!
//! Where to look: the driver's requests in [`requests`]; the work on one image in [`worker`]; free space in
//! [`disk_space`]; the pause after containerd fell silent in [`quiet`]; the configuration in [`config`].

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod config;
mod disk_space;
mod metrics;
mod quiet;
mod requests;
mod worker;

pub use config::{ContainerdConfig, PullMethod};
pub use requests::PrewarmRequests;

use crate::error_chain::ErrorChain;
use crate::handle::{DriverCommand, Failure, NodeHandle, Prewarmed};
use crate::images::{Images, RecentPulls};
use metrics::PrewarmMetrics;
use quiet::QuietTime;
use shoal_containerd::{Containerd, RuntimeError};
use shoal_proto::ids::{ContentId, JobId};
use shoal_service::metrics::Metrics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use worker::{PrewarmFault, Worker};

/// Time until the next attempt to remove pins after containerd failed.
const RETRY_PINS_AFTER: Duration = Duration::from_secs(5);

/// A worker task for one job's image.
struct Running {
    stop: CancellationToken,
    task: Id,
}

type WorkerResult = Result<(Id, Result<Prewarmed, PrewarmFault>), JoinError>;

/// The task that works on the requested images.
pub(crate) struct PrewarmTask {
    requests: Arc<PrewarmRequests>,
    node: NodeHandle,
    worker: Worker,
    workers: JoinSet<Result<Prewarmed, PrewarmFault>>,
    running: BTreeMap<JobId, Running>,
    /// Jobs whose work has ended, with success or not.
    done: BTreeSet<JobId>,
    /// The jobs at the last successful removal of pins.
    pins_checked_for: Option<BTreeSet<JobId>>,
}

impl PrewarmTask {
    /// Returns a task for one containerd. `mirror_pulls` is `None` without a mirror.
    pub(crate) fn new(
        config: &ContainerdConfig,
        requests: Arc<PrewarmRequests>,
        node: NodeHandle,
        mirror_pulls: Option<Arc<RecentPulls>>,
        metrics: &Metrics,
    ) -> Self {
        let worker = Worker {
            client: Containerd::new(&config.socket, &config.namespace, &config.snapshotter),
            config: config.clone(),
            images: Images::new(node.store.clone()),
            mirror_pulls,
            metrics: PrewarmMetrics::new(metrics),
            quiet: Arc::new(QuietTime::default()),
        };
        Self {
            requests,
            node,
            worker,
            workers: JoinSet::new(),
            running: BTreeMap::new(),
            done: BTreeSet::new(),
            pins_checked_for: None,
        }
    }

    /// Runs until the token is cancelled.
    pub(crate) async fn run(mut self, token: CancellationToken) {
        loop {
            let wanted = self.requests.snapshot();
            self.schedule(&wanted.images, &token);
            if wanted.jobs != self.pins_checked_for
                && let Some(jobs) = &wanted.jobs
                && self.remove_old_pins(jobs).await
            {
                self.pins_checked_for = wanted.jobs.clone();
            }
            let pins_left = wanted.jobs != self.pins_checked_for;
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(ended) = self.workers.join_next_with_id(), if !self.workers.is_empty() => {
                    self.on_ended(ended, &wanted.images).await;
                }
                () = self.requests.changed() => {}
                () = tokio::time::sleep(RETRY_PINS_AFTER), if pins_left => {}
            }
        }
        self.workers.shutdown().await;
    }

    /// Stops workers of finished jobs and starts workers for wanted images.
    fn schedule(&mut self, images: &BTreeMap<JobId, ContentId>, token: &CancellationToken) {
        self.done.retain(|job| images.contains_key(job));
        let finished = self.running.iter().filter(|(job, _)| !images.contains_key(job));
        finished.for_each(|(_, running)| running.stop.cancel());
        for (job, content) in images {
            if self.running.len() >= self.worker.config.concurrency {
                break;
            }
            if self.done.contains(job) || self.running.contains_key(job) {
                continue;
            }
            let (job, content, worker, stop) = (*job, *content, self.worker.clone(), token.child_token());
            let stopped = stop.clone();
            let task = self.workers.spawn(async move {
                let work = worker.prewarm(job, content);
                stopped.run_until_cancelled(work).await.unwrap_or(Err(PrewarmFault::Stopped))
            });
            self.running.insert(job, Running { stop, task: task.id() });
        }
        self.worker.metrics.running.set(self.running.len() as i64);
    }

    async fn on_ended(&mut self, ended: WorkerResult, images: &BTreeMap<JobId, ContentId>) {
        let (task, result) = match ended {
            Ok((task, result)) => (task, result),
            // The panic hook has logged it.
            Err(panic) => (panic.id(), Err(PrewarmFault::Panicked)),
        };
        let Some(job) = self.running.iter().find(|(_, running)| running.task == task).map(|(job, _)| *job) else {
            return;
        };
        self.running.remove(&job);
        self.done.insert(job);
        if !images.contains_key(&job) {
            // The worker may have set its pin after the job ended.
            self.pins_checked_for = None;
        }
        self.report(job, result).await;
    }

    async fn report(&self, job: JobId, result: Result<Prewarmed, PrewarmFault>) {
        let metrics = &self.worker.metrics;
        let outcome = match result {
            Ok(Prewarmed::Unpacked) => {
                metrics.prewarmed.inc();
                Ok(Prewarmed::Unpacked)
            }
            Ok(kept) => Ok(kept),
            Err(PrewarmFault::Stopped) => return,
            Err(fault) => {
                metrics.failed.inc();
                Err(Failure::new(fault.reason(), ErrorChain(&fault)))
            }
        };
        let command = DriverCommand::ImagePrewarmed { job, outcome };
        let _ = self.node.commands.send(command).await; // fails only while the node stops
    }

    /// Removes the pins of jobs that are not in `jobs`. Returns whether all of them are removed.
    async fn remove_old_pins(&self, jobs: &BTreeSet<JobId>) -> bool {
        if self.worker.quiet.is_on() {
            return false;
        }
        let client = &self.worker.client;
        let pins = match client.pins().await {
            Ok(pins) => pins,
            Err(error) => {
                tracing::debug!(%error, "cannot list the pins in containerd");
                return false;
            }
        };
        let is_old = |name: &str| name.parse::<JobId>().is_ok_and(|job| !jobs.contains(&job));
        let mut all_removed = true;
        for pin in pins.iter().filter(|pin| is_old(&pin.name)) {
            match client.unpin(&pin.name, &pin.image).await {
                Ok(()) => tracing::info!(job = %pin.name, image = %pin.image, "unpinned an image"),
                Err(error @ RuntimeError::Unreachable { .. }) => {
                    let pause_s = self.worker.quiet.begin().as_secs();
                    tracing::warn!(image = %pin.image, %error, pause_s, "containerd fell silent while it unpinned an image");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(image = %pin.image, %error, "cannot unpin an image");
                    all_removed = false;
                }
            }
        }
        all_removed
    }
}
