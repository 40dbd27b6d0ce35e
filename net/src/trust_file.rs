//! The trust document on disk: the operator's file, and the copy of the document in force in a role's folder.
//!
//! The operator's file says which cluster this is. The copy keeps what arrived over the network, so that a restart does
//! not go back to an older document.
//! Invariant: a role starts with the newer one of both, and never with a document that leaves the chain of the other.

use crate::replace_file::replace_file;
use shoal_proto::ids::ClusterId;
use shoal_proto::limits;
use shoal_proto::trust::{Trust, TrustError};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Name of the copy in a role's folder.
const COPY: &str = "trust";

/// Why no trust document can be put in force.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TrustFileError {
    #[error("cannot read the trust document {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the trust document {} cannot be used", path.display())]
    Invalid { path: PathBuf, source: TrustError },
    /// Both files claim to follow the same document, and only one of them can be right.
    #[error("the trust document {} contradicts the copy {}; if the file is right, delete the copy",
            path.display(), copy.display())]
    Contradiction { path: PathBuf, copy: PathBuf, source: TrustError },
}

/// The operator's file and the copy.
#[derive(Clone, Debug)]
pub struct TrustFile {
    path: PathBuf,
    copy: PathBuf,
}

impl TrustFile {
    /// `path` is the operator's file, `dir` the folder of the role's state.
    pub fn new(path: &Path, dir: &Path) -> Self {
        Self { path: path.into(), copy: dir.join(COPY) }
    }

    /// Returns the newer document of both files. `pinned` is the expected cluster, if the configuration names it.
    ///
    /// # Errors
    ///
    /// Fails if the operator's file cannot be read or is invalid, or if the copy is of the same cluster and neither
    /// document continues the other.
    pub fn load(&self, pinned: Option<ClusterId>) -> Result<Trust, TrustFileError> {
        let file = self.read_file()?;
        let trust = Trust::open(&file, pinned).map_err(|source| self.invalid(source))?;
        let copy = match read_bounded(&self.copy) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(trust),
            Err(source) => return Err(TrustFileError::Read { path: self.copy.clone(), source }),
        };
        let copied = match Trust::open(&copy, Some(trust.cluster())) {
            Ok(copied) => copied,
            // The operator has made another cluster, or the disk has damaged the copy. The neighbours have the newest
            // document of this cluster, if it is not in the file.
            Err(error) => {
                tracing::warn!(copy = %self.copy.display(), %error, "ignored a copy of the trust document");
                return Ok(trust);
            }
        };
        if copied.bytes() == trust.bytes() {
            return Ok(trust);
        }
        let newer = if trust.version() > copied.version() { copied.open_newer(&file) } else { trust.open_newer(&copy) };
        let (path, copy) = (self.path.clone(), self.copy.clone());
        newer.map_err(|source| TrustFileError::Contradiction { path, copy, source })
    }

    /// Returns the bytes of the operator's file.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    pub fn read_file(&self) -> Result<Vec<u8>, TrustFileError> {
        read_bounded(&self.path).map_err(|source| TrustFileError::Read { path: self.path.clone(), source })
    }

    pub(crate) fn invalid(&self, source: TrustError) -> TrustFileError {
        TrustFileError::Invalid { path: self.path.clone(), source }
    }

    /// Replaces the copy. It survives a kill when this returns.
    ///
    /// # Errors
    ///
    /// Fails if the disk fails or is full. The former copy then stays.
    pub fn save(&self, trust: &Trust) -> io::Result<()> {
        replace_file(&self.copy, trust.bytes(), 0o600)
    }
}

/// Reads a file up to one byte more than a trust document can have. The decoder refuses a longer one.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limits::TRUST_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::codec::Document;
    use shoal_proto::trust::{Envelope, Keypair, TrustDocument};
    use std::fs;

    fn document(version: u64, change: impl FnOnce(&mut TrustDocument)) -> Trust {
        let root = Keypair::from_seed([1; 32]);
        let mut document = TrustDocument { version, ..TrustDocument::first(root.node(), []) };
        change(&mut document);
        Trust::open(&Envelope::seal(&document, &root).to_bytes(), None).unwrap()
    }

    #[test]
    fn the_newer_document_of_file_and_copy_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator");
        let file = TrustFile::new(&path, dir.path());
        assert!(matches!(file.load(None), Err(TrustFileError::Read { .. })));
        fs::write(&path, document(2, |_| {}).bytes()).unwrap();
        assert_eq!(file.load(None).unwrap().version(), 2);
        file.save(&document(3, |_| {})).unwrap();
        assert_eq!(file.load(None).unwrap().version(), 3, "an older file does not go back");
        fs::write(&path, document(4, |_| {}).bytes()).unwrap();
        assert_eq!(file.load(None).unwrap().version(), 4);
        fs::write(dir.path().join(COPY), b"damaged").unwrap();
        assert_eq!(file.load(None).unwrap().version(), 4);
    }

    #[test]
    fn documents_that_contradict_each_other_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator");
        let file = TrustFile::new(&path, dir.path());
        file.save(&document(2, |document| document.epoch = 2)).unwrap();
        for trust in [document(2, |_| {}), document(3, |_| {})] {
            fs::write(&path, trust.bytes()).unwrap();
            let error = file.load(None).unwrap_err();
            assert!(matches!(error, TrustFileError::Contradiction { .. }), "{error}");
        }
    }
}
