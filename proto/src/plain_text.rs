//! Text from outside, made safe for a terminal, a page or a log.
//!
//! Invariant: the result holds no character that moves a cursor, starts a control sequence, ends a line or changes the
//! direction of writing.

use std::borrow::Cow;
use std::fmt::Write;

/// Returns whether a character may change how the text around it is shown.
///
/// These are the control characters (C0, DEL, C1), the line and paragraph separators, and the characters that control
/// bidirectional writing or have no width (Unicode Standard Annex 9, section 2).
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{061c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns the text with every unsafe character as `\u{..}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_if(text, is_unsafe, |out, c| out.extend(c.escape_unicode()))
}

/// Returns the text as [`escape`] does, but keeps line feeds and tabs. For texts of our own that have several lines.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    escape_if(text, |c| is_unsafe(c) && c != '\n' && c != '\t', |out, c| out.extend(c.escape_unicode()))
}

/// Returns a JSON document with every unsafe character but line feeds as an escape of four digits. The value is the
/// same.
pub fn escape_json(document: &str) -> Cow<'_, str> {
    escape_if(
        document,
        |c| is_unsafe(c) && c != '\n',
        |out, c| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}"); // a string takes every write
            }
        },
    )
}

fn escape_if<'a>(text: &'a str, refuse: impl Fn(char) -> bool, write: impl Fn(&mut String, char)) -> Cow<'a, str> {
    if !text.contains(&refuse) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if refuse(c) { write(&mut out, c) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_text_is_unchanged() {
        for text in ["", "cannot write /srv/a: no space", "größer, 大きい, أكبر"] {
            assert!(matches!(escape(text), Cow::Borrowed(same) if same == text));
        }
        assert_eq!(escape("\u{1b}[2J\r\n\u{202e}x\u{9b}"), "\\u{1b}[2J\\u{d}\\u{a}\\u{202e}x\\u{9b}");
        assert_eq!(escape_lines("a\n\tb\u{7}"), "a\n\tb\\u{7}");
    }

    /// Unsafe characters are rare among all characters, so half of each text is drawn from them.
    fn text() -> impl Strategy<Value = String> {
        let unsafe_ones = prop::sample::select(
            (0..=0x10_ffff_u32).filter_map(char::from_u32).filter(|c| is_unsafe(*c)).collect::<Vec<_>>(),
        );
        prop::collection::vec(prop_oneof![any::<char>(), unsafe_ones], 0..64).prop_map(|all| all.into_iter().collect())
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left(text in text()) {
            prop_assert!(!escape(&text).contains(is_unsafe));
            prop_assert!(!escape_lines(&text).contains(|c| is_unsafe(c) && c != '\n' && c != '\t'));
            let again = escape(&text).into_owned();
            prop_assert_eq!(escape(&again), again.as_str());
        }
    }
}
