//! What a request to the mirror asks for.
//!
//! Invariant: a parsed [`Ask`] names nothing but checked repositories, tags, hosts and digests; no text from outside
//! becomes part of a path.

use crate::images::RepositoryName;
use shoal_proto::image::{Digest, is_host, is_repository, is_tag};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Whether this is a registry at all.
    Base,
    /// A manifest or index.
    Manifest {
        /// Where and what.
        name: RepositoryName,
        /// By what.
        by: By,
    },
    /// Any blob.
    Blob(Digest),
    /// What refers to a manifest.
    Referrers(Digest),
}

/// How a manifest is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    Tag(String),
    Digest(Digest),
}

/// Longest path looked at, bytes.
const PATH_MAX: usize = 1024;

/// Reads a request's path and query; `None` for what the mirror does not serve.
pub(super) fn parse(path: &str, query: Option<&str>) -> Option<Ask> {
    if path.len() > PATH_MAX {
        return None;
    }
    let path = unescape(path)?;
    let rest = path.strip_prefix("/v2")?;
    if matches!(rest, "" | "/") {
        return Some(Ask::Base);
    }
    // The repository itself holds slashes: the last two components say what is asked of it.
    let (front, last) = rest.strip_prefix('/')?.rsplit_once('/')?;
    let (repository, what) = front.rsplit_once('/')?;
    if !is_repository(repository) {
        return None;
    }
    match what {
        "blobs" => last.parse().ok().map(Ask::Blob),
        "referrers" => last.parse().ok().map(Ask::Referrers),
        "manifests" => {
            let by = match last.parse() {
                Ok(digest) => By::Digest(digest),
                Err(_) if is_tag(last) => By::Tag(last.to_string()),
                Err(_) => return None,
            };
            Some(Ask::Manifest {
                name: RepositoryName { registry: namespace(query)?, path: repository.to_string() },
                by,
            })
        }
        _ => None,
    }
}

/// The registry a query names, if it does; the outer `None` when what it names cannot be one.
fn namespace(query: Option<&str>) -> Option<Option<String>> {
    let pairs = query.unwrap_or_default().split('&');
    let Some(text) = pairs.filter_map(|pair| pair.strip_prefix("ns=")).next() else { return Some(None) };
    let host = unescape(text)?;
    is_host(&host).then_some(Some(host))
}

/// Undoes percent-encoding; `None` when it is broken or not text.
fn unescape(text: &str) -> Option<String> {
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

/// Which bytes of a blob are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// All of it, with status 200.
    Whole,
    /// From the first to before the second, with status 206. Never empty.
    Part(u64, u64),
    /// What is asked for is not there: 416.
    Outside,
}

/// Reads a `Range` header against a blob's size. What is not understood is ignored, as HTTP wants it; so are several
/// ranges at once, which no puller asks for.
pub(super) fn span(range: Option<&str>, size: u64) -> Span {
    let Some(spec) = range.and_then(|range| range.trim().strip_prefix("bytes=")) else { return Span::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Span::Whole };
    let number = |text: &str| -> Option<u64> {
        let plain = !text.is_empty() && text.len() <= 19 && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse().ok())?
    };
    match (number(first), number(last), first.is_empty(), last.is_empty()) {
        (Some(from), None, _, true) if from < size => Span::Part(from, size),
        (Some(from), Some(to), ..) if from <= to && from < size => Span::Part(from, size.min(to.saturating_add(1))),
        // The last so many bytes.
        (None, Some(tail), true, _) if tail > 0 && size > 0 => Span::Part(size.saturating_sub(tail), size),
        (Some(_), None, _, true) | (None, Some(_), true, _) => Span::Outside,
        (Some(from), Some(to), ..) if from <= to => Span::Outside,
        _ => Span::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_pullers_ask_is_understood() {
        assert_eq!(parse("/v2/", None), Some(Ask::Base));
        assert_eq!(parse("/v2", None), Some(Ask::Base));
        let ask = parse("/v2/lab/app/manifests/v1", Some("ns=registry.example%3A5000"));
        let name = RepositoryName { registry: Some("registry.example:5000".into()), path: "lab/app".into() };
        assert_eq!(ask, Some(Ask::Manifest { name, by: By::Tag("v1".into()) }));
        let ask = parse(&format!("/v2/app/manifests/{DIGEST}"), None);
        let name = RepositoryName { registry: None, path: "app".into() };
        assert_eq!(ask, Some(Ask::Manifest { name, by: By::Digest(DIGEST.parse().unwrap()) }));
        let blob = Some(Ask::Blob(DIGEST.parse().unwrap()));
        assert_eq!(parse(&format!("/v2/a/b/c/blobs/{DIGEST}"), Some("ns=docker.io")), blob);
        assert_eq!(parse(&format!("/v2/a/blobs/{}", DIGEST.replace(':', "%3A")), None), blob);
        // A repository may be called like a part of the API.
        assert_eq!(parse(&format!("/v2/blobs/manifests/blobs/{DIGEST}"), None), blob);
        assert_eq!(parse(&format!("/v2/a/referrers/{DIGEST}"), None), Some(Ask::Referrers(DIGEST.parse().unwrap())));
    }

    #[test]
    fn tricks_are_not() {
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
    fn ranges_are_as_http_has_them() {
        assert_eq!(span(None, 10), Span::Whole);
        assert_eq!(span(Some("bytes=0-"), 10), Span::Part(0, 10));
        assert_eq!(span(Some("bytes=3-"), 10), Span::Part(3, 10));
        assert_eq!(span(Some("bytes=3-3"), 10), Span::Part(3, 4));
        assert_eq!(span(Some("bytes=3-99"), 10), Span::Part(3, 10));
        assert_eq!(span(Some("bytes=-4"), 10), Span::Part(6, 10));
        assert_eq!(span(Some("bytes=-40"), 10), Span::Part(0, 10));
        for outside in ["bytes=10-", "bytes=10-11", "bytes=-0"] {
            assert_eq!(span(Some(outside), 10), Span::Outside, "{outside}");
        }
        assert_eq!(span(Some("bytes=0-"), 0), Span::Outside);
        for odd in ["bytes=5-3", "bytes=a-b", "bytes=-", "bytes=1-2,4-5", "lines=1-2", "bytes=+1-2", "bytes=1"] {
            assert_eq!(span(Some(odd), 10), Span::Whole, "{odd}");
        }
        let huge = "bytes=99999999999999999999999999-";
        assert_eq!(span(Some(huge), 10), Span::Whole);
    }
}
