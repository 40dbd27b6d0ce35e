//! The documents of an image: descriptors, manifests, indexes and configurations.
//!
//! Invariant: a digest from a document is checked to be `sha256:` and 64 lower-case hexadecimal digits before use.

use crate::wire;
use serde::Deserialize;

/// Most manifests in an index, and most layers in a manifest.
const PARTS_MAX: usize = 1024;
/// Most indexes on the way from the root to a manifest.
pub(crate) const DEPTH_MAX: usize = 4;
/// Largest manifest, index or configuration in bytes.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Why a document of an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bytes are not JSON of the expected form.
    #[error("the document is not valid JSON")]
    Json(#[from] serde_json::Error),
    /// The document lists too many blobs.
    #[error("the document lists more than {PARTS_MAX} blobs")]
    TooManyParts,
    /// A digest is not SHA-256 or is malformed.
    #[error("`{0}` is not a SHA-256 digest")]
    Digest(String),
    /// The index has no entry for this machine.
    #[error("the index has no manifest for linux/{}; push the image for this platform", architecture())]
    NoPlatform,
    /// An index leads to an index too many times.
    #[error("indexes are nested more than {DEPTH_MAX} deep")]
    NestedIndexes,
    /// The manifest and the configuration disagree.
    #[error("the manifest lists {layers} layers, but the configuration lists {diff_ids} uncompressed digests")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Uncompressed digests in the configuration.
        diff_ids: usize,
    },
    /// The document is larger than any manifest.
    #[error("the document has {0} bytes, more than {DOCUMENT_BYTES_MAX}")]
    TooLarge(u64),
}

/// Whether `text` is a SHA-256 digest as images write it.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

/// Returns the digest of `bytes` as `sha256:...`.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".to_string(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// The reference to a blob in a document of an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// The media type. Empty if the document has none.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// The digest as `sha256:...`. Unchecked until the document is parsed.
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// The machines that an entry of an index is for.
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

impl Descriptor {
    /// Returns a descriptor without a platform.
    pub fn new(media_type: &str, digest: &str, size: u64) -> Self {
        Self { media_type: media_type.into(), digest: digest.into(), size, platform: None }
    }

    pub(crate) fn to_wire(&self) -> wire::Descriptor {
        wire::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            annotations: wire::Labels::new(),
        }
    }

    /// Whether the blob is an index, which lists manifests.
    pub(crate) fn is_index(&self) -> bool {
        self.media_type == "application/vnd.oci.image.index.v1+json"
            || self.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
    }

    /// Whether containers of this blob run on this machine.
    fn is_for_this_machine(&self) -> bool {
        self.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == architecture())
    }
}

impl From<wire::Descriptor> for Descriptor {
    fn from(wire: wire::Descriptor) -> Self {
        Self::new(&wire.media_type, &wire.digest, u64::try_from(wire.size).unwrap_or(0))
    }
}

/// Returns this machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// The fields of a manifest that loading needs.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    /// The lowest layer is the first.
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageIndex {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageConfig {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

fn check_digests<'a>(parts: impl IntoIterator<Item = &'a Descriptor>) -> Result<(), ImageError> {
    for (count, part) in parts.into_iter().enumerate() {
        if count >= PARTS_MAX {
            return Err(ImageError::TooManyParts);
        }
        if !is_digest(&part.digest) {
            return Err(ImageError::Digest(part.digest.clone()));
        }
    }
    Ok(())
}

pub(crate) fn parse_manifest(bytes: &[u8]) -> Result<ImageManifest, ImageError> {
    let manifest: ImageManifest = serde_json::from_slice(bytes)?;
    check_digests(manifest.layers.iter().chain([&manifest.config]))?;
    Ok(manifest)
}

/// Returns the entry of an index that is for this machine.
pub(crate) fn pick_manifest(bytes: &[u8]) -> Result<Descriptor, ImageError> {
    let index: ImageIndex = serde_json::from_slice(bytes)?;
    check_digests(&index.manifests)?;
    index.manifests.into_iter().find(Descriptor::is_for_this_machine).ok_or(ImageError::NoPlatform)
}

/// Returns the digests of a configuration's uncompressed layers, the lowest layer first.
pub(crate) fn parse_diff_ids(bytes: &[u8]) -> Result<Vec<String>, ImageError> {
    let config: ImageConfig = serde_json::from_slice(bytes)?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() > PARTS_MAX {
        return Err(ImageError::TooManyParts);
    }
    match diff_ids.iter().find(|id| !is_digest(id)) {
        Some(bad) => Err(ImageError::Digest(bad.clone())),
        None => Ok(diff_ids),
    }
}

/// Returns the names of the layers' snapshots, the lowest layer first.
///
/// The image format of OCI defines a chain id as the digest of the parent's chain id and the layer's uncompressed
/// digest.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for id in diff_ids {
        let next = match chain.last() {
            None => id.clone(),
            Some(parent) => sha256(format!("{parent} {id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_checked() {
        assert_eq!(sha256(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(is_digest(&sha256(b"a")));
        for bad in ["sha256:../../etc/passwd", "sha256:", "sha512:00", &sha256(b"a").to_uppercase(), "md5:1"] {
            assert!(!is_digest(bad), "{bad}");
        }
    }

    #[test]
    fn chain_ids_follow_the_image_format() {
        let (a, b) = (sha256(b"a"), sha256(b"b"));
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain, [a.clone(), sha256(format!("{a} {b}").as_bytes())]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn the_manifest_for_this_machine_is_picked_and_hostile_indexes_are_refused() {
        let entry = |os: &str, arch: &str, digest: &str| {
            format!(
                r#"{{"mediaType":"m","digest":"{digest}","size":3,"platform":{{"os":"{os}","architecture":"{arch}"}}}}"#
            )
        };
        let (other, ours) = (sha256(b"other"), sha256(b"ours"));
        let text = format!(
            r#"{{"manifests":[{},{}]}}"#,
            entry("unknown", "unknown", &other),
            entry("linux", architecture(), &ours)
        );
        assert_eq!(pick_manifest(text.as_bytes()).unwrap().digest, ours);
        let none = format!(r#"{{"manifests":[{}]}}"#, entry("plan9", "mips", &other));
        assert!(pick_manifest(none.as_bytes()).unwrap_err().to_string().contains("no manifest for linux/"));
        let trick = format!(r#"{{"manifests":[{}]}}"#, entry("linux", architecture(), "sha256:../x"));
        assert!(pick_manifest(trick.as_bytes()).unwrap_err().to_string().contains("not a SHA-256 digest"));
        assert!(pick_manifest(b"{\"manifests\":{}").is_err());
        let many = vec![entry("linux", architecture(), &other); PARTS_MAX + 1].join(",");
        assert!(pick_manifest(format!(r#"{{"manifests":[{many}]}}"#).as_bytes()).is_err());
    }
}
