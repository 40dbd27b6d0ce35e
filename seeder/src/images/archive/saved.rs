//! The form of `docker save`: a list of images, their configurations and their layers by name.
//!
//! Invariant: the same image always gets the same manifest, which this form lacks, so that every seeder makes the same
//! content.

use super::Found;
use super::error::{ArchiveError, fault_error, io_error, json_error, malformed};
use super::files::{Files, normalized};
use crate::oci_documents::{Gather, Platforms, digest_of};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use shoal_proto::go_json::{FieldError, GoValue};
use shoal_proto::image::{DOCKER_MANIFEST, Digest, ImageBlob, Reference};
use shoal_proto::image_documents::{ConfigDocument, Descriptor};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};

/// Bytes of a layer that are hashed at a time.
const HASH_BYTES: usize = 1 << 20;
/// The first bytes of a compressed layer, and the end of its media type.
const PACKINGS: [(&[u8], &str); 2] = [(&[0x1f, 0x8b], ".gzip"), (&[0x28, 0xb5, 0x2f, 0xfd], ".zstd")];

/// An image in `manifest.json`.
pub struct SavedImage {
    config: String,
    pub tags: Vec<String>,
    layers: Vec<String>,
}

/// Reads the list of images.
///
/// # Errors
/// Returns an error if the list cannot be read.
pub fn read_list(files: &Files) -> Result<Vec<SavedImage>, ArchiveError> {
    let document: GoValue =
        serde_json::from_slice(&files.document("manifest.json")?).map_err(json_error("manifest.json"))?;
    let GoValue::List(rows) = &document else { return Err(malformed("manifest.json", "it is not a list of images")) };
    let read = |row: &GoValue| -> Result<SavedImage, FieldError> {
        let row = row.as_map_or_null("image")?;
        let (tags, layers) = (texts(row, "RepoTags")?, texts(row, "Layers")?);
        Ok(SavedImage { config: row.text("Config")?.to_string(), tags, layers })
    };
    let images: Result<Vec<SavedImage>, FieldError> = rows.iter().map(read).collect();
    images.map_err(|error| fault_error("manifest.json")(error.into()))
}

fn texts(row: &GoValue, field: &str) -> Result<Vec<String>, FieldError> {
    Ok(row.texts(field)?.into_iter().map(str::to_string).collect())
}

/// Returns a normalized name that an archive gives.
fn inside(name: &str) -> Result<String, ArchiveError> {
    normalized(name).ok_or_else(|| malformed("manifest.json", format!("`{name}` leads out of the archive")))
}

/// Returns an image with a manifest that is made for it.
///
/// # Errors
/// Returns an error if the image is not whole.
pub fn find(
    files: &Files,
    saved: &SavedImage,
    platforms: &Platforms,
    reference: &Reference,
) -> Result<Found, ArchiveError> {
    let config = files.document(&inside(&saved.config)?)?;
    let ids = diff_ids(&config, saved)?;
    let mut names = BTreeMap::new();
    let mut layers = Vec::new();
    for (place, name) in saved.layers.iter().enumerate() {
        let name = inside(name)?;
        let layer = layer(files, &name, ids.get(place).copied())?;
        names.insert(layer.digest, name);
        layers.push(layer);
    }
    let config_blob = ImageBlob {
        digest: digest_of(&config),
        media_type: "application/vnd.docker.container.image.v1+json".into(),
        size: config.len() as u64,
    };
    let manifest = Bytes::from(manifest(&config_blob, &layers));
    let root = Descriptor::new(DOCKER_MANIFEST, digest_of(&manifest), manifest.len() as u64);
    let mut gather = Gather::new(root, platforms.clone())?;
    gather.add(manifest)?;
    let mut gathered = gather.finish(reference);
    gathered.documents.insert(config_blob.digest, config.into());
    Ok(Found { gathered, names })
}

/// Returns the digests of the uncompressed layers. Old configurations have none.
fn diff_ids(config: &[u8], saved: &SavedImage) -> Result<Vec<Digest>, ArchiveError> {
    let document: GoValue = serde_json::from_slice(config).map_err(json_error(&saved.config))?;
    let ids = ConfigDocument::read(&document).map_err(fault_error(&saved.config))?.diff_ids;
    let has_list = !matches!(document.get("rootfs").get("diff_ids"), GoValue::Null);
    if has_list && ids.len() != saved.layers.len() {
        return Err(malformed(&saved.config, "the configuration does not have as many layers as manifest.json"));
    }
    Ok(ids)
}

/// Returns a layer.
///
/// The digest of an uncompressed layer is in the configuration, and the ingest checks it. Every other layer is hashed
/// here.
fn layer(files: &Files, name: &str, diff_id: Option<Digest>) -> Result<ImageBlob, ArchiveError> {
    let (mut reader, size) = files.reader(name).map_err(io_error(name))?;
    let mut magic = Vec::new();
    reader.by_ref().take(4).read_to_end(&mut magic).map_err(io_error(name))?;
    let packing = PACKINGS.iter().find(|(begin, _)| magic.starts_with(begin)).map_or("", |(_, end)| *end);
    let media_type = format!("application/vnd.docker.image.rootfs.diff.tar{packing}");
    if let Some(digest) = diff_id.filter(|_| packing.is_empty()) {
        return Ok(ImageBlob { digest, media_type, size });
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
    Ok(ImageBlob { digest: Digest(digest), media_type, size })
}

/// Returns a manifest for a saved image, which has none.
fn manifest(config: &ImageBlob, layers: &[ImageBlob]) -> String {
    let row = |blob: &ImageBlob| {
        format!(r#"{{"mediaType":"{}","size":{},"digest":"{}"}}"#, blob.media_type, blob.size, blob.digest)
    };
    let layers: Vec<String> = layers.iter().map(row).collect();
    let (config, layers) = (row(config), layers.join(","));
    format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{config},"layers":[{layers}]}}"#)
}
