//! Which documents and blobs an image is made of, and which of its platforms are needed.
//!
//! Invariant: [`Gather`] asks for a document by digest and accepts only bytes of that digest. Number and size of the
//! documents are bounded.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use shoal_proto::go_json::GoValue;
use shoal_proto::image::{
    Digest, ImageBlob, ImageIndex, Reference, is_index, is_manifest, is_media_type, is_nondistributable,
};
use shoal_proto::image_documents::{Descriptor, DocumentFault, IndexDocument, ManifestDocument};
use shoal_proto::limits;
use shoal_proto::platform::{Platform, StatedPlatform};
use std::collections::{BTreeMap, VecDeque};
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
    #[error("document {digest} cannot be used")]
    Fault { digest: Digest, source: DocumentFault },
    #[error("a document names {digest} with the invalid media type `{media_type}`")]
    MediaType { digest: Digest, media_type: String },
    #[error("documents name {0} with two different lengths")]
    TwoLengths(Digest),
    #[error("the bytes for {expected} have the digest {found}")]
    WrongDigest { expected: Digest, found: Digest },
    #[error("the image has no platform {wanted}; it has: {has}")]
    NoPlatform { wanted: Box<Platform>, has: String },
    #[error("document {digest} has {size} bytes, the limit is {DOCUMENT_BYTES_MAX}")]
    DocumentTooLarge { digest: Digest, size: u64 },
    #[error("the image has more than {DOCUMENTS_MAX} documents, or more than {DOCUMENTS_BYTES_MAX} bytes of documents")]
    TooManyDocuments,
    #[error("the image has more than {max} blobs", max = limits::BLOBS_MAX)]
    TooManyBlobs,
}

/// Which platforms of an index are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Platforms {
    /// Every manifest of the index.
    All,
    /// What containerd takes on this platform.
    One(Platform),
}

/// A text that names no platforms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform `{0}`: write os/arch, os/arch/variant or all")]
pub(crate) struct ParsePlatformsError(String);

impl Default for Platforms {
    /// Linux on the processor of this machine.
    fn default() -> Self {
        Self::One(Platform::of_this_machine())
    }
}

impl FromStr for Platforms {
    type Err = ParsePlatformsError;
    fn from_str(text: &str) -> Result<Self, ParsePlatformsError> {
        let invalid = |_| ParsePlatformsError(text.chars().take(TEXT_SHOWN_MAX).collect());
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::One).map_err(invalid) }
    }
}

impl Platforms {
    /// Returns the places of the needed rows of an index.
    ///
    /// An index whose rows name no platform is a list of artifacts, so all its rows are needed.
    ///
    /// # Errors
    /// Returns an error if the index has other platforms only.
    pub(crate) fn rows_of(&self, index: &IndexDocument) -> Result<Vec<usize>, DocumentError> {
        let Self::One(wanted) = self else { return Ok((0..index.len()).collect()) };
        let choice = index.choose(wanted);
        if !choice.best.is_empty() {
            return Ok(choice.best);
        }
        if !choice.unstated.is_empty() || index.is_empty() {
            return Ok(choice.unstated);
        }
        let name = |row: StatedPlatform| if let StatedPlatform::Is(has) = row { Some(has.to_string()) } else { None };
        let has: Vec<String> = index.platforms().into_iter().filter_map(name).take(PLATFORMS_LISTED_MAX).collect();
        Err(DocumentError::NoPlatform { wanted: Box::new(wanted.clone()), has: has.join(", ") })
    }
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
    /// Layers that a registry need not have. They are not among the blobs of `index`.
    pub(crate) nondistributable: Vec<ImageBlob>,
}

impl Gathered {
    /// Adds a blob that the image has besides those of its documents.
    pub(crate) fn add(&mut self, blob: ImageBlob) {
        self.index.blobs.push(blob);
        sort_blobs(&mut self.index.blobs);
    }
}

/// Puts the empty blobs last. They have no stream, and the streams of a manifest are numbered without gaps.
fn sort_blobs(blobs: &mut [ImageBlob]) {
    blobs.sort_by_key(|blob| blob.size == 0);
}

