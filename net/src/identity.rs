//! A node's identity: one Ed25519 key, seen as a [`NodeId`] by us and as a `PeerId` by libp2p.
//!
//! Invariant: a secret key is read only from, and written only to, a file that no one but its owner can read.

use libp2p::PeerId;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::Keypair;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A key file holds this line, then the 32 secret bytes in hexadecimal.
const KEY_FILE_HEAD: &str = "shoal-key-v1 ";
/// Longest key file looked at, bytes.
const KEY_FILE_BYTES_MAX: u64 = 256;
/// libp2p names an Ed25519 key by the key itself: multihash code "identity", length, then this protobuf.
const PEER_ID_HEAD: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Who this node is.
#[derive(Clone)]
pub struct Identity {
    node: NodeId,
    libp2p: libp2p::identity::Keypair,
}

impl Identity {
    /// From a node's key.
    pub fn new(keys: &Keypair) -> Self {
        let libp2p =
            libp2p::identity::Keypair::ed25519_from_bytes(keys.seed()).expect("any 32 bytes are an Ed25519 secret key");
        Self { node: keys.node(), libp2p }
    }

    /// The public key.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The same key as libp2p names it.
    pub fn peer_id(&self) -> PeerId {
        self.libp2p.public().to_peer_id()
    }

    pub(crate) fn libp2p(&self) -> &libp2p::identity::Keypair {
        &self.libp2p
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.node.short())
    }
}

/// The node behind a libp2p peer id; `None` unless it is an Ed25519 key.
pub fn node_of(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&PEER_ID_HEAD[..])?;
    Some(NodeId(key.try_into().ok()?))
}

/// The libp2p peer id of a node; `None` when the bytes are not a point on the curve's encoding libp2p accepts.
pub fn peer_id_of(node: &NodeId) -> Option<PeerId> {
    let key = libp2p::identity::ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(libp2p::identity::PublicKey::from(key).to_peer_id())
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The operating system refused.
    #[error("key file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Others than its owner may read it.
    #[error("key file {} has mode {mode:04o}: others can read it; run `chmod 600` on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error("{} is not a key file", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a key written by [`save_key`]. Refuses a file that its group or others can read.
pub fn load_key(path: &Path) -> Result<Keypair, KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    let malformed = || KeyFileError::Malformed { path: path.to_owned() };
    if !meta.is_file() {
        return Err(malformed());
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    if meta.size() > KEY_FILE_BYTES_MAX {
        return Err(malformed());
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|_| malformed())?;
    let hex = text.trim_end().strip_prefix(KEY_FILE_HEAD).ok_or_else(malformed)?;
    // A secret key has no id type of its own; NodeId's parser reads the same 64 digits.
    let seed: NodeId = hex.parse().map_err(|_| malformed())?;
    Ok(Keypair::from_seed(seed.0))
}

/// Writes a key to a new file of mode 0600, durably. Refuses to replace a file.
pub fn save_key(path: &Path, keys: &Keypair) -> Result<(), KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    // The umask can only take bits away, but 0600 exactly is what was promised.
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    let line = format!("{KEY_FILE_HEAD}{}\n", NodeId(keys.seed()));
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_and_peer_id_are_the_same_key() {
        for seed in 0..50 {
            let keys = Keypair::from_seed([seed; 32]);
            let identity = Identity::new(&keys);
            assert_eq!(identity.node(), keys.node());
            assert_eq!(node_of(&identity.peer_id()), Some(keys.node()));
            assert_eq!(peer_id_of(&keys.node()), Some(identity.peer_id()));
        }
        assert_eq!(node_of(&PeerId::random()), None);
    }

    #[test]
    fn a_key_survives_its_file_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let keys = Keypair::from_seed([7; 32]);
        save_key(&path, &keys).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(load_key(&path).unwrap().seed(), keys.seed());
        assert!(matches!(save_key(&path, &keys), Err(KeyFileError::Io { .. })), "an existing key is never replaced");
        for mode in [0o640, 0o604, 0o660, 0o644] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = load_key(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { mode: found, .. } if found == mode));
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(load_key(&path).is_ok());
    }

    #[test]
    fn what_is_no_key_file_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        assert!(matches!(load_key(&path), Err(KeyFileError::Io { .. })));
        let long = "shoal-key-v1 ".to_string() + &"0".repeat(5000);
        for text in ["", "shoal-key-v1 ", "shoal-key-v1 abc", "-----BEGIN PRIVATE KEY-----", &long] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(load_key(&path), Err(KeyFileError::Malformed { .. })), "{text:.20}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(load_key(&path).is_err());
    }
}
