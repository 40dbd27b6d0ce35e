//! An image's own documents, OCI and Docker: indexes, manifests and platforms, and which blobs they lead to.
//!
//! Invariant: [`Gather`] asks for a document by digest and accepts only bytes of that digest. Number and size of the
//! documents are bounded.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use serde::Deserialize;
use shoal_proto::image::{Digest, ImageBlob, ImageIndex, Reference, is_index, is_manifest, is_media_type};
use shoal_proto::limits;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;

/// Longest manifest or index, bytes. Common registries have the same limit.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Bytes of all documents of one image together.
const DOCUMENTS_BYTES_MAX: u64 = 64 << 20;
/// Manifests and indexes of one image.
const DOCUMENTS_MAX: usize = 256;

/// Platforms that an error lists.
const PLATFORMS_LISTED_MAX: usize = 32;
/// Characters of an invalid text that an error repeats.
const TEXT_SHOWN_MAX: usize = 80;

/// Why documents do not make an image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("{digest} has the type `{media_type}`, which is neither an OCI nor a Docker (schema 2) manifest or index")]
    Unsupported { digest: Digest, media_type: String },
    #[error("document {digest} is not JSON of the expected form")]
    Json { digest: Digest, source: serde_json::Error },
    #[error("a document names {digest} with the invalid media type `{media_type}`")]
    MediaType { digest: Digest, media_type: String },
    #[error("documents name {0} with two different lengths")]
    TwoLengths(Digest),
    #[error("the bytes for {expected} have the digest {found}")]
    WrongDigest { expected: Digest, found: Digest },
    #[error("the image has no platform {wanted}; it has: {has}")]
    NoPlatform { wanted: Platform, has: String },
    #[error("document {digest} has {size} bytes, the limit is {DOCUMENT_BYTES_MAX}")]
    DocumentTooLarge { digest: Digest, size: u64 },
    #[error("the image has more than {DOCUMENTS_MAX} documents, or more than {DOCUMENTS_BYTES_MAX} bytes of documents")]
    TooManyDocuments,
    #[error("the image has more than {max} blobs", max = limits::BLOBS_MAX)]
    TooManyBlobs,
}

/// An operating system and a processor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    /// For example `linux`.
    os: String,
    /// For example `amd64`.
    architecture: String,
    /// For example `v8`.
    #[serde(default)]
    variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// Which platforms of an index are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Platforms {
    /// Every manifest of the index.
    All,
    /// The first manifest that matches.
    One(Platform),
}

/// A text that names no platforms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform `{0}`: write os/arch, os/arch/variant or all")]
pub(crate) struct ParsePlatformsError(String);

impl Default for Platforms {
    /// Linux on the processor of this machine.
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self::One(Platform { os: "linux".into(), architecture: architecture.into(), variant: None })
    }
}

impl FromStr for Platforms {
    type Err = ParsePlatformsError;
    fn from_str(text: &str) -> Result<Self, ParsePlatformsError> {
        let invalid = || ParsePlatformsError(text.to_string());
        if text == "all" {
            return Ok(Self::All);
        }
        let parts: Vec<&str> = text.split('/').collect();
        let is_plain = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        if !parts.iter().all(is_plain) {
            return Err(invalid());
        }
        let [os, architecture, variant @ ..] = &parts[..] else { return Err(invalid()) };
        let variant = match variant {
            [] => None,
            [variant] => Some((*variant).to_string()),
            _ => return Err(invalid()),
        };
        Ok(Self::One(Platform { os: (*os).into(), architecture: (*architecture).into(), variant }))
    }
}

impl Platforms {
    /// Returns the descriptors of these platforms. A descriptor without a platform fits any.
    pub(crate) fn of<'a>(&self, all: &'a [Descriptor]) -> Result<Vec<&'a Descriptor>, DocumentError> {
        let Self::One(wanted) = self else { return Ok(all.iter().collect()) };
        let fits = |has: &Platform| {
            has.os == wanted.os
                && has.architecture == wanted.architecture
                && (wanted.variant.is_none() || wanted.variant == has.variant)
        };
        let found = all.iter().find(|row| row.platform.as_ref().is_none_or(fits));
        let platforms = || all.iter().filter_map(|row| row.platform.as_ref().map(Platform::to_string));
        found.map(|found| vec![found]).ok_or_else(|| DocumentError::NoPlatform {
            wanted: wanted.clone(),
            has: platforms().take(PLATFORMS_LISTED_MAX).collect::<Vec<_>>().join(", "),
        })
    }
}

/// How a document refers to another blob.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediaType")]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An index, also an OCI layout's.
#[derive(Debug, Deserialize)]
pub(crate) struct IndexDocument {
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct ManifestDocument {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Returns the SHA-256 digest of bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    Digest(out)
}

/// The result of [`Gather`].
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) index: ImageIndex,
    /// The bytes of the documents among the blobs of `index`.
    pub(crate) documents: BTreeMap<Digest, Bytes>,
}

