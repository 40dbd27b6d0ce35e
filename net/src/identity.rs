//! A node's identity: one Ed25519 key, which is a [`NodeId`] in this workspace and a `PeerId` in libp2p.
//!
//! Invariant: a secret key is read only from, and written only to, a file that only its owner can read.

use libp2p::PeerId;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::Keypair;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A key file holds this line, then the 32 secret bytes in hexadecimal.
const KEY_FILE_HEAD: &str = "shoal-key-v1 ";
/// The longest key file that is read, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 256;
/// The bytes before the key in a libp2p peer id of an Ed25519 key: the multihash code "identity", the length, and the
/// head of a protobuf.
const PEER_ID_HEAD: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The key of this node.
#[derive(Clone)]
pub struct Identity {
    node: NodeId,
    libp2p: libp2p::identity::Keypair,
}

impl Identity {
    #[allow(missing_docs, reason = "the types say it")]
    pub fn new(keys: &Keypair) -> Self {
        let libp2p =
            libp2p::identity::Keypair::ed25519_from_bytes(keys.seed()).expect("any 32 bytes are an Ed25519 secret key");
        Self { node: keys.node(), libp2p }
    }

    /// Returns the public key.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the same key as libp2p names it.
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

/// Returns the node of a libp2p peer id, or `None` if the id is not that of an Ed25519 key.
pub fn node_of(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&PEER_ID_HEAD[..])?;
    Some(NodeId(key.try_into().ok()?))
}

/// Returns the libp2p peer id of a node, or `None` if the bytes do not encode a point of the curve.
pub fn peer_id_of(node: &NodeId) -> Option<PeerId> {
    let key = libp2p::identity::ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(libp2p::identity::PublicKey::from(key).to_peer_id())
}

/// The reason for which a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum KeyFileError {
    /// The operating system refused access.
    #[error("cannot access key file {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// The group or others may read the file.
    #[error("key file {} has mode {mode:04o}, so others can read it; run `chmod 600` on it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    /// The file is not one that [`save_key`] wrote.
    #[error("{} is not a key file; `shoal cluster` makes key files", path.display())]
    Malformed { path: PathBuf },
}

/// Reads a key that [`save_key`] wrote.
///
/// # Errors
///
/// Fails if the file cannot be read, its group or others can read it, or it is not a key file.
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
    // A secret key has no type with a parser. The parser of `NodeId` reads the same 64 digits.
    let seed: NodeId = hex.parse().map_err(|_| malformed())?;
    Ok(Keypair::from_seed(seed.0))
}

/// Writes a key to a new file of mode 0600 and flushes it to the disk.
///
/// # Errors
///
/// Fails if the file exists already or cannot be written.
pub fn save_key(path: &Path, keys: &Keypair) -> Result<(), KeyFileError> {
    let io = |source| KeyFileError::Io { path: path.to_owned(), source };
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    // The umask may have removed bits of the owner too.
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
    fn a_saved_key_loads_and_only_its_owner_can_read_it() {
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
    fn a_file_without_a_key_is_refused() {
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
