//! Address ranges that count as one owner in limits for connections.
//!
//! Invariant: two addresses that one machine can use freely are in the same range.

use shoal_proto::limits;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Returns the range of an address: an IPv4 address itself, or the first 64 bits of an IPv6 address. One machine can
/// use every address of an IPv6 network of 64 bits.
pub(crate) fn range_of(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX)).into(),
        addr => addr,
    }
}

/// Address ranges in which nodes of the cluster are. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownRanges {
    ranges: Arc<Mutex<HashSet<IpAddr>>>,
}

impl KnownRanges {
    fn ranges(&self) -> MutexGuard<'_, HashSet<IpAddr>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, addr: IpAddr) {
        let mut ranges = self.ranges();
        if ranges.len() < limits::HOSTS_MAX as usize {
            ranges.insert(range_of(addr));
        }
    }

    pub(crate) fn contains(&self, range: &IpAddr) -> bool {
        self.ranges().contains(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_addresses_are_apart_and_an_ipv6_network_is_one_range() {
        let range = |text: &str| range_of(text.parse().unwrap());
        assert_ne!(range("192.0.2.1"), range("192.0.2.2"));
        assert_eq!(range("::ffff:192.0.2.1"), range("192.0.2.1"));
        assert_eq!(range("2001:db8::1"), range("2001:db8::ffff:0:0:1"));
        assert_ne!(range("2001:db8:0:1::1"), range("2001:db8::1"));
    }
}
