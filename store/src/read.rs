//! Reading shards and descriptions of contents.
//!
//! Invariant: a shard that is read was verified before, or is computed from verified pieces.

use crate::content::Content;
use crate::errors::ReadError;
use crate::inner::Inner;
use crate::stored_parity::StoredShare;
use bytes::Bytes;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, PieceIndex, ShardIndex};
use shoal_proto::manifest::Manifest;
use std::fs;
use std::io;
use std::sync::Arc;

/// A content of the store.
#[derive(Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub struct StoredContent {
    pub content: ContentId,
    pub manifest: Arc<Manifest>,
    pub geometry: Geometry,
    /// Pieces that the store has.
    pub have: Bitmap,
    /// The content is whole and durable.
    pub complete: bool,
    /// Rack shares beside the whole content, or instead of it.
    pub share: Option<StoredShare>,
}

impl StoredContent {
    pub(crate) fn of(content: &Content) -> Self {
        Self {
            content: content.id,
            manifest: content.manifest.clone(),
            geometry: content.geometry.clone(),
            have: content.have(),
            complete: content.is_complete(),
            share: content.stored_share(),
        }
    }
}

impl Inner {
    /// Returns a shard's bytes from the cache, from a stream or from the parity file, or encodes the parity shard.
    pub(crate) fn read(&self, id: &ContentId, shard: ShardIndex) -> Result<Bytes, ReadError> {
        if let Some(bytes) = self.cache.get(&(*id, shard)) {
            return Ok(bytes);
        }
        let content = self.content(id).ok_or(ReadError::NotHere)?;
        if let Some(piece) = content.geometry.piece_of(shard) {
            return read_piece(&content, piece);
        }
        let (stripe, row) = content.parity_row(shard).ok_or(ReadError::NotHere)?;
        if let Some(stored) = content.read_parity(stripe, row) {
            return Ok(stored?.into());
        }
        let mut pieces = Vec::new();
        for piece in content.geometry.stripe_pieces(stripe).map(PieceIndex) {
            if !content.has(piece) {
                return Err(ReadError::NotHere);
            }
            pieces.push(content.layout.read(piece)?);
        }
        let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        Ok(content.code.parity(row, &refs).into())
    }

    pub(crate) fn has_shard(&self, id: &ContentId, shard: ShardIndex) -> bool {
        let on_disk = |content: &Content| content.geometry.piece_of(shard).is_some_and(|piece| content.has(piece));
        self.cache.get(&(*id, shard)).is_some() || self.content(id).is_some_and(|content| on_disk(&content))
    }

    pub(crate) fn read_manifest(&self, id: &ContentId) -> Result<Bytes, ReadError> {
        let content = self.content(id).ok_or(ReadError::NotHere)?;
        Ok(fs::read(content.dir.join("manifest"))?.into())
    }
}

fn read_piece(content: &Content, piece: PieceIndex) -> Result<Bytes, ReadError> {
    let read: io::Result<Vec<u8>> = if content.has(piece) { content.layout.read(piece) } else { Ok(Vec::new()) };
    // Asked again after the read: another thread may have replaced the stream by a sparse copy meanwhile.
    if content.has(piece) { Ok(read?.into()) } else { Err(ReadError::NotHere) }
}