/// A document that was read.
struct ReadDocument {
    blob: ImageBlob,
    bytes: Bytes,
}

/// A document that is to be read.
struct ExpectedDocument {
    descriptor: Descriptor,
    platforms: Platforms,
}

/// Follows an image's documents from its root. The caller fetches the bytes, from files or from a registry.
pub(crate) struct Gather {
    root: Digest,
    to_read: VecDeque<ExpectedDocument>,
    /// In the order in which other documents name them.
    documents: Vec<ReadDocument>,
    /// Configurations and layers.
    others: Vec<ImageBlob>,
    nondistributable: Vec<ImageBlob>,
    /// Every blob that a document names, and its length. Layers that a registry need not have are left out.
    known: BTreeMap<Digest, u64>,
}

impl Gather {
    /// Begins at the root.
    ///
    /// # Errors
    /// Returns an error if the root is not a manifest or index, or is too large.
    pub(crate) fn new(root: Descriptor, platforms: Platforms) -> Result<Self, DocumentError> {
        let mut made = Self {
            root: root.digest,
            to_read: VecDeque::new(),
            documents: Vec::new(),
            others: Vec::new(),
            nondistributable: Vec::new(),
            known: BTreeMap::new(),
        };
        made.expect(root, platforms)?;
        Ok(made)
    }

    /// Adds a document beside the root, with all that it leads to.
    ///
    /// # Errors
    /// Returns an error if it is not a manifest or index, or leads over a limit.
    pub(crate) fn also(&mut self, descriptor: Descriptor) -> Result<(), DocumentError> {
        self.expect(descriptor, Platforms::All)
    }

    /// Returns the document that the caller fetches next, or `None` when all are read.
    pub(crate) fn next(&self) -> Option<&Descriptor> {
        self.to_read.front().map(|expected| &expected.descriptor)
    }

    /// Reads the bytes of [`Gather::next`].
    ///
    /// # Errors
    /// Returns an error if the bytes have another digest, cannot be read, or lead over a limit.
    pub(crate) fn add(&mut self, bytes: Bytes) -> Result<(), DocumentError> {
        let Some(ExpectedDocument { descriptor, platforms }) = self.to_read.pop_front() else { return Ok(()) };
        let (expected, found) = (descriptor.digest, digest_of(&bytes));
        if expected != found || bytes.len() as u64 != descriptor.size {
            return Err(DocumentError::WrongDigest { expected, found });
        }
        let fault = |source| DocumentError::Fault { digest: expected, source };
        let document: GoValue =
            serde_json::from_slice(&bytes).map_err(|source| DocumentError::Json { digest: expected, source })?;
        if is_index(&descriptor.media_type) {
            let index = IndexDocument::read(&document).map_err(fault)?;
            let stated = index.platforms();
            for place in platforms.rows_of(&index)? {
                let row = index.row(place).map_err(fault)?;
                // An index of artifacts may list blobs of any kind.
                let is_free = platforms == Platforms::All || !matches!(stated.get(place), Some(StatedPlatform::Is(_)));
                match is_manifest(&row.media_type) || !is_free {
                    true => self.expect(row, platforms.clone())?,
                    false => self.add_blob(row)?,
                }
            }
        } else {
            let manifest = ManifestDocument::read(&document).map_err(fault)?;
            std::iter::once(manifest.config).chain(manifest.layers).try_for_each(|row| self.add_blob(row))?;
        }
        let Descriptor { digest, media_type, size, .. } = descriptor;
        self.documents.push(ReadDocument { blob: ImageBlob { digest, media_type, size }, bytes });
        Ok(())
    }