/// A document that was read.
struct ReadDocument {
    blob: ImageBlob,
    bytes: Bytes,
}

/// Follows an image's documents from its root. The caller fetches the bytes, from files or from a registry.
pub(crate) struct Gather {
    platforms: Platforms,
    root: Digest,
    to_read: VecDeque<Descriptor>,
    /// In the order in which other documents name them.
    documents: Vec<ReadDocument>,
    /// Configurations and layers.
    others: Vec<ImageBlob>,
    /// Every blob that a document names, and its length.
    known: BTreeMap<Digest, u64>,
}

impl Gather {
    /// Begins at the root.
    ///
    /// # Errors
    /// Returns an error if the root is not a manifest or index, or is too large.
    pub(crate) fn new(root: Descriptor, platforms: Platforms) -> Result<Self, DocumentError> {
        let mut made = Self {
            platforms,
            root: root.digest,
            to_read: VecDeque::new(),
            documents: Vec::new(),
            others: Vec::new(),
            known: BTreeMap::new(),
        };
        made.expect(root)?;
        Ok(made)
    }

    /// Returns the document that the caller fetches next, or `None` when all are read.
    pub(crate) fn next(&self) -> Option<&Descriptor> {
        self.to_read.front()
    }

    /// Reads the bytes of [`Gather::next`].
    ///
    /// # Errors
    /// Returns an error if the bytes have another digest, cannot be read, or lead over a limit.
    pub(crate) fn add(&mut self, bytes: Bytes) -> Result<(), DocumentError> {
        let Some(descriptor) = self.to_read.pop_front() else { return Ok(()) };
        let (expected, found) = (descriptor.digest, digest_of(&bytes));
        if expected != found || bytes.len() as u64 != descriptor.size {
            return Err(DocumentError::WrongDigest { expected, found });
        }
        let malformed = |source: serde_json::Error| DocumentError::Json { digest: expected, source };
        if is_index(&descriptor.media_type) {
            let index: IndexDocument = serde_json::from_slice(&bytes).map_err(malformed)?;
            let chosen: Vec<Descriptor> = self.platforms.of(&index.manifests)?.into_iter().cloned().collect();
            chosen.into_iter().try_for_each(|row| self.expect(row))?;
        } else {
            let manifest: ManifestDocument = serde_json::from_slice(&bytes).map_err(malformed)?;
            std::iter::once(manifest.config).chain(manifest.layers).try_for_each(|row| self.add_blob(row))?;
        }
        let Descriptor { digest, media_type, size, .. } = descriptor;
        self.documents.push(ReadDocument { blob: ImageBlob { digest, media_type, size }, bytes });
        Ok(())
    }

