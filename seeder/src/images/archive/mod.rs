//! An image in files: an OCI layout, as a folder or a tar archive, or an archive of `docker save`.
//!
//! Invariant: nothing outside the folder or archive is opened, whatever names it contains. Blobs are found by digest,
//! and other names by the archive's own list.

mod error;
mod files;

pub(crate) use error::ArchiveError;

use crate::oci_documents::{Descriptor, Gather, IndexDocument, Platforms, digest_of};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use error::{io_error, json_error, malformed};
use files::{Files, normalized};
use serde::Deserialize;
use shoal_proto::image::{DOCKER_MANIFEST, Digest, ImageBlob, ImageIndex, Reference};
use shoal_store::{BlobSource, OpenSource};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read};

/// Names that an error lists.
const NAMES_LISTED_MAX: usize = 32;
/// Bytes of a layer that are hashed at a time.
const HASH_BYTES: usize = 1 << 20;
/// The first bytes of a gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// An image found in files.
pub(crate) struct LocalImage {
    pub(crate) index: ImageIndex,
    /// The name of `index`, parsed.
    pub(crate) reference: Reference,
    files: Files,
    documents: BTreeMap<Digest, Bytes>,
    /// Files of blobs that are not named by their digest.
    names: BTreeMap<Digest, String>,
}

impl LocalImage {
    /// Finds the image of this name, or the only image. Blocks.
    ///
    /// # Errors
    /// Returns an error if the files have neither known form, or no such image.
    pub(crate) fn open(
        source: OpenSource,
        wanted: Option<&Reference>,
        platforms: &Platforms,
    ) -> Result<Self, ArchiveError> {
        let path = source.path().display().to_string();
        let files = Files::open(source)?;
        if files.has("index.json") && files.has("oci-layout") {
            Self::of_layout(files, wanted, platforms)
        } else if files.is_archive() && files.has("manifest.json") {
            Self::of_docker(files, wanted, platforms)
        } else {
            Err(ArchiveError::UnknownForm(path))
        }
    }

    /// Returns where the bytes of a blob are.
    ///
    /// # Errors
    /// Returns an error if the files lack the blob.
    pub(crate) fn source(&self, blob: &ImageBlob) -> io::Result<BlobSource> {
        if let Some(bytes) = self.documents.get(&blob.digest) {
            return Ok(BlobSource::Reader(Box::new(Cursor::new(bytes.clone()))));
        }
        let name = self.names.get(&blob.digest).cloned().unwrap_or_else(|| blob_name(&blob.digest));
        Ok(BlobSource::Reader(self.files.reader(&name)?.0))
    }

    fn of_layout(files: Files, wanted: Option<&Reference>, platforms: &Platforms) -> Result<Self, ArchiveError> {
        let index: IndexDocument =
            serde_json::from_slice(&files.document("index.json")?).map_err(json_error("index.json"))?;
        let Picked { reference, images: rows } = pick(index.manifests, wanted, names_in_layout)?;
        // A layout may list the platforms of one image separately.
        let root = match &platforms.of(&rows)?[..] {
            [root] => (*root).clone(),
            _ => return Err(malformed("index.json", "several images have that name; choose one with --platform")),
        };
        let mut gather = Gather::new(root, platforms.clone())?;
        while let Some(next) = gather.next() {
            let bytes = files.document(&blob_name(&next.digest))?;
            gather.add(bytes.into())?;
        }
        let gathered = gather.finish(&reference);
        let (index, documents) = (gathered.index, gathered.documents);
        Ok(Self { index, reference, files, documents, names: BTreeMap::new() })
    }

