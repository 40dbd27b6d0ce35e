//! The arithmetic of pieces, stripes, shards and lanes of one content.
//!
//! Invariant: the constructor of [`Geometry`] checks all values, so every derived index is in range.

use crate::bitmap::Bitmap;
use crate::codec::DecodeError;
use crate::ids::{ContentId, LaneIndex, PieceIndex, ShardIndex, StripeIndex};
use crate::limits;
use std::ops::Range;
use std::sync::Arc;

/// The shape of a content: piece lengths, the code (k, m) and the number of lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    data: u8,
    parity: u8,
    lanes: u8,
    lane_offset: u8,
    lens: Arc<[u32]>,
    bytes: u64,
}

impl Geometry {
    /// Returns the checked geometry. `data` is k, `parity` is m, and `lens` has the piece lengths in bytes, in order.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Invalid`] for the first value out of its range.
    pub fn new(data: u8, parity: u8, lanes: u8, content: &ContentId, lens: Arc<[u32]>) -> Result<Self, DecodeError> {
        let check = |ok: bool, what, why: &str| if ok { Ok(()) } else { Err(DecodeError::invalid(what, why)) };
        check((1..=limits::STRIPE_DATA_MAX).contains(&data), "stripe", "k out of range")?;
        check(parity <= limits::STRIPE_PARITY_MAX, "stripe", "m out of range")?;
        check((1..=limits::LANES_MAX).contains(&lanes), "lanes", "out of range")?;
        check(lens.len() <= limits::PIECES_MAX as usize, "pieces", "too many")?;
        check(lens.iter().all(|len| (1..=limits::PIECE_BYTES_MAX).contains(len)), "pieces", "length out of range")?;
        let bytes = lens.iter().map(|len| u64::from(*len)).sum();
        // Without an offset all small contents would use lane 0 and load its owners alone.
        let lane_offset = (content.prefix() % u64::from(lanes)) as u8;
        Ok(Self { data, parity, lanes, lane_offset, lens, bytes })
    }

    /// Data shards in a full stripe (k).
    pub fn data(&self) -> u8 {
        self.data
    }

    /// Parity shards in every stripe (m).
    pub fn parity(&self) -> u8 {
        self.parity
    }

    /// Distribution trees (L).
    pub fn lanes(&self) -> u8 {
        self.lanes
    }

    /// Payload bytes of all pieces.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of pieces.
    pub fn piece_count(&self) -> u32 {
        self.lens.len() as u32
    }

    /// Number of stripes.
    pub fn stripe_count(&self) -> u32 {
        self.piece_count().div_ceil(u32::from(self.data))
    }

    /// Width of the shard index space of one stripe: k + m, even for a short last stripe.
    pub fn width(&self) -> u32 {
        u32::from(self.data) + u32::from(self.parity)
    }

    /// Size of the shard index space. A short last stripe leaves a gap of indices without shards.
    pub fn shard_space(&self) -> u32 {
        self.stripe_count() * self.width()
    }

    /// The first piece of `stripe`. The result is past the last piece where the stripe does not exist.
    fn first_piece(&self, stripe: StripeIndex) -> u32 {
        stripe.0.saturating_mul(u32::from(self.data))
    }

    /// Number of data shards that exist in `stripe`.
    pub fn stripe_data(&self, stripe: StripeIndex) -> u32 {
        self.piece_count().saturating_sub(self.first_piece(stripe)).min(u32::from(self.data))
    }

    /// Pieces of `stripe`.
    pub fn stripe_pieces(&self, stripe: StripeIndex) -> Range<u32> {
        let first = self.first_piece(stripe);
        first..first + self.stripe_data(stripe)
    }

    /// Length of a piece, bytes.
    pub fn piece_len(&self, piece: PieceIndex) -> u32 {
        self.lens[piece.index()]
    }

    /// All piece lengths, bytes.
    pub fn piece_lens(&self) -> &Arc<[u32]> {
        &self.lens
    }

