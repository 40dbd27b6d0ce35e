//! Piece, stripe, shard and lane arithmetic of one content, in one place.
//!
//! Invariant: a [`Geometry`] is checked when made, so every index derived from it is in range.

use crate::bitmap::Bitmap;
use crate::codec::DecodeError;
use crate::ids::{ContentId, LaneIndex, PieceIndex, ShardIndex, StripeIndex};
use crate::limits;
use std::ops::Range;
use std::sync::Arc;

/// The shape of a content: how many pieces of which length, coded how, spread over how many lanes.
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
    /// Checks and builds. `data` and `parity` are k and m of the code; `lens` the pieces' lengths in bytes, in order.
    pub fn new(data: u8, parity: u8, lanes: u8, content: &ContentId, lens: Arc<[u32]>) -> Result<Self, DecodeError> {
        let check = |ok: bool, what, why: &str| if ok { Ok(()) } else { Err(DecodeError::invalid(what, why)) };
        check((1..=limits::STRIPE_DATA_MAX).contains(&data), "stripe", "k out of range")?;
        check(parity <= limits::STRIPE_PARITY_MAX, "stripe", "m out of range")?;
        check((1..=limits::LANES_MAX).contains(&lanes), "lanes", "out of range")?;
        check(lens.len() <= limits::PIECES_MAX as usize, "pieces", "too many")?;
        check(lens.iter().all(|len| (1..=limits::PIECE_BYTES_MAX).contains(len)), "pieces", "length out of range")?;
        let bytes = lens.iter().map(|len| u64::from(*len)).sum();
        // Small contents would otherwise all ride lane 0 and load its owners alone.
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

    /// Width of the shard index space of one stripe: k + m, also for a short last stripe.
    pub fn width(&self) -> u32 {
        u32::from(self.data) + u32::from(self.parity)
    }

    /// Size of the shard index space. Not every index in it is a shard: a short last stripe leaves a gap.
    pub fn shard_space(&self) -> u32 {
        self.stripe_count() * self.width()
    }

    /// The piece that `stripe` begins with; past the last piece when there is no such stripe.
    fn first_piece(&self, stripe: StripeIndex) -> u32 {
        stripe.0.saturating_mul(u32::from(self.data))
    }

    /// Data shards that `stripe` really has.
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

    /// Length of the stripe's parity shards: its longest piece, bytes.
    pub fn parity_len(&self, stripe: StripeIndex) -> u32 {
        self.stripe_pieces(stripe).map(|piece| self.lens[piece as usize]).max().unwrap_or(0)
    }

    /// The data shard that is `piece`.
    pub fn shard_of(&self, piece: PieceIndex) -> ShardIndex {
        let data = u32::from(self.data);
        ShardIndex(piece.0 / data * self.width() + piece.0 % data)
    }

    /// The piece that `shard` is, if it is a data shard of this content.
    pub fn piece_of(&self, shard: ShardIndex) -> Option<PieceIndex> {
        let (stripe, place) = self.split(shard)?;
        (place < self.stripe_data(stripe)).then(|| PieceIndex(stripe.0 * u32::from(self.data) + place))
    }

    /// Stripe and place within it, if `shard` exists in this content.
    pub fn split(&self, shard: ShardIndex) -> Option<(StripeIndex, u32)> {
        let stripe = StripeIndex(shard.0 / self.width());
        let place = shard.0 % self.width();
        let exists =
            stripe.0 < self.stripe_count() && (place < self.stripe_data(stripe) || place >= u32::from(self.data));
        exists.then_some((stripe, place))
    }

    /// The shard at `place` of `stripe` (`place < k` data, else parity), both of which must exist.
    pub fn shard_at(&self, stripe: StripeIndex, place: u32) -> ShardIndex {
        ShardIndex(stripe.0 * self.width() + place)
    }

    /// The stripe's shards, data first. There must be such a stripe.
    pub fn stripe_shards(&self, stripe: StripeIndex) -> impl Iterator<Item = ShardIndex> + use<> {
        let (first, data, width) = (stripe.0 * self.width(), u32::from(self.data), self.width());
        (0..self.stripe_data(stripe)).chain(data..width).map(move |place| ShardIndex(first + place))
    }

    /// Whether `shard` is a parity shard.
    pub fn is_parity(&self, shard: ShardIndex) -> bool {
        shard.0 % self.width() >= u32::from(self.data)
    }

    /// Length of a shard, bytes; `None` if there is no such shard.
    pub fn shard_len(&self, shard: ShardIndex) -> Option<u32> {
        let (stripe, _) = self.split(shard)?;
        Some(match self.piece_of(shard) {
            Some(piece) => self.piece_len(piece),
            None => self.parity_len(stripe),
        })
    }

    /// The lane a shard rides. Consecutive data shards take consecutive lanes, so lanes carry equally many pieces and
    /// the shards of one stripe are on different lanes while k + m <= L.
    pub fn lane_of(&self, shard: ShardIndex) -> LaneIndex {
        let stripe = u64::from(shard.0 / self.width());
        let place = u64::from(shard.0 % self.width());
        let lane = (stripe * u64::from(self.data) + place + u64::from(self.lane_offset)) % u64::from(self.lanes);
        LaneIndex(lane as u8)
    }

    /// The lane a piece rides.
    pub fn lane_of_piece(&self, piece: PieceIndex) -> LaneIndex {
        self.lane_of(self.shard_of(piece))
    }

    /// Pieces that ride `lane`, ascending: every L-th piece. None when there is no such lane.
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
