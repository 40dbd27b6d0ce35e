//! What a host says of itself, checked against its credential.
//!
//! Invariant: an address that leads to a machine itself, to its link or to a group counts only if a range of the
//! credential lies within the block of such addresses.

use super::credential::{AddressRange, Credential};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A claim of a host that its credential does not cover.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The weight is above the greatest one.
    #[error(
        "weight {claimed} is above {max}, the greatest of the credential: lower `node.weight`, or issue a credential \
         with `--weight-max {claimed}`"
    )]
    Weight {
        /// The weight that the host announces.
        claimed: u16,
        /// The greatest weight of the credential.
        max: u16,
    },
    /// The address is one that the credential does not cover.
    #[error(
        "address {addr} {fault}: set `node.advertise` to addresses that the credential covers, or issue a credential \
         with `--address {}`", host_range(.addr)
    )]
    Address {
        /// The address that the host announces.
        addr: SocketAddr,
        /// Why the address does not count.
        fault: AddressFault,
    },
    /// The address is one that no credential covers.
    #[error("address {0} leads to no host: set `node.advertise` to the addresses at which other hosts reach this one")]
    NoHost(SocketAddr),
}

/// Why an address does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressFault {
    /// The address is of a kind that a credential must name, for example a loopback address.
    Unnamed(&'static str),
    /// The address is outside of all ranges of the credential.
    Outside(Vec<AddressRange>),
}

impl fmt::Display for AddressFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed(kind) => write!(f, "is {kind}, which the credential does not name"),
            Self::Outside(ranges) => {
                let ranges: Vec<String> = ranges.iter().map(AddressRange::to_string).collect();
                write!(f, "is outside of the credential's addresses ({})", ranges.join(", "))
            }
        }
    }
}

/// Addresses that reach different hosts, or none, from different places.
struct SpecialBlock {
    kind: &'static str,
    block: AddressRange,
}

const fn v4(a: u8, b: u8, prefix: u8) -> AddressRange {
    AddressRange { addr: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), prefix }
}

const fn v6(head: u16, tail: u16, prefix: u8) -> AddressRange {
    AddressRange { addr: IpAddr::V6(Ipv6Addr::new(head, 0, 0, 0, 0, 0, 0, tail)), prefix }
}

const SPECIAL_BLOCKS: [SpecialBlock; 6] = [
    SpecialBlock { kind: "a loopback address", block: v4(127, 0, 8) },
    SpecialBlock { kind: "a loopback address", block: v6(0, 1, 128) },
    SpecialBlock { kind: "a link-local address", block: v4(169, 254, 16) },
    SpecialBlock { kind: "a link-local address", block: v6(0xfe80, 0, 10) },
    SpecialBlock { kind: "a multicast address", block: v4(224, 0, 4) },
    SpecialBlock { kind: "a multicast address", block: v6(0xff00, 0, 8) },
];

/// Returns the range of one address, as text.
fn host_range(addr: &SocketAddr) -> String {
    let addr = addr.ip().to_canonical();
    AddressRange { addr, prefix: if addr.is_ipv4() { 32 } else { 128 } }.to_string()
}

impl Credential {
    /// Checks what the host of this credential says of itself.
    ///
    /// # Errors
    ///
    /// [`ClaimError`] with the first claim that the credential does not cover.
    pub fn check_claims(&self, weight: u16, addrs: &[SocketAddr]) -> Result<(), ClaimError> {
        if weight > self.weight_max {
            return Err(ClaimError::Weight { claimed: weight, max: self.weight_max });
        }
        addrs.iter().try_for_each(|addr| self.check_address(*addr))
    }