    /// Adds a document that is to be read.
    fn expect(&mut self, descriptor: Descriptor, platforms: Platforms) -> Result<(), DocumentError> {
        if !is_manifest(&descriptor.media_type) {
            let media_type = shown(&descriptor.media_type);
            return Err(DocumentError::Unsupported { digest: descriptor.digest, media_type });
        }
        if !self.is_new(&descriptor)? {
            return Ok(());
        }
        if descriptor.size > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::DocumentTooLarge { digest: descriptor.digest, size: descriptor.size });
        }
        let read = self.documents.iter().map(|read| read.blob.size);
        let all: u64 = read.chain(self.to_read.iter().map(|expected| expected.descriptor.size)).sum();
        let count = self.documents.len() + self.to_read.len();
        if count >= DOCUMENTS_MAX || all + descriptor.size > DOCUMENTS_BYTES_MAX {
            return Err(DocumentError::TooManyDocuments);
        }
        self.to_read.push_back(ExpectedDocument { descriptor, platforms });
        Ok(())
    }

    /// Adds a configuration or layer.
    fn add_blob(&mut self, row: Descriptor) -> Result<(), DocumentError> {
        if !is_media_type(&row.media_type) {
            return Err(DocumentError::MediaType { digest: row.digest, media_type: shown(&row.media_type) });
        }
        let blob = ImageBlob { digest: row.digest, media_type: row.media_type.clone(), size: row.size };
        if is_nondistributable(&row.media_type) {
            if self.nondistributable.len() >= limits::BLOBS_MAX {
                return Err(DocumentError::TooManyBlobs);
            }
            self.nondistributable.push(blob);
        } else if self.is_new(&row)? {
            self.others.push(blob);
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
        let Self { root, documents, others, mut nondistributable, known, .. } = self;
        let mut blobs: Vec<ImageBlob> = documents.iter().map(|read| read.blob.clone()).collect();
        blobs.extend(others);
        sort_blobs(&mut blobs);
        nondistributable.retain(|blob| !known.contains_key(&blob.digest));
        nondistributable.sort_by_key(|blob| blob.digest);
        nondistributable.dedup_by_key(|blob| blob.digest);
        let documents = documents.into_iter().map(|read| (read.blob.digest, read.bytes)).collect();
        let index = ImageIndex { reference: reference.to_string(), root, blobs };
        Gathered { index, documents, nondistributable }
    }
}

