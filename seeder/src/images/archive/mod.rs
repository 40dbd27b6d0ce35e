//! An image in files: an OCI layout, as a folder or a tar archive, or what `docker save` writes.
//!
//! Invariant: nothing outside the folder or archive is ever opened, whatever names are in it: blobs are looked up by
//! digest, and names by the archive's own list.

use super::documents::{Choice, Descriptor, DocumentError, Gather, IndexDocument, digest_of};
use super::files::{Files, normal};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use serde::Deserialize;
use shoal_proto::image::{DOCKER_MANIFEST, Digest, ImageBlob, ImageIndex, Reference};
use shoal_store::BlobSource;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read};
use std::path::Path;

/// Why files are no image, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file cannot be read.
    #[error("{what}: {source}")]
    Io {
        /// The file.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither of the known forms.
    #[error("{0} is neither an OCI layout nor an archive of `docker save`; a compressed one has to be unpacked first")]
    Unknown(String),
    /// One of its files is not as it should be.
    #[error("{what}: {why}")]
    Malformed {
        /// The file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Several images, or one without a full name.
    #[error("say which image it is with --ref; it has: {0}")]
    Which(String),
    /// None of that name.
    #[error("there is no image {wanted} in it; it has: {has}")]
    NoSuch {
        /// What was asked for.
        wanted: String,
        /// What there is.
        has: String,
    },
    /// Its documents do not make an image.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

pub(super) fn fault<'a>(what: &'a str) -> impl FnOnce(io::Error) -> ArchiveError + 'a {
    move |source| ArchiveError::Io { what: what.to_string(), source }
}

pub(super) fn malformed(what: &str, why: impl ToString) -> ArchiveError {
    ArchiveError::Malformed { what: what.to_string(), why: why.to_string() }
}

/// An image found in files.
pub struct LocalImage {
    /// What it is.
    pub index: ImageIndex,
    /// Its name, parsed.
    pub reference: Reference,
    files: Files,
    documents: BTreeMap<Digest, Bytes>,
    /// Names of blobs that are not named by their digest.
    names: BTreeMap<Digest, String>,
}

impl LocalImage {
    /// Finds the image of this name, or the only one there is.
    pub fn open(path: &Path, wanted: Option<&Reference>, choice: &Choice) -> Result<Self, ArchiveError> {
        let files = Files::open(path)?;
        if files.has("index.json") && files.has("oci-layout") {
            Self::of_layout(files, wanted, choice)
        } else if files.is_archive() && files.has("manifest.json") {
            Self::of_docker(files, wanted, choice)
        } else {
            Err(ArchiveError::Unknown(path.display().to_string()))
        }
    }

    /// A blob's bytes.
    pub fn source(&self, blob: &ImageBlob) -> io::Result<BlobSource> {
        if let Some(bytes) = self.documents.get(&blob.digest) {
            return Ok(BlobSource::Reader(Box::new(Cursor::new(bytes.clone()))));
        }
        let name = self.names.get(&blob.digest).cloned().unwrap_or_else(|| blob_name(&blob.digest));
        Ok(BlobSource::Reader(self.files.reader(&name)?.0))
    }

    fn of_layout(files: Files, wanted: Option<&Reference>, choice: &Choice) -> Result<Self, ArchiveError> {
        let index: IndexDocument =
            serde_json::from_slice(&files.small("index.json")?).map_err(|error| malformed("index.json", error))?;
        let (reference, rows) = pick(index.manifests, wanted, named_in_layout)?;
        // A layout may name the platforms of one image one by one.
        let root = match &choice.of(&rows)?[..] {
            [root] => (*root).clone(),
            _ => return Err(malformed("index.json", "several images of that name: choose one with --platform")),
        };
        let mut gather = Gather::new(root, choice.clone())?;
        while let Some(next) = gather.next() {
            let bytes = files.small(&blob_name(&next.digest))?;
            gather.bring(bytes.into())?;
        }
        let (index, documents) = gather.finish(&reference);
        Ok(Self { index, reference, files, documents, names: BTreeMap::new() })
    }

