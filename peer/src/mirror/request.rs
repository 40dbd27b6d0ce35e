//! Parsing of requests to the mirror.
//!
//! Invariant: a parsed [`MirrorRequest`] has only checked repositories, tags, registries and digests. No text of a
//! client becomes part of a path.

use crate::images::RepositoryName;
use shoal_proto::image::{Digest, is_host, is_repository, is_tag};

/// A request to the mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorRequest {
    /// `/v2/`: clients check with it that a registry answers.
    Base,
    /// A manifest or an index.
    Manifest {
        name: RepositoryName,
        reference: ManifestReference,
    },
    Blob(Digest),
    /// The manifests that refer to a manifest.
    Referrers(Digest),
}

/// The tag or the digest of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestReference {
    Tag(String),
    Digest(Digest),
}

/// Longest path of a request, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// Parses the path and the query of a request. Returns `None` for objects that the mirror does not serve.
pub fn parse(path: &str, query: Option<&str>) -> Option<MirrorRequest> {
    if path.len() > PATH_BYTES_MAX {
        return None;
    }
    let path = percent_decode(path)?;
    let rest = path.strip_prefix("/v2")?;
    if matches!(rest, "" | "/") {
        return Some(MirrorRequest::Base);
    }
    // A repository contains slashes, so the kind and the reference are the last two components.
    let (front, last) = rest.strip_prefix('/')?.rsplit_once('/')?;
    let (repository, kind) = front.rsplit_once('/')?;
    if !is_repository(repository) {
        return None;
    }
    match kind {
        "blobs" => last.parse().ok().map(MirrorRequest::Blob),
        "referrers" => last.parse().ok().map(MirrorRequest::Referrers),
        "manifests" => {
            let reference = match last.parse() {
                Ok(digest) => ManifestReference::Digest(digest),
                Err(_) if is_tag(last) => ManifestReference::Tag(last.to_string()),
                Err(_) => return None,
            };
            Some(MirrorRequest::Manifest {
                name: RepositoryName { registry: registry(query)?, path: repository.to_string() },
                reference,
            })
        }
        _ => None,
    }
}

/// Returns the registry of the query parameter `ns`, if there is one.
///
/// The outer `None` means that the value is not a valid registry.
fn registry(query: Option<&str>) -> Option<Option<String>> {
    let pairs = query.unwrap_or_default().split('&');
    let Some(text) = pairs.filter_map(|pair| pair.strip_prefix("ns=")).next() else { return Some(None) };
    let host = percent_decode(text)?;
    is_host(&host).then_some(Some(host))
}

/// Decodes percent-encoding. Returns `None` if it is malformed or not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_string());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| (byte? as char).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// The bytes of a blob that a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestedRange {
    /// The whole blob, with status 200.
    Whole,
    /// A part, with status 206. Never empty.
    #[allow(missing_docs, reason = "the half-open range of bytes")]
    Part { from: u64, to: u64 },
    /// Bytes beyond the blob, with status 416.
    Outside,
}

