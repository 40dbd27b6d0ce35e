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
    // `current` is the link that an activation switches. Other files of ours begin with a dot, and no component does.
    is_name(text) && text != "current"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name of a file or folder of ours in a host's content folder.
    const OURS: [&str; 7] = [
        "current",
        ".shoal-versions",
        ".shoal-versions.new",
        ".shoal-current",
        ".shoal-version",
        ".shoal-new-1",
        ".shoal-1",
    ];

    #[test]
    fn no_name_and_no_version_meets_a_file_of_ours() {
        for ours in OURS {
            for name in [ours.to_string(), format!("edge/{ours}"), format!("{ours}/edge")] {
                assert!(!is_content_name(&name), "{name}");
            }
            assert!(!is_version(ours), "{ours}");
        }
        for below in ["feeds", "feeds/x"] {
            assert!(is_reserved(below), "{below}");
        }
        for free in ["versions", "version", "feed", "shoal-versions", "edge/feeds", "desired/x"] {
            assert!(is_content_name(free) && !is_reserved(free), "{free}");
        }
    }
}
