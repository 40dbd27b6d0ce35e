//! The reasons for which a record or a stream fails.
//!
//! Invariant: an error names the rule that was broken and carries no byte of a record.

use crate::sizes::RECORDS_WITHOUT_DATA_MAX;
use std::io;
use std::sync::Arc;

/// The reason for which a record cannot be sealed or opened, or a stream cannot continue.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecordError {
    /// rustls agreed on a cipher suite that this crate does not implement. Offer only the suites of [`crate::Cipher`].
    #[error("cipher suite is not supported by the record layer")]
    UnsupportedCipher,
    /// A traffic key or its initialization vector has a length that its cipher does not use.
    #[error("traffic key or initialization vector has the wrong length")]
    KeyLength,
    /// The header does not announce a protected record of an allowed length.
    #[error("record header is invalid")]
    InvalidHeader,
    /// The record was changed, comes out of order, or belongs to another key.
    #[error("record failed authentication")]
    Authentication,
    /// The record holds only padding.
    #[error("record has no content type")]
    MissingContentType,
    /// The record holds more than [`crate::PLAINTEXT_BYTES_MAX`] bytes of plaintext and padding.
    #[error("record carries more than 16384 bytes of plaintext and padding")]
    PlaintextTooLong,
    /// The content type has no meaning after the handshake, for example a session ticket or a new handshake.
    #[error("record of content type {0} is not allowed after the handshake")]
    UnexpectedContent(u8),
    /// The other end reported a fatal error.
    #[error("peer sent TLS alert {0}")]
    Alert(u8),
    /// The other end sent record after record without a byte of application data.
    #[error("peer sent more than {RECORDS_WITHOUT_DATA_MAX} records in a row without application data")]
    TooManyWithoutData,
    /// The cipher refused to seal.
    #[error("record cannot be sealed")]
    Seal,
    /// The key has protected 2^64 - 1 records.
    #[error("sequence numbers of the traffic key are used up")]
    SequenceExhausted,
    /// rustls did not derive the next traffic key.
    #[error("next traffic key cannot be derived: {0}")]
    NextKey(#[source] rustls::Error),
    /// The program wrote after it had closed its direction of the stream.
    #[error("stream is closed for writing")]
    WriteAfterClose,
    /// An earlier call failed. The stream stays unusable.
    #[error("stream failed before: {0}")]
    Latched(#[source] Arc<io::Error>),
}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> Self {
        let kind = match &error {
            RecordError::Latched(first) => first.kind(),
            RecordError::WriteAfterClose => io::ErrorKind::BrokenPipe,
            RecordError::Alert(_) | RecordError::NextKey(_) | RecordError::Seal => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