    fn of_docker(files: Files, wanted: Option<&Reference>, choice: &Choice) -> Result<Self, ArchiveError> {
        let saved: Vec<Saved> = serde_json::from_slice(&files.small("manifest.json")?)
            .map_err(|error| malformed("manifest.json", error))?;
        let (reference, rows) = pick(saved, wanted, |row| row.tags.clone().unwrap_or_default())?;
        let saved = &rows[0];
        let config = files.small(&inside(&saved.config)?)?;
        let parsed: Config = serde_json::from_slice(&config).map_err(|error| malformed(&saved.config, error))?;
        if parsed.rootfs.diff_ids.len() != saved.layers.len() {
            return Err(malformed(&saved.config, "it does not have as many layers as manifest.json"));
        }
        let mut names = BTreeMap::new();
        let mut layers = Vec::new();
        for (name, diff_id) in saved.layers.iter().zip(&parsed.rootfs.diff_ids) {
            let layer = docker_layer(&files, &inside(name)?, *diff_id)?;
            names.insert(layer.digest, inside(name)?);
            layers.push(layer);
        }
        let config_blob = ImageBlob {
            digest: digest_of(&config),
            media_type: "application/vnd.docker.container.image.v1+json".into(),
            size: config.len() as u64,
        };
        let manifest = Bytes::from(docker_manifest(&config_blob, &layers));
        let root = Descriptor {
            media_type: DOCKER_MANIFEST.into(),
            digest: digest_of(&manifest),
            size: manifest.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let mut gather = Gather::new(root, choice.clone())?;
        gather.bring(manifest)?;
        let (index, mut documents) = gather.finish(&reference);
        documents.insert(config_blob.digest, config.into());
        Ok(Self { index, reference, files, documents, names })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn inside(name: &str) -> Result<String, ArchiveError> {
    normal(name).ok_or_else(|| malformed("manifest.json", format!("`{name}` leads out of the archive")))
}

/// A name that says registry or tag; a lone tag would read as an image of Docker's own library.
fn full(name: &str) -> Option<Reference> {
    name.contains(['/', ':']).then(|| name.parse().ok()).flatten()
}

/// The images of the wanted name, or of the only one there is; and the name.
fn pick<T>(
    all: Vec<T>,
    wanted: Option<&Reference>,
    names_of: impl Fn(&T) -> Vec<String>,
) -> Result<(Reference, Vec<T>), ArchiveError> {
    let names: BTreeSet<String> = all.iter().flat_map(&names_of).collect();
    let has = || names.iter().take(32).cloned().collect::<Vec<_>>().join(", ");
    let only = |all: Vec<T>, fits: &dyn Fn(&String) -> bool| -> Vec<T> {
        all.into_iter().filter(|row| names_of(row).iter().any(fits)).collect()
    };
    let Some(wanted) = wanted else {
        let references: BTreeSet<Reference> = names.iter().filter_map(|name| full(name)).collect();
        let [reference] = &references.into_iter().collect::<Vec<_>>()[..] else {
            return Err(ArchiveError::Which(has()));
        };
        return Ok((reference.clone(), only(all, &|name| full(name).as_ref() == Some(reference))));
    };
    let by_name = |name: &String| full(name).as_ref() == Some(wanted);
    let by_tag = |name: &String| full(name).is_none() && Some(name) == wanted.tag.as_ref();
    let rows = if names.iter().any(by_name) {
        only(all, &by_name)
    } else if names.iter().any(by_tag) {
        only(all, &by_tag)
    } else if !all.is_empty() && names.len() <= 1 && !names.iter().any(|name| full(name).is_some()) {
        // The only image there is takes any name, if it has no full one of its own.
        all
    } else {
        return Err(ArchiveError::NoSuch { wanted: wanted.to_string(), has: has() });
    };
    Ok((wanted.clone(), rows))
}

fn named_in_layout(row: &Descriptor) -> Vec<String> {
    let by = |key: &str| row.annotations.get(key).cloned();
    by("io.containerd.image.name").or_else(|| by("org.opencontainers.image.ref.name")).into_iter().collect()
}

/// A row of `manifest.json`.
#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// A layer as `docker save` left it. The digest of a plain one is in the configuration, and is checked as it is taken in.
fn docker_layer(files: &Files, name: &str, diff_id: Digest) -> Result<ImageBlob, ArchiveError> {
    let (mut reader, size) = files.reader(name).map_err(fault(name))?;
    let mut magic = Vec::new();
    reader.by_ref().take(2).read_to_end(&mut magic).map_err(fault(name))?;
    if magic != [0x1f, 0x8b] {
        let media_type = "application/vnd.docker.image.rootfs.diff.tar".into();
        return Ok(ImageBlob { digest: diff_id, media_type, size });
    }
    let mut sha256 = Context::new(&SHA256);
    let mut reader = Cursor::new(magic).chain(reader);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer).map_err(fault(name))? {
            0 => break,
            read => sha256.update(&buffer[..read]),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(sha256.finish().as_ref());
    let media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    Ok(ImageBlob { digest: Digest(digest), media_type, size })
}

/// The manifest of a saved image, which has none: the same bytes for the same image, whoever makes it.
fn docker_manifest(config: &ImageBlob, layers: &[ImageBlob]) -> String {
    let row = |blob: &ImageBlob| {
        format!(r#"{{"mediaType":"{}","size":{},"digest":"{}"}}"#, blob.media_type, blob.size, blob.digest)
    };
    let layers: Vec<String> = layers.iter().map(row).collect();
    let (config, layers) = (row(config), layers.join(","));
    format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{config},"layers":[{layers}]}}"#)
}

#[cfg(test)]
mod tests;
