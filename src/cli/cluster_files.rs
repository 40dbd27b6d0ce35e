//! The files in a cluster's folder: the root key, the trust document, and the list of issued credentials.
//!
//! Invariant: a file is replaced as a whole, so a command that is killed leaves the former file or the new one.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use shoal_net::admission::system_clock;
use shoal_net::identity::{load_key, save_key};
use shoal_net::replace_file::replace_file;
use shoal_proto::codec::Document;
use shoal_proto::hex;
use shoal_proto::ids::NodeId;
use shoal_proto::limits::CREDENTIAL_BYTES_MAX;
use shoal_proto::locality::Locality;
use shoal_proto::trust::{Credential, Envelope, Keypair, Trust, TrustDocument};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The list of issued credentials, one JSON document a line.
const ISSUED: &str = "issued";

/// Reads a file of a cluster.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Returns a new key.
pub(crate) fn fresh_key() -> anyhow::Result<Keypair> {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).context("the operating system returned no random bytes")?;
    Ok(Keypair::from_seed(seed))
}

/// Writes a new file. An existing file is an error.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| format!("cannot create {}", path.display()))
}

/// Replaces a file by a rename, so that a reader never sees half of it.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    replace_file(path, bytes, mode).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads the trust document of a cluster's folder.
pub(crate) fn open_trust(dir: &Path) -> anyhow::Result<Trust> {
    let path = dir.join("trust");
    Trust::open(&read(&path)?, None).with_context(|| format!("{} is not a valid trust document", path.display()))
}

/// A cluster whose root key is here.
pub(crate) struct Signer {
    dir: PathBuf,
    pub(crate) root: Keypair,
    pub(crate) trust: Trust,
}

impl Signer {
    /// Opens the folder of a cluster.
    ///
    /// # Errors
    ///
    /// The trust document cannot be used, or the folder does not have its root key.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let trust = open_trust(dir)?;
        let path = dir.join("root.key");
        let mut root = load_key(&path)?;
        let next = dir.join("root.next.key");
        // A rotation of the root was cut off between its two renames.
        if root.node() != trust.document().root && next.exists() {
            root = load_key(&next)?;
        }
        if root.node() != trust.document().root {
            bail!("{} is not the root of the trust document there", path.display());
        }
        Ok(Self { dir: dir.into(), root, trust })
    }

    /// Signs the next version of the trust document and replaces the file.
    ///
    /// # Errors
    ///
    /// The document has more entries than a document may have, or the file cannot be written.
    pub(crate) fn sign(&self, change: impl FnOnce(&mut TrustDocument)) -> anyhow::Result<Trust> {
        self.sign_as(&self.root, change)
    }

    /// Signs the next version as [`Signer::sign`] does, with another root.
    ///
    /// # Errors
    ///
    /// As [`Signer::sign`].
    pub(crate) fn sign_as(&self, root: &Keypair, change: impl FnOnce(&mut TrustDocument)) -> anyhow::Result<Trust> {
        let mut document = self.trust.document().clone();
        document.version =
            document.version.checked_add(1).context("the version of the trust document is at its end")?;
        // The credentials of these nodes have ended, so hosts refuse them without the entry.
        let now = system_clock();
        document.revoked.retain(|row| row.until > now);
        change(&mut document);
        let bytes = Envelope::seal(&document, root).to_bytes();
        let trust = self.trust.open_newer(&bytes).context("hosts would refuse the new trust document")?;
        replace(&self.dir.join("trust"), &bytes, 0o644)?;
        Ok(trust)
    }

    /// Returns the key for the next root. A rotation that was cut off has left one.
    ///
    /// # Errors
    ///
    /// The key file cannot be read or written.
    pub(crate) fn next_root(&self) -> anyhow::Result<Keypair> {
        let path = self.dir.join("root.next.key");
        if path.exists() {
            return Ok(load_key(&path)?);
        }
        let root = fresh_key()?;
        save_key(&path, &root)?;
        Ok(root)
    }

    /// Makes the key of [`Signer::next_root`] the root key, and keeps the former one under another name.
    ///
    /// # Errors
    ///
    /// A file cannot be renamed.
    pub(crate) fn promote_next_root(&self) -> anyhow::Result<PathBuf> {
        let former = self.dir.join(format!("root.{}.key", self.trust.document().root.short()));
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
        };
        let current = self.dir.join("root.key");
        rename(&current, &former)?;
        rename(&self.dir.join("root.next.key"), &current)?;
        Ok(former)
    }
}

/// An issued credential.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Issued {
    /// The signed credential in hexadecimal digits.
    credential: String,
}

impl Issued {
    /// Decodes the credential.
    pub(crate) fn open(&self) -> Option<Credential> {
        let bytes = hex::decode(&self.credential, CREDENTIAL_BYTES_MAX)?;
        Envelope::from_bytes(&bytes).ok()?.open().ok()
    }
}

/// Adds a credential to the list.
///
/// # Errors
///
/// The list cannot be written.
pub(crate) fn note_issued(dir: &Path, credential: &[u8]) -> anyhow::Result<()> {
    let path = dir.join(ISSUED);
    let issued = Issued { credential: hex::encode(credential) };
    let line = format!("{}\n", serde_json::to_string(&issued)?);
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the last credential of each node that was issued here, in order of locality.
///
/// # Errors
///
/// The list cannot be read.
pub(crate) fn issued(dir: &Path) -> anyhow::Result<Vec<Credential>> {
    let path = dir.join(ISSUED);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    // A line that a kill has cut is of a command that did not succeed.
    let rows = text.lines().filter_map(|line| serde_json::from_str::<Issued>(line).ok()?.open());
    let mut last = std::collections::BTreeMap::<NodeId, Credential>::new();
    rows.for_each(|row| drop(last.insert(row.node, row)));
    let mut rows: Vec<Credential> = last.into_values().collect();
    rows.sort_by_key(|row| (row.locality.to_string(), row.node));
    Ok(rows)
}

/// Locks the folder of a cluster against other commands until the result is dropped.
///
/// # Errors
///
/// The folder cannot be opened or locked.
pub(crate) fn lock(dir: &Path) -> anyhow::Result<File> {
    let locked = File::open(dir).and_then(|folder| folder.lock().map(|()| folder));
    locked.with_context(|| format!("cannot lock {}", dir.display()))
}

/// Fails if a place has a node whose credential is valid. Two hosts at one place would replace each other in the
/// membership.
///
/// # Errors
///
/// The place is taken.
pub(crate) fn check_free(issued: &[Credential], place: &Locality, trust: &Trust) -> anyhow::Result<()> {
    let now = system_clock();
    let holds = |row: &&Credential| row.locality == *place && row.not_after > now && !trust.is_revoked(&row.node);
    match issued.iter().find(holds) {
        Some(row) => bail!(
            "{place} is taken by node {}, whose credential ends in {} days: name another locality, or renew or revoke \
             that node",
            row.node.short(),
            (row.not_after - now) / 86_400
        ),
        None => Ok(()),
    }
}
