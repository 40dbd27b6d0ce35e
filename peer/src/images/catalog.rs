//! Images as the mirror and the warmer read them: by name, by digest, piece by piece.
//!
//! Invariant: every byte given out belongs to a piece whose hash was found right after it was read.

use bytes::Bytes;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Hash, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob, Reference, is_manifest};
use shoal_proto::manifest::Manifest;
use shoal_store::{ReadError, Store, StoredContent};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// Longer manifests are not read for what they refer to, bytes.
const REFERRER_BYTES_MAX: u64 = 4 << 20;
/// Manifests named as referring to another.
const REFERRERS_MAX: usize = 256;

/// A repository, and its registry if the client names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepositoryName {
    /// The registry's host and port, from the query parameter `ns`.
    pub(crate) registry: Option<String>,
    pub(crate) path: String,
}

/// The images of a store.
#[derive(Clone)]
pub struct Images {
    store: Store,
}

/// Why a piece of a blob is not given out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PieceFault {
    /// It has not arrived.
    #[error("not here yet")]
    NotHere,
    /// The disk gave back something else than was written.
    #[error("piece {0} of {1} is not what was stored; the disk may be failing")]
    Corrupt(PieceIndex, ContentId),
    /// The disk failed.
    #[error("disk: {0}")]
    Io(#[from] io::Error),
}

/// A blob that is here, or on its way here.
#[derive(Clone)]
pub(crate) struct Blob {
    store: Store,
    content: ContentId,
    manifest: Arc<Manifest>,
    geometry: Geometry,
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) size: u64,
    first_piece: u32,
    /// Where each of its pieces ends, bytes from the blob's start.
    ends: Arc<[u64]>,
}

impl Images {
    /// Of a store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// A blob of a complete image, else of one that is arriving.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Blob> {
        if let Some(found) = self.store.blob(digest) {
            let manifest = self.store.manifest(&found.content)?;
            return self.blob_of(found.content, manifest, digest);
        }
        let holds = |manifest: &Manifest| manifest.image.as_ref().is_some_and(|image| image.find(digest).is_some());
        let mut holders = self.arriving().filter(|record| holds(&record.manifest));
        holders.find_map(|record| self.blob_of(record.content, record.manifest, digest))
    }

    /// Contents on their way here; of what was demoted nothing more comes.
    fn arriving(&self) -> impl Iterator<Item = StoredContent> {
        let demoted = |record: &StoredContent| record.share.as_ref().is_some_and(|found| found.share.whole_dropped);
        self.store.contents().into_iter().filter(move |record| !record.complete && !demoted(record))
    }

    /// Descriptors of the complete images here that say they are about this manifest: signatures, lists of parts. Blocks.
    pub(crate) fn referrers(&self, subject: &Digest) -> Vec<serde_json::Value> {
        let images = self.store.images();
        let manifests: BTreeSet<Digest> = images
            .values()
            .filter_map(|image| image.manifest.image.as_ref())
            .flat_map(|image| &image.blobs)
            .filter(|blob| is_manifest(&blob.media_type) && blob.size <= REFERRER_BYTES_MAX)
            .map(|blob| blob.digest)
            .collect();
        manifests.iter().filter_map(|digest| self.referrer(digest, subject)).take(REFERRERS_MAX).collect()
    }

    /// The descriptor of a manifest, if it is about `subject`.
    fn referrer(&self, digest: &Digest, subject: &Digest) -> Option<serde_json::Value> {
        let blob = self.blob(digest)?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < blob.size {
            bytes.extend_from_slice(&blob.read_from(bytes.len() as u64).ok()?);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        if manifest["subject"]["digest"] != subject.to_string() {
            return None;
        }
        let mut found = serde_json::json!({
            "mediaType": blob.media_type, "digest": digest.to_string(), "size": blob.size,
        });
        // Where a manifest names no type of its own, its configuration's counts, as the specification has it.
        let kind = Some(&manifest["artifactType"]).filter(|kind| kind.is_string());
        found["artifactType"] = kind.unwrap_or(&manifest["config"]["mediaType"]).clone();
        if manifest["annotations"].is_object() {
            found["annotations"] = manifest["annotations"].clone();
        }
        Some(found)
    }

    fn blob_of(&self, content: ContentId, manifest: Arc<Manifest>, digest: &Digest) -> Option<Blob> {
        let geometry = manifest.geometry(&content).ok()?;
        let (stream, blob) = manifest.image.as_ref()?.find(digest)?;
        let ImageBlob { media_type, size, .. } = blob.clone();
        let (mut first_piece, mut at, mut ends) = (0, 0, Vec::new());
        let before: u64 = manifest.streams.iter().take(stream).sum();
        for len in manifest.lens().map(u64::from) {
            if at < before {
                first_piece += 1;
            } else if at < before + size {
                ends.push(at + len - before);
            } else {
                break;
            }
            at += len;
        }
        let (store, digest, ends) = (self.store.clone(), *digest, ends.into());
        Some(Blob { store, content, manifest, geometry, digest, media_type, size, first_piece, ends })
    }

    /// What a tag leads to. Without a registry's name it must be the same in all registries.
    pub(crate) fn tagged(&self, name: &RepositoryName, tag: &str) -> Option<Digest> {
        let fits = |reference: &Reference| {
            let host = name.registry.as_ref().is_none_or(|host| *host == reference.host);
            host && reference.path == name.path && reference.tag.as_deref() == Some(tag)
        };
        let root = |manifest: &Manifest| {
            let image = manifest.image.as_ref()?;
            image.name().filter(|reference| fits(reference)).map(|_| image.root)
        };
        let mut roots: Vec<Digest> = self.store.images().values().filter_map(|image| root(&image.manifest)).collect();
        if roots.is_empty() {
            roots = self.arriving().filter_map(|record| root(&record.manifest)).collect();
        }
        roots.dedup();
        match roots[..] {
            [root] => Some(root),
            _ => None,
        }
    }

    /// A complete content's image.
    pub(crate) fn image_of(&self, content: &ContentId) -> Option<(Arc<Manifest>, Reference)> {
        let manifest = self.store.manifest(content)?;
        let reference = manifest.image.as_ref()?.name()?;
        Some((manifest, reference))
    }
}

