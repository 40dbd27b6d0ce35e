//! Whether an image would fit where containerd keeps its images.
//!
//! Invariant: what is found is a lower bound of what the image takes, so a "no" is never wrong by itself.

use super::requests::PrewarmFault;
use crate::images::Images;
use shoal_containerd::{BlobReader, Runtime};
use shoal_proto::image::{ImageBlob, is_manifest};
use shoal_proto::manifest::Manifest;
use shoal_service::units::ByteSize;
use std::path::Path;

/// Bytes a layer unpacks to, at least: a gzip stream says so modulo 4 GiB in its last four bytes.
fn unpacked_bytes(images: &Images, layer: &ImageBlob) -> u64 {
    if !layer.media_type.ends_with("gzip") || layer.size < 18 {
        return layer.size;
    }
    let digest = layer.digest.to_string();
    let tail = images.read(&digest, layer.size - 4, 4).ok().filter(|tail| tail.len() == 4);
    let said = tail.map_or(0, |tail| u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])));
    said.max(layer.size)
}

fn is_layer(blob: &ImageBlob) -> bool {
    blob.media_type.contains("layer") || blob.media_type.contains("rootfs")
}

/// Bytes the image takes in containerd's content store, and unpacked, at least. Blocks.
fn needs(images: &Images, manifest: &Manifest) -> (u64, u64) {
    let blobs = manifest.image.iter().flat_map(|image| &image.blobs);
    let (mut stored, mut unpacked) = (0, 0);
    for blob in blobs.filter(|blob| !is_manifest(&blob.media_type)) {
        stored += blob.size;
        if is_layer(blob) {
            unpacked += unpacked_bytes(images, blob);
        }
    }
    (stored, unpacked)
}

fn free(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some((stat.f_fsid, stat.f_bavail * stat.f_frsize))
}

/// Refuses an image that cannot fit. Blocks.
pub(super) fn check(
    images: &Images,
    manifest: &Manifest,
    runtime: &Runtime,
    min_free: u64,
) -> Result<(), PrewarmFault> {
    let (stored, unpacked) = needs(images, manifest);
    let place = |path: Option<&std::path::PathBuf>| path.and_then(|path| Some((path.clone(), free(path)?)));
    let (content, snapshots) = (place(runtime.content_dir.as_ref()), place(runtime.snapshot_dir.as_ref()));
    let wants = match (&content, &snapshots) {
        (Some((_, one)), Some((path, two))) if one.0 == two.0 => vec![(path.clone(), two.1, stored + unpacked)],
        _ => [
            content.map(|(path, (_, free))| (path, free, stored)),
            snapshots.map(|(path, (_, free))| (path, free, unpacked)),
        ]
        .into_iter()
        .flatten()
        .collect(),
    };
    for (path, free, need) in wants {
        if free.saturating_sub(min_free) < need {
            let (need, free) = (ByteSize(need).rounded(), ByteSize(free).rounded());
            let spare = ByteSize(min_free).rounded();
            return Err(PrewarmFault::NoSpace(format!(
                "{}: the image takes at least {need}, {free} are free, {spare} of them to be left",
                path.display()
            )));
        }
    }
    Ok(())
}