    /// Adds a document that is to be read.
    fn expect(&mut self, row: Descriptor) -> Result<(), DocumentError> {
        if !is_manifest(&row.media_type) {
            return Err(DocumentError::Unsupported { digest: row.digest, media_type: row.media_type });
        }
        if !self.is_new(&row)? {
            return Ok(());
        }
        if row.size > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::DocumentTooLarge { digest: row.digest, size: row.size });
        }
        let all: u64 =
            self.documents.iter().map(|read| read.blob.size).chain(self.to_read.iter().map(|row| row.size)).sum();
        if self.documents.len() + self.to_read.len() >= DOCUMENTS_MAX || all + row.size > DOCUMENTS_BYTES_MAX {
            return Err(DocumentError::TooManyDocuments);
        }
        self.to_read.push_back(row);
        Ok(())
    }

    /// Adds a configuration or layer.
    fn add_blob(&mut self, row: Descriptor) -> Result<(), DocumentError> {
        if !is_media_type(&row.media_type) {
            // Escaped: the text may contain line breaks that forge a header or a log line.
            let media_type = row.media_type.escape_debug().take(TEXT_SHOWN_MAX).collect();
            return Err(DocumentError::MediaType { digest: row.digest, media_type });
        }
        if self.is_new(&row)? {
            self.others.push(ImageBlob { digest: row.digest, media_type: row.media_type, size: row.size });
        }
        Ok(())
    }

    /// Returns whether a digest is named for the first time.
    fn is_new(&mut self, row: &Descriptor) -> Result<bool, DocumentError> {
        if self.known.len() >= limits::BLOBS_MAX {
            return Err(DocumentError::TooManyBlobs);
        }
        match self.known.insert(row.digest, row.size) {
            None => Ok(true),
            Some(size) if size == row.size => Ok(false),
            Some(_) => Err(DocumentError::TwoLengths(row.digest)),
        }
    }

    /// Returns the image under this name. The caller has read every document.
    pub(crate) fn finish(self, reference: &Reference) -> Gathered {
        let mut blobs: Vec<ImageBlob> = self.documents.iter().map(|read| read.blob.clone()).collect();
        blobs.extend(self.others);
        // An empty blob has no stream, and the streams of a manifest are numbered without gaps, so empty blobs come
        // last.
        blobs.sort_by_key(|blob| blob.size == 0);
        let documents = self.documents.into_iter().map(|read| (read.blob.digest, read.bytes)).collect();
        Gathered { index: ImageIndex { reference: reference.to_string(), root: self.root, blobs }, documents }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::image::{OCI_INDEX, OCI_MANIFEST};

    fn descriptor(media_type: &str, bytes: &[u8]) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, digest_of(bytes), bytes.len())
    }

    fn with_platform(descriptor: &str, platform: &str) -> String {
        let (os, architecture) = platform.split_once('/').unwrap();
        let end = descriptor.len() - 1;
        format!(r#"{},"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#, &descriptor[..end])
    }

    fn manifest(layer: &[u8]) -> String {
        let (config, layer) = (descriptor("a/config", b"{}"), descriptor("a/tar", layer));
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{layer}]}}"#)
    }

    fn gather(root: &str, choice: &str, documents: &[&str]) -> Result<(ImageIndex, usize), DocumentError> {
        let mut gather = Gather::new(serde_json::from_str(root).unwrap(), choice.parse().unwrap())?;
        while let Some(wanted) = gather.next() {
            let bytes = documents.iter().find(|text| digest_of(text.as_bytes()) == wanted.digest).unwrap_or(&"?");
            gather.add(bytes.as_bytes().to_vec().into())?;
        }
        let gathered = gather.finish(&"r.example/a:1".parse().unwrap());
        Ok((gathered.index, gathered.documents.len()))
    }

    #[test]
    fn a_platform_is_chosen_and_the_index_kept() {
        let (amd, arm) = (manifest(b"amd"), manifest(b"arm"));
        let rows = [(&amd, "linux/amd64"), (&arm, "linux/arm64")]
            .map(|(text, platform)| with_platform(&descriptor(OCI_MANIFEST, text.as_bytes()), platform));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, rows.join(","));
        let root = descriptor(OCI_INDEX, index.as_bytes());
        let documents = [&*index, &amd, &arm];
        let (one, kept) = gather(&root, "linux/arm64", &documents).unwrap();
        assert_eq!((one.blobs.len(), kept), (4, 2), "index, manifest, configuration, one layer named twice");
        assert_eq!(one.root, digest_of(index.as_bytes()));
        assert!(one.find(&digest_of(b"arm")).is_some() && one.find(&digest_of(b"amd")).is_none());
        let (all, _) = gather(&root, "all", &documents).unwrap();
        assert_eq!(all.blobs.len(), 6, "the configuration is shared");
        let none = gather(&root, "linux/s390x", &documents).unwrap_err().to_string();
        assert!(none.contains("linux/s390x") && none.contains("linux/amd64, linux/arm64"), "{none}");
    }

    #[test]
    fn documents_that_are_not_an_image_are_refused() {
        let text = manifest(b"x");
        let root = descriptor(OCI_MANIFEST, text.as_bytes());
        let refused = |root: &str, documents: &[&str]| gather(root, "all", documents).unwrap_err().to_string();
        assert!(refused(&root, &["other"]).contains("have the digest"));
        assert!(
            refused(&descriptor("application/vnd.docker.distribution.manifest.v1+json", b""), &[]).contains("v1+json")
        );
        assert!(refused(&descriptor(OCI_MANIFEST, b"nonsense"), &["nonsense"]).contains("is not JSON"));
        let huge = root.replace(&format!("\"size\":{}", text.len()), "\"size\":8388608");
        assert!(refused(&huge, &[&text]).contains("the limit is 4194304"));
        let two = text.replacen("\"size\":1", "\"size\":7", 1);
        assert!(refused(&descriptor(OCI_MANIFEST, two.as_bytes()), &[&two]).contains("two different lengths"));
        for bad in ["sha256:../../../etc/passwd", "sha512:00", "../x", ""] {
            let tricky = text.replacen(&digest_of(b"x").to_string(), bad, 1);
            assert!(refused(&descriptor(OCI_MANIFEST, tricky.as_bytes()), &[&tricky]).contains("is not JSON"), "{bad}");
        }
        let header = text.replacen("a/tar", r"a/tar\r\nX-Y: z", 1);
        assert!(refused(&descriptor(OCI_MANIFEST, header.as_bytes()), &[&header]).contains("media type"));
    }

    #[test]
    fn platforms_are_read() {
        for good in ["linux/amd64", "linux/arm64/v8", "all"] {
            assert!(good.parse::<Platforms>().is_ok(), "{good}");
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"] {
            assert!(bad.parse::<Platforms>().is_err(), "{bad}");
        }
    }
}
