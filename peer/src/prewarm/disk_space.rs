//! Whether an image fits on the disks of containerd.
//!
//! Invariant: the estimate never exceeds the real size, so a refusal is never wrong.

use crate::images::Images;
use rustix::fs::statvfs;
use shoal_containerd::{BlobReader, Runtime};
use shoal_proto::image::{ImageBlob, is_manifest};
use shoal_proto::manifest::Manifest;
use shoal_service::units::ByteSize;
use std::path::{Path, PathBuf};

/// An image does not fit.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is too full: the image takes at least {}, {} are free, and {} must stay free",
    .path.display(), .needed.rounded(), .free.rounded(), .min_free.rounded()
)]
pub struct NoSpace {
    path: PathBuf,
    needed: ByteSize,
    free: ByteSize,
    min_free: ByteSize,
}

/// Bytes that an image takes at least.
#[derive(Default)]
struct Estimate {
    blobs: u64,
    unpacked: u64,
}

/// Returns a lower bound of a layer's unpacked bytes. The last four bytes of a gzip stream are its size modulo 4 GiB.
fn unpacked_bytes(images: &Images, layer: &ImageBlob) -> u64 {
    // 18 bytes are the smallest gzip stream.
    if !layer.media_type.ends_with("gzip") || layer.size < 18 {
        return layer.size;
    }
    let digest = layer.digest.to_string();
    let trailer = images.read(&digest, layer.size - 4, 4).ok();
    let size = trailer.and_then(|bytes| bytes[..].try_into().ok()).map_or(0, u32::from_le_bytes);
    u64::from(size).max(layer.size)
}

fn is_layer(blob: &ImageBlob) -> bool {
    blob.media_type.contains("layer") || blob.media_type.contains("rootfs")
}

fn estimate(images: &Images, manifest: &Manifest) -> Estimate {
    let blobs = manifest.image.iter().flat_map(|image| &image.blobs);
    let mut estimate = Estimate::default();
    for blob in blobs.filter(|blob| !is_manifest(&blob.media_type)) {
        estimate.blobs += blob.size;
        if is_layer(blob) {
            estimate.unpacked += unpacked_bytes(images, blob);
        }
    }
    estimate
}

/// A folder of containerd and its file system.
struct Disk<'a> {
    folder: &'a Path,
    file_system: u64,
    free: u64,
}

/// Returns `None` if the folder is unknown or cannot be examined. Then the check skips it.
fn disk_of(folder: Option<&PathBuf>) -> Option<Disk<'_>> {
    let folder = folder?;
    let stat = statvfs(folder.as_path()).ok()?;
    Some(Disk { folder, file_system: stat.f_fsid, free: stat.f_bavail * stat.f_frsize })
}

/// Refuses an image that cannot fit. Blocks.
pub fn check(images: &Images, manifest: &Manifest, runtime: &Runtime, min_free: u64) -> Result<(), NoSpace> {
    let Estimate { blobs, unpacked } = estimate(images, manifest);
    let (content, snapshots) = (disk_of(runtime.content_dir.as_ref()), disk_of(runtime.snapshot_dir.as_ref()));
    let one_disk = matches!((&content, &snapshots), (Some(a), Some(b)) if a.file_system == b.file_system);
    let needs = if one_disk {
        [snapshots.map(|disk| (disk, blobs + unpacked)), None]
    } else {
        [content.map(|disk| (disk, blobs)), snapshots.map(|disk| (disk, unpacked))]
    };
    for (disk, needed) in needs.into_iter().flatten() {
        if disk.free.saturating_sub(min_free) < needed {
            let (path, min_free) = (disk.folder.to_path_buf(), ByteSize(min_free));
            return Err(NoSpace { path, needed: ByteSize(needed), free: ByteSize(disk.free), min_free });
        }
    }
    Ok(())
}
