//! Who gets in: the cluster's trust, our own credential, and what a stranger may cost us.
//!
//! Invariant: a credential counts only for the key that TLS has proven.

use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Credential, Trust, TrustError};
use std::sync::Arc;
use tokio::sync::watch;

/// Reads the wall clock: seconds since the Unix epoch. A function, so that tests can stand elsewhere in time.
pub type UnixClock = fn() -> u64;

/// The system's wall clock, Unix seconds.
pub fn system_clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What admission is decided by. Cheap to clone; clones share the trust document.
#[derive(Clone, Debug)]
pub struct Admission {
    trust: watch::Sender<Arc<Trust>>,
    credential: Arc<[u8]>,
    clock: UnixClock,
}

impl Admission {
    /// `credential` is our own, signed, as it stands in `node.cred`: what we show others.
    pub fn new(trust: Arc<Trust>, credential: impl Into<Arc<[u8]>>, clock: UnixClock) -> Self {
        Self { trust: watch::Sender::new(trust), credential: credential.into(), clock }
    }

    /// Our own signed credential.
    pub fn credential(&self) -> &Arc<[u8]> {
        &self.credential
    }

    /// The trust document in force.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.borrow().clone()
    }

    /// Puts a newer trust document in force. Links whose credentials it withdraws are closed soon after.
    pub fn set_trust(&self, trust: Arc<Trust>) {
        self.trust.send_replace(trust);
    }

    /// Woken when the trust document changes.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// Checks a credential shown by the holder of `shown_by`'s key, now.
    pub fn admit(&self, credential: &[u8], shown_by: NodeId) -> Result<Credential, TrustError> {
        self.trust().admit(credential, shown_by, (self.clock)())
    }

    /// Whether a credential that was admitted before still holds: not expired, not revoked, same cluster.
    pub fn still_holds(&self, credential: &Credential) -> Result<(), TrustError> {
        let (trust, now) = (self.trust(), (self.clock)());
        let Credential { not_before, not_after, node, cluster, .. } = *credential;
        if cluster != trust.cluster() {
            return Err(TrustError::OtherCluster);
        }
        if !(not_before..not_after).contains(&now) {
            return Err(TrustError::Expired { not_before, not_after, now });
        }
        if trust.document().revoked.contains(&node) {
            return Err(TrustError::Revoked(node));
        }
        Ok(())
    }
}
