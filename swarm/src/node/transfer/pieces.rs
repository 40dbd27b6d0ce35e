//! Which shards of a content are here: pieces, parity in memory, and parity on the disk.
//!
//! Invariant: `missing` is the number of pieces not in `have`, and parity is kept only of stripes with missing pieces.

use crate::time::Instant;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{PieceIndex, ShardIndex, StripeIndex};
use std::collections::{BTreeMap, BTreeSet};

/// Parity shards by stripe, a bit for each row.
pub type ParityRows = BTreeMap<StripeIndex, u32>;

#[derive(Debug)]
pub struct Pieces {
    geometry: Geometry,
    have: Bitmap,
    missing: u32,
    /// Parity that arrived, and stored parity while the content is promoted.
    parity: ParityRows,
    /// Parity on the disk: part of a demoted content's rack share.
    stored_parity: ParityRows,
    /// Stripes that the driver decodes now.
    rebuilding: BTreeSet<StripeIndex>,
    last_arrival: Instant,
}

impl Pieces {
    pub fn new(geometry: Geometry, have: Bitmap, now: Instant) -> Self {
        let missing = geometry.piece_count() - have.count();
        Self {
            geometry,
            have,
            missing,
            parity: BTreeMap::new(),
            stored_parity: BTreeMap::new(),
            rebuilding: BTreeSet::new(),
            last_arrival: now,
        }
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn have(&self) -> &Bitmap {
        &self.have
    }

    pub fn has(&self, piece: PieceIndex) -> bool {
        self.have.get(piece.0)
    }

    pub fn missing(&self) -> u32 {
        self.missing
    }

    pub fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// Counts a piece in. Returns false when it was here.
    pub fn take(&mut self, piece: PieceIndex) -> bool {
        let fresh = self.have.set(piece.0);
        self.missing -= u32::from(fresh);
        fresh
    }

    /// Counts a piece out. Returns false when it was not here.
    pub fn lose(&mut self, piece: PieceIndex) -> bool {
        let lost = self.have.unset(piece.0);
        self.missing += u32::from(lost);
        lost
    }

    /// Counts a parity shard in. Returns false when it was here.
    pub fn take_parity(&mut self, stripe: StripeIndex, row: u32) -> bool {
        let rows = self.parity.entry(stripe).or_default();
        let fresh = *rows >> row & 1 == 0;
        *rows |= 1 << row;
        fresh
    }

    pub fn last_arrival(&self) -> Instant {
        self.last_arrival
    }

    pub fn note_arrival(&mut self, now: Instant) {
        self.last_arrival = now;
    }

    /// The stripe of a piece.
    pub fn stripe_of(&self, piece: PieceIndex) -> StripeIndex {
        StripeIndex(piece.0 / u32::from(self.geometry.data()))
    }

    /// The row of a parity shard that stands at `place` in its stripe.
    pub fn parity_row(&self, place: u32) -> u32 {
        place - u32::from(self.geometry.data())
    }

    /// Parity shards of the stripe that are here, a bit for each row.
    pub fn parity_rows(&self, stripe: StripeIndex) -> u32 {
        self.parity.get(&stripe).copied().unwrap_or(0)
    }

    pub fn stripe_have(&self, stripe: StripeIndex) -> u32 {
        self.geometry.stripe_pieces(stripe).filter(|piece| self.have.get(*piece)).count() as u32
    }

    pub fn stripe_is_whole(&self, stripe: StripeIndex) -> bool {
        self.stripe_have(stripe) == self.geometry.stripe_data(stripe)
    }

    /// Whether this shard can be sent from here. Parity is made from a whole stripe, or read from a rack share.
    pub fn can_serve(&self, shard: ShardIndex) -> bool {
        match (self.geometry.piece_of(shard), self.geometry.split(shard)) {
            (Some(piece), _) => self.has(piece),
            (None, Some((stripe, place))) => {
                let stored = self.stored_parity.get(&stripe).copied().unwrap_or(0);
                self.stripe_is_whole(stripe) || stored >> self.parity_row(place) & 1 == 1
            }
            (None, None) => false,
        }
    }

    /// Whether this parity is worth decoding with. Drops the parity of a whole stripe.
    ///
    /// Returns true once per stripe: then the driver is asked to decode it.
    pub fn begin_rebuild(&mut self, stripe: StripeIndex) -> bool {
        if self.stripe_is_whole(stripe) {
            self.parity.remove(&stripe);
            return false;
        }
        let rows = self.parity_rows(stripe).count_ones();
        let enough = rows > 0 && self.stripe_have(stripe) + rows >= self.geometry.stripe_data(stripe);
        enough && self.rebuilding.insert(stripe)
    }

    pub fn is_rebuilding(&self, stripe: StripeIndex) -> bool {
        self.rebuilding.contains(&stripe)
    }

    pub fn rebuild_count(&self) -> usize {
        self.rebuilding.len()
    }

    /// A piece of the stripe came. Returns whether its parity may complete it.
    pub fn on_stripe_progress(&mut self, stripe: StripeIndex) -> bool {
        let has_parity = self.parity.contains_key(&stripe);
        if has_parity && self.stripe_is_whole(stripe) {
            self.parity.remove(&stripe);
            self.rebuilding.remove(&stripe);
            return false;
        }
        has_parity
    }

    /// The driver could not decode the stripe. Parity that came is in memory only for a while, so it is requested
    /// again.
    pub fn on_rebuild_failed(&mut self, stripe: StripeIndex) {
        if !self.rebuilding.remove(&stripe) {
            return;
        }
        let (rows, stored) = (self.parity.remove(&stripe), self.stored_parity.get(&stripe).copied());
        if rows == stored {
            // Then the parity on the disk cannot be read any more.
            self.stored_parity.remove(&stripe);
        } else if let Some(stored) = stored {
            self.parity.insert(stripe, stored);
        }
    }

    /// This parity is on the disk.
    pub fn set_stored_parity(&mut self, parity: ParityRows) {
        self.stored_parity = parity;
    }

    /// Decodes with the parity on the disk, too.
    pub fn use_stored_parity(&mut self) {
        self.parity.extend(self.stored_parity.iter().map(|(stripe, rows)| (*stripe, *rows)));
    }

    /// Everything is here: no parity is needed.
    pub fn drop_parity(&mut self) {
        self.parity.clear();
        self.stored_parity.clear();
        self.rebuilding.clear();
    }

    pub fn check_invariants(&self) {
        assert_eq!(self.missing, self.geometry.piece_count() - self.have.count(), "missing pieces");
    }
}
