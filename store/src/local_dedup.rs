//! Local deduplication: pieces that a new content copies from other contents, and the table of their places.
//!
//! Invariant: a copied piece is hashed before it counts, so a stale place costs a fetch and never a wrong piece.

use crate::content::Content;
use crate::errors::BeginError;
use crate::inner::Inner;
use minicbor::{Decode, Encode};
use shoal_kv::{Change, KvError};
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::{ContentId, Hash, PieceIndex};
use std::collections::HashMap;

/// The place of a piece with a known hash.
#[derive(Encode, Decode)]
pub(crate) struct PiecePlace {
    #[n(0)]
    content: ContentId,
    #[n(1)]
    piece: PieceIndex,
}

/// Half of the hash is enough, because every copy is hashed in full.
fn piece_key(hash: &Hash) -> Vec<u8> {
    hash.0[..16].to_vec()
}

fn pieces(content: &Content) -> impl Iterator<Item = PieceIndex> {
    (0..content.geometry.piece_count()).map(PieceIndex)
}

impl Inner {
    /// Copies the missing pieces that any complete content has. Returns the bytes copied.
    pub(crate) fn copy_known_pieces(&self, content: &Content) -> Result<u64, BeginError> {
        let mut copied = 0;
        for piece in pieces(content).filter(|piece| !content.has(*piece)) {
            let hash = content.manifest.piece_hash(piece);
            let Some(place) = self.place_of(&hash)? else { continue };
            let Some(source) = self.content(&place.content) else { continue };
            if place.piece.0 >= source.geometry.piece_count() || !source.has(place.piece) {
                continue;
            }
            copied += copy_piece(content, piece, &source, place.piece)?;
        }
        Ok(copied)
    }

    /// Copies the pieces that one other content has. Returns the bytes copied.
    pub(crate) fn copy_pieces_from(&self, content: &Content, former: &ContentId) -> Result<u64, BeginError> {
        let Some(source) = self.content(former) else { return Ok(0) };
        let places: HashMap<Hash, PieceIndex> =
            pieces(&source).map(|piece| (source.manifest.piece_hash(piece), piece)).collect();
        let mut copied = 0;
        for piece in pieces(content) {
            let place = places.get(&content.manifest.piece_hash(piece)).filter(|place| source.has(**place));
            let Some(place) = place else { continue };
            copied += copy_piece(content, piece, &source, *place)?;
        }
        Ok(copied)
    }

    fn place_of(&self, hash: &Hash) -> Result<Option<PiecePlace>, KvError> {
        let value = self.tables.pieces.get(piece_key(hash))?;
        Ok(value.and_then(|value| decode_exact(&value).ok()))
    }

    /// Enters the pieces of a complete content into the table.
    pub(crate) fn index_pieces(&self, content: &Content) -> Result<(), KvError> {
        let change = |piece| {
            let place = PiecePlace { content: content.id, piece };
            Change::set(piece_key(&content.manifest.piece_hash(piece)), Some(encode(&place)))
        };
        self.tables.pieces.apply(&pieces(content).map(change).collect::<Vec<_>>())
    }

    /// Points the pieces of a content that is being removed to another image with the same blob, or deletes their
    /// places.
    pub(crate) fn reassign_pieces(&self, content: &Content) -> Result<(), KvError> {
        let mut changes = Vec::new();
        for piece in pieces(content) {
            let hash = content.manifest.piece_hash(piece);
            if self.place_of(&hash)?.is_some_and(|place| place.content == content.id) {
                let place = self.other_place(content, piece);
                changes.push(Change::set(piece_key(&hash), place.map(|place| encode(&place))));
            }
        }
        self.tables.pieces.apply(&changes)
    }

    /// Returns the same piece of the same blob in another image. A blob is cut the same in every image.
    fn other_place(&self, content: &Content, piece: PieceIndex) -> Option<PiecePlace> {
        let stream = content.layout.stream_of(piece);
        let blob = content.manifest.image.as_ref()?.blobs.get(stream)?;
        let holder = self.blob_holder_of_size(&blob.digest, blob.size)?;
        let range = holder.content.layout.pieces_of(holder.stream);
        let place = PieceIndex(range.start + (piece.0 - content.layout.pieces_of(stream).start));
        let is_same =
            range.contains(&place.0) && holder.content.manifest.piece_hash(place) == content.manifest.piece_hash(piece);
        is_same.then_some(PiecePlace { content: holder.content.id, piece: place })
    }
}

/// Copies a piece from its place if the place has the right bytes. Returns the bytes copied.
fn copy_piece(content: &Content, piece: PieceIndex, source: &Content, place: PieceIndex) -> Result<u64, BeginError> {
    let Ok(bytes) = source.layout.read(place) else { return Ok(0) };
    if Hash::of(&bytes) != content.manifest.piece_hash(piece) {
        return Ok(0);
    }
    content.layout.write(piece, &bytes)?;
    content.mark(piece);
    Ok(bytes.len() as u64)
}
