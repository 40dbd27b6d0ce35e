//! Look-ups of images and blobs, and reads of blobs piece by piece.
//!
//! Invariant: every returned byte belongs to a piece whose hash was checked after the read.

use bytes::Bytes;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Hash, PieceIndex};
use shoal_proto::image::{Digest, FullRepository, ImageBlob, Reference};
use shoal_proto::manifest::Manifest;
use shoal_store::{ReadError, Store, StoredContent};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// A repository, and its registry if the client names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepositoryName {
    /// The registry's host and port, from the query parameter `ns`.
    pub(crate) registry: Option<String>,
    pub(crate) path: String,
}

impl RepositoryName {
    /// Returns a name in the form that references have, so that `docker.io` and `nginx` are `library/nginx`.
    pub(crate) fn new(registry: Option<&str>, path: &str) -> Self {
        let Some(registry) = registry else { return Self { registry: None, path: path.to_string() } };
        let FullRepository { host, path } = FullRepository::new(registry, path);
        Self { registry: Some(host), path }
    }

    fn has(&self, reference: &Reference) -> bool {
        reference.path == self.path && self.registry.as_ref().is_none_or(|registry| *registry == reference.host)
    }
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
        // An image that becomes complete between the first two looks is in neither.
        self.complete_blob(digest).or_else(|| self.arriving_blob(digest)).or_else(|| self.complete_blob(digest))
    }

    fn complete_blob(&self, digest: &Digest) -> Option<Blob> {
        let found = self.store.blob(digest)?;
        let manifest = self.store.manifest(&found.content)?;
        self.blob_of(found.content, manifest, digest)
    }

    fn arriving_blob(&self, digest: &Digest) -> Option<Blob> {
        let has = |manifest: &Manifest| manifest.image.as_ref().is_some_and(|image| image.find(digest).is_some());
        let mut found = self.arriving().filter(|stored| has(&stored.manifest));
        found.find_map(|stored| self.blob_of(stored.content, stored.manifest, digest))
    }

    /// Returns the contents that are still arriving. Of a demoted content no more pieces arrive.
    fn arriving(&self) -> impl Iterator<Item = StoredContent> {
        let demoted = |stored: &StoredContent| stored.share.as_ref().is_some_and(|found| found.share.whole_dropped);
        self.store.contents().into_iter().filter(move |stored| !stored.complete && !demoted(stored))
    }

    /// Returns the manifests of the complete images. Of several of one name, the newest.
    pub(super) fn complete(&self) -> Vec<Arc<Manifest>> {
        self.store.images().into_values().map(|image| image.manifest).collect()
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
    ///
    /// A name with a digest says which bytes it means, and nothing about the tag.
    pub(crate) fn root_of_tag(&self, name: &RepositoryName, tag: &str) -> Option<Digest> {
        let root = |manifest: &Manifest| {
            let image = manifest.image.as_ref()?;
            let reference = image.name().filter(|reference| name.has(reference) && reference.digest.is_none())?;
            (reference.tag.as_deref() == Some(tag)).then_some(image.root)
        };
        let complete = || self.complete().iter().filter_map(|manifest| root(manifest)).collect::<BTreeSet<Digest>>();
        let mut roots = complete();
        if roots.is_empty() {
            roots = self.arriving().filter_map(|stored| root(&stored.manifest)).collect();
        }
        // An image that becomes complete between the two looks is in neither.
        if roots.is_empty() {
            roots = complete();
        }
        if roots.len() == 1 { roots.pop_first() } else { None }
    }

    /// Returns the tags of a repository, or `None` if there is no such repository here. Without a registry, only one
    /// registry may have it.
    pub(crate) fn tags(&self, name: &RepositoryName) -> Option<BTreeSet<String>> {
        let names = self.complete();
        let names = names.iter().filter_map(|manifest| manifest.image.as_ref()?.name()).filter(|found| name.has(found));
        let (mut registries, mut tags) = (BTreeSet::new(), BTreeSet::new());
        for Reference { host, tag, digest, .. } in names {
            registries.insert(host);
            tags.extend(tag.filter(|_| digest.is_none()));
        }
        (registries.len() == 1).then_some(tags)
    }

    /// Whether an image of a repository is here, whole or arriving.
    pub(crate) fn has_repository(&self, name: &RepositoryName) -> bool {
        let is_of = |manifest: &Manifest| {
            manifest.image.as_ref().and_then(|image| image.name()).is_some_and(|reference| name.has(&reference))
        };
        let complete = || self.complete().iter().any(|manifest| is_of(manifest));
        // An image that becomes complete between the first two looks is in neither.
        complete() || self.arriving().any(|stored| is_of(&stored.manifest)) || complete()
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
