//! Admission: which nodes may have a link, by the cluster's trust document and their credentials.
//!
//! Invariant: a credential counts only for the key that TLS has proven.

use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Admitted, Trust, TrustError};
use std::sync::Arc;
use tokio::sync::watch;

/// Returns the wall clock in seconds since the Unix epoch. Tests pass a function of their own.
pub type UnixClock = fn() -> u64;

/// Returns the system's wall clock in seconds since the Unix epoch.
pub fn system_clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The basis of admission. Cheap to clone. Clones share the trust document.
#[derive(Clone, Debug)]
pub struct Admission {
    trust: watch::Sender<Arc<Trust>>,
    credential: Arc<[u8]>,
    clock: UnixClock,
}

impl Admission {
    /// `credential` is this node's own signed credential, as it stands in `node.cred`.
    pub fn new(trust: Arc<Trust>, credential: impl Into<Arc<[u8]>>, clock: UnixClock) -> Self {
        Self { trust: watch::Sender::new(trust), credential: credential.into(), clock }
    }

    /// Returns this node's own signed credential.
    pub fn credential(&self) -> &Arc<[u8]> {
        &self.credential
    }

    /// Returns the trust document in force.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.borrow().clone()
    }

    /// Puts a newer trust document in force. The endpoint soon closes the links of nodes that it revokes.
    pub fn set_trust(&self, trust: Arc<Trust>) {
        self.trust.send_replace(trust);
    }

    /// Returns the changes of the trust document from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// Checks a credential that the holder of `shown_by`'s key has shown.
    ///
    /// # Errors
    ///
    /// Fails if the credential is malformed, not signed by the cluster's root, another node's, expired or revoked.
    pub fn admit(&self, credential: &[u8], shown_by: NodeId) -> Result<Admitted, TrustError> {
        self.trust().admit(credential, shown_by, (self.clock)())
    }

    /// Checks again a credential that was admitted before.
    ///
    /// # Errors
    ///
    /// Fails as [`Trust::check_again`] does under the trust document in force.
    pub fn check_again(&self, admitted: &Admitted) -> Result<(), TrustError> {
        self.trust().check_again(admitted, (self.clock)())
    }
}
