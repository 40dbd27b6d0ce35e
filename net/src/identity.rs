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
