//! Look-ups of images and blobs, and reads of blobs piece by piece.
//!
//! Invariant: every returned byte belongs to a piece whose hash was checked after the read.

use bytes::Bytes;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Hash, PieceIndex};
use shoal_proto::image::{Digest, ImageBlob, Reference, is_manifest};
use shoal_proto::manifest::Manifest;
use shoal_store::{ReadError, Store, StoredContent};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// Largest manifest, in bytes, that is searched for a reference to another manifest.
const REFERRER_BYTES_MAX: u64 = 4 << 20;
/// Most referrers in one answer.
const REFERRERS_MAX: usize = 256;

/// A repository, and its registry if the client names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepositoryName {
    /// The registry's host and port, from the query parameter `ns`.
    pub(crate) registry: Option<String>,
    pub(crate) path: String,
}

/// The images of a store. Clones use the same store.
#[derive(Clone)]
pub struct Images {
    store: Store,
}

/// Why bytes of a blob cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PieceError {
    /// The piece has not arrived. A later read can succeed.
    #[error("the piece has not arrived")]
    NotHere,
    /// The disk returned other bytes than were written.
    #[error("piece {piece} of content {content} has a wrong hash; check the disk")]
    Corrupt { piece: PieceIndex, content: ContentId },
    #[error("the disk failed")]
    Io(#[from] io::Error),
}

/// A blob in the store. Its pieces may still be arriving.
#[derive(Clone)]
pub(crate) struct Blob {
    store: Store,
    content: ContentId,
    manifest: Arc<Manifest>,
    geometry: Geometry,
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    /// Size in bytes.
    pub(crate) size: u64,
    first_piece: u32,
    /// The end of each piece, in bytes from the start of the blob.
    piece_ends: Arc<[u64]>,
}

impl Images {
    /// Returns the images of a store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Returns a blob. A complete image takes precedence over one that is arriving.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Blob> {
        if let Some(found) = self.store.blob(digest) {
            let manifest = self.store.manifest(&found.content)?;
            return self.blob_of(found.content, manifest, digest);
        }
        let has = |manifest: &Manifest| manifest.image.as_ref().is_some_and(|image| image.find(digest).is_some());
        let mut found = self.arriving().filter(|stored| has(&stored.manifest));
        found.find_map(|stored| self.blob_of(stored.content, stored.manifest, digest))
    }

    /// Returns the contents that are still arriving. Of a demoted content no more pieces arrive.
    fn arriving(&self) -> impl Iterator<Item = StoredContent> {
        let demoted = |stored: &StoredContent| stored.share.as_ref().is_some_and(|found| found.share.whole_dropped);
        self.store.contents().into_iter().filter(move |stored| !stored.complete && !demoted(stored))
    }

    /// Returns the descriptors of complete manifests that refer to `subject`, for example signatures. Blocks.
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

    /// Returns the descriptor of a manifest if the manifest refers to `subject`.
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
        let mut descriptor = serde_json::json!({
            "mediaType": blob.media_type, "digest": digest.to_string(), "size": blob.size,
        });
        // The OCI specification takes the configuration's media type where a manifest has no type of its own.
        let kind = Some(&manifest["artifactType"]).filter(|kind| kind.is_string());
        descriptor["artifactType"] = kind.unwrap_or(&manifest["config"]["mediaType"]).clone();
        if manifest["annotations"].is_object() {
            descriptor["annotations"] = manifest["annotations"].clone();
        }
        Some(descriptor)
    }

    fn blob_of(&self, content: ContentId, manifest: Arc<Manifest>, digest: &Digest) -> Option<Blob> {
        let geometry = manifest.geometry(&content).ok()?;
        let (stream, blob) = manifest.image.as_ref()?.find(digest)?;
        let ImageBlob { media_type, size, .. } = blob.clone();
        let (mut first_piece, mut at, mut piece_ends) = (0, 0, Vec::new());
        // Each blob is one stream, and a piece never spans two streams.
        let before: u64 = manifest.streams.iter().take(stream).sum();
        for len in manifest.lens().map(u64::from) {
            if at < before {
                first_piece += 1;
            } else if at < before + size {
                piece_ends.push(at + len - before);
            } else {
                break;
            }
            at += len;
        }
        let (store, digest, piece_ends) = (self.store.clone(), *digest, piece_ends.into());
        Some(Blob { store, content, manifest, geometry, digest, media_type, size, first_piece, piece_ends })
    }

    /// Returns the root digest of a tag. Without a registry, all registries must have the same digest for the tag.
    pub(crate) fn root_of_tag(&self, name: &RepositoryName, tag: &str) -> Option<Digest> {
        let matches = |reference: &Reference| {
            let registry = name.registry.as_ref().is_none_or(|registry| *registry == reference.host);
            registry && reference.path == name.path && reference.tag.as_deref() == Some(tag)
        };
        let root = |manifest: &Manifest| {
            let image = manifest.image.as_ref()?;
            image.name().filter(|reference| matches(reference)).map(|_| image.root)
        };
        let mut roots: Vec<Digest> = self.store.images().values().filter_map(|image| root(&image.manifest)).collect();
        if roots.is_empty() {
            roots = self.arriving().filter_map(|stored| root(&stored.manifest)).collect();
        }
        roots.dedup();
        match roots[..] {
            [root] => Some(root),
            _ => None,
        }
    }

    /// Returns the manifest and the name of a content that is an image.
    pub(crate) fn image_of(&self, content: &ContentId) -> Option<(Arc<Manifest>, Reference)> {
        let manifest = self.store.manifest(content)?;
        let reference = manifest.image.as_ref()?.name()?;
        Some((manifest, reference))
    }
}

impl Blob {
    pub(crate) fn content(&self) -> ContentId {
        self.content
    }

    /// Returns the piece with the byte at `offset`, and the offset of the piece in the blob. `offset` is inside the
    /// blob.
    fn piece_at(&self, offset: u64) -> (PieceIndex, u64) {
        let place = self.piece_ends.partition_point(|end| *end <= offset);
        let begin = if place == 0 { 0 } else { self.piece_ends[place - 1] };
        (PieceIndex(self.first_piece + place as u32), begin)
    }

    /// Whether the piece with the byte at `offset` can be read. Does not block.
    pub(crate) fn is_here(&self, offset: u64) -> bool {
        self.store.has_shard(&self.content, self.geometry.shard_of(self.piece_at(offset).0))
    }

    /// Returns the bytes from `offset` to the end of their piece. Blocks.
    pub(crate) fn read_from(&self, offset: u64) -> Result<Bytes, PieceError> {
        let (piece, begin) = self.piece_at(offset);
        let bytes = self.store.read(&self.content, self.geometry.shard_of(piece)).map_err(|error| match error {
            ReadError::NotHere => PieceError::NotHere,
            ReadError::Io(error) => PieceError::Io(error),
        })?;
        if Hash::of(&bytes) != self.manifest.piece_hash(piece) {
            return Err(PieceError::Corrupt { piece, content: self.content });
        }
        Ok(bytes.slice((offset - begin) as usize..))
    }

    /// Whether the store still has the blob's content, whole or in part.
    pub(crate) fn is_known(&self) -> bool {
        self.store.pieces_stored(&self.content).is_some()
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
