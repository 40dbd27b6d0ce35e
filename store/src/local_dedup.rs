//! Pieces that contents share: where a piece with a known hash lies, and who is asked when its content goes.

use crate::store::{BeginError, Content, PiecePlace, Store, piece_key};
use shoal_kv::{Change, KvError};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{ContentId, Hash, PieceIndex};
use std::collections::HashMap;

impl Store {
    /// Copies pieces that other contents have; gives the bytes copied.
    pub(crate) fn copy_known_pieces(&self, content: &Content) -> Result<u64, BeginError> {
        let mut reused = 0;
        for piece in (0..content.geometry.piece_count()).map(PieceIndex).filter(|piece| !content.has(*piece)) {
            let hash = content.manifest.piece_hash(piece);
            let Some(place) = self.place_of(&hash)? else { continue };
            let Some(source) = self.inner.content(&place.content) else { continue };
            if place.piece.0 >= source.geometry.piece_count() || !source.has(place.piece) {
                continue;
            }
            reused += copy_piece(content, piece, &source, place.piece)?;
        }
        Ok(reused)
    }

    /// Copies pieces of another content; gives the bytes copied.
    pub(crate) fn copy_pieces_from(&self, content: &Content, former: &ContentId) -> Result<u64, BeginError> {
        let Some(source) = self.inner.content(former) else { return Ok(0) };
        let pieces = (0..source.geometry.piece_count()).map(PieceIndex);
        let places: HashMap<Hash, PieceIndex> =
            pieces.map(|piece| (source.manifest.piece_hash(piece), piece)).collect();
        let mut reused = 0;
        for piece in (0..content.geometry.piece_count()).map(PieceIndex) {
            let place = places.get(&content.manifest.piece_hash(piece)).filter(|place| source.has(**place));
            let Some(place) = place else { continue };
            reused += copy_piece(content, piece, &source, *place)?;
        }
        Ok(reused)
    }

    fn place_of(&self, hash: &Hash) -> Result<Option<PiecePlace>, KvError> {
        let row = self.inner.index.pieces.get(piece_key(hash))?;
        Ok(row.and_then(|row| decode_exact(&row).ok()))
    }

    /// A content goes: its pieces are found at another image with the same blob from now on, or nowhere.
    pub(crate) fn reassign_pieces(&self, content: &Content) -> Result<(), KvError> {
        let mut changes = Vec::new();
        for piece in (0..content.geometry.piece_count()).map(PieceIndex) {
            let hash = content.manifest.piece_hash(piece);
            if self.place_of(&hash)?.is_some_and(|place| place.content == content.id) {
                let place = self.other_holder(content, piece);
                changes.push(Change::set(piece_key(&hash), place.map(|place| encode(&place))));
            }
        }
        self.inner.index.pieces.apply(&changes)
    }

    /// The same piece of the same blob in another image.
    fn other_holder(&self, content: &Content, piece: PieceIndex) -> Option<PiecePlace> {
        let stream = content.layout.stream_of(piece);
        let blob = content.manifest.image.as_ref()?.blobs.get(stream)?;
        let (holder, at) = self.inner.holder(&blob.digest, blob.size)?;
        let place = holder.layout.pieces_of(at).start + (piece.0 - content.layout.pieces_of(stream).start);
        let same = place < holder.layout.pieces_of(at).end
            && holder.manifest.piece_hash(PieceIndex(place)) == content.manifest.piece_hash(piece);
        same.then_some(PiecePlace { content: holder.id, piece: PieceIndex(place) })
    }
}

/// Copies a piece from where it should be, if that is what is there; gives its length.
fn copy_piece(content: &Content, piece: PieceIndex, source: &Content, place: PieceIndex) -> Result<u64, BeginError> {
    let Ok(bytes) = source.layout.read(place) else { return Ok(0) };
    if Hash::of(&bytes) != content.manifest.piece_hash(piece) {
        return Ok(0);
    }
    content.layout.write(piece, &bytes)?;
    content.mark(piece);
    Ok(bytes.len() as u64)
}
