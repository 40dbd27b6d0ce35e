//! The documents of an image: descriptors, manifests, indexes and configurations.
//!
//! Invariant: a digest from a document is checked to be `sha256:` and 64 lower-case hexadecimal digits before use.

use crate::wire;
use shoal_proto::go_json::GoValue;
use shoal_proto::image::{is_layer, is_nondistributable};
use shoal_proto::image_documents::{self, ConfigDocument, DocumentFault, IndexDocument, ManifestDocument};
use shoal_proto::platform::Platform;

/// Most manifests in an index, and most layers in a manifest.
const PARTS_MAX: usize = 1024;
/// Most indexes on the way from the root to a manifest.
pub(crate) const DEPTH_MAX: usize = 4;
/// Media types of the configurations that containerd reads.
const CONFIGURATIONS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Largest manifest, index or configuration in bytes.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Why a document of an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bytes are not JSON of the expected form.
    #[error("the document is not valid JSON")]
    Json(#[from] serde_json::Error),
    /// A field of the document has another form than the image format says.
    #[error("the document cannot be used")]
    Fault(#[from] DocumentFault),
    /// The document lists too many blobs.
    #[error("the document lists more than {PARTS_MAX} blobs")]
    TooManyParts,
    /// A digest is not SHA-256 or is malformed.
    #[error("`{0}` is not a SHA-256 digest")]
    Digest(String),
    /// The index has no entry for this machine.
    #[error("the image is not for {}; push it for this platform", Platform::of_this_machine())]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type. Empty if the document has none.
    pub media_type: String,
    /// The digest as `sha256:...`. Unchecked unless it comes from a document.
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
}

impl Descriptor {
    /// Returns a descriptor.
    pub fn new(media_type: &str, digest: &str, size: u64) -> Self {
        Self { media_type: media_type.into(), digest: digest.into(), size }
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
        shoal_proto::image::is_index(&self.media_type)
    }
}

impl From<wire::Descriptor> for Descriptor {
    fn from(wire: wire::Descriptor) -> Self {
        Self::new(&wire.media_type, &wire.digest, u64::try_from(wire.size).unwrap_or(0))
    }
}

impl From<image_documents::Descriptor> for Descriptor {
    fn from(read: image_documents::Descriptor) -> Self {
        Self::new(&read.media_type, &read.digest.to_string(), read.size)
    }
}

/// The fields of a manifest that loading needs.
#[derive(Clone, Debug)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    /// The lowest layer is the first.
    pub(crate) layers: Vec<Descriptor>,
}

impl ImageManifest {
    /// Returns why containerd cannot unpack this manifest, or `None` if it is that of a file system.
    ///
    /// Signatures, attestations, charts and other artifacts have a configuration or layers of other types.
    pub(crate) fn why_no_file_system(&self) -> Option<String> {
        if !CONFIGURATIONS.contains(&self.config.media_type.as_str()) {
            return Some(format!("its configuration has the type `{}`", self.config.media_type));
        }
        let odd = self.layers.iter().find(|layer| !is_layer(&layer.media_type));
        odd.map(|layer| format!("it has a blob of the type `{}`", layer.media_type))
    }

    /// Returns the layers that an image may lack.
    pub(crate) fn nondistributable(&self) -> impl Iterator<Item = &Descriptor> {
        self.layers.iter().filter(|layer| is_nondistributable(&layer.media_type))
    }
}

fn check_count(parts: usize) -> Result<(), ImageError> {
    if parts > PARTS_MAX { Err(ImageError::TooManyParts) } else { Ok(()) }
}

pub(crate) fn parse_manifest(bytes: &[u8]) -> Result<ImageManifest, ImageError> {
    let manifest = ManifestDocument::read(&serde_json::from_slice::<GoValue>(bytes)?)?;
    check_count(manifest.layers.len())?;
    let layers = manifest.layers.into_iter().map(Descriptor::from).collect();
    Ok(ImageManifest { config: manifest.config.into(), layers })
}

/// The rows of an index that containerd may choose on this machine.
#[derive(Clone, Debug)]
pub(crate) struct PickedManifests {
    /// The best row first. There is more than one where releases of containerd choose differently.
    pub(crate) rows: Vec<Descriptor>,
    /// Whether the rows name no platform, so that the configuration has to be asked.
    pub(crate) are_unstated: bool,
}

