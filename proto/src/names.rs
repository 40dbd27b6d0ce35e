//! The names and versions of contents.
//!
//! Invariant: a valid name or version is made of checked path components. None can leave the folder that it names a
//! place in.

use crate::limits;
use crate::locality::is_name;

/// Whether `name` may name a content: names joined by `/`, at most 128 bytes.
pub fn is_content_name(name: &str) -> bool {
    name.len() <= limits::NAME_BYTES_MAX && name.split('/').all(is_component)
}

/// Whether a name lies in the folder of feeds. A pushed content must not have such a name.
pub fn is_reserved(name: &str) -> bool {
    name.split('/').next() == Some("feeds")
}

/// Whether `text` may be a version.
pub fn is_version(text: &str) -> bool {
    is_component(text)
}

fn is_component(text: &str) -> bool {
    // `current` is the link that an activation switches.
    is_name(text) && text != "current"
}
