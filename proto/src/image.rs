//! Container images in a manifest: digests, references, and the blobs of an image.
//!
//! Invariant: a decoded [`ImageIndex`] has its root among its blobs and names no blob twice. Blob i is stream i of the
//! content. An empty blob has no stream, so it comes last.

use crate::codec::DecodeError;
use crate::hex;
use crate::ids::parse_hex;
use crate::limits;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// SHA-256 of no bytes.
const OF_NOTHING: Digest = Digest([
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41,
    0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
]);

/// An image index, OCI.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image manifest, OCI.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An image index, Docker.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// An image manifest, Docker.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Whether a media type belongs to an index, OCI or Docker.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// Whether a media type belongs to a manifest or an index. A registry serves these under `manifests/`.
pub fn is_manifest(media_type: &str) -> bool {
    is_index(media_type) || matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether a media type belongs to a layer that a registry need not have, because its licence forbids the copy.
pub fn is_nondistributable(media_type: &str) -> bool {
    ["application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign."]
        .iter()
        .any(|prefix| media_type.starts_with(prefix))
}

/// Whether a media type belongs to a layer of a file system, in any packing.
pub fn is_layer(media_type: &str) -> bool {
    ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."]
        .iter()
        .any(|prefix| media_type.starts_with(prefix))
}

/// The SHA-256 of a blob. Its text is `sha256:` and 64 lower-case digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Digest(#[cbor(with = "minicbor::bytes")] pub [u8; 32]);

impl Digest {
    /// Returns the 64 digits without `sha256:`.
    pub fn hex(&self) -> String {
        hex::encode(&self.0)
    }

    /// Returns the first twelve digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

/// A text that is not a digest, or one of another algorithm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest `{text}`: {why}")]
pub struct ParseDigestError {
    text: String,
    why: &'static str,
}

/// Whether a text is a digest of another algorithm than SHA-256, for example `sha512:` and 128 digits.
pub fn is_other_digest(text: &str) -> bool {
    let Some((algorithm, encoded)) = text.split_once(':') else { return false };
    let is_algorithm = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'.' | b'_' | b'-');
    let is_encoded = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-');
    algorithm != "sha256"
        && algorithm.starts_with(|c: char| c.is_ascii_lowercase())
        && algorithm.bytes().all(is_algorithm)
        // The image specification asks for 32 characters at least in its own algorithms.
        && encoded.len() >= 32
        && encoded.bytes().all(is_encoded)
}

impl FromStr for Digest {
    type Err = ParseDigestError;
    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let digits = text.strip_prefix("sha256:").filter(|digits| !digits.bytes().any(|b| b.is_ascii_uppercase()));
        let bytes = digits.and_then(|digits| parse_hex(digits).ok());
        let why = if is_other_digest(text) {
            "only SHA-256 is supported; copy the image with `sha256` digests"
        } else {
            "write `sha256:` and 64 lower-case hexadecimal digits (SHA-256)"
        };
        bytes.map(Self).ok_or_else(|| ParseDigestError { text: shorten(text), why })
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Returns whether a text is a registry, or a registry and the beginning of its repositories, e.g. `host:5000/lab`.
pub fn is_repository_prefix(text: &str) -> bool {
    let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    is_host(host) && path.is_none_or(is_repository)
}

/// Bounds what an error repeats of a text from outside.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Docker's own registry, by the name that references have.
const DOCKER_HUB: &str = "docker.io";

/// A registry and one of its repositories, written out in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullRepository {
    /// The registry, with Docker's own by one name.
    pub host: String,
    /// The repository, with `library/` for Docker's own images.
    pub path: String,
}

impl FullRepository {
    /// Writes a registry and a repository out in full: `index.docker.io` and `nginx` are `docker.io/library/nginx`.
    pub fn new(host: &str, path: &str) -> Self {
        let host = if host == "index.docker.io" { DOCKER_HUB } else { host };
        let is_short = host == DOCKER_HUB && !path.contains('/');
        Self { host: host.to_string(), path: if is_short { format!("library/{path}") } else { path.to_string() } }
    }
}

/// The name of an image: `host[:port]/path[:tag][@digest]`. The parser expands Docker's short forms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The registry, for example `docker.io` or `registry.example:5000`. containerd calls it `ns`.
    pub host: String,
    /// The repository, for example `library/nginx`.
    pub path: String,
    /// The tag. It is `latest` where the name has neither tag nor digest.
    pub tag: Option<String>,
    /// The digest, where the name has one.
    pub digest: Option<Digest>,
}

