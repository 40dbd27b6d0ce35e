//! Parsing of requests to the mirror.
//!
//! Invariant: a parsed [`MirrorRequest`] has only checked repositories, tags, registries and digests. No text of a
//! client becomes part of a path.

use crate::images::RepositoryName;
use shoal_proto::image::{Digest, is_host, is_other_digest, is_repository, is_tag};

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
    Referrers {
        subject: Digest,
        /// The wanted types. Empty for all.
        artifact_types: Vec<String>,
    },
    /// The tags of a repository.
    Tags {
        name: RepositoryName,
        /// The longest list that the client wants.
        limit: Option<usize>,
        /// The tag after which the list begins.
        after: Option<String>,
    },
}

/// Why a request names no object of the mirror. Each is an error code of the OCI Distribution API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoObject {
    /// The path is not one of the API's, or one that the mirror does not serve.
    Unsupported,
    /// The repository or the registry has an invalid name.
    Name,
    /// The digest is malformed.
    Digest,
    /// A blob of another algorithm than SHA-256, which the mirror cannot have.
    OtherBlob,
    /// The manifest's tag is malformed, or its digest is of another algorithm.
    Manifest,
    /// The length of a list is not a number.
    Limit,
}

impl NoObject {
    /// Returns the error code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unsupported => "UNSUPPORTED",
            Self::Name => "NAME_INVALID",
            Self::Digest => "DIGEST_INVALID",
            Self::OtherBlob => "BLOB_UNKNOWN",
            Self::Manifest => "MANIFEST_UNKNOWN",
            Self::Limit => "PAGINATION_NUMBER_INVALID",
        }
    }
}

/// The tag or the digest of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestReference {
    Tag(String),
    Digest(Digest),
}

/// Longest path of a request, in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// Types of artifacts in one request.
const ARTIFACT_TYPES_MAX: usize = 16;

/// Parses the path and the query of a request.
///
/// # Errors
/// Says why the request names nothing that the mirror can have.
pub fn parse(path: &str, query: Option<&str>) -> Result<MirrorRequest, NoObject> {
    if path.len() > PATH_BYTES_MAX {
        return Err(NoObject::Name);
    }
    let path = percent_decode(path).ok_or(NoObject::Name)?;
    let rest = path.strip_prefix("/v2").ok_or(NoObject::Unsupported)?;
    if matches!(rest, "" | "/") {
        return Ok(MirrorRequest::Base);
    }
    // A repository contains slashes, so the kind and the reference are the last two components.
    let (front, last) = rest.strip_prefix('/').and_then(|rest| rest.rsplit_once('/')).ok_or(NoObject::Unsupported)?;
    let (repository, kind) = front.rsplit_once('/').ok_or(NoObject::Unsupported)?;
    if !matches!(kind, "blobs" | "referrers" | "manifests") && (kind, last) != ("tags", "list") {
        return Err(NoObject::Unsupported);
    }
    if !is_repository(repository) {
        return Err(NoObject::Name);
    }
    let query = query.unwrap_or_default();
    match kind {
        "blobs" => digest(last, NoObject::OtherBlob).map(MirrorRequest::Blob),
        "referrers" => {
            let subject = digest(last, NoObject::Manifest)?;
            Ok(MirrorRequest::Referrers { subject, artifact_types: values(query, "artifactType") })
        }
        "manifests" => {
            let reference = match last.parse() {
                Ok(digest) => ManifestReference::Digest(digest),
                Err(_) if is_tag(last) => ManifestReference::Tag(last.to_string()),
                Err(_) if is_other_digest(last) => return Err(NoObject::Manifest),
                Err(_) if last.contains(':') => return Err(NoObject::Digest),
                Err(_) => return Err(NoObject::Manifest),
            };
            Ok(MirrorRequest::Manifest { name: name(query, repository)?, reference })
        }
        _ => {
            let limit = values(query, "n").into_iter().next();
            let limit = limit.map(|number| number.parse::<usize>().map_err(|_| NoObject::Limit)).transpose()?;
            let after = values(query, "last").into_iter().next();
            Ok(MirrorRequest::Tags { name: name(query, repository)?, limit, after })
        }
    }
}

/// Reads a digest. One of another algorithm is `other`.
fn digest(text: &str, other: NoObject) -> Result<Digest, NoObject> {
    text.parse().map_err(|_| if is_other_digest(text) { other } else { NoObject::Digest })
}

/// Returns the values of a query parameter that can be decoded.
fn values(query: &str, name: &str) -> Vec<String> {
    let pairs = query.split('&').filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    pairs.filter_map(percent_decode).take(ARTIFACT_TYPES_MAX).collect()
}

