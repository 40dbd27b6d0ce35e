//! Members grouped by site and rack, in the orders that plans use.
//!
//! Owns: the grouping of one membership, which all its plans share.
//! Invariant: orders come from hashed names and keys, never from roster indices or from the order in which rows
//! arrived.

use shoal_proto::ids::HostIndex;
use shoal_proto::locality::Locality;
use shoal_proto::membership::{Member, Presence};
use shoal_proto::trust::Role;
use std::ops::Range;

/// Spreads the bits of a key: the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014).
pub(crate) fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a over `part` and a separator that no name contains. Its high bits are weak, so its users [`mix`] the result.
fn fnv(state: u64, part: &str) -> u64 {
    part.bytes().chain([b'/']).fold(state, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Returns the hashes of the site's path and of the rack's path.
fn hash_place(locality: &Locality) -> (u64, u64) {
    let site = fnv(fnv(0xcbf2_9ce4_8422_2325, &locality.region), &locality.site);
    (mix(site), mix(fnv(site, &locality.rack)))
}

/// A peer, as plans need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostRow {
    pub(crate) host: HostIndex,
    /// Index into [`Topology::racks`].
    pub(crate) rack: u32,
    /// Hash of its key, from which its scores for lanes are computed.
    pub(crate) seed: u64,
    pub(crate) weight: u16,
    pub(crate) up: bool,
}

/// Peers behind one uplink.
#[derive(Clone, Debug)]
pub(crate) struct RackRow {
    /// Number of its site, in the order of hashes.
    pub(crate) site: u32,
    /// Places in [`Topology::hosts`].
    pub(crate) hosts: Range<u32>,
    /// Its declared uplink is slower than half of the median of all declared uplinks.
    pub(crate) slow: bool,
}

/// The peers of a region by site and rack. Sites, the racks of a site, and the hosts of a rack are in order of their
/// hashes. Two racks whose names collide in 64 bits count as one.
#[derive(Debug, Default)]
pub struct Topology {
    pub(crate) hosts: Vec<HostRow>,
    pub(crate) racks: Vec<RackRow>,
    site_count: u32,
    /// Place in `hosts` by roster index.
    place: Vec<u32>,
}

const NOWHERE: u32 = u32::MAX;

impl Topology {
    pub(super) fn new<'a>(members: impl Iterator<Item = &'a Member>, index_space: u32) -> Self {
        let mut keyed: Vec<(u64, u64, u64, &Member)> = members
            .filter(|member| member.role == Role::Peer)
            .map(|member| {
                let (site, rack) = hash_place(&member.locality);
                (site, rack, mix(member.node.prefix()), member)
            })
            .collect();
        keyed.sort_unstable_by_key(|(site, rack, seed, member)| (*site, *rack, *seed, member.node));
        let mut made = Self { place: vec![NOWHERE; index_space as usize], ..Self::default() };
        let mut uplinks: Vec<u32> = Vec::new();
        let mut last = None;
        for (site, rack, seed, member) in keyed {
            if last.is_none_or(|(last_site, _)| last_site != site) {
                made.site_count += 1;
            }
            let at = made.hosts.len() as u32;
            if last != Some((site, rack)) {
                made.racks.push(RackRow { site: made.site_count - 1, hosts: at..at, slow: false });
                uplinks.push(0);
            }
            last = Some((site, rack));
            let rack = made.racks.len() - 1;
            made.racks[rack].hosts.end = at + 1;
            // Rack peers should declare the same. One that declares less must not make the whole rack slow.
            uplinks[rack] = uplinks[rack].max(member.uplink_mbit);
            made.place[member.index.index()] = at;
            made.hosts.push(HostRow {
                host: member.index,
                rack: rack as u32,
                seed,
                weight: member.weight,
                up: member.presence == Presence::Up,
            });
        }
        let mut declared: Vec<u32> = uplinks.iter().copied().filter(|rate| *rate > 0).collect();
        declared.sort_unstable();
        // With the upper median, at most half of the racks can be slow. The others then have room for all inner places.
        let median = declared.get(declared.len() / 2).copied().unwrap_or(0);
        for (rack, rate) in made.racks.iter_mut().zip(uplinks) {
            rack.slow = rate > 0 && u64::from(rate) * 2 < u64::from(median);
        }
        made
    }

    /// Returns the number of sites with at least one peer, up or away.
    pub fn site_count(&self) -> u32 {
        self.site_count
    }

    /// Returns the number of racks with at least one peer, up or away.
    pub fn rack_count(&self) -> u32 {
        self.racks.len() as u32
    }

    /// Returns the number of peers, up or away.
    pub fn host_count(&self) -> u32 {
        self.hosts.len() as u32
    }

    /// A peer's place in `hosts`.
    pub(crate) fn place(&self, host: HostIndex) -> Option<u32> {
        self.place.get(host.index()).copied().filter(|place| *place != NOWHERE)
    }

    /// All peers of the rack that `host` is in, with `host` itself.
    pub(crate) fn rack_of(&self, host: HostIndex) -> &[HostRow] {
        self.place(host).map_or(&[], |place| {
            let rack = &self.racks[self.hosts[place as usize].rack as usize];
            &self.hosts[rack.hosts.start as usize..rack.hosts.end as usize]
        })
    }
}