    fn check_address(&self, addr: SocketAddr) -> Result<(), ClaimError> {
        let ip = addr.ip().to_canonical();
        if ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) || addr.port() == 0 {
            return Err(ClaimError::NoHost(addr));
        }
        let special = SPECIAL_BLOCKS.iter().find(|special| special.block.contains(ip));
        // A wide range such as 0.0.0.0/0 means every machine. It does not name the loopback addresses within it.
        let mut ranges =
            self.addresses.iter().filter(|range| special.is_none_or(|special| special.block.includes(range)));
        let fault = match special {
            None if self.addresses.is_empty() => return Ok(()),
            _ if ranges.any(|range| range.contains(ip)) => return Ok(()),
            Some(special) => AddressFault::Unnamed(special.kind),
            None => AddressFault::Outside(self.addresses.clone()),
        };
        Err(ClaimError::Address { addr, fault })
    }
}

impl AddressRange {
    /// Whether all addresses of `other` are in this range.
    pub fn includes(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClusterId, NodeId};
    use crate::trust::Role;

    fn credential(ranges: &[&str]) -> Credential {
        Credential {
            cluster: ClusterId([1; 32]),
            node: NodeId([2; 32]),
            role: Role::Peer,
            locality: "r/s/k/h".parse().unwrap(),
            not_before: 1,
            not_after: 2,
            labels: Default::default(),
            weight_max: 100,
            addresses: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        }
    }

    fn refusal(ranges: &[&str], addr: &str) -> Option<String> {
        credential(ranges).check_claims(100, &[addr.parse().unwrap()]).err().map(|error| error.to_string())
    }

    #[test]
    fn a_weight_above_the_greatest_is_refused() {
        let credential = credential(&[]);
        assert_eq!(credential.check_claims(100, &[]), Ok(()));
        assert_eq!(credential.check_claims(101, &[]), Err(ClaimError::Weight { claimed: 101, max: 100 }));
    }

    #[test]
    fn special_addresses_need_a_range_of_their_own() {
        let special = [
            ("127.0.0.1:1", "127.0.0.0/8"),
            ("127.255.0.1:1", "127.255.0.1/32"),
            ("[::1]:1", "::1/128"),
            ("169.254.169.254:1", "169.254.0.0/16"),
            ("[fe80::1]:1", "fe80::/10"),
            ("224.0.0.1:1", "224.0.0.0/4"),
            ("239.1.1.1:1", "239.1.0.0/16"),
            ("[ff02::1]:1", "ff00::/8"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.0/8"),
        ];
        for (addr, range) in special {
            for ranges in [&[][..], &["0.0.0.0/0", "::/0"], &["96.0.0.0/3", "10.0.0.0/8"]] {
                let refused = refusal(ranges, addr).unwrap_or_else(|| panic!("{addr} passes {ranges:?}"));
                assert!(refused.contains("which the credential does not name"), "{refused}");
                assert!(refused.contains("--address"), "{refused}");
            }
            assert_eq!(refusal(&["10.0.0.0/8", range], addr), None, "{addr} in {range}");
        }
    }

    #[test]
    fn other_addresses_are_within_the_ranges_if_there_are_any() {
        for addr in ["10.1.2.3:7700", "[2001:db8::1]:7700", "[::ffff:10.1.2.3]:7700"] {
            assert_eq!(refusal(&[], addr), None, "{addr}");
            assert_eq!(refusal(&["0.0.0.0/0", "::/0"], addr), None, "{addr}");
            assert_eq!(refusal(&["10.1.0.0/16", "2001:db8::/32"], addr), None, "{addr}");
            let refused = refusal(&["10.2.0.0/16", "2001:db9::/32"], addr).unwrap();
            assert!(
                refused.contains("outside of the credential's addresses (10.2.0.0/16, 2001:db9::/32)"),
                "{refused}"
            );
        }
        for addr in ["0.0.0.0:1", "[::]:1", "255.255.255.255:1", "10.1.2.3:0", "[::ffff:0.0.0.0]:1"] {
            let refused = refusal(&["0.0.0.0/0", "::/0", "0.0.0.0/32"], addr).unwrap();
            assert!(refused.contains("leads to no host"), "{refused}");
        }
    }
}
