//! The order of images that share layers.
//!
//! A host links a layer that it has whole. Two images that share layers and are on their way at the same time would
//! each bring these layers. So the second image waits until the first one has reached the hosts.
//! Invariant: the wait ends after [`WAIT_MAX`], whatever happens to the other job.

use crate::jobs::{Job, Jobs};
use shoal_api::jobs::{JobPhase, JobStatus};
use shoal_peer::handle::NodeHandle;
use shoal_proto::announcement::Kind;
use shoal_proto::ids::JobId;
use shoal_proto::image::Digest;
use shoal_proto::locality::Selector;
use shoal_store::ingest::Ingested;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

/// Shared bytes that are worth a wait.
const SHARED_BYTES_MIN: u64 = 4 << 20;
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// A blob by what identifies its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct BlobKey {
    digest: Digest,
    size: u64,
}

/// Whether every host that is up has the content or has failed.
fn has_arrived(status: &JobStatus) -> bool {
    let totals = status.totals();
    status.is_final() || (totals.hosts > 0 && totals.has + totals.failed + totals.away >= totals.hosts)
}

/// Decides when an image may be announced.
pub(crate) struct LayerDependencies {
    jobs: Arc<Jobs>,
    node: NodeHandle,
    /// Held from the decision until the image is announced.
    announcing: Mutex<()>,
}

impl LayerDependencies {
    pub(crate) fn new(jobs: Arc<Jobs>, node: NodeHandle) -> Self {
        Self { jobs, node, announcing: Mutex::default() }
    }

    /// Waits until no image that shares much with this one is on its way to the same hosts.
    ///
    /// The caller holds the guard until its image is announced, so that the next image sees its job. Returns `None` at
    /// once for a content that is not an image, and after [`WAIT_MAX`].
    pub(crate) async fn wait_for_turn(
        &self,
        job: JobId,
        to: &[String],
        ingested: &Ingested,
    ) -> Option<MutexGuard<'_, ()>> {
        let (image, selector) = (ingested.manifest.image.as_ref()?, Selector::parse(to).ok()?);
        let key = |blob: &shoal_proto::image::ImageBlob| BlobKey { digest: blob.digest, size: blob.size };
        let blobs: BTreeSet<BlobKey> = image.blobs.iter().map(key).collect();
        // No job names the content yet, so another push could evict it during the wait.
        if let Err(error) = self.node.store.pin(&ingested.content, true) {
            tracing::warn!(%job, %error, "cannot pin an image that waits");
        }
        let until = Instant::now() + WAIT_MAX;
        loop {
            // Created before the look, so that no change is missed between the two.
            let changed = self.jobs.changed();
            let turn = self.announcing.lock().await;
            let Some(other) = self.job_that_shares(&selector, &blobs, ingested) else { return Some(turn) };
            drop(turn);
            if self.jobs.set_waiting(job) {
                tracing::info!(%job, %other, "an image waits for another one that shares layers with it");
            } else if timeout_at(until, changed).await.is_err() {
                tracing::warn!(%job, %other, wait_s = WAIT_MAX.as_secs(), "an image waits no longer for another one");
                return None;
            }
        }
    }

    /// Returns a job under way that brings hosts of this selection at least [`SHARED_BYTES_MIN`] of these blobs.
    fn job_that_shares(&self, to: &Selector, blobs: &BTreeSet<BlobKey>, ingested: &Ingested) -> Option<JobId> {
        let membership = self.node.membership.borrow().clone();
        let hosts = membership.select(to);
        let is_under_way = |job: &Job| {
            let status = job.status();
            status.kind == Kind::Image && status.phase == JobPhase::Distributing && !has_arrived(status)
        };
        for job in self.jobs.filter(is_under_way) {
            let Some(content) = job.status().content.filter(|content| *content != ingested.content) else { continue };
            let Some(manifest) = self.node.store.manifest(&content) else { continue };
            let theirs = manifest.image.iter().flat_map(|image| &image.blobs);
            let is_shared = |blob: &&shoal_proto::image::ImageBlob| {
                blobs.contains(&BlobKey { digest: blob.digest, size: blob.size })
            };
            let shared: u64 = theirs.filter(is_shared).map(|blob| blob.size).sum();
            let reaches_same_hosts = job.announcement().is_some_and(|announcement| {
                let theirs = membership.select(&announcement.selector);
                hosts.iter().any(|host| theirs.get(host))
            });
            if shared >= SHARED_BYTES_MIN && reaches_same_hosts {
                return Some(job.status().job);
            }
        }
        None
    }
}
