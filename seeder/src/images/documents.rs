//! An image's own documents, OCI and Docker: indexes, manifests, platforms; and which blobs they lead to.
//!
//! Invariant: [`Gather`] asks for a document by digest and takes only bytes of that digest; what it gathers is bounded.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use serde::Deserialize;
use shoal_proto::image::{Digest, ImageBlob, ImageIndex, Reference, is_index, is_manifest, is_media_type};
use shoal_proto::limits;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;

/// Longest manifest or index, bytes: what the registries of the trade take themselves.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Bytes of all documents of one image.
const DOCUMENTS_BYTES_MAX: u64 = 64 << 20;
/// Manifests and indexes in one image.
const DOCUMENTS_MAX: usize = 256;

/// Why documents do not make an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// A type nobody here can read.
    #[error("{digest} is of type `{media_type}`, which is neither an OCI nor a Docker (schema 2) manifest or index")]
    Unsupported {
        /// The document.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// Not what its type says.
    #[error("{digest} cannot be read: {why}")]
    Malformed {
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// Other bytes than its digest says.
    #[error("the bytes given for {expected} are those of {found}")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The index has no such platform.
    #[error("the image has no platform {wanted}; it has: {has}")]
    NoPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        has: String,
    },
    /// Over a limit.
    #[error("{0}")]
    Limit(String),
}

/// An operating system and processor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// E.g. `linux`.
    pub os: String,
    /// E.g. `amd64`.
    pub architecture: String,
    /// E.g. `v8`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// Which of an index's platforms are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Every manifest of the index.
    All,
    /// The first that matches.
    One(Platform),
}

impl Default for Choice {
    /// This machine's.
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self::One(Platform { os: "linux".into(), architecture: architecture.into(), variant: None })
    }
}

impl FromStr for Choice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not os/arch, os/arch/variant or all");
        if text == "all" {
            return Ok(Self::All);
        }
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
        if !parts.iter().all(plain) {
            return Err(bad());
        }
        let [os, architecture, variant @ ..] = &parts[..] else { return Err(bad()) };
        let variant = match variant {
            [] => None,
            [variant] => Some((*variant).to_string()),
            _ => return Err(bad()),
        };
        Ok(Self::One(Platform { os: (*os).into(), architecture: (*architecture).into(), variant }))
    }
}

impl Choice {
    /// The descriptors of these platforms. One that says no platform fits any.
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
            has: platforms().take(32).collect::<Vec<_>>().join(", "),
        })
    }
}

/// What a document says of another.
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

/// The SHA-256 of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    Digest(out)
}

/// Follows an image's documents from its root. Whoever runs it brings the bytes, from wherever they are.
pub(crate) struct Gather {
    choice: Choice,
    root: Digest,
    todo: VecDeque<Descriptor>,
    /// The documents read, in the order they were named.
    documents: Vec<(ImageBlob, Bytes)>,
    /// Configurations and layers.
    others: Vec<ImageBlob>,
    known: BTreeMap<Digest, u64>,
}

impl Gather {
    pub(crate) fn new(root: Descriptor, choice: Choice) -> Result<Self, DocumentError> {
        let mut made = Self {
            choice,
            root: root.digest,
            todo: VecDeque::new(),
            documents: Vec::new(),
            others: Vec::new(),
            known: BTreeMap::new(),
        };
        made.expect(root)?;
        Ok(made)
    }

    /// The document to bring next, and how long it should be; `None` when all are here.
    pub(crate) fn next(&self) -> Option<&Descriptor> {
        self.todo.front()
    }

    /// The bytes of [`Gather::next`].
    pub(crate) fn bring(&mut self, bytes: Bytes) -> Result<(), DocumentError> {
        let Some(descriptor) = self.todo.pop_front() else { return Ok(()) };
        let (expected, found) = (descriptor.digest, digest_of(&bytes));
        if expected != found || bytes.len() as u64 != descriptor.size {
            return Err(DocumentError::WrongDigest { expected, found });
        }
        let malformed =
            |error: serde_json::Error| DocumentError::Malformed { digest: expected, why: error.to_string() };
        if is_index(&descriptor.media_type) {
            let index: IndexDocument = serde_json::from_slice(&bytes).map_err(malformed)?;
            let chosen: Vec<Descriptor> = self.choice.of(&index.manifests)?.into_iter().cloned().collect();
            chosen.into_iter().try_for_each(|row| self.expect(row))?;
        } else {
            let manifest: ManifestDocument = serde_json::from_slice(&bytes).map_err(malformed)?;
            std::iter::once(manifest.config).chain(manifest.layers).try_for_each(|row| self.note(row))?;
        }
        let Descriptor { digest, media_type, size, .. } = descriptor;
        self.documents.push((ImageBlob { digest, media_type, size }, bytes));
        Ok(())
    }

