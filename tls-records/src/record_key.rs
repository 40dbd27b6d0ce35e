//! Protection of single records under one traffic key (RFC 8446, sections 5.2 and 5.3).
//!
//! Invariant: a [`RecordKey`] uses each sequence number once, in rising order.

use crate::error::RecordError;
use crate::sizes::{HEADER_BYTES, NONCE_BYTES, OVERHEAD_BYTES, PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX, record_len};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;
use std::ops::Range;

/// The ciphers of TLS 1.3 that this crate implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of RFC 8446, appendix B.4")]
pub enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

impl Cipher {
    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::Chacha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    /// Returns the length of the cipher's traffic key in bytes.
    pub fn key_bytes(self) -> usize {
        self.algorithm().key_len()
    }
}

/// The true content type of a protected record. Every protected record looks like application data on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names and numbers are those of RFC 8446, section 5.1")]
pub enum ContentType {
    Alert = 21,
    Handshake = 22,
    ApplicationData = 23,
}

impl ContentType {
    fn from_wire(byte: u8) -> Result<Self, RecordError> {
        match byte {
            21 => Ok(Self::Alert),
            22 => Ok(Self::Handshake),
            23 => Ok(Self::ApplicationData),
            other => Err(RecordError::UnexpectedContent(other)),
        }
    }
}

/// A record after [`RecordKey::open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedRecord {
    /// The content type that was encrypted with the plaintext.
    pub content: ContentType,
    /// Where the plaintext lies in the buffer that held the record.
    pub plaintext: Range<usize>,
}

/// One direction's traffic key with the sequence number of its next record.
pub struct RecordKey {
    key: LessSafeKey,
    iv: [u8; NONCE_BYTES],
    sequence: u64,
}

impl RecordKey {
    /// Returns a key whose next record has number `sequence`.
    ///
    /// # Errors
    ///
    /// Fails with [`RecordError::KeyLength`] if `key` or `iv` does not fit the cipher.
    pub fn new(cipher: Cipher, key: &[u8], iv: &[u8], sequence: u64) -> Result<Self, RecordError> {
        let key = UnboundKey::new(cipher.algorithm(), key).map_err(|_| RecordError::KeyLength)?;
        let iv = iv.try_into().map_err(|_| RecordError::KeyLength)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// Returns the key that rustls derived.
    pub(crate) fn from_rustls(secrets: &ConnectionTrafficSecrets, sequence: u64) -> Result<Self, RecordError> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::Chacha20Poly1305, key, iv),
            _ => return Err(RecordError::UnsupportedCipher),
        };
        Self::new(cipher, key.as_ref(), iv.as_ref(), sequence)
    }

    /// Returns the sequence number of the next record.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the nonce of the next record and uses up its sequence number.
    fn next_nonce(&mut self) -> Result<Nonce, RecordError> {
        let sequence = self.sequence;
        self.sequence = sequence.checked_add(1).ok_or(RecordError::SequenceExhausted)?;
        let mut nonce = self.iv;
        // The number is padded on the left to the nonce's length, so it meets the last eight bytes.
        nonce[NONCE_BYTES - 8..].iter_mut().zip(sequence.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Appends one sealed record to `out`.
    ///
    /// # Errors
    ///
    /// Fails with [`RecordError::PlaintextTooLong`] if `plaintext` does not fit one record, and when the key's sequence
    /// numbers are used up.
    pub fn seal(&mut self, content: ContentType, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), RecordError> {
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            return Err(RecordError::PlaintextTooLong);
        }
        self.seal_with(content, plaintext.len(), out, |out| out.extend_from_slice(plaintext))
    }

    /// Appends one sealed record to `out`. The closure appends the plaintext, of exactly `len` bytes, in place. That
    /// saves a copy of plaintext that lies in several slices.
    pub(crate) fn seal_with(
        &mut self,
        content: ContentType,
        len: usize,
        out: &mut Vec<u8>,
        append_plaintext: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), RecordError> {
        self.seal_padded(content as u8, len, 0, out, append_plaintext)
    }

    /// As [`RecordKey::seal_with`], with any content type and with zeros behind it. This crate itself never pads.
    pub(crate) fn seal_padded(
        &mut self,
        content: u8,
        len: usize,
        padding: usize,
        out: &mut Vec<u8>,
        append_plaintext: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), RecordError> {
        let nonce = self.next_nonce()?;
        let header = header(len + padding + OVERHEAD_BYTES - HEADER_BYTES);
        out.extend_from_slice(&header);
        let start = out.len();
        append_plaintext(out);
        debug_assert_eq!(out.len(), start + len);
        out.push(content);
        out.resize(out.len() + padding, 0);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..]);
        out.extend_from_slice(tag.map_err(|_| RecordError::Seal)?.as_ref());
        Ok(())
    }

    /// Opens `record`, a whole record with its header, in the buffer that holds it.
    ///
    /// # Errors
    ///
    /// Fails if the header is invalid, the tag is wrong, the content type is missing or unknown, or the plaintext
    /// with its padding is too long. `record` holds no meaningful bytes after an error.
    pub fn open(&mut self, record: &mut [u8]) -> Result<OpenedRecord, RecordError> {
        if check_header(record)? != Some(record.len()) {
            return Err(RecordError::InvalidHeader);
        }
        let (head, body) = record.split_at_mut(HEADER_BYTES);
        let nonce = self.next_nonce()?;
        let inner = self.key.open_in_place(nonce, Aad::from(&*head), body).map_err(|_| RecordError::Authentication)?;
        // The bound covers plaintext, content type and padding together (RFC 8446, section 5.4).
        if inner.len() > PLAINTEXT_BYTES_MAX + 1 {
            return Err(RecordError::PlaintextTooLong);
        }
        // Zeros after the content type are padding, and plaintext may end in zeros as well. So the last byte that is
        // not zero is the content type.
        let last = inner.iter().rposition(|byte| *byte != 0).ok_or(RecordError::MissingContentType)?;
        let content = ContentType::from_wire(inner[last])?;
        Ok(OpenedRecord { content, plaintext: HEADER_BYTES..HEADER_BYTES + last })
    }
}