/// Returns the rows of an index that are for this machine. An index of artifacts may have none.
pub(crate) fn pick_manifests(bytes: &[u8]) -> Result<PickedManifests, ImageError> {
    let index = IndexDocument::read(&serde_json::from_slice::<GoValue>(bytes)?)?;
    check_count(index.len())?;
    let choice = index.choose(&Platform::of_this_machine());
    let places = choice.candidates();
    let rows = places.into_iter().map(|place| index.row(place).map(Descriptor::from)).collect::<Result<Vec<_>, _>>()?;
    if rows.is_empty() && choice.is_by_platform {
        return Err(ImageError::NoPlatform);
    }
    Ok(PickedManifests { rows, are_unstated: choice.best.is_empty() })
}

/// The fields of a configuration that loading needs.
#[derive(Clone, Debug)]
pub(crate) struct ImageConfig {
    /// Whether containers of the image run on this machine.
    pub(crate) runs_here: bool,
    /// The digests of the uncompressed layers, the lowest layer first.
    pub(crate) diff_ids: Vec<String>,
}

pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ImageError> {
    let config = ConfigDocument::read(&serde_json::from_slice::<GoValue>(bytes)?)?;
    check_count(config.diff_ids.len())?;
    let diff_ids = config.diff_ids.iter().map(ToString::to_string).collect();
    Ok(ImageConfig { runs_here: Platform::of_this_machine().runs(&config.platform), diff_ids })
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

    fn architecture() -> &'static str {
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
    }

    fn pick_manifest(bytes: &[u8]) -> Result<Descriptor, ImageError> {
        pick_manifests(bytes)?.rows.into_iter().next().ok_or(ImageError::NoPlatform)
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
        assert!(pick_manifest(none.as_bytes()).unwrap_err().to_string().contains("not for linux/"));
        let trick = format!(r#"{{"manifests":[{}]}}"#, entry("linux", architecture(), "sha256:../x"));
        assert!(matches!(pick_manifest(trick.as_bytes()), Err(ImageError::Fault(DocumentFault::Digest(_)))));
        // A row that is not chosen may be anything.
        let beside = format!(r#"{{"manifests":[null,{{"digest":7}},{}]}}"#, entry("linux", architecture(), &ours));
        assert_eq!(pick_manifest(beside.as_bytes()).unwrap().digest, ours);
        assert!(pick_manifest(b"{\"manifests\":{}").is_err());
        let many = vec![entry("linux", architecture(), &other); PARTS_MAX + 1].join(",");
        assert!(pick_manifest(format!(r#"{{"manifests":[{many}]}}"#).as_bytes()).is_err());
    }

    #[test]
    fn artifacts_are_told_from_file_systems() {
        let kind = |config: &str, layers: &[&str]| {
            let row = |kind: &&str| format!(r#"{{"mediaType":"{kind}","digest":"{}","size":1}}"#, sha256(b"x"));
            let layers: Vec<String> = layers.iter().map(row).collect();
            let text = format!(r#"{{"config":{},"layers":[{}]}}"#, row(&config), layers.join(","));
            parse_manifest(text.as_bytes()).unwrap().why_no_file_system()
        };
        let (oci, layer) = ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip");
        assert_eq!(kind(oci, &[layer, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"]), None);
        assert_eq!(kind("application/vnd.docker.container.image.v1+json", &[]), None);
        for (config, layers) in [
            (oci, &["application/vnd.dev.cosign.simplesigning.v1+json"][..]),
            (oci, &["application/vnd.in-toto+json"]),
            ("application/vnd.cncf.helm.config.v1+json", &["application/vnd.cncf.helm.chart.content.v1.tar+gzip"]),
            ("application/vnd.oci.empty.v1+json", &["application/spdx+json"]),
        ] {
            assert!(kind(config, layers).is_some(), "{config} {layers:?}");
        }
    }

    #[test]
    fn what_go_writes_as_null_is_empty() {
        let row = format!(r#"{{"mediaType":"m","digest":"{}","size":1}}"#, sha256(b"x"));
        assert!(parse_manifest(format!(r#"{{"config":{row},"layers":null}}"#).as_bytes()).unwrap().layers.is_empty());
        let config = parse_config(br#"{"os":"linux","rootfs":{"diff_ids":null}}"#).unwrap();
        assert!(config.diff_ids.is_empty() && !config.runs_here, "no processor is named");
        let here = format!(r#"{{"architecture":"{}"}}"#, std::env::consts::ARCH);
        assert!(parse_config(here.as_bytes()).unwrap().runs_here);
        let empty = pick_manifests(br#"{"manifests":null}"#).unwrap();
        assert!(empty.rows.is_empty() && empty.are_unstated);
    }
}