/// Parses a `Range` header for a blob of `size` bytes.
///
/// RFC 9110 lets a server ignore a header that it does not understand. This one also ignores several ranges in one
/// header, which no client of a registry sends.
pub fn parse_range(range: Option<&str>, size: u64) -> RequestedRange {
    let Some(spec) = range.and_then(|range| range.trim().strip_prefix("bytes=")) else { return RequestedRange::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return RequestedRange::Whole };
    let number = |text: &str| -> Option<u64> {
        // 19 digits always fit.
        let plain = !text.is_empty() && text.len() <= 19 && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse().ok())?
    };
    match (number(first), number(last), first.is_empty(), last.is_empty()) {
        (Some(from), None, _, true) if from < size => RequestedRange::Part { from, to: size },
        (Some(from), Some(to), ..) if from <= to && from < size => {
            RequestedRange::Part { from, to: size.min(to.saturating_add(1)) }
        }
        // `-N` requests the last N bytes.
        (None, Some(tail), true, _) if tail > 0 && size > 0 => {
            RequestedRange::Part { from: size.saturating_sub(tail), to: size }
        }
        (Some(_), None, _, true) | (None, Some(_), true, _) => RequestedRange::Outside,
        (Some(from), Some(to), ..) if from <= to => RequestedRange::Outside,
        _ => RequestedRange::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn requests_of_clients_are_parsed() {
        assert_eq!(parse("/v2/", None), Some(MirrorRequest::Base));
        assert_eq!(parse("/v2", None), Some(MirrorRequest::Base));
        let request = parse("/v2/lab/app/manifests/v1", Some("ns=registry.example%3A5000"));
        let name = RepositoryName { registry: Some("registry.example:5000".into()), path: "lab/app".into() };
        assert_eq!(request, Some(MirrorRequest::Manifest { name, reference: ManifestReference::Tag("v1".into()) }));
        let request = parse(&format!("/v2/app/manifests/{DIGEST}"), None);
        let name = RepositoryName { registry: None, path: "app".into() };
        assert_eq!(
            request,
            Some(MirrorRequest::Manifest { name, reference: ManifestReference::Digest(DIGEST.parse().unwrap()) })
        );
        let blob = Some(MirrorRequest::Blob(DIGEST.parse().unwrap()));
        assert_eq!(parse(&format!("/v2/a/b/c/blobs/{DIGEST}"), Some("ns=docker.io")), blob);
        assert_eq!(parse(&format!("/v2/a/blobs/{}", DIGEST.replace(':', "%3A")), None), blob);
        // A repository may have the name of a part of the API.
        assert_eq!(parse(&format!("/v2/blobs/manifests/blobs/{DIGEST}"), None), blob);
        assert_eq!(
            parse(&format!("/v2/a/referrers/{DIGEST}"), None),
            Some(MirrorRequest::Referrers(DIGEST.parse().unwrap()))
        );
    }

    #[test]
    fn malicious_requests_are_rejected() {
        for path in [
            "/v2/../../etc/blobs/passwd",
            "/v2/a/blobs/sha256:../../../../etc/passwd",
            "/v2/a/blobs/sha256:00",
            "/v2/%2e%2e/%2e%2e/etc/manifests/passwd",
            "/v2/a/manifests/..",
            "/v2/a/manifests/%00",
            "/v2/a/manifests/%",
            "/v2/a/manifests/%f",
            "/v2/a/manifests/%ff",
            "/v2//manifests/v1",
            "/v2/A/manifests/v1",
            "/v2/a/manifests/",
            "/v2/a/manifests",
            "/v2/a/uploads/v1",
            "/v2/a/blobs/SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "/v1/a/manifests/v1",
            "/",
            "",
        ] {
            assert_eq!(parse(path, None), None, "{path}");
        }
        assert_eq!(parse("/v2/a/manifests/v1", Some("ns=../x")), None);
        assert_eq!(parse("/v2/a/manifests/v1", Some("x=1&ns=a b")), None);
        assert_eq!(parse(&format!("/v2/{}/manifests/v1", "a".repeat(2000)), None), None);
    }

    #[test]
    fn ranges_follow_http() {
        assert_eq!(parse_range(None, 10), RequestedRange::Whole);
        assert_eq!(parse_range(Some("bytes=0-"), 10), RequestedRange::Part { from: 0, to: 10 });
        assert_eq!(parse_range(Some("bytes=3-"), 10), RequestedRange::Part { from: 3, to: 10 });
        assert_eq!(parse_range(Some("bytes=3-3"), 10), RequestedRange::Part { from: 3, to: 4 });
        assert_eq!(parse_range(Some("bytes=3-99"), 10), RequestedRange::Part { from: 3, to: 10 });
        assert_eq!(parse_range(Some("bytes=-4"), 10), RequestedRange::Part { from: 6, to: 10 });
        assert_eq!(parse_range(Some("bytes=-40"), 10), RequestedRange::Part { from: 0, to: 10 });
        for outside in ["bytes=10-", "bytes=10-11", "bytes=-0"] {
            assert_eq!(parse_range(Some(outside), 10), RequestedRange::Outside, "{outside}");
        }
        assert_eq!(parse_range(Some("bytes=0-"), 0), RequestedRange::Outside);
        for odd in ["bytes=5-3", "bytes=a-b", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=+1-2", "bytes=1"] {
            assert_eq!(parse_range(Some(odd), 10), RequestedRange::Whole, "{odd}");
        }
        let huge = "bytes=99999999999999999999999999-";
        assert_eq!(parse_range(Some(huge), 10), RequestedRange::Whole);
    }
}
