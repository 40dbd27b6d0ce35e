//! Documents: a kind byte, a format version byte, then CBOR.
//!
//! Invariant: a decoder refuses a document over its limit, of another kind or version, or with trailing bytes. The
//! refusal comes before any use of a value.

use minicbor::{Decode, Encode};

/// What a document is. The first byte of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DocKind {
    /// A [`crate::manifest::Manifest`].
    Manifest = 1,
    /// A [`crate::announcement::Announcement`].
    Announcement = 2,
    /// A [`crate::trust::Credential`].
    Credential = 3,
    /// A [`crate::trust::TrustDocument`].
    Trust = 4,
    /// A signed envelope around another document.
    Envelope = 5,
    /// A [`crate::control::Request`] or [`crate::control::Response`].
    Control = 6,
    /// A [`crate::report::HubFlush`].
    HubFlush = 7,
    /// A record in the store of a role.
    Record = 8,
    /// A [`crate::desired::Desired`].
    Desired = 9,
    /// A [`crate::trust::Succession`].
    Succession = 10,
    /// A [`crate::receipt::HubReceipt`].
    HubReceipt = 11,
    /// A [`crate::trust::JoinToken`].
    JoinToken = 16,
    /// A [`crate::trust::JoinClaim`].
    JoinClaim = 17,
}

/// Why bytes are not the expected document.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the limit of this kind of document.
    #[error("{len} bytes, the limit is {max}")]
    TooLong {
        /// Length seen.
        len: usize,
        /// Length allowed.
        max: usize,
    },
    /// Too short for its header, or of another kind.
    #[error("not a {expected:?} document")]
    WrongKind {
        /// The requested kind.
        expected: DocKind,
    },
    /// Written in another format version.
    #[error("format version {found} of {kind:?} is not supported (this build reads {supported})")]
    UnsupportedVersion {
        /// The kind of the document.
        kind: DocKind,
        /// Version in the bytes.
        found: u8,
        /// Version this build reads.
        supported: u8,
    },
    /// Not CBOR of the expected shape.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Bytes after the end of the document.
    #[error("{0} bytes after the end")]
    Trailing(usize),
    /// Well-formed, but a value is out of its range.
    #[error("invalid {what}: {why}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl DecodeError {
    /// Returns the error for a value out of its range.
    pub fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }
}

impl From<minicbor::decode::Error> for DecodeError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A type with a document form.
pub trait Document: Encode<()> + for<'b> Decode<'b, ()> {
    /// The first byte of the encoding.
    const KIND: DocKind;
    /// The second byte of the encoding. A reader accepts exactly this version.
    const VERSION: u8;
    /// Longest encoding accepted, bytes.
    const BYTES_MAX: usize;

    /// Checks what the type system cannot. [`Document::from_bytes`] calls it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Invalid`] or [`DecodeError::TooLong`] for the first bad field.
    fn validate(&self) -> Result<(), DecodeError> {
        Ok(())
    }

    /// Returns the encoding.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![Self::KIND as u8, Self::VERSION];
        minicbor::encode(self, &mut out).unwrap_or_else(|error| match error.into_write() {
            Some(never) => match never {},
            None => unreachable!("every document type encodes"),
        });
        out
    }

    /// Decodes one document that fills `bytes` exactly.
    ///
    /// # Errors
    ///
    /// Any [`DecodeError`]: wrong kind, version, length or shape, trailing bytes, or an invalid value.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(DecodeError::TooLong { len: bytes.len(), max: Self::BYTES_MAX });
        }
        let [kind, version, body @ ..] = bytes else {
            return Err(DecodeError::WrongKind { expected: Self::KIND });
        };
        if *kind != Self::KIND as u8 {
            return Err(DecodeError::WrongKind { expected: Self::KIND });
        }
        if *version != Self::VERSION {
            return Err(DecodeError::UnsupportedVersion {
                kind: Self::KIND,
                found: *version,
                supported: Self::VERSION,
            });
        }
        let value: Self = decode_exact(body)?;
        value.validate()?;
        Ok(value)
    }
}

/// Decodes one CBOR value that fills `bytes` exactly.
///
/// # Errors
///
/// [`DecodeError::Malformed`] for another shape, [`DecodeError::Trailing`] for more bytes.
pub fn decode_exact<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, DecodeError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode()?;
    match bytes.len() - decoder.position() {
        0 => Ok(value),
        rest => Err(DecodeError::Trailing(rest)),
    }
}

/// Decodes an array of at most `MAX` values, for `#[cbor(decode_with)]`. A longer array is refused after `MAX` values.
/// It serves fields whose values are larger in memory than on the wire.
pub(crate) fn at_most<'b, const MAX: usize, C, T: Decode<'b, C>>(
    d: &mut minicbor::Decoder<'b>,
    ctx: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    let mut values = Vec::new();
    for value in d.array_iter_with(ctx)? {
        if values.len() == MAX {
            return Err(minicbor::decode::Error::message(format!("more than {MAX} values")));
        }
        values.push(value?);
    }
    Ok(values)
}

/// Byte strings that several owners share, for `#[cbor(with)]`.
pub(crate) mod shared_bytes {
    use minicbor::encode::Write;
    use minicbor::{Decoder, Encoder};
    use std::sync::Arc;

    type EncodeError<W> = minicbor::encode::Error<<W as Write>::Error>;

    pub(crate) fn encode<C, W: Write>(bytes: &Arc<[u8]>, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W>> {
        e.bytes(bytes)?.ok()
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Arc<[u8]>, minicbor::decode::Error> {
        d.bytes().map(Arc::from)
    }
}

/// Encodes one CBOR value.
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    minicbor::encode(value, &mut out).unwrap_or_else(|error| match error.into_write() {
        Some(never) => match never {},
        None => unreachable!("every document type encodes"),
    });
    out
}
