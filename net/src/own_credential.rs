//! This node's own credential: when it needs another one, and how the other one comes into force.
//!
//! A renewed credential goes to the state folder, because a role cannot write to the folder of its configuration.
//! Invariant: a credential is on the disk before it is in force, and it says the same as the former one but for its
//! validity.

use crate::admission::Admission;
use crate::replace_file::replace_file;
use shoal_proto::codec::Document;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Admitted, Credential, Envelope, Trust, TrustError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The metric of [`OwnCredential::end`], the same in every role.
pub const METRIC: &str = "shoal_credential_expiry_timestamp_seconds";
/// The help of [`METRIC`].
pub const METRIC_HELP: &str = "End of this node's credential, Unix seconds";

/// Name of the renewed credential in a role's state folder.
const COPY: &str = "node.cred";

/// Returns the credential to start with: the operator's file, or the renewed one in `dir` if it says the same and ends
/// later. `now` is in Unix seconds.
///
/// # Errors
///
/// Fails if the operator's file cannot be read.
pub fn load(path: &Path, dir: &Path, trust: &Trust, node: NodeId, now: u64) -> io::Result<Vec<u8>> {
    let file = std::fs::read(path)?;
    let copy = std::fs::read(dir.join(COPY)).unwrap_or_default();
    let Ok(renewed) = trust.admit(&copy, node, now) else { return Ok(file) };
    let issued = Envelope::from_bytes(&file).ok().and_then(|envelope| envelope.open::<Credential>().ok());
    let continues = |issued: Credential| is_renewal(&issued, &renewed);
    Ok(if issued.is_some_and(continues) { copy } else { file })
}

/// Whether a credential says the same as a former one and ends later.
fn is_renewal(former: &Credential, fresh: &Credential) -> bool {
    let same = Credential { not_before: former.not_before, not_after: former.not_after, ..fresh.clone() };
    same == *former && fresh.not_after > former.not_after
}

/// Shortest and longest time between two attempts to renew.
const RETRY_MIN_S: u64 = 5;
const RETRY_MAX_S: u64 = 600;

