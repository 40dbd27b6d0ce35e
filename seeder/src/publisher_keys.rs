//! The publisher keys of a seeder: the configured one, and those that the seeder made for a rotation.
//!
//! A rotation needs no copy of a secret key. The seeder makes the next key, and the root names it in a trust document.
//! From then on the seeder signs with it.
//! Invariant: the seeder signs only what hosts accept under the trust document in force.

use shoal_net::admission::Admission;
use shoal_net::identity::{KeyFileError, load_key, save_key};
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Envelope, Keypair, Trust, TrustError};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The folder of the keys that the seeder made, in its state folder.
const FOLDER: &str = "publisher";
/// Keys that the seeder made and keeps. The oldest ones go first.
const KEPT_MAX: usize = 8;

/// Why the seeder cannot sign an announcement.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error(
        "the trust document in force (version {version}) names no publisher key of this seeder; \
             run `shoal cluster rotate-publisher` or `shoal cluster add-publisher` with --seeder"
    )]
    NoKey { version: u64 },
    #[error("hosts would refuse the announcement")]
    Refused(#[from] TrustError),
}

/// Why no key can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NewKeyError {
    #[error("the system has no random bytes")]
    Random(#[from] getrandom::Error),
    #[error("cannot save a publisher key")]
    Save(#[from] KeyFileError),
    #[error("cannot write to {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
}

struct Named {
    /// Grows with each key. 0 is the configured key.
    number: u64,
    key: Keypair,
}

/// The keys.
pub(crate) struct PublisherKeys {
    dir: PathBuf,
    admission: Admission,
    /// In order of their numbers.
    keys: Mutex<Vec<Named>>,
}

impl PublisherKeys {
    /// Reads the keys in the seeder's state folder.
    ///
    /// # Errors
    /// Returns an error if a key file cannot be used.
    pub(crate) fn open(configured: Keypair, state: &Path, admission: Admission) -> Result<Self, KeyFileError> {
        let dir = state.join(FOLDER);
        let mut keys = vec![Named { number: 0, key: configured }];
        let entries = fs::read_dir(&dir).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
        for entry in entries {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".key")).and_then(|name| name.parse().ok());
            if let Some(number) = number {
                keys.push(Named { number, key: load_key(&entry.path())? });
            }
        }
        keys.sort_by_key(|named| named.number);
        Ok(Self { dir, admission, keys: Mutex::new(keys) })
    }

    fn keys(&self) -> MutexGuard<'_, Vec<Named>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the keys that a trust document names, the newest first.
    fn named_keys(&self, trust: &Trust) -> Vec<Keypair> {
        let keys = self.keys();
        let named = keys.iter().rev().filter(|named| trust.publisher(&named.key.node()).is_some());
        named.map(|named| named.key.clone()).collect()
    }

    /// Checks that hosts trust one of the keys.
    ///
    /// # Errors
    /// [`SignError::NoKey`].
    pub(crate) fn check(&self) -> Result<(), SignError> {
        let trust = self.admission.trust();
        match self.named_keys(&trust).is_empty() {
            true => Err(SignError::NoKey { version: trust.version() }),
            false => Ok(()),
        }
    }

    /// Signs an announcement.
    ///
    /// # Errors
    /// Returns an error if hosts would refuse it: no key is trusted, or the name or the hosts are outside of its scope.
    pub(crate) fn seal(&self, announcement: &Announcement) -> Result<Envelope, SignError> {
        let trust = self.admission.trust();
        let mut refused = SignError::NoKey { version: trust.version() };
        // Each tenant of a seeder has a key with a scope of its own. The newest key whose scope fits signs.
        for key in self.named_keys(&trust) {
            let envelope = Envelope::seal(announcement, &key);
            match self.admission.open_announcement(&envelope.to_bytes()) {
                Ok(_) => return Ok(envelope),
                Err(error) if matches!(refused, SignError::NoKey { .. }) => refused = error.into(),
                Err(_) => {}
            }
        }
        Err(refused)
    }

    /// Returns the key for the next trust document. The same key is returned until a document names it. Blocks.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub(crate) fn next(&self) -> Result<NodeId, NewKeyError> {
        let trust = self.admission.trust();
        let mut keys = self.keys();
        let last = keys.last().map_or(0, |named| named.number);
        if let Some(named) = keys.last().filter(|named| named.number > 0)
            && trust.publisher(&named.key.node()).is_none()
        {
            return Ok(named.key.node());
        }
        let mut seed = [0u8; 32];
        getrandom::fill(&mut seed)?;
        let named = Named { number: last + 1, key: Keypair::from_seed(seed) };
        let folder = |source| NewKeyError::Folder { path: self.dir.clone(), source };
        fs::create_dir_all(&self.dir).map_err(folder)?;
        save_key(&self.path(named.number), &named.key)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(folder)?;
        let node = named.key.node();
        keys.push(named);
        self.forget_oldest(&mut keys);
        Ok(node)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number}.key"))
    }

    fn forget_oldest(&self, keys: &mut Vec<Named>) {
        let trust = self.admission.trust();
        while keys.len() > KEPT_MAX + 1 {
            // The configured key is the operator's file.
            let is_unused = |named: &Named| named.number > 0 && trust.publisher(&named.key.node()).is_none();
            let Some(at) = keys.iter().position(is_unused).filter(|at| at + 1 < keys.len()) else { return };
            let named = keys.remove(at);
            let _ = fs::remove_file(self.path(named.number)); // it is tried again after the next start
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_net::admission::system_clock;
    use shoal_proto::announcement::Kind;
    use shoal_proto::ids::{ContentId, JobId};
    use shoal_proto::locality::Selector;
    use shoal_proto::sequence;
    use shoal_proto::trust::{Publisher, TrustDocument};
    use std::sync::Arc;

    fn document(version: u64, publishers: &[NodeId]) -> Vec<u8> {
        scoped(version, publishers.iter().map(|key| Publisher::unscoped(*key)).collect())
    }

    fn scoped(version: u64, publishers: Vec<Publisher>) -> Vec<u8> {
        let root = Keypair::from_seed([1; 32]);
        let document = TrustDocument { version, publishers, ..TrustDocument::first(root.node(), []) };
        Envelope::seal(&document, &root).to_bytes()
    }

    #[test]
    fn the_seeder_signs_with_the_newest_key_that_hosts_trust() {
        let dir = tempfile::tempdir().unwrap();
        let configured = Keypair::from_seed([2; 32]);
        let trust = Trust::open(&document(1, &[configured.node()]), None).unwrap();
        let admission = Admission::new(Arc::new(trust), Vec::new(), system_clock);
        let open = || PublisherKeys::open(configured.clone(), dir.path(), admission.clone()).unwrap();
        let keys = open();
        let next = keys.next().unwrap();
        assert_eq!(keys.next().unwrap(), next, "one key waits for its document");
        assert_eq!(open().next().unwrap(), next, "also after a restart");
        assert_eq!(newest(&keys), configured.node());
        admission.offer(&document(2, &[next])).unwrap();
        assert_eq!(newest(&keys), next);
        assert_eq!(newest(&open()), next);
        assert_ne!(keys.next().unwrap(), next);
        admission.offer(&document(3, &[])).unwrap();
        assert!(matches!(keys.check(), Err(SignError::NoKey { version: 3 })));
    }

    fn newest(keys: &PublisherKeys) -> NodeId {
        keys.named_keys(&keys.admission.trust())[0].node()
    }

    fn announcement(name: &str) -> Announcement {
        let now = system_clock();
        Announcement {
            job: JobId([1; 16]),
            content: ContentId([2; 32]),
            kind: Kind::Blob,
            name: name.into(),
            version: "1".into(),
            sequence: sequence::at(1, now * 1000).unwrap(),
            selector: Selector::all(),
            origin: NodeId([3; 32]),
            manifest_bytes: 10,
            size: 10,
            created_at: now,
            expires_at: now + 60,
            feed: None,
            staged: false,
            order: None,
        }
    }

    #[test]
    fn the_key_whose_scope_fits_signs() {
        let dir = tempfile::tempdir().unwrap();
        let configured = Keypair::from_seed([2; 32]);
        let trust = Trust::open(&document(1, &[configured.node()]), None).unwrap();
        let admission = Admission::new(Arc::new(trust), Vec::new(), system_clock);
        let keys = PublisherKeys::open(configured.clone(), dir.path(), admission.clone()).unwrap();
        let tenant = keys.next().unwrap();
        let of_names = |key, name: &str| Publisher { names: vec![name.into()], ..Publisher::unscoped(key) };
        let publishers = vec![of_names(configured.node(), "core"), of_names(tenant, "edge")];
        admission.offer(&scoped(2, publishers)).unwrap();
        let signer = |name: &str| keys.seal(&announcement(name)).map(|envelope| envelope.signer());
        assert_eq!(signer("core/app").unwrap(), configured.node());
        assert_eq!(signer("edge/app").unwrap(), tenant);
        assert!(matches!(signer("other/app"), Err(SignError::Refused(TrustError::OutsideScope { .. }))));
    }

    #[test]
    fn only_a_few_old_keys_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let trust = Trust::open(&document(1, &[]), None).unwrap();
        let admission = Admission::new(Arc::new(trust), Vec::new(), system_clock);
        let keys = PublisherKeys::open(Keypair::from_seed([2; 32]), dir.path(), admission.clone()).unwrap();
        for version in 2..30 {
            let next = keys.next().unwrap();
            admission.offer(&document(version, &[next])).unwrap();
            assert_eq!(newest(&keys), next);
        }
        assert!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count() <= KEPT_MAX);
    }
}
