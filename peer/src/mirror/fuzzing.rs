//! The entry functions of the fuzz target `texts`: requests to the mirror.
//!
//! Invariant: a request that parses has only checked names.

pub use super::request::RequestedRange;
use super::request::{ManifestReference, MirrorRequest, parse, parse_range};
use shoal_proto::image::{is_host, is_repository, is_tag};

/// Parses the path and the query of a request. Returns whether the mirror serves such objects.
///
/// # Panics
///
/// Panics if a name of the parsed request is not valid.
pub fn is_checked(path: &str, query: Option<&str>) -> bool {
    let Ok(request) = parse(path, query) else { return false };
    if let MirrorRequest::Tags { name, .. } = &request {
        assert!(is_repository(&name.path), "{name:?}");
    }
    if let MirrorRequest::Manifest { name, reference } = &request {
        assert!(is_repository(&name.path), "{name:?}");
        assert!(name.registry.as_deref().is_none_or(is_host), "{name:?}");
        let ManifestReference::Tag(tag) = reference else { return true };
        assert!(is_tag(tag), "{tag}");
    }
    true
}

/// Parses a `Range` header for a blob of `size` bytes.
pub fn read_range(range: &str, size: u64) -> RequestedRange {
    parse_range(Some(range), size)
}
