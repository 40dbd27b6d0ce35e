//! The rack placement: the assignment of a demoted content's shards to the hosts of a rack.
//!
//! The shards of a stripe go to the hosts one by one. Each stripe begins where the former ended. A host therefore holds
//! at most `ceil((k + m) / h)` shards of a stripe, with h hosts. If that is at most m, the rack may lose `m / ceil((k +
//! m) / h)` hosts, which is m hosts in racks of k + m hosts and more. A smaller rack may still lose one host: the next
//! host also holds what a host would hold beyond m shards of a stripe.
//!
//! Invariant: the same hosts and the same geometry lead to the same placement on every host. Every shard has a holder.

use crate::codec::DecodeError;
use crate::geometry::Geometry;
use crate::ids::{HostIndex, ShardIndex, StripeIndex};
use crate::limits;
use minicbor::{Decode, Encode};

/// The hosts that hold the shards of a content, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct RackPlacement(#[n(0)] Vec<HostIndex>);

impl RackPlacement {
    /// Returns the placement over these hosts. Their order does not matter.
    pub fn new(hosts: impl IntoIterator<Item = HostIndex>) -> Self {
        let mut hosts: Vec<HostIndex> = hosts.into_iter().collect();
        hosts.sort_unstable();
        hosts.dedup();
        Self(hosts)
    }

    /// The hosts, ascending.
    pub fn hosts(&self) -> &[HostIndex] {
        &self.0
    }

    /// Whether `host` takes part.
    pub fn contains(&self, host: HostIndex) -> bool {
        self.0.binary_search(&host).is_ok()
    }

    /// Checks the bounds of a received placement.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooLong`] for too many hosts, [`DecodeError::Invalid`] for hosts that are not in order.
    pub fn validate(&self) -> Result<(), DecodeError> {
        if self.0.len() > limits::PLACEMENT_HOSTS_MAX {
            return Err(DecodeError::TooLong { len: self.0.len(), max: limits::PLACEMENT_HOSTS_MAX });
        }
        if !self.0.is_sorted_by(|a, b| a < b) {
            return Err(DecodeError::invalid("placement", "hosts are not in order"));
        }
        Ok(())
    }

    /// Returns the number of hosts that the rack may lose.
    pub fn survives(&self, geometry: &Geometry) -> usize {
        let hosts = self.0.len();
        if hosts < 2 {
            return 0;
        }
        (usize::from(geometry.parity()) / (geometry.width() as usize).div_ceil(hosts)).max(1)
    }

    /// Iterates over the holders of a shard: one host or two. A shard that does not exist has none.
    pub fn holders(&self, geometry: &Geometry, shard: ShardIndex) -> impl Iterator<Item = HostIndex> {
        let seats = self.seats(geometry, shard);
        seats.into_iter().flatten().map(|seat| self.0[seat])
    }

    /// Whether `host` holds a shard.
    pub fn holds(&self, geometry: &Geometry, host: HostIndex, shard: ShardIndex) -> bool {
        self.holders(geometry, shard).any(|holder| holder == host)
    }

    /// Iterates over the shards of the rack share of `host`, ascending.
    pub fn share<'a>(&'a self, geometry: &'a Geometry, host: HostIndex) -> impl Iterator<Item = ShardIndex> + 'a {
        let stripes = if self.contains(host) { geometry.stripe_count() } else { 0 };
        let all = (0..stripes).map(StripeIndex).flat_map(|stripe| geometry.stripe_shards(stripe));
        all.filter(move |shard| self.holds(geometry, host, *shard))
    }