/// A text that is not a valid name of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name `{text}`: {why}")]
pub struct ParseReferenceError {
    text: String,
    why: &'static str,
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        let bad = |why| ParseReferenceError { text: shorten(text), why };
        if text.len() > limits::REFERENCE_BYTES_MAX {
            return Err(bad("too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| bad("only sha256 digests are supported"))?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag. A colon before it begins a port.
        let name_from = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_from..].find(':') {
            Some(colon) => (&rest[..name_from + colon], Some(&rest[name_from + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("a tag is letters, digits, `.`, `_`, `-`, at most 128, not begun by `.` or `-`"));
        }
        let FullRepository { host, path } = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                FullRepository::new(first, path)
            }
            _ => FullRepository::new(DOCKER_HUB, name),
        };
        if !is_host(&host) {
            return Err(bad("the registry is not a host name with an optional port"));
        }
        if !is_repository(&path) {
            return Err(bad("a repository is lower-case letters and digits, joined by `.`, `_`, `-` and `/`"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_string()),
            (tag, _) => tag.map(str::to_string),
        };
        Ok(Self { host, path, tag, digest })
    }
}

impl Reference {
    /// Returns whether another reference has the name of this one, whatever digest it has. A digest stands for a tag.
    pub fn has_name_of(&self, other: &Self) -> bool {
        let same_tag = self.tag == other.tag || (self.tag.is_none() && self.digest.is_some());
        (&self.host, &self.path) == (&other.host, &other.path) && same_tag
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// Whether a text is a valid tag.
pub fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether a text is a valid repository: components that begin and end with a letter or digit.
pub fn is_repository(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 255
        && text.split('/').all(|part| {
            let bytes = part.as_bytes();
            let ends = bytes.first().is_some_and(|b| plain(*b)) && bytes.last().is_some_and(|b| plain(*b));
            ends && !part.contains("..") && bytes.iter().all(|b| plain(*b) || matches!(b, b'.' | b'_' | b'-'))
        })
}

/// Whether a text is a valid registry: a host name or IPv4 address, with an optional port.
pub fn is_host(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().is_ok_and(|port| port > 0) && !port.starts_with('+')),
        None => (text, true),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    port && host.len() <= 253 && host.split('.').all(label)
}

/// One blob of an image: an index, a manifest, a configuration or a layer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ImageBlob {
    /// SHA-256 of its bytes.
    #[n(0)]
    pub digest: Digest,
    /// The media type in the referring document, for example `application/vnd.oci.image.layer.v1.tar+gzip`.
    #[n(1)]
    pub media_type: String,
    /// Length, bytes.
    #[n(2)]
    pub size: u64,
}

/// An image with the platforms that the seeder ingested.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ImageIndex {
    /// The full name, a [`Reference`].
    #[n(0)]
    pub reference: String,
    /// The digest behind the name: a manifest or an index among the blobs.
    #[n(1)]
    pub root: Digest,
    /// All blobs. An index may name manifests of platforms that the seeder did not ingest.
    #[n(2)]
    #[cbor(decode_with = "crate::codec::at_most::<{ limits::BLOBS_MAX }, _, _>")]
    pub blobs: Vec<ImageBlob>,
}

impl ImageIndex {
    /// Returns a blob and the number of its stream, or `None` if it is not part of this image.
    pub fn find(&self, digest: &Digest) -> Option<(usize, &ImageBlob)> {
        self.blobs.iter().enumerate().find(|(_, blob)| blob.digest == *digest)
    }

    /// Returns the parsed name. It is always `Some` in a decoded index.
    pub fn name(&self) -> Option<Reference> {
        self.reference.parse().ok()
    }

    /// Checks the index against the stream lengths of its content.
    pub(crate) fn validate(&self, streams: &[u64]) -> Result<(), DecodeError> {
        let bad = |what, why: String| Err(DecodeError::invalid(what, why));
        match self.reference.parse::<Reference>() {
            Err(error) => return bad("image.reference", error.to_string()),
            Ok(name) if name.to_string() != self.reference => {
                return bad("image.reference", "not the full form".into());
            }
            // A pinned name must never lead to other bytes.
            Ok(name) if name.digest.is_some_and(|digest| digest != self.root) => {
                return bad("image.reference", "its digest is not that of the image".into());
            }
            Ok(_) => {}
        }
        if self.blobs.len() > limits::BLOBS_MAX {
            return bad("image.blobs", format!("more than {} values", limits::BLOBS_MAX));
        }
        let mut digests: Vec<Digest> = self.blobs.iter().map(|blob| blob.digest).collect();
        digests.sort_unstable();
        if digests.windows(2).any(|pair| pair[0] == pair[1]) {
            return bad("image.blobs", "a digest twice".into());
        }
        match self.find(&self.root) {
            Some((_, root)) if is_manifest(&root.media_type) => {}
            Some(_) => return bad("image.root", "neither a manifest nor an index".into()),
            None => return bad("image.root", "not among the blobs".into()),
        }
        for (at, blob) in self.blobs.iter().enumerate() {
            if !is_media_type(&blob.media_type) {
                return bad("image.blobs", format!("media type `{}`", shorten(&blob.media_type)));
            }
            // Streams are never empty.
            let fits = match streams.get(at) {
                Some(stream) => *stream == blob.size,
                None => blob.size == 0 && blob.digest == OF_NOTHING,
            };
            if !fits {
                return bad("image.blobs", format!("{} is not its stream's length", blob.digest));
            }
        }
        if streams.len() > self.blobs.len() {
            return bad("image.blobs", "streams beyond the last blob".into());
        }
        Ok(())
    }
}

/// Whether a text is a valid media type: `type/subtype` in printable ASCII without spaces or quotes. A header can carry
/// it unchanged.
pub fn is_media_type(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b',' | b'(' | b')' | b'<' | b'>' | b'@');
    let halves = text.split_once('/').is_some_and(|(kind, sub)| !kind.is_empty() && !sub.is_empty());
    text.len() <= limits::MEDIA_TYPE_BYTES_MAX && halves && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_prefixes_are_registries_with_or_without_a_path() {
        for bad in ["", "/", "a/", "a//b", "https://a", "a/B", "a b"] {
            assert!(!is_repository_prefix(bad), "{bad}");
        }
        assert!(is_repository_prefix("registry.example:5000") && is_repository_prefix("docker.io/library"));
    }
}
