//! Values that were read are written and read again: the same value, and from then on the same bytes or text.

use minicbor::{Decode, Encode};
use shoal_proto::codec::{Document, decode_exact, encode};
use std::fmt::{Debug, Display};
use std::str::FromStr;

/// Reads a document and returns it if the bytes are one.
///
/// # Panics
///
/// Panics if a document that was read is not read again as it was.
pub fn document<D: Document + PartialEq + Debug>(bytes: &[u8]) -> Option<D> {
    let read = D::from_bytes(bytes).ok()?;
    assert!(bytes.len() <= D::BYTES_MAX);
    let written = read.to_bytes();
    // Short forms of integers make the second encoding shorter, never longer than a document may be.
    match D::from_bytes(&written) {
        Ok(again) => {
            assert_eq!(again, read, "another document was read again");
            assert_eq!(again.to_bytes(), written, "the encoding is not stable");
        }
        Err(error) => panic!("a document is refused after it was read and written: {error}: {read:?}"),
    }
    Some(read)
}

/// As [`document`], for a value without a header.
///
/// # Panics
///
/// As [`document`].
pub fn value<T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let read: T = decode_exact(bytes).ok()?;
    let written = encode(&read);
    match decode_exact::<T>(&written) {
        Ok(again) => assert_eq!(again, read, "another value was read again"),
        Err(error) => panic!("a value is refused after it was read and written: {error}: {read:?}"),
    }
    Some(read)
}

/// Parses a text and returns the value if the text is one.
///
/// # Panics
///
/// Panics if the printed value does not parse to the same value.
pub fn text<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let read: T = text.parse().ok()?;
    let printed = read.to_string();
    match printed.parse::<T>() {
        Ok(again) => assert_eq!(again, read, "`{text}` prints as `{printed}`, which is another value"),
        Err(error) => panic!("`{text}` prints as `{printed}`, which does not parse: {error}"),
    }
    Some(read)
}
