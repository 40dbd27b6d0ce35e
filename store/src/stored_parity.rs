//! Which rack shares of a content are on the disk, and where each parity shard lies in the parity file.
//!
//! The parity file is sparse. Each shard has the offset that it would have if every parity shard was there.
//! Invariant: a row's bit is set only after the row is on the disk with the right hash.

use minicbor::{Decode, Encode};
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{HostIndex, StripeIndex};
use shoal_proto::rack_placement::RackPlacement;
use std::collections::BTreeMap;

/// Which rack shares of a content this host keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RackShare {
    /// This host's roster index in the placements.
    #[n(0)]
    pub me: HostIndex,
    /// The placements whose shares are on the disk.
    #[n(1)]
    pub placements: Vec<RackPlacement>,
    /// The rest of the content was dropped.
    #[n(2)]
    pub whole_dropped: bool,
}

/// A rack share and its parity shards, as found on the disk.
#[derive(Clone, Debug)]
pub struct StoredShare {
    #[allow(missing_docs, reason = "the type says it")]
    pub share: RackShare,
    /// Parity shards on the disk: a bit for each row of a stripe.
    pub parity: BTreeMap<StripeIndex, u32>,
}

/// The parity file of one content.
#[derive(Debug, Default)]
pub(crate) struct StoredParity {
    share: Option<RackShare>,
    /// A bit for each row of a stripe.
    rows: BTreeMap<StripeIndex, u32>,
    /// Where each stripe begins in the file. Computed at the first use, because few contents are demoted.
    offsets: Option<Box<[u64]>>,
}

impl StoredParity {
    pub(crate) fn share(&self) -> Option<&RackShare> {
        self.share.as_ref()
    }

    pub(crate) fn set_share(&mut self, share: Option<RackShare>) {
        self.share = share;
    }

    pub(crate) fn share_mut(&mut self) -> Option<&mut RackShare> {
        self.share.as_mut()
    }

    /// Returns the offset of a row in the parity file, bytes.
    pub(crate) fn offset(&mut self, geometry: &Geometry, stripe: StripeIndex, row: usize) -> u64 {
        let offsets = self.offsets.get_or_insert_with(|| {
            let mut end = 0;
            let stripes = (0..geometry.stripe_count()).map(StripeIndex);
            let offsets = stripes.map(|stripe| {
                let len = u64::from(geometry.parity_len(stripe)) * u64::from(geometry.parity());
                end += len;
                end - len
            });
            offsets.collect()
        });
        offsets[stripe.index()] + row as u64 * u64::from(geometry.parity_len(stripe))
    }

    pub(crate) fn has(&self, stripe: StripeIndex, row: usize) -> bool {
        self.rows.get(&stripe).is_some_and(|rows| rows >> row & 1 == 1)
    }

    pub(crate) fn mark(&mut self, stripe: StripeIndex, row: usize) {
        *self.rows.entry(stripe).or_default() |= 1 << row;
    }

    /// Returns the rows of a stripe that are on the disk.
    pub(crate) fn rows_of(&self, stripe: StripeIndex) -> Vec<usize> {
        (0..u32::BITS as usize).filter(|row| self.has(stripe, *row)).collect()
    }

    /// Returns how many bytes the parity shards take.
    pub(crate) fn bytes(&self, geometry: &Geometry) -> u64 {
        let bytes = |(stripe, rows): (&StripeIndex, &u32)| {
            u64::from(geometry.parity_len(*stripe)) * u64::from(rows.count_ones())
        };
        self.rows.iter().map(bytes).sum()
    }

    /// Forgets the share and every row.
    pub(crate) fn clear(&mut self) {
        (self.share, self.rows) = (None, BTreeMap::new());
    }

    pub(crate) fn stored_share(&self) -> Option<StoredShare> {
        Some(StoredShare { share: self.share.clone()?, parity: self.rows.clone() })
    }
}
