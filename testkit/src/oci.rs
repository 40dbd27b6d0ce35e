//! Images as OCI layouts: tar layers, a configuration, a manifest.
//!
//! Invariant: the same parts always make the same bytes, so digests are equal from run to run.

use crate::program::filter;
use aws_lc_rs::digest::{SHA256, digest};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The Debian packages that tests of images need.
const PACKAGES: &str = "docker-registry skopeo zstd";

/// A command for a program that must be installed.
///
/// # Panics
/// When it is missing, with the packages to install.
pub(crate) fn required(name: &str) -> Command {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|p| p.join(name).exists()));
    assert!(found, "`{name}` is missing: apt-get install -y --no-install-recommends {PACKAGES}");
    Command::new(name)
}

/// The digest of bytes: `sha256:` and 64 hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar archive of files. The same files always make the same bytes.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(0);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// How a layer is compressed in its image.
#[allow(missing_docs, reason = "named after their programs")]
#[derive(Clone, Copy, Debug)]
pub enum Packing {
    Plain,
    /// Without a time stamp, so that the bytes repeat.
    Gzip,
    /// The compressor restarts at places that depend on the content, so that a change stays local.
    GzipRsyncable,
    Zstd,
}

impl Packing {
    /// Returns the compressed bytes and the suffix of the media type.
    fn pack(self, bytes: &[u8]) -> (Vec<u8>, &'static str) {
        match self {
            Self::Plain => (bytes.to_vec(), ""),
            Self::Gzip => (filter(required("gzip").arg("-n1"), bytes), "+gzip"),
            Self::GzipRsyncable => (filter(required("gzip").args(["-n1", "--rsyncable"]), bytes), "+gzip"),
            Self::Zstd => (filter(required("zstd").arg("-q3"), bytes), "+zstd"),
        }
    }
}

/// A layer of an image.
#[derive(Clone)]
pub struct Layer {
    /// The uncompressed archive.
    pub tar: Vec<u8>,
    /// How the image holds it.
    pub packing: Packing,
}

/// An image for one platform.
#[derive(Clone)]
pub struct Image {
    /// The bytes of the manifest.
    pub manifest: Vec<u8>,
    /// Configuration and layers by digest. The manifest is not among them.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// Digests of the compressed layers, in order.
    pub layers: Vec<String>,
}

/// The media type of the manifests made here.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Image {
    /// An image of these layers.
    pub fn new(layers: &[Layer]) -> Self {
        let mut blobs = BTreeMap::new();
        let mut rows = Vec::new();
        let mut digests = Vec::new();
        let diff_ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", sha256(&layer.tar))).collect();
        for layer in layers {
            let (bytes, kind) = layer.packing.pack(&layer.tar);
            let digest = sha256(&bytes);
            rows.push(format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar{kind}","digest":"{digest}","size":{}}}"#,
                bytes.len()
            ));
            digests.push(digest.clone());
            blobs.insert(digest, bytes);
        }
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/bin/sh"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{}]}}"#,
            sha256(config.as_bytes()),
            config.len(),
            rows.join(",")
        );
        blobs.insert(sha256(config.as_bytes()), config.into_bytes());
        Self { manifest: manifest.into_bytes(), blobs, layers: digests }
    }

    /// The same image with `subject` in its manifest, as a signature names the image that it signs.
    pub fn with_subject(mut self, subject: &Self) -> Self {
        let text = String::from_utf8(self.manifest).unwrap();
        let (digest, size) = (sha256(&subject.manifest), subject.manifest.len());
        let subject = format!(r#","subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size}}}}}"#);
        self.manifest = format!("{}{subject}", text.strip_suffix('}').unwrap()).into_bytes();
        self
    }

    /// The digests of all blobs and of the manifest.
    pub fn digests(&self) -> BTreeSet<String> {
        self.blobs.keys().cloned().chain([sha256(&self.manifest)]).collect()
    }

    /// Bytes of the blobs and the manifest that `other` lacks.
    pub fn beyond(&self, other: &Self) -> u64 {
        let new = self.blobs.iter().filter(|(digest, _)| !other.blobs.contains_key(*digest));
        new.map(|(_, bytes)| bytes.len() as u64).sum::<u64>() + self.manifest.len() as u64
    }

    /// Bytes of all blobs and the manifest.
    pub fn size(&self) -> u64 {
        self.blobs.values().map(|bytes| bytes.len() as u64).sum::<u64>() + self.manifest.len() as u64
    }

    /// Writes the image as an OCI layout with this tag.
    pub fn write(&self, dir: &Path, tag: &str) {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let own = [(sha256(&self.manifest), self.manifest.clone())];
        for (digest, bytes) in self.blobs.clone().into_iter().chain(own) {
            fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        }
        let (digest, size) = (sha256(&self.manifest), self.manifest.len());
        let platform = r#""platform":{"architecture":"amd64","os":"linux"}"#;
        let name = format!(r#""annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#);
        let row = format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size},{platform},{name}}}"#);
        fs::write(dir.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{row}]}}"#)).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// Writes an OCI layout of an index of images, each with its architecture, under the tag `it`. Returns the index.
pub fn write_index(dir: &Path, images: &[(&Image, &str)]) -> Vec<u8> {
    let mut rows = Vec::new();
    for (image, architecture) in images {
        image.write(dir, "it");
        let (digest, size) = (sha256(&image.manifest), image.manifest.len());
        let platform = format!(r#""platform":{{"architecture":"{architecture}","os":"linux"}}"#);
        rows.push(format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":{size},{platform}}}"#));
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{}]}}"#, rows.join(","));
    fs::write(dir.join("blobs/sha256").join(&sha256(index.as_bytes())[7..]), &index).unwrap();
    let name = r#""annotations":{"org.opencontainers.image.ref.name":"it"}"#;
    let row =
        format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{},{name}}}"#, sha256(index.as_bytes()), index.len());
    fs::write(dir.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{row}]}}"#)).unwrap();
    index.into_bytes()
}

/// Runs `skopeo`.
///
/// # Panics
/// When it fails.
pub fn skopeo(args: &[&str]) {
    let output = required("skopeo").args(args).output().unwrap();
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