    /// Places in `0` of a shard's holders.
    fn seats(&self, geometry: &Geometry, shard: ShardIndex) -> [Option<usize>; 2] {
        let hosts = self.0.len();
        let Some((stripe, place)) = geometry.split(shard).filter(|_| hosts > 0) else { return [None; 2] };
        let (data, parity) = (u32::from(geometry.data()), usize::from(geometry.parity()));
        if hosts == 1 {
            // One host holds all data, so parity adds nothing.
            return [(place < data).then_some(0), None];
        }
        // A short last stripe leaves a gap between data and parity.
        let order = if place < data { place } else { geometry.stripe_data(stripe) + place - data } as usize;
        let width = geometry.width() as usize;
        // If the stripe width is a multiple of the hosts, the next stripe begins one host later. Else the same hosts
        // would always hold the parity.
        let first = stripe.index() % hosts * if width.is_multiple_of(hosts) { 1 } else { width };
        let seat = (first + order) % hosts;
        let crowded = parity < width.div_ceil(hosts);
        [Some(seat), (crowded && order / hosts >= parity).then_some((seat + 1) % hosts)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContentId;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn geometry(data: u8, parity: u8, pieces: usize) -> Geometry {
        Geometry::new(data, parity, 64, &ContentId([7; 32]), vec![1000u32; pieces].into()).unwrap()
    }

    fn placement(hosts: u32) -> RackPlacement {
        RackPlacement::new((0..hosts).map(|host| HostIndex(host * 3 + 1)))
    }

    /// Whether the hosts left can make every stripe.
    fn is_whole(placement: &RackPlacement, geometry: &Geometry, lost: &BTreeSet<HostIndex>) -> bool {
        (0..geometry.stripe_count()).map(StripeIndex).all(|stripe| {
            let held = geometry
                .stripe_shards(stripe)
                .filter(|shard| placement.holders(geometry, *shard).any(|holder| !lost.contains(&holder)));
            held.count() as u32 >= geometry.stripe_data(stripe)
        })
    }

    proptest! {
        #[test]
        fn the_promised_number_of_hosts_may_be_lost(
            data in 1u8..20, parity in 0u8..6, hosts in 1u32..30, pieces in 1usize..200, start in any::<u32>(),
        ) {
            let (geometry, placement) = (geometry(data, parity, pieces), placement(hosts));
            let survives = placement.survives(&geometry);
            prop_assert!(survives >= usize::from(hosts > 1));
            prop_assert!(survives <= usize::from(parity).max(1));
            // Neighbours are the worst to lose, wherever they begin.
            for step in [1, 2, 3] {
                let lost = (0..survives as u32).map(|at| placement.hosts()[((start % hosts + at * step) % hosts) as usize]);
                prop_assert!(is_whole(&placement, &geometry, &lost.collect()));
            }
        }

        #[test]
        fn shares_are_even_and_cover_everything(
            data in 1u8..20, parity in 0u8..6, hosts in 1u32..30, pieces in 1usize..200,
        ) {
            let (geometry, placement) = (geometry(data, parity, pieces), placement(hosts));
            let mut all = BTreeSet::new();
            for host in placement.hosts() {
                let share: Vec<ShardIndex> = placement.share(&geometry, *host).collect();
                prop_assert!(share.is_sorted());
                all.extend(share);
            }
            let shards = (0..geometry.stripe_count()).flat_map(|stripe| geometry.stripe_shards(StripeIndex(stripe)));
            let whole = hosts == 1;
            prop_assert!(shards.filter(|shard| !whole || !geometry.is_parity(*shard)).all(|shard| all.contains(&shard)));
        }
    }

    #[test]
    fn a_full_rack_keeps_one_of_each_and_survives_m() {
        let (geometry, placement) = (geometry(16, 4, 16 * 50), placement(20));
        assert_eq!(placement.survives(&geometry), 4);
        let held: usize = placement.hosts().iter().map(|host| placement.share(&geometry, *host).count()).sum();
        assert_eq!(held, 20 * 50, "(k + m) / k of the content");
        for host in placement.hosts() {
            assert_eq!(placement.share(&geometry, *host).count(), 50);
        }
    }

    #[test]
    fn a_small_rack_pays_for_one_host() {
        let (geometry, placement) = (geometry(16, 4, 16 * 50), placement(4));
        assert_eq!(placement.survives(&geometry), 1);
        let held: usize = placement.hosts().iter().map(|host| placement.share(&geometry, *host).count()).sum();
        assert_eq!(held, 24 * 50, "one and a half times the content instead of four times");
    }

    #[test]
    fn an_invalid_placement_is_refused() {
        assert!(RackPlacement(vec![HostIndex(2), HostIndex(2)]).validate().is_err());
        assert!(RackPlacement(vec![HostIndex(2), HostIndex(1)]).validate().is_err());
        assert!(RackPlacement::new((0..2000).map(HostIndex)).validate().is_err());
        assert!(RackPlacement::new([HostIndex(2), HostIndex(1), HostIndex(2)]).validate().is_ok());
    }
}