impl Blob {
    /// The piece that holds the byte at `offset`, and where it begins in the blob. `offset` is before the blob's end.
    fn piece_at(&self, offset: u64) -> (PieceIndex, u64) {
        let place = self.ends.partition_point(|end| *end <= offset);
        let begin = if place == 0 { 0 } else { self.ends[place - 1] };
        (PieceIndex(self.first_piece + place as u32), begin)
    }

    /// Bytes from `offset` to the end of their piece. Blocks.
    pub(crate) fn read_from(&self, offset: u64) -> Result<Bytes, PieceFault> {
        let (piece, begin) = self.piece_at(offset);
        let bytes = self.store.read(&self.content, self.geometry.shard_of(piece)).map_err(|error| match error {
            ReadError::NotHere => PieceFault::NotHere,
            ReadError::Io(error) => PieceFault::Io(error),
        })?;
        if Hash::of(&bytes) != self.manifest.piece_hash(piece) {
            return Err(PieceFault::Corrupt(piece, self.content));
        }
        Ok(bytes.slice((offset - begin) as usize..))
    }

    /// Pieces of its content that are here: grows while it arrives. `None` when the content is gone.
    pub(crate) fn progress(&self) -> Option<u32> {
        self.store.pieces_stored(&self.content)
    }
}

impl shoal_containerd::BlobReader for Images {
    fn read(&self, digest: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let digest: Digest = digest.parse().map_err(io::Error::other)?;
        let blob = self.blob(&digest).ok_or(io::ErrorKind::NotFound)?;
        if offset >= blob.size {
            return Ok(Bytes::new());
        }
        let bytes = blob.read_from(offset).map_err(io::Error::other)?;
        Ok(bytes.slice(..bytes.len().min(len)))
    }
}
