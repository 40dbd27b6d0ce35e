//! Images that share blobs go to the hosts one after the other: a host links what it has whole, and two on their way at
//! once would each bring it.
//!
//! Invariant: the wait has an end, whatever becomes of the other job.

use crate::jobs::Jobs;
use crate::status::{JobStatus, Phase};
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::ids::JobId;
use shoal_proto::image::Digest;
use shoal_proto::locality::Selector;
use shoal_store::ingest::Ingested;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout_at};

/// Shared bytes that are worth a wait.
const WORTH_BYTES: u64 = 4 << 20;
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Whether every host that will have the content has it.
fn has_arrived(status: &JobStatus) -> bool {
    let (hosts, has, _, failed, away) = status.hosts();
    status.is_final() || (hosts > 0 && has + failed + away >= hosts)
}

impl Jobs {
    /// Waits until no image that shares much with this one is on its way to the same hosts. It is announced before the turn
    /// is given back, so that others see it. Other contents need none.
    pub(crate) async fn turn_among_images(
        &self,
        job: JobId,
        to: &[String],
        ingested: &Ingested,
    ) -> Option<MutexGuard<'_, ()>> {
        let (image, selector) = (ingested.manifest.image.as_ref()?, Selector::parse(to).ok()?);
        let blobs: BTreeSet<(Digest, u64)> = image.blobs.iter().map(|blob| (blob.digest, blob.size)).collect();
        // What waits is nobody's yet: another push must not evict it.
        if let Err(error) = self.node().store.pin(&ingested.content, true) {
            tracing::warn!(%job, %error, "cannot pin an image");
        }
        let until = Instant::now() + WAIT_MAX;
        loop {
            // Listening begins before the look, so that no change is missed between the two.
            let changed = self.changed.notified();
            let turn = self.pulls.order.lock().await;
            let Some(other) = self.shares_with(&selector, &blobs, ingested) else { return Some(turn) };
            drop(turn);
            let mut turned = false;
            if let Some(row) = self.rows().get_mut(&job) {
                turned = row.status.phase != Phase::Waiting;
                row.status.phase = Phase::Waiting;
            }
            if turned {
                tracing::info!(%job, %other, "waits for an image that shares layers with it");
                self.changed.notify_waiters();
            } else if timeout_at(until, changed).await.is_err() {
                tracing::warn!(%job, %other, "waited long enough");
                return None;
            }
        }
    }

    /// A job under way that brings hosts of this selection many of these bytes.
    fn shares_with(&self, to: &Selector, blobs: &BTreeSet<(Digest, u64)>, ingested: &Ingested) -> Option<JobId> {
        let membership = self.node().membership.borrow().clone();
        let hosts = membership.select(to);
        let rows = self.rows();
        let under_way = rows.values().filter(|row| {
            row.status.kind == Kind::Image && row.status.phase == Phase::Distributing && !has_arrived(&row.status)
        });
        for row in under_way {
            let Some(content) = row.status.content.filter(|content| *content != ingested.content) else { continue };
            let Some(manifest) = self.node().store.manifest(&content) else { continue };
            let theirs = manifest.image.iter().flat_map(|image| &image.blobs);
            let shared: u64 =
                theirs.filter(|blob| blobs.contains(&(blob.digest, blob.size))).map(|blob| blob.size).sum();
            let selector = row.envelope.as_ref().and_then(|envelope| envelope.open::<Announcement>().ok());
            let same = selector.is_some_and(|other| {
                let theirs = membership.select(&other.selector);
                hosts.iter().any(|host| theirs.get(host))
            });
            if shared >= WORTH_BYTES && same {
                return Some(row.status.job);
            }
        }
        None
    }
}