    /// Length of the parity shards of a stripe, bytes. It is the length of the longest piece.
    pub fn parity_len(&self, stripe: StripeIndex) -> u32 {
        self.stripe_pieces(stripe).map(|piece| self.lens[piece as usize]).max().unwrap_or(0)
    }

    /// Returns the data shard of `piece`.
    pub fn shard_of(&self, piece: PieceIndex) -> ShardIndex {
        let data = u32::from(self.data);
        ShardIndex(piece.0 / data * self.width() + piece.0 % data)
    }

    /// Returns the piece of `shard`, if it is a data shard of this content.
    pub fn piece_of(&self, shard: ShardIndex) -> Option<PieceIndex> {
        let (stripe, place) = self.split(shard)?;
        (place < self.stripe_data(stripe)).then(|| PieceIndex(stripe.0 * u32::from(self.data) + place))
    }

    /// Returns the stripe and the place in it, if `shard` exists in this content.
    pub fn split(&self, shard: ShardIndex) -> Option<(StripeIndex, u32)> {
        let stripe = StripeIndex(shard.0 / self.width());
        let place = shard.0 % self.width();
        let exists =
            stripe.0 < self.stripe_count() && (place < self.stripe_data(stripe) || place >= u32::from(self.data));
        exists.then_some((stripe, place))
    }

    /// Returns the shard at `place` of `stripe`. Both must exist. Places below k are data, the others parity.
    pub fn shard_at(&self, stripe: StripeIndex, place: u32) -> ShardIndex {
        ShardIndex(stripe.0 * self.width() + place)
    }

    /// Iterates over the shards of a stripe, data first. The stripe must exist.
    pub fn stripe_shards(&self, stripe: StripeIndex) -> impl Iterator<Item = ShardIndex> + use<> {
        let (first, data, width) = (stripe.0 * self.width(), u32::from(self.data), self.width());
        (0..self.stripe_data(stripe)).chain(data..width).map(move |place| ShardIndex(first + place))
    }

    /// Whether `shard` is a parity shard.
    pub fn is_parity(&self, shard: ShardIndex) -> bool {
        shard.0 % self.width() >= u32::from(self.data)
    }

    /// Returns the length of a shard, bytes, or `None` if the shard does not exist.
    pub fn shard_len(&self, shard: ShardIndex) -> Option<u32> {
        let (stripe, _) = self.split(shard)?;
        Some(match self.piece_of(shard) {
            Some(piece) => self.piece_len(piece),
            None => self.parity_len(stripe),
        })
    }

    /// Returns the lane of a shard. Consecutive data shards have consecutive lanes, so all lanes carry the same number
    /// of pieces. The shards of one stripe are on different lanes while k + m <= L.
    pub fn lane_of(&self, shard: ShardIndex) -> LaneIndex {
        let stripe = u64::from(shard.0 / self.width());
        let place = u64::from(shard.0 % self.width());
        let lane = (stripe * u64::from(self.data) + place + u64::from(self.lane_offset)) % u64::from(self.lanes);
        LaneIndex(lane as u8)
    }

    /// Returns the lane of a piece.
    pub fn lane_of_piece(&self, piece: PieceIndex) -> LaneIndex {
        self.lane_of(self.shard_of(piece))
    }

    /// Iterates over the pieces of `lane`, ascending: every L-th piece. A lane that does not exist has none.
    pub fn pieces_of_lane(&self, lane: LaneIndex) -> impl Iterator<Item = PieceIndex> + use<> {
        let lanes = u32::from(self.lanes);
        let first = (u32::from(lane.0) + lanes - u32::from(self.lane_offset)) % lanes;
        let end = if lane.0 < self.lanes { self.piece_count() } else { 0 };
        (first..end).step_by(lanes as usize).map(PieceIndex)
    }

    /// An empty set of pieces of this content.
    pub fn no_pieces(&self) -> Bitmap {
        Bitmap::new(self.piece_count())
    }
}