    fn of_docker(files: Files, wanted: Option<&Reference>, platforms: &Platforms) -> Result<Self, ArchiveError> {
        let saved: Vec<SavedImage> =
            serde_json::from_slice(&files.document("manifest.json")?).map_err(json_error("manifest.json"))?;
        let picked = pick(saved, wanted, |image| image.tags.clone().unwrap_or_default())?;
        let (reference, saved) = (picked.reference, &picked.images[0]);
        let config = files.document(&inside(&saved.config)?)?;
        let parsed: SavedConfig = serde_json::from_slice(&config).map_err(json_error(&saved.config))?;
        if parsed.rootfs.diff_ids.len() != saved.layers.len() {
            return Err(malformed(&saved.config, "the configuration does not have as many layers as manifest.json"));
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
        let mut gather = Gather::new(root, platforms.clone())?;
        gather.add(manifest)?;
        let gathered = gather.finish(&reference);
        let (index, mut documents) = (gathered.index, gathered.documents);
        documents.insert(config_blob.digest, config.into());
        Ok(Self { index, reference, files, documents, names })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Returns a normalized name that an archive gives.
fn inside(name: &str) -> Result<String, ArchiveError> {
    normalized(name).ok_or_else(|| malformed("manifest.json", format!("`{name}` leads out of the archive")))
}

/// Returns a name that has a registry or a tag. A lone tag would parse as an image of Docker's own library.
fn full_name(name: &str) -> Option<Reference> {
    name.contains(['/', ':']).then(|| name.parse().ok()).flatten()
}

/// Images of one name.
struct Picked<T> {
    reference: Reference,
    images: Vec<T>,
}

/// Returns the images of the wanted name, or of the only name.
fn pick<T>(
    all: Vec<T>,
    wanted: Option<&Reference>,
    names_of: impl Fn(&T) -> Vec<String>,
) -> Result<Picked<T>, ArchiveError> {
    let names: BTreeSet<String> = all.iter().flat_map(&names_of).collect();
    let has = || names.iter().take(NAMES_LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
    let retain = |all: Vec<T>, fits: &dyn Fn(&String) -> bool| -> Vec<T> {
        all.into_iter().filter(|row| names_of(row).iter().any(fits)).collect()
    };
    let Some(wanted) = wanted else {
        let references: BTreeSet<Reference> = names.iter().filter_map(|name| full_name(name)).collect();
        let [reference] = &references.into_iter().collect::<Vec<_>>()[..] else {
            return Err(ArchiveError::Ambiguous(has()));
        };
        let images = retain(all, &|name| full_name(name).as_ref() == Some(reference));
        return Ok(Picked { reference: reference.clone(), images });
    };
    let by_name = |name: &String| full_name(name).as_ref() == Some(wanted);
    let by_tag = |name: &String| full_name(name).is_none() && Some(name) == wanted.tag.as_ref();
    let images = if names.iter().any(by_name) {
        retain(all, &by_name)
    } else if names.iter().any(by_tag) {
        retain(all, &by_tag)
    } else if !all.is_empty() && names.len() <= 1 && !names.iter().any(|name| full_name(name).is_some()) {
        // The only image takes any name, unless it has a full name of its own.
        all
    } else {
        return Err(ArchiveError::NotFound { wanted: wanted.to_string(), has: has() });
    };
    Ok(Picked { reference: wanted.clone(), images })
}

fn names_in_layout(row: &Descriptor) -> Vec<String> {
    let by = |key: &str| row.annotations.get(key).cloned();
    by("io.containerd.image.name").or_else(|| by("org.opencontainers.image.ref.name")).into_iter().collect()
}

/// An image in `manifest.json` of `docker save`.
#[derive(Deserialize)]
struct SavedImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct SavedConfig {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Returns a layer of `docker save`.
///
/// The digest of an uncompressed layer is in the configuration, and the ingest checks it. A compressed layer is
/// hashed here.
fn docker_layer(files: &Files, name: &str, diff_id: Digest) -> Result<ImageBlob, ArchiveError> {
    let (mut reader, size) = files.reader(name).map_err(io_error(name))?;
    let mut magic = Vec::new();
    reader.by_ref().take(2).read_to_end(&mut magic).map_err(io_error(name))?;
    if magic != GZIP_MAGIC {
        let media_type = "application/vnd.docker.image.rootfs.diff.tar".into();
        return Ok(ImageBlob { digest: diff_id, media_type, size });
    }
    let mut sha256 = Context::new(&SHA256);
    let mut reader = Cursor::new(magic).chain(reader);
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        match reader.read(&mut buffer).map_err(io_error(name))? {
            0 => break,
            read => sha256.update(&buffer[..read]),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(sha256.finish().as_ref());
    let media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    Ok(ImageBlob { digest: Digest(digest), media_type, size })
}

/// Returns a manifest for a saved image, which has none. The same image always gets the same bytes, so every seeder
/// computes the same content.
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
