//! The part of a manifest that grows while a stream is cut: lengths and hashes of pieces, hashes of parity shards.
//!
//! Invariant: every stripe of the pieces so far is in the table, except the one that is being filled.

use crate::erasure::{ErasureCode, ErasureError, ReedSolomonCode};
use bytes::Bytes;
use shoal_proto::ids::Hash;
use shoal_proto::image::ImageIndex;
use shoal_proto::manifest::{Entry, Manifest, Root};

/// The shape of a content's stripes and plans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Data shards in a stripe (k).
    pub(crate) data: u8,
    /// Parity shards in a stripe (m).
    pub(crate) parity: u8,
    /// Lanes of the plan (L).
    pub(crate) lanes: u8,
}

/// Lengths and hashes of pieces, as the manifest has them.
pub(crate) struct PieceTable {
    shape: Shape,
    code: ReedSolomonCode,
    /// The pieces of the stripe that is being filled.
    stripe: Vec<Bytes>,
    piece_lens: Vec<u8>,
    piece_hashes: Vec<u8>,
    parity_hashes: Vec<u8>,
}

impl PieceTable {
    /// Returns an empty table.
    ///
    /// # Errors
    /// [`ErasureError::Shape`] if no code has this shape.
    pub(crate) fn new(shape: Shape) -> Result<Self, ErasureError> {
        let (data, parity) = (usize::from(shape.data), usize::from(shape.parity));
        Ok(Self {
            shape,
            code: ReedSolomonCode::new(data, parity)?,
            stripe: Vec::with_capacity(data),
            piece_lens: Vec::new(),
            piece_hashes: Vec::new(),
            parity_hashes: Vec::new(),
        })
    }

    /// Adds the next piece, whose hash is known.
    pub(crate) fn push(&mut self, piece: Bytes, hash: Hash) {
        self.piece_lens.extend_from_slice(&(piece.len() as u32).to_le_bytes());
        self.piece_hashes.extend_from_slice(hash.as_bytes());
        self.stripe.push(piece);
        if self.stripe.len() == usize::from(self.shape.data) {
            self.encode_stripe();
        }
    }

    fn encode_stripe(&mut self) {
        let pieces: Vec<&[u8]> = self.stripe.iter().map(|piece| &piece[..]).collect();
        for row in 0..usize::from(self.shape.parity) {
            self.parity_hashes.extend_from_slice(Hash::of(&self.code.parity(row, &pieces)).as_bytes());
        }
        self.stripe.clear();
    }

    /// Returns the manifest of the pieces so far.
    pub(crate) fn into_manifest(mut self, parts: ManifestParts) -> Manifest {
        if !self.stripe.is_empty() {
            self.encode_stripe();
        }
        Manifest {
            root: parts.root,
            entries: parts.entries,
            streams: parts.streams,
            piece_bytes_avg: parts.piece_bytes_avg,
            data: self.shape.data,
            parity: self.shape.parity,
            lanes: self.shape.lanes,
            piece_lens: self.piece_lens,
            piece_hashes: self.piece_hashes,
            parity_hashes: self.parity_hashes,
            image: parts.image,
        }
    }
}

/// The parts of a manifest that do not depend on the pieces.
pub(crate) struct ManifestParts {
    pub(crate) root: Root,
    pub(crate) entries: Vec<Entry>,
    pub(crate) streams: Vec<u64>,
    pub(crate) piece_bytes_avg: u32,
    pub(crate) image: Option<ImageIndex>,
}