/// Returns a media type for an error. It may contain line breaks that forge a header or a log line.
fn shown(media_type: &str) -> String {
    media_type.escape_debug().take(TEXT_SHOWN_MAX).collect()
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
        let gathered = gather_all(root, choice, documents)?;
        Ok((gathered.index, gathered.documents.len()))
    }

    fn gather_all(root: &str, choice: &str, documents: &[&str]) -> Result<Gathered, DocumentError> {
        let root = Descriptor::read(&serde_json::from_str(root).unwrap()).unwrap();
        let mut gather = Gather::new(root, choice.parse().unwrap())?;
        while let Some(wanted) = gather.next() {
            let bytes = documents.iter().find(|text| digest_of(text.as_bytes()) == wanted.digest).unwrap_or(&"?");
            gather.add(bytes.as_bytes().to_vec().into())?;
        }
        Ok(gather.finish(&"r.example/a:1".parse().unwrap()))
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
            assert!(
                refused(&descriptor(OCI_MANIFEST, tricky.as_bytes()), &[&tricky]).contains("cannot be used"),
                "{bad}"
            );
        }
        let header = text.replacen("a/tar", r"a/tar\r\nX-Y: z", 1);
        assert!(refused(&descriptor(OCI_MANIFEST, header.as_bytes()), &[&header]).contains("media type"));
    }

    fn index_of(rows: &[String]) -> String {
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, rows.join(","))
    }

    #[test]
    fn a_row_that_is_not_chosen_may_be_anything() {
        let amd = manifest(b"amd");
        let good = with_platform(&descriptor(OCI_MANIFEST, amd.as_bytes()), "linux/amd64");
        let sha512 = format!(r#"{{"digest":"sha512:{}","size":1}}"#, "0".repeat(128));
        let sha512 = with_platform(&sha512, "linux/arm64");
        let index = index_of(&["null".into(), r#"{"size":{}}"#.into(), sha512, good]);
        let root = descriptor(OCI_INDEX, index.as_bytes());
        assert!(gather(&root, "linux/x86_64", &[&index, &amd]).is_ok());
        let error = gather(&root, "linux/arm64", &[&index, &amd]).unwrap_err();
        let text = crate::errors::with_sources(&error);
        assert!(text.contains("only SHA-256 is supported"), "{text}");
        assert!(gather(&root, "all", &[&index, &amd]).is_err(), "all rows are chosen");
    }

    #[test]
    fn what_go_writes_as_null_is_empty() {
        let config = descriptor("a/config", b"{}");
        let text = format!(r#"{{"config":{config},"layers":null,"annotations":null,"subject":null}}"#);
        let (image, _) = gather(&descriptor(OCI_MANIFEST, text.as_bytes()), "all", &[&text]).unwrap();
        assert_eq!(image.blobs.len(), 2);
        for empty in [r#"{"manifests":null}"#, r#"{"manifests":[]}"#, "{}"] {
            let (image, _) = gather(&descriptor(OCI_INDEX, empty.as_bytes()), "linux/amd64", &[empty]).unwrap();
            assert_eq!(image.blobs.len(), 1, "an empty index is an artifact of its own");
        }
    }

    #[test]
    fn an_index_without_platforms_is_taken_whole() {
        let (one, two) = (manifest(b"one"), manifest(b"two"));
        let nested = index_of(&[with_platform(&descriptor(OCI_MANIFEST, two.as_bytes()), "linux/amd64")]);
        let index = index_of(&[
            descriptor(OCI_MANIFEST, one.as_bytes()),
            descriptor(OCI_INDEX, nested.as_bytes()),
            descriptor("application/vnd.example.thing", b"thing"),
        ]);
        let root = descriptor(OCI_INDEX, index.as_bytes());
        let (image, kept) = gather(&root, "linux/amd64", &[&index, &one, &nested, &two]).unwrap();
        assert_eq!((image.blobs.len(), kept), (8, 4), "four documents, one configuration, two layers, one thing");
        let odd = index_of(&[with_platform(&descriptor("application/vnd.example.thing", b"thing"), "linux/amd64")]);
        let refused = gather(&descriptor(OCI_INDEX, odd.as_bytes()), "linux/amd64", &[&odd]).unwrap_err().to_string();
        assert!(refused.contains("neither an OCI nor a Docker"), "{refused}");
    }

    #[test]
    fn layers_that_a_registry_need_not_have_are_noted() {
        let foreign = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"foreign");
        let own = descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", b"own");
        let (config, same) = (descriptor("a/config", b"{}"), descriptor("a/tar", b"own"));
        let text = format!(r#"{{"config":{config},"layers":[{foreign},{foreign},{own},{same}]}}"#);
        let mut found = gather_all(&descriptor(OCI_MANIFEST, text.as_bytes()), "all", &[&text]).unwrap();
        assert_eq!((found.index.blobs.len(), found.nondistributable.len()), (3, 1), "one is a plain layer too");
        assert_eq!(found.nondistributable[0].digest, digest_of(b"foreign"));
        found.add(found.nondistributable[0].clone());
        assert!(found.index.find(&digest_of(b"foreign")).is_some());
    }

    #[test]
    fn documents_beside_the_root_come_along() {
        let (image, signature) = (manifest(b"image"), manifest(b"signature"));
        let read = |text: &str| Descriptor::read(&serde_json::from_str(text).unwrap()).unwrap();
        let mut gather = Gather::new(read(&descriptor(OCI_MANIFEST, image.as_bytes())), Platforms::default()).unwrap();
        gather.add(image.clone().into_bytes().into()).unwrap();
        gather.also(read(&descriptor(OCI_MANIFEST, signature.as_bytes()))).unwrap();
        assert!(gather.also(read(&descriptor("a/tar", b"x"))).is_err());
        gather.add(signature.clone().into_bytes().into()).unwrap();
        let gathered = gather.finish(&"r.example/a:1".parse().unwrap());
        assert_eq!((gathered.index.blobs.len(), gathered.index.root), (5, digest_of(image.as_bytes())));
    }

    #[test]
    fn platforms_are_read() {
        for good in ["linux/amd64", "linux/arm64/v8", "linux/x86_64", "linux/arm/v7", "all"] {
            assert!(good.parse::<Platforms>().is_ok(), "{good}");
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"] {
            assert!(bad.parse::<Platforms>().is_err(), "{bad}");
        }
    }
}
