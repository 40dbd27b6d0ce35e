//! What all plans for the same targets share: the targeted hosts by rack and site, before any is avoided.
//!
//! Owns: the order of sites and racks, and the lane owners of each rack without avoidance.
//! Invariant: a forest depends on membership and targets alone. The racks of a site, and the hosts of a rack, are
//! adjacent.

use super::Shape;
use super::rack_ring::Ring;
use crate::membership::{HostRow, Topology};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::HostIndex;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// A rack with at least one targeted host, up or away.
#[derive(Debug)]
pub struct Rack {
    pub(super) site: u32,
    /// Range of [`Forest::seats`].
    seats: Range<u32>,
    /// Number of targeted hosts that are up.
    pub(super) live: u32,
    /// Owner of each lane as a place among the seats, without avoidance. Computed on first use: a host needs few racks.
    pub(super) owners: OnceLock<Option<Box<[u32]>>>,
}

/// A site with at least one targeted host.
#[derive(Debug)]
pub struct Site {
    /// Its racks, in the forest's order.
    pub(super) racks: Range<u32>,
    pub(super) ring: Ring,
    /// Number of racks with a targeted host that is up.
    pub(super) live: u32,
}

#[derive(Debug)]
pub struct Forest {
    topology: Arc<Topology>,
    pub(super) lanes: u8,
    /// The root, if it is up.
    pub(super) root: Option<HostIndex>,
    /// Targeted hosts as places in [`Topology::hosts`], ascending.
    seats: Vec<u32>,
    /// The rack here by the number of the rack in the topology.
    rack_of: Vec<u32>,
    pub(super) racks: Vec<Rack>,
    /// In the forest's order.
    pub(super) sites: Vec<Site>,
    pub(super) ring: Ring,
}

/// A rack before the racks are sorted.
struct Found {
    row: u32,
    site: u32,
    slow: bool,
    seats: Range<u32>,
    live: u32,
}

const NO_RACK: u32 = u32::MAX;

impl Forest {
    /// Groups the hosts. `except` is never a target, although `targets` may name it: it is the root.
    pub fn new(
        topology: Arc<Topology>,
        targets: &Bitmap,
        except: Option<HostIndex>,
        root: Option<HostIndex>,
        lanes: u8,
        shape: Shape,
    ) -> Self {
        let mut seats = Vec::with_capacity(topology.hosts.len().min(targets.count() as usize));
        let mut found = Vec::with_capacity(topology.racks.len());
        for (at, rack) in topology.racks.iter().enumerate() {
            let start = seats.len() as u32;
            let mut live = 0;
            for place in rack.hosts.clone() {
                let row = &topology.hosts[place as usize];
                if targets.get(row.host.0) && except != Some(row.host) {
                    seats.push(place);
                    live += u32::from(row.up);
                }
            }
            let seats = start..seats.len() as u32;
            if !seats.is_empty() {
                found.push(Found { row: at as u32, site: rack.site, slow: rack.slow, seats, live });
            }
        }
        let mut slow_site = vec![true; topology.site_count() as usize];
        for rack in found.iter().filter(|rack| !rack.slow) {
            slow_site[rack.site as usize] = false;
        }
        // The topology's order by hash, but slow sites, and slow racks in each site, come last.
        found.sort_by_key(|rack| (slow_site[rack.site as usize], rack.site, rack.slow));

        let by_site: Vec<&[Found]> = found.chunk_by(|a, b| a.site == b.site).collect();
        let slow_sites = by_site.iter().filter(|racks| slow_site[racks[0].site as usize]).count() as u32;
        let (roots, fanout) = (u32::from(shape.roots.max(1)), u32::from(shape.fanout.clamp(2, 16)));
        let inner_roots = if by_site.len() == 1 { roots } else { 1 };
        let mut rack_of = vec![NO_RACK; topology.racks.len()];
        let mut racks = Vec::with_capacity(found.len());
        let mut sites = Vec::with_capacity(by_site.len());
        for (id, group) in by_site.iter().enumerate() {
            let first = racks.len() as u32;
            for rack in *group {
                rack_of[rack.row as usize] = racks.len() as u32;
                racks.push(Rack {
                    site: id as u32,
                    seats: rack.seats.clone(),
                    live: rack.live,
                    owners: OnceLock::new(),
                });
            }
            let slow = group.iter().filter(|rack| rack.slow).count() as u32;
            sites.push(Site {
                racks: first..racks.len() as u32,
                ring: Ring::new(group.len() as u32, slow, inner_roots, fanout),
                live: group.iter().filter(|rack| rack.live > 0).count() as u32,
            });
        }
        let ring = Ring::new(sites.len() as u32, slow_sites, roots, fanout);
        Self { topology, lanes, root, seats, rack_of, racks, sites, ring }
    }

    /// Returns a targeted host's rack and row.
    pub fn seat(&self, host: HostIndex) -> Option<(u32, &HostRow)> {
        let place = self.topology.place(host)?;
        let row = &self.topology.hosts[place as usize];
        let rack = self.rack_of[row.rack as usize];
        self.seats_of(self.racks.get(rack as usize)?).binary_search(&place).ok()?;
        Some((rack, row))
    }

    /// Returns the targeted hosts of a rack, up or away.
    pub fn rows(&self, rack: u32) -> impl ExactSizeIterator<Item = &HostRow> {
        let seats = self.seats_of(&self.racks[rack as usize]);
        seats.iter().map(|place| &self.topology.hosts[*place as usize])
    }

    fn seats_of(&self, rack: &Rack) -> &[u32] {
        &self.seats[rack.seats.start as usize..rack.seats.end as usize]
    }
}
