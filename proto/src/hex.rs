//! Bytes as hexadecimal digits.
//!
//! Invariant: [`decode`] takes what [`encode`] returns, and nothing longer than the caller allows.

use std::fmt::Write;

/// Returns two lower-case digits for each byte.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
    }
    text
}

/// Returns the bytes of digits of either case. `None` if the text has other characters or more than `bytes_max` bytes.
pub fn decode(text: &str, bytes_max: usize) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() / 2 > bytes_max || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks_exact(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn digits_stand_for_their_bytes(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
            let text = encode(&bytes);
            prop_assert_eq!(decode(&text, bytes.len()), Some(bytes.clone()));
            prop_assert_eq!(decode(&text.to_uppercase(), bytes.len()), Some(bytes.clone()));
            if let Some(less) = bytes.len().checked_sub(1) {
                prop_assert_eq!(decode(&text, less), None);
            }
        }

        #[test]
        fn other_text_is_refused(text in ".{0,9}") {
            let is_digits = text.len() % 2 == 0 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            prop_assert_eq!(decode(&text, 99).is_some(), is_digits);
        }
    }
}
