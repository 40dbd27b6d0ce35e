//! Lengths and limits of records.
//!
//! Invariant: each value is the one of RFC 8446, or the text beside it says why it differs.

use aws_lc_rs::aead::MAX_TAG_LEN;

/// Bytes before the ciphertext of a record: content type, legacy version and length.
pub(crate) const HEADER_BYTES: usize = 5;

/// The largest plaintext of one record, in bytes (RFC 8446, section 5.1).
pub const PLAINTEXT_BYTES_MAX: usize = 1 << 14;

/// The largest ciphertext of one record, in bytes (RFC 8446, section 5.2).
const CIPHERTEXT_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX + 256;

/// The largest record with its header, in bytes.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + CIPHERTEXT_BYTES_MAX;

/// Bytes that sealing adds to the plaintext of a record: header, content type and tag.
pub(crate) const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + MAX_TAG_LEN;

/// Bytes of a sequence number's nonce. All ciphers of TLS 1.3 use 12.
pub(crate) const NONCE_BYTES: usize = 12;

/// Records that one key seals before the stream sends a key update. RFC 8446, section 5.5, allows 2^24.5 full records
/// with AES-GCM. Half of 2^24 leaves a margin that costs nothing.
pub(crate) const RECORDS_PER_KEY_MAX: u64 = 1 << 23;

/// Key updates and empty records that may follow one another without a byte of application data. Each costs this end a
/// decryption or a key derivation, and brings nothing. BoringSSL has the same limits.
pub(crate) const RECORDS_WITHOUT_DATA_MAX: u32 = 32;

/// Returns the length of the record at the start of `bytes`, header included, once the header is complete.
pub(crate) fn record_len(bytes: &[u8]) -> Option<usize> {
    let len = u16::from_be_bytes([*bytes.get(3)?, *bytes.get(4)?]);
    Some(HEADER_BYTES + usize::from(len))
}