impl std::fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Key and initialization vector are secret.
        f.debug_struct("RecordKey").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

fn header(ciphertext_len: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = (ciphertext_len as u16).to_be_bytes();
    // The version field is frozen at that of TLS 1.2 (RFC 8446, section 5.2).
    [ContentType::ApplicationData as u8, 3, 3, high, low]
}

/// Returns the length of the protected record at the start of `bytes`, or `None` while its header is incomplete.
///
/// # Errors
///
/// Fails with [`RecordError::InvalidHeader`] if the bytes do not start a protected record of an allowed length.
pub(crate) fn check_header(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(len) = record_len(bytes) else { return Ok(None) };
    let looks_protected = bytes[..3] == header(0)[..3];
    if !looks_protected || !(OVERHEAD_BYTES..=RECORD_BYTES_MAX).contains(&len) {
        return Err(RecordError::InvalidHeader);
    }
    Ok(Some(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RecordKey {
        RecordKey::new(Cipher::Aes128Gcm, &[1; 16], &[2; 12], 0).unwrap()
    }

    #[test]
    fn padding_counts_towards_the_bound_of_a_record() {
        for (len, padding, fits) in [
            (PLAINTEXT_BYTES_MAX, 0, true),
            (1, PLAINTEXT_BYTES_MAX - 1, true),
            (0, PLAINTEXT_BYTES_MAX, true),
            (PLAINTEXT_BYTES_MAX, 1, false),
            (0, PLAINTEXT_BYTES_MAX + 1, false),
            // The longest record that the header allows.
            (100, PLAINTEXT_BYTES_MAX + 256 - 100 - 17, false),
        ] {
            let mut record = Vec::new();
            key().seal_padded(23, len, padding, &mut record, |out| out.resize(out.len() + len, 7)).unwrap();
            let opened = key().open(&mut record);
            match opened {
                Ok(opened) => assert!(fits && opened.plaintext.len() == len, "{len} and {padding} bytes"),
                Err(error) => assert!(!fits && matches!(error, RecordError::PlaintextTooLong), "{error}"),
            }
        }
    }
}