    /// A document is to be read.
    fn expect(&mut self, row: Descriptor) -> Result<(), DocumentError> {
        if !is_manifest(&row.media_type) {
            return Err(DocumentError::Unsupported { digest: row.digest, media_type: row.media_type });
        }
        if !self.is_new(&row)? {
            return Ok(());
        }
        let limit = |what: String| Err(DocumentError::Limit(what));
        if row.size > DOCUMENT_BYTES_MAX {
            return limit(format!("manifest {} has {} bytes, the limit is {DOCUMENT_BYTES_MAX}", row.digest, row.size));
        }
        let all: u64 =
            self.documents.iter().map(|(blob, _)| blob.size).chain(self.todo.iter().map(|row| row.size)).sum();
        if self.documents.len() + self.todo.len() >= DOCUMENTS_MAX || all + row.size > DOCUMENTS_BYTES_MAX {
            return limit(format!("more than {DOCUMENTS_MAX} manifests, or {DOCUMENTS_BYTES_MAX} bytes of them"));
        }
        self.todo.push_back(row);
        Ok(())
    }

    /// A blob belongs to the image.
    fn note(&mut self, row: Descriptor) -> Result<(), DocumentError> {
        if !is_media_type(&row.media_type) {
            let why = format!("`{}` is no media type", row.media_type.escape_debug().take(80).collect::<String>());
            return Err(DocumentError::Malformed { digest: row.digest, why });
        }
        if self.is_new(&row)? {
            self.others.push(ImageBlob { digest: row.digest, media_type: row.media_type, size: row.size });
        }
        Ok(())
    }

    /// Whether a digest is named for the first time; it must have one length only.
    fn is_new(&mut self, row: &Descriptor) -> Result<bool, DocumentError> {
        if self.known.len() >= limits::BLOBS_MAX {
            return Err(DocumentError::Limit(format!("more than {} blobs", limits::BLOBS_MAX)));
        }
        match self.known.insert(row.digest, row.size) {
            None => Ok(true),
            Some(size) if size == row.size => Ok(false),
            Some(_) => Err(DocumentError::Malformed { digest: row.digest, why: "named with two lengths".into() }),
        }
    }

    /// What was gathered, with the documents' bytes.
    pub(crate) fn finish(self, reference: &Reference) -> (ImageIndex, BTreeMap<Digest, Bytes>) {
        let (mut blobs, documents): (Vec<ImageBlob>, BTreeMap<Digest, Bytes>) =
            self.documents.into_iter().map(|(blob, bytes)| (blob.clone(), (blob.digest, bytes))).unzip();
        blobs.extend(self.others);
        // An empty one has no stream, so nothing may follow it.
        blobs.sort_by_key(|blob| blob.size == 0);
        (ImageIndex { reference: reference.to_string(), root: self.root, blobs }, documents)
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
            gather.bring(bytes.as_bytes().to_vec().into())?;
        }
        let (index, kept) = gather.finish(&"r.example/a:1".parse().unwrap());
        Ok((index, kept.len()))
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
    fn what_is_no_image_is_refused() {
        let text = manifest(b"x");
        let root = descriptor(OCI_MANIFEST, text.as_bytes());
        let refused = |root: &str, documents: &[&str]| gather(root, "all", documents).unwrap_err().to_string();
        assert!(refused(&root, &["other"]).contains("are those of"));
        assert!(
            refused(&descriptor("application/vnd.docker.distribution.manifest.v1+json", b""), &[]).contains("v1+json")
        );
        assert!(refused(&descriptor(OCI_MANIFEST, b"nonsense"), &["nonsense"]).contains("cannot be read"));
        let huge = root.replace(&format!("\"size\":{}", text.len()), "\"size\":8388608");
        assert!(refused(&huge, &[&text]).contains("the limit is 4194304"));
        let two = text.replacen("\"size\":1", "\"size\":7", 1);
        assert!(refused(&descriptor(OCI_MANIFEST, two.as_bytes()), &[&two]).contains("two lengths"));
        for bad in ["sha256:../../../etc/passwd", "sha512:00", "../x", ""] {
            let tricky = text.replacen(&digest_of(b"x").to_string(), bad, 1);
            assert!(
                refused(&descriptor(OCI_MANIFEST, tricky.as_bytes()), &[&tricky]).contains("cannot be read"),
                "{bad}"
            );
        }
        let header = text.replacen("a/tar", r"a/tar\r\nX-Y: z", 1);
        assert!(refused(&descriptor(OCI_MANIFEST, header.as_bytes()), &[&header]).contains("media type"));
    }

    #[test]
    fn platforms_are_read() {
        for good in ["linux/amd64", "linux/arm64/v8", "all"] {
            assert!(good.parse::<Choice>().is_ok(), "{good}");
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"] {
            assert!(bad.parse::<Choice>().is_err(), "{bad}");
        }
    }
}
