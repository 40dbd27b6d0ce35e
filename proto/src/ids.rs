//! Identifiers: fixed-size values with a short printable form.
//!
//! Invariant: each identifier has a type of its own, so the compiler refuses one in place of another.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A text that is not an id, because it has another number of hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected {expected} hexadecimal digits")]
pub struct ParseIdError {
    expected: usize,
}

pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let error = ParseIdError { expected: 2 * N };
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(error);
    }
    let mut out = [0u8; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16);
        let low = (pair[1] as char).to_digit(16);
        match (high, low) {
            (Some(high), Some(low)) => *byte = (high * 16 + low) as u8,
            _ => return Err(error),
        }
    }
    Ok(out)
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] #[cbor(with = "minicbor::bytes")] pub [u8; $len]);

        impl $name {
            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Returns the first eight bytes as a big-endian number, a well-mixed key for hashes and order.
            pub const fn prefix(&self) -> u64 {
                let b = &self.0;
                u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
            }

            /// Returns the first ten hexadecimal digits, for logs and tables.
            pub fn short(&self) -> String {
                self.to_string()[..10].to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

byte_id! {
    /// A node's Ed25519 public key. Its libp2p `PeerId` is the same key in multihash form.
    NodeId, 32
}
byte_id! {
    /// BLAKE3 of the encoded manifest of a content. It fixes every byte of the content.
    ContentId, 32
}
byte_id! {
    /// BLAKE3 of a piece, parity shard or file.
    Hash, 32
}
byte_id! {
    /// A job: one order for one content to one selector.
    JobId, 16
}
byte_id! {
    /// BLAKE3 of the cluster's root public key.
    ClusterId, 32
}

impl Hash {
    /// Hashes `bytes` with BLAKE3.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

macro_rules! index_id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode, Serialize, Deserialize,
        )]
        #[cbor(transparent)]
        #[serde(transparent)]
        pub struct $name(#[n(0)] pub $int);

        impl $name {
            /// Returns the number as an array index.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

index_id! {
    /// A host's position in the roster of its region. The tracker assigns it at first admission and never reuses it.
    HostIndex, u32
}
index_id! {
    /// A piece's position in its content, counted over all streams in order.
    PieceIndex, u32
}
index_id! {
    /// A stripe's position in its content.
    StripeIndex, u32
}
index_id! {
    /// A shard's position in its content: `stripe * (k + m) + j`. Shards with `j < k` are data (pieces), the rest
    /// parity.
    ShardIndex, u32
}
index_id! {
    /// One of the content's distribution trees.
    LaneIndex, u8
}
index_id! {
    /// The version of the region's membership. It grows by one with each change.
    Epoch, u64
}
