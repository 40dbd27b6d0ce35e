//! Admission: which nodes may have a link, by the cluster's trust document and their credentials.
//!
//! Invariant: a credential counts only for the key that TLS has proven. The trust document in force never goes back.

use crate::trust_file::{TrustFile, TrustFileError};
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Admitted, Envelope, Trust, TrustError};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Returns the wall clock in seconds since the Unix epoch. Tests pass a function of their own.
pub type UnixClock = fn() -> u64;

/// Returns the system's wall clock in seconds since the Unix epoch.
pub fn system_clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What became of an offered trust document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is in force now.
    InForce,
    /// A document of this version or a later one is in force already.
    Known {
        /// The version of the offered document.
        version: u64,
    },
}

/// The basis of admission. Cheap to clone. Clones share the trust document and the credential.
#[derive(Clone, Debug)]
pub struct Admission {
    trust: watch::Sender<Arc<Trust>>,
    /// Keeps the document in force over a restart. Held while a document is replaced, so that versions only grow.
    file: Arc<Mutex<Option<TrustFile>>>,
    credential: watch::Sender<Arc<[u8]>>,
    clock: UnixClock,
}

impl Admission {
    /// `credential` is this node's own signed credential, as it stands in `node.cred`.
    pub fn new(trust: Arc<Trust>, credential: impl Into<Arc<[u8]>>, clock: UnixClock) -> Self {
        Self {
            trust: watch::Sender::new(trust),
            file: Arc::default(),
            credential: watch::Sender::new(credential.into()),
            clock,
        }
    }

    /// Keeps documents that come into force in `file`.
    #[must_use]
    pub fn with_file(self, file: TrustFile) -> Self {
        Self { file: Arc::new(Mutex::new(Some(file))), ..self }
    }

    /// Returns this node's own signed credential.
    pub fn credential(&self) -> Arc<[u8]> {
        self.credential.borrow().clone()
    }

    /// Puts a new credential of this node in force. Links that begin later show it.
    pub(crate) fn set_credential(&self, credential: Vec<u8>) {
        self.credential.send_replace(credential.into());
    }

    /// Returns the present time, Unix seconds.
    pub fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Returns the trust document in force.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.borrow().clone()
    }

    /// Puts a trust document in force if it is newer. Links of nodes that it revokes end soon. A full disk delays no
    /// revocation: the document then counts until a restart, and neighbours offer it again.
    ///
    /// # Errors
    ///
    /// Fails if the document is invalid, or of a later version and not a successor of the document in force.
    pub fn offer(&self, bytes: &[u8]) -> Result<Offered, TrustError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = self.trust();
        if bytes == &**in_force.bytes() {
            return Ok(Offered::Known { version: in_force.version() });
        }
        let newer = match in_force.open_newer(bytes) {
            Ok(newer) => newer,
            Err(TrustError::NotNewer { found, in_force }) if found < in_force => {
                return Ok(Offered::Known { version: found });
            }
            Err(error) => return Err(error),
        };
        if let Some(Err(error)) = file.as_ref().map(|file| file.save(&newer)) {
            tracing::error!(%error, "cannot save the trust document, so a restart loses it: free space in the state folder");
        }
        let (version, epoch) = (newer.version(), newer.epoch());
        self.trust.send_replace(Arc::new(newer));
        tracing::info!(version, epoch, "a newer trust document is in force");
        Ok(Offered::InForce)
    }

    /// Puts a trust document that came over the network in force, as [`Admission::offer`] does. A thread of its own
    /// waits for the disk.
    ///
    /// # Errors
    ///
    /// As [`Admission::offer`].
    pub async fn offer_received(&self, bytes: impl AsRef<[u8]> + Send + 'static) -> Result<Offered, TrustError> {
        let admission = self.clone();
        let offered = tokio::task::spawn_blocking(move || admission.offer(bytes.as_ref())).await;
        offered.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Reads the operator's file again, and puts it in force if it is newer. Blocks.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read or is refused.
    pub fn reload(&self) -> Result<Offered, TrustFileError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(file) = file else { return Ok(Offered::Known { version: self.trust().version() }) };
        let bytes = file.read_file()?;
        self.offer(&bytes).map_err(|source| file.invalid(source))
    }

    /// Returns the changes of the trust document from now on.
    pub fn changes(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// Checks a credential that the holder of `shown_by`'s key has shown.
    ///
    /// # Errors
    ///
    /// Fails if the credential is malformed, another node's, expired, revoked, or signed by neither the root nor an
    /// issuer.
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

    /// Opens an announcement that has arrived now.
    ///
    /// # Errors
    ///
    /// As [`Trust::open_announcement`] under the trust document in force.
    pub fn open_announcement(&self, envelope: &[u8]) -> Result<Announcement, TrustError> {
        self.trust().open_announcement(&Envelope::from_bytes(envelope)?, (self.clock)())
    }
}

/// Reads the operator's trust document again on each SIGHUP, until the token is cancelled.
pub async fn reload_on_hangup(admission: Admission, token: CancellationToken) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::error!(%error, "cannot wait for SIGHUP; send trust documents over the network");
            return token.cancelled().await;
        }
    };
    while token.run_until_cancelled(hangup.recv()).await.is_some() {
        let reloaded = admission.clone();
        match tokio::task::spawn_blocking(move || reloaded.reload()).await {
            Ok(Ok(Offered::InForce)) => {}
            Ok(Ok(Offered::Known { .. })) => {
                tracing::info!("the trust document on disk is not newer than the one in force")
            }
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "kept the trust document in force")
            }
            Err(error) => tracing::error!(%error, "a task failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::trust::{Keypair, TrustDocument};

    fn signed(version: u64, by: u8) -> Vec<u8> {
        let root = Keypair::from_seed([by; 32]);
        let document = TrustDocument { version, ..TrustDocument::first(root.node(), []) };
        Envelope::seal(&document, &root).to_bytes()
    }

    #[test]
    fn only_newer_documents_come_into_force_and_a_restart_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator");
        std::fs::write(&path, signed(2, 1)).unwrap();
        let file = TrustFile::new(&path, dir.path());
        let open = || {
            let trust = file.load(None).unwrap();
            Admission::new(Arc::new(trust), Vec::new(), system_clock).with_file(file.clone())
        };
        let admission = open();
        let changes = admission.changes();
        for known in [signed(1, 1), signed(2, 1)] {
            assert!(matches!(admission.offer(&known).unwrap(), Offered::Known { .. }));
        }
        assert!(admission.offer(&signed(9, 2)).is_err(), "another cluster");
        assert!(admission.offer(&signed(9, 1)[1..]).is_err(), "damaged");
        assert!(!changes.has_changed().unwrap());
        assert_eq!(admission.offer(&signed(5, 1)).unwrap(), Offered::InForce);
        assert_eq!(open().trust().version(), 5);
        std::fs::write(&path, signed(7, 1)).unwrap();
        assert_eq!(admission.reload().unwrap(), Offered::InForce);
        assert_eq!((admission.trust().version(), open().trust().version()), (7, 7));
        std::fs::write(&path, signed(6, 1)).unwrap();
        assert_eq!(admission.reload().unwrap(), Offered::Known { version: 6 });
    }

    #[test]
    fn a_disk_that_fails_delays_no_revocation() {
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::open(&signed(1, 1), None).unwrap();
        let file = TrustFile::new(&dir.path().join("operator"), &dir.path().join("no such folder"));
        let admission = Admission::new(Arc::new(trust), Vec::new(), system_clock).with_file(file);
        assert_eq!(admission.offer(&signed(2, 1)).unwrap(), Offered::InForce);
    }
}
