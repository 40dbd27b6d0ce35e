//! The state of one link that other tasks may use.
//!
//! Invariant: at most 64 manifests are expected on a link, each with memory set aside for it.

use super::activity::Activity;
use super::counters::ByteCounters;
use super::error::AbortReason;
use super::ledbat::Ledbat;
use super::rate_limit::LinkRateLimiter;
use super::send_queue::SendQueue;
use super::trust_exchange::TrustExchange;
use shoal_proto::ids::{ContentId, NodeId};
use shoal_proto::trust::Admitted;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};

/// Manifests that a link may be expected to bring at a time.
const EXPECTED_MANIFESTS_MAX: usize = 64;

/// A manifest that the other end may send.
pub struct ExpectedManifest {
    total: u32,
    permit: OwnedSemaphorePermit,
}

impl ExpectedManifest {
    /// `permit` covers the `total` bytes of the manifest.
    pub fn new(total: u32, permit: OwnedSemaphorePermit) -> Self {
        Self { total, permit }
    }

    pub fn into_permit(self) -> OwnedSemaphorePermit {
        self.permit
    }
}

/// A link that is up.
pub struct Link {
    node: NodeId,
    credential: Arc<Admitted>,
    queue: SendQueue,
    limiter: LinkRateLimiter,
    activity: Activity,
    counters: ByteCounters,
    ledbat: Mutex<Ledbat>,
    /// Notified on each `Pong`.
    pong: Notify,
    expected: Mutex<HashMap<ContentId, ExpectedManifest>>,
    trust: TrustExchange,
    aborted: watch::Sender<Option<AbortReason>>,
}

impl Link {
    pub fn new(node: NodeId, credential: Admitted, queue: SendQueue, limiter: LinkRateLimiter) -> Self {
        Self {
            node,
            credential: Arc::new(credential),
            queue,
            limiter,
            activity: Activity::new(),
            counters: ByteCounters::default(),
            ledbat: Mutex::new(Ledbat::new()),
            pong: Notify::new(),
            expected: Mutex::default(),
            trust: TrustExchange::default(),
            aborted: watch::Sender::new(None),
        }
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn credential(&self) -> &Arc<Admitted> {
        &self.credential
    }

    pub fn queue(&self) -> &SendQueue {
        &self.queue
    }

    pub fn limiter(&self) -> &LinkRateLimiter {
        &self.limiter
    }

    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    pub fn counters(&self) -> &ByteCounters {
        &self.counters
    }

    /// What both ends know of each other's trust documents.
    pub fn trust(&self) -> &TrustExchange {
        &self.trust
    }

    /// Returns the controller that bulk follows while urgent traffic is recent.
    pub fn ledbat(&self) -> MutexGuard<'_, Ledbat> {
        self.ledbat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a `Pong` with this stamp: the time that the `Ping` took one way, plus the difference of both clocks.
    pub fn on_pong(&self, stamp: u64) {
        self.ledbat().on_pong(stamp, self.activity.now());
        self.pong.notify_waiters();
    }

    /// The notification of each `Pong`.
    pub fn pong(&self) -> &Notify {
        &self.pong
    }

    /// Ends the link without a `Bye`. The other end has forgotten the link.
    pub fn abort(&self, reason: AbortReason) {
        self.aborted.send_replace(Some(reason));
    }

    /// Returns once [`Link::abort`] was called.
    pub async fn until_aborted(&self) -> AbortReason {
        let mut aborted = self.aborted.subscribe();
        match aborted.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            _ => std::future::pending().await,
        }
    }

    /// Lets the other end send a manifest. Returns false if too many manifests are expected already.
    pub fn expect_manifest(&self, content: ContentId, manifest: ExpectedManifest) -> bool {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.len() >= EXPECTED_MANIFESTS_MAX && !expected.contains_key(&content) {
            return false;
        }
        expected.insert(content, manifest);
        true
    }

    /// Takes the permission for a manifest of exactly `total` bytes.
    pub fn take_expected(&self, content: ContentId, total: u32) -> Option<ExpectedManifest> {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.get(&content)?.total != total {
            return None;
        }
        expected.remove(&content)
    }
}
