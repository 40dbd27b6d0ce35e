//! Hashes of tokens, the secrets that requests show.
//!
//! Invariant: only hashes of secrets are compared, so the time of a comparison tells nothing about a secret, not even
//! its length.

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// The BLAKE3 hash of a secret.
///
/// A fast hash without salt is enough, because a secret is 256 random bits. Nobody can try or tabulate 2^256 secrets.
/// Slow hashes and salts protect passwords that people choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenHash(blake3::Hash); // its comparison takes the same time for all hashes

impl TokenHash {
    /// Returns the hash of a secret.
    pub fn of(secret: &[u8]) -> Self {
        Self(blake3::hash(secret))
    }

    /// Returns the hash of the secret that a request shows as `Authorization: Bearer ...`.
    pub fn shown(headers: &HeaderMap) -> Option<Self> {
        let shown = headers.get(header::AUTHORIZATION)?.as_bytes();
        Some(Self::of(shown.strip_prefix(b"Bearer ")?))
    }

    /// Returns the hash of the secret that a browser shows as the password of `Authorization: Basic ...`. The user name
    /// means nothing.
    pub fn shown_by_browser(headers: &HeaderMap) -> Option<Self> {
        let shown = headers.get(header::AUTHORIZATION)?.as_bytes().strip_prefix(b"Basic ")?;
        let pair = BASE64.decode(shown).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        Some(Self::of(&pair[colon + 1..]))
    }

    /// Returns the hash as 64 hexadecimal digits, to store it.
    pub fn to_hex(self) -> String {
        self.0.to_string()
    }

    /// Returns a stored hash, or `None` if the text is not 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(Self)
    }
}