/// Returns the name of a repository, with the registry of the query parameter `ns`, if there is one.
fn name(query: &str, path: &str) -> Result<RepositoryName, NoObject> {
    let Some(text) = query.split('&').find_map(|pair| pair.strip_prefix("ns=")) else {
        return Ok(RepositoryName::new(None, path));
    };
    let host = percent_decode(text).filter(|host| is_host(host)).ok_or(NoObject::Name)?;
    Ok(RepositoryName::new(Some(&host), path))
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
        assert_eq!(parse("/v2/", None), Ok(MirrorRequest::Base));
        assert_eq!(parse("/v2", None), Ok(MirrorRequest::Base));
        let request = parse("/v2/lab/app/manifests/v1", Some("ns=registry.example%3A5000"));
        let name = RepositoryName { registry: Some("registry.example:5000".into()), path: "lab/app".into() };
        assert_eq!(request, Ok(MirrorRequest::Manifest { name, reference: ManifestReference::Tag("v1".into()) }));
        let request = parse(&format!("/v2/app/manifests/{DIGEST}"), None);
        let name = RepositoryName { registry: None, path: "app".into() };
        assert_eq!(
            request,
            Ok(MirrorRequest::Manifest { name, reference: ManifestReference::Digest(DIGEST.parse().unwrap()) })
        );
        let blob = Ok(MirrorRequest::Blob(DIGEST.parse().unwrap()));
        assert_eq!(parse(&format!("/v2/a/b/c/blobs/{DIGEST}"), Some("ns=docker.io")), blob);
        assert_eq!(parse(&format!("/v2/a/blobs/{}", DIGEST.replace(':', "%3A")), None), blob);
        // A repository may have the name of a part of the API.
        assert_eq!(parse(&format!("/v2/blobs/manifests/blobs/{DIGEST}"), None), blob);
        let subject = DIGEST.parse().unwrap();
        let types = |types: &[&str]| types.iter().map(|kind| kind.to_string()).collect::<Vec<_>>();
        for (query, artifact_types) in [
            ("", types(&[])),
            ("ns=r.example&artifactType=application%2Fvnd.x%2Bjson", types(&["application/vnd.x+json"])),
            ("artifactType=a/b+c&artifactType=d&artifactTypes=e&artifactType=%zz", types(&["a/b+c", "d"])),
        ] {
            let request = parse(&format!("/v2/a/referrers/{DIGEST}"), Some(query));
            assert_eq!(request, Ok(MirrorRequest::Referrers { subject, artifact_types }), "{query}");
        }
        let name = RepositoryName { registry: Some("r.example".into()), path: "a/b".into() };
        let tags = parse("/v2/a/b/tags/list", Some("n=2&last=v%2E1&ns=r.example"));
        assert_eq!(tags, Ok(MirrorRequest::Tags { name, limit: Some(2), after: Some("v.1".into()) }));
    }

    #[test]
    fn names_of_dockers_registry_are_written_out() {
        for (path, ns, expected) in [
            ("nginx", "docker.io", "docker.io/library/nginx"),
            ("nginx", "index.docker.io", "docker.io/library/nginx"),
            ("library/nginx", "docker.io", "docker.io/library/nginx"),
            ("nginx", "r.example", "r.example/nginx"),
        ] {
            let request = parse(&format!("/v2/{path}/manifests/v1"), Some(&format!("ns={ns}")));
            let Ok(MirrorRequest::Manifest { name, .. }) = request else { panic!("{path} {ns}") };
            assert_eq!(format!("{}/{}", name.registry.unwrap(), name.path), expected);
        }
    }

    #[test]
    fn every_refusal_has_its_code() {
        let sha512 = format!("sha512:{}", "0".repeat(128));
        let code = |path: &str| parse(path, None).unwrap_err().code();
        for (path, expected) in [
            ("/v1/a/manifests/v1", "UNSUPPORTED"),
            ("/v2/_catalog", "UNSUPPORTED"),
            ("/v2/a/uploads/v1", "UNSUPPORTED"),
            ("/v2/a/tags/all", "UNSUPPORTED"),
            ("/v2/A/manifests/v1", "NAME_INVALID"),
            ("/v2/a/manifests/.v1", "MANIFEST_UNKNOWN"),
            ("/v2/a/manifests/sha256:00", "DIGEST_INVALID"),
            ("/v2/a/blobs/sha256:00", "DIGEST_INVALID"),
            ("/v2/a/blobs/x", "DIGEST_INVALID"),
            ("/v2/a/referrers/x", "DIGEST_INVALID"),
            (&format!("/v2/a/blobs/{sha512}"), "BLOB_UNKNOWN"),
            (&format!("/v2/a/manifests/{sha512}"), "MANIFEST_UNKNOWN"),
            (&format!("/v2/a/referrers/{sha512}"), "MANIFEST_UNKNOWN"),
        ] {
            assert_eq!(code(path), expected, "{path}");
        }
        assert_eq!(parse("/v2/a/tags/list", Some("n=many")), Err(NoObject::Limit));
        assert_eq!(parse("/v2/a/tags/list", Some("n=-1")), Err(NoObject::Limit));
        assert_eq!(parse("/v2/a/tags/list", Some("ns=a b")), Err(NoObject::Name));
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
            assert!(parse(path, None).is_err(), "{path}");
        }
        assert_eq!(parse("/v2/a/manifests/v1", Some("ns=../x")), Err(NoObject::Name));
        assert_eq!(parse("/v2/a/manifests/v1", Some("x=1&ns=a b")), Err(NoObject::Name));
        assert_eq!(parse(&format!("/v2/{}/manifests/v1", "a".repeat(2000)), None), Err(NoObject::Name));
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