/// Why a new credential does not come into force.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The credential is not valid for this node.
    #[error("the new credential is not valid")]
    Invalid(#[from] TrustError),
    /// The credential says something else than the former one.
    #[error("the new credential says something else than the former one, or ends no later")]
    OtherClaims,
    /// The file cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file of the credential.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The own credential of a running node.
#[derive(Debug)]
pub struct OwnCredential {
    admission: Admission,
    node: NodeId,
    path: PathBuf,
    current: Admitted,
    end: Arc<AtomicU64>,
    next_attempt: Instant,
}

impl OwnCredential {
    /// `current` is the credential of `admission`, and `dir` the state folder.
    pub fn new(admission: Admission, node: NodeId, dir: &Path, current: Admitted) -> Self {
        let path = dir.join(COPY);
        let end = Arc::new(AtomicU64::new(current.not_after));
        Self { admission, node, path, current, end, next_attempt: Instant::now() }
    }

    /// Returns the end of the credential in force, Unix seconds. It changes with each renewal.
    pub fn end(&self) -> Arc<AtomicU64> {
        self.end.clone()
    }

    /// Returns the region of this node.
    pub fn region(&self) -> &str {
        &self.current.locality.region
    }

    /// Returns the signed credential in force.
    pub fn bytes(&self) -> Arc<[u8]> {
        self.admission.credential()
    }

    /// Whether to renew now. Returns true at most once in the time between two attempts.
    ///
    /// A credential is renewed when less than a third of its life is left. The node's key moves that moment by up to a
    /// twelfth of the life, so that hosts which joined together do not renew together.
    pub fn should_renew(&mut self) -> bool {
        let Credential { not_before, not_after, .. } = *self.current;
        let life = not_after.saturating_sub(not_before);
        let delay = life / 12 * (self.node.prefix() % 256) / 256;
        let left = not_after.saturating_sub(self.admission.now());
        if left > life / 3 - delay || self.next_attempt > Instant::now() {
            return false;
        }
        self.next_attempt = Instant::now() + Duration::from_secs((life / 100).clamp(RETRY_MIN_S, RETRY_MAX_S));
        true
    }

    /// Returns the seconds until the credential ends.
    pub fn seconds_left(&self) -> u64 {
        self.current.not_after.saturating_sub(self.admission.now())
    }

    /// Checks a new credential, writes it to the state folder and puts it in force.
    ///
    /// # Errors
    ///
    /// [`RenewError`] if the credential is not valid, says something else, or cannot be written. The former one stays
    /// in force.
    pub async fn replace(&mut self, bytes: Vec<u8>) -> Result<(), RenewError> {
        let fresh = self.admission.admit(&bytes, self.node)?;
        if !is_renewal(&self.current, &fresh) {
            return Err(RenewError::OtherClaims);
        }
        let (path, written) = (self.path.clone(), bytes.clone());
        let done = tokio::task::spawn_blocking(move || replace_file(&path, &written, 0o600)).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
            .map_err(|source| RenewError::Write { path: self.path.clone(), source })?;
        self.admission.set_credential(bytes);
        self.end.store(fresh.not_after, Ordering::Relaxed);
        self.current = fresh;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, clock, credential, keys, trust};

    fn own(not_after: u64) -> (OwnCredential, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let node = keys(1).node();
        let bytes = credential(0, node, not_after);
        let admission = Admission::new(trust(0, 1, vec![]), bytes.clone(), clock);
        let current = admission.admit(&bytes, node).unwrap();
        (OwnCredential::new(admission, node, dir.path(), current), dir)
    }

    #[test]
    fn a_credential_is_renewed_in_the_last_third_of_its_life() {
        // The credential began 100 s ago.
        for (left, renew) in [(51, false), (1000, false), (30, true), (10, true)] {
            let (mut own, _dir) = own(NOW + left);
            assert_eq!(own.should_renew(), renew, "{left} s left");
            assert!(!own.should_renew(), "one attempt at a time");
        }
    }

    #[tokio::test]
    async fn only_the_same_claims_with_a_later_end_come_into_force() {
        let (mut own, dir) = own(NOW + 50);
        let node = keys(1).node();
        let refused = [
            credential(1, node, NOW + 100),
            credential(0, keys(2).node(), NOW + 100),
            credential(0, node, NOW + 50),
            credential(0, node, NOW + 40),
            credential(0, node, NOW),
            b"nonsense".to_vec(),
        ];
        for bytes in refused {
            assert!(own.replace(bytes).await.is_err());
            assert_eq!(own.seconds_left(), 50);
        }
        let fresh = credential(0, node, NOW + 200);
        own.replace(fresh.clone()).await.unwrap();
        assert_eq!((own.seconds_left(), own.end().load(Ordering::Relaxed)), (200, NOW + 200));
        assert_eq!(*own.admission.credential(), fresh[..]);
        assert_eq!(std::fs::read(dir.path().join("node.cred")).unwrap(), fresh);
        own.path = dir.path().join("no/node.cred");
        assert!(matches!(own.replace(credential(0, node, NOW + 300)).await, Err(RenewError::Write { .. })));
        assert_eq!(*own.admission.credential(), fresh[..], "what is not on the disk is not in force");
    }

    #[test]
    fn a_restart_continues_with_the_renewed_credential_unless_the_operator_issued_another() {
        let (dir, node) = (tempfile::tempdir().unwrap(), keys(1).node());
        let (path, trust) = (dir.path().join("operator.cred"), trust(0, 1, vec![]));
        let load = || load(&path, dir.path(), &trust, node, NOW).unwrap();
        assert!(super::load(&path, dir.path(), &trust, node, NOW).is_err());
        let (issued, renewed) = (credential(0, node, NOW - 5), credential(0, node, NOW + 50));
        std::fs::write(&path, &issued).unwrap();
        assert_eq!(load(), issued);
        for useless in
            [credential(0, node, NOW), credential(1, node, NOW + 50), credential(0, keys(2).node(), NOW + 50)]
        {
            std::fs::write(dir.path().join(COPY), useless).unwrap();
            assert_eq!(load(), issued);
        }
        std::fs::write(dir.path().join(COPY), &renewed).unwrap();
        assert_eq!(load(), renewed);
        let later = credential(0, node, NOW + 90);
        std::fs::write(&path, &later).unwrap();
        assert_eq!(load(), later, "the operator renewed it by hand");
        let mut other: Credential = Envelope::from_bytes(&issued).unwrap().open().unwrap();
        other.weight_max += 1;
        let other = Envelope::seal(&other, &crate::testing::root(0)).to_bytes();
        std::fs::write(&path, &other).unwrap();
        assert_eq!(load(), other, "the operator issued other claims");
    }
}
