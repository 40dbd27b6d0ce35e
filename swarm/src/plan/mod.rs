//! The lane plan: a pure function from membership to L distribution trees, which every host computes for itself.
//!
//! Owns: [`Plan`] and what it is asked. [`forest`] groups the targeted hosts. [`rack_ring`] orders sites and racks in
//! each lane. [`lane_owners`] says which host of a rack imports a lane. [`rack_tree`] says how its rack peers get it.
//! Invariant: equal inputs lead to equal trees on every host. Each tree reaches every live targeted host, with one
//! import for each rack and each site.
//!
//! Each of these further promises has a test:
//!
//! - With 64 lanes and sites of equal size, no rack exports more than 1.1 times the mean. Nowhere does a rack export
//!   more than 1.1 times what it imports. With L < 64 lanes the rotation is coarser, and a rack exports at most L + 8
//!   lanes.
//! - With equal weights, the lanes that two hosts of a rack own differ by at most one.
//! - A host that goes away moves only its own lanes. A rack that goes away moves only the racks below it.
//! - A host that leaves the roster moves about a tenth of its rack's lanes. A rack that leaves it changes the order of
//!   racks, and about a third of the edges.
//! - Hosts that disagree on which hosts are live never build a circle of racks.

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod forest;
mod lane_owners;
mod rack_ring;
mod rack_tree;
#[cfg(test)]
mod tests;

pub use rack_tree::RACK_FANOUT;

use crate::membership::{HostRow, Membership};
use forest::{Forest, Rack, Site};
use rack_ring::LaneTree;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{HostIndex, LaneIndex};
use shoal_proto::limits;
use shoal_proto::message::LaneSet;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

/// What a plan is computed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRequest<'a> {
    /// The hosts to reach, by roster index. Only peers count.
    pub targets: &'a Bitmap,
    /// The seeder at the root, if it is known.
    pub root: Option<HostIndex>,
    /// Hosts not to be used as parents.
    pub avoid: &'a BTreeSet<HostIndex>,
    /// Distribution trees. Clamped to 1 to [`limits::LANES_MAX`].
    pub lanes: u8,
    /// The branching of the trees.
    pub shape: Shape,
}

/// The branching of the trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sites below the seeder in each lane, or racks if there is only one site. The seeder's egress is this many times
    /// the content, so more than 1 is only for a seeder with bandwidth to spare.
    pub roots: u8,
    /// Racks below one rack, and sites below one site. Clamped to 2 to 16.
    pub fanout: u8,
}

impl Shape {
    /// For contents, where no host should send more than it must.
    pub const NARROW: Self = Self { roots: 1, fanout: 2 };
    /// For versions of feeds, where time counts. One more step takes longer than sending a few KiB eight times.
    pub const WIDE: Self = Self { roots: 8, fanout: 8 };
}

/// The trees. A plan is immutable and the same for every host, so all users share one.
#[derive(Clone, Debug)]
pub struct Plan {
    forest: Arc<Forest>,
    root: Option<HostIndex>,
    avoid: BTreeSet<HostIndex>,
    /// Racks with an avoided host that would otherwise be live.
    racks: BTreeMap<u32, Arc<Patch>>,
    /// Live racks that are left in sites that lost racks to avoidance.
    sites: BTreeMap<u32, u32>,
}

/// How avoidance changes one rack.
#[derive(Debug, Default)]
struct Patch {
    /// Hosts that are still live.
    live: u32,
    /// Owner of each lane without the avoided hosts, computed on first use.
    owners: OnceLock<Option<Box<[u32]>>>,
}

impl Plan {
    /// Computes the plan in O(hosts). For 50,000 hosts it takes well under 1 ms once the membership's topology is
    /// known. Lane owners are computed rack by rack on first use.
    pub fn new(membership: &Membership, request: &PlanRequest<'_>) -> Self {
        let lanes = request.lanes.clamp(1, limits::LANES_MAX);
        let root = request.root.filter(|root| membership.is_up(*root));
        let forest =
            Forest::new(membership.topology().clone(), request.targets, request.root, root, lanes, request.shape);
        let plan = Self {
            forest: Arc::new(forest),
            root: None,
            avoid: BTreeSet::new(),
            racks: BTreeMap::new(),
            sites: BTreeMap::new(),
        };
        plan.avoiding(request.avoid)
    }

    /// Returns the same plan with other hosts to avoid, in O(hosts avoided). Both plans share everything else.
    pub fn avoiding(&self, avoid: &BTreeSet<HostIndex>) -> Self {
        let forest = &self.forest;
        let mut lost: BTreeMap<u32, u32> = BTreeMap::new();
        for host in avoid {
            if let Some((rack, row)) = forest.seat(*host)
                && row.up
            {
                *lost.entry(rack).or_default() += 1;
            }
        }
        let mut sites = BTreeMap::new();
        let mut racks = BTreeMap::new();
        for (rack, lost) in lost {
            let Rack { live, site, .. } = forest.racks[rack as usize];
            if lost == live {
                *sites.entry(site).or_insert(forest.sites[site as usize].live) -= 1;
            }
            racks.insert(rack, Arc::new(Patch { live: live - lost, owners: OnceLock::new() }));
        }
        let root = forest.root.filter(|root| !avoid.contains(root));
        Self { forest: forest.clone(), root, avoid: avoid.clone(), racks, sites }
    }

    /// Returns the number of distribution trees.
    pub fn lanes(&self) -> u8 {
        self.forest.lanes
    }

    /// Returns the seeder at the root, if it is up and not avoided.
    pub fn root(&self) -> Option<HostIndex> {
        self.root
    }

    /// Whether the plan is for this host, live or not.
    pub fn targets(&self, host: HostIndex) -> bool {
        self.forest.seat(host).is_some()
    }

    /// Whether the host is in the trees: targeted, up and not avoided. [`Plan::parent`] also answers for a targeted
    /// host that is not, for example one that the tracker lost, as if it came back as a leaf.
    pub fn contains(&self, host: HostIndex) -> bool {
        self.forest.seat(host).is_some_and(|(_, row)| self.is_live(row))
    }

    /// Returns the hosts in the trees, rack by rack.
    pub fn hosts(&self) -> impl Iterator<Item = HostIndex> {
        (0..self.forest.racks.len() as u32).flat_map(|rack| self.live_rows(rack)).map(|row| row.host)
    }

    /// Returns the host that imports `lane` for the rack of `host`; `None` if that rack has no live targeted host.
    pub fn owner(&self, lane: LaneIndex, host: HostIndex) -> Option<HostIndex> {
        self.rack_owner(lane, self.rack(host)?)
    }

    /// Returns the live hosts of the rack of `host` in order of preference for `lane`: the owner, then by score.
    pub fn owner_ranked(&self, lane: LaneIndex, host: HostIndex) -> Vec<HostIndex> {
        let Some(rack) = self.rack(host) else { return Vec::new() };
        let owner = self.rack_owner(lane, rack);
        let mut ranked: Vec<&HostRow> = self.live_rows(rack).collect();
        ranked.sort_by_cached_key(|row| (Some(row.host) != owner, Reverse(lane_owners::score(row, lane.0))));
        ranked.into_iter().map(|row| row.host).collect()
    }

    /// Returns the lanes that `host` imports for its rack.
    pub fn owned(&self, host: HostIndex) -> LaneSet {
        let mut owned = LaneSet::NONE;
        for lane in (0..self.lanes()).map(LaneIndex) {
            if self.owner(lane, host) == Some(host) {
                owned.insert(lane);
            }
        }
        owned
    }

    /// Returns the host that `host` takes `lane` from. `None` at the root, for a host that is not targeted, and where
    /// no live host is above.
    pub fn parent(&self, lane: LaneIndex, host: HostIndex) -> Option<HostIndex> {
        let (rack, row) = self.forest.seat(host)?;
        match self.rack_owner(lane, rack) {
            Some(owner) if owner != host && self.is_live(row) => Some(self.rack_peer_parent(rack, owner, host)),
            Some(owner) if owner != host => Some(owner),
            _ => self.rack_parent(lane, rack),
        }
    }

    /// Returns the host that the rack of `host` imports `lane` from. It does not depend on the lane's owner in the
    /// rack.
    pub fn import_parent(&self, lane: LaneIndex, host: HostIndex) -> Option<HostIndex> {
        self.rack_parent(lane, self.rack(host)?)
    }

    /// Returns the hosts that take `lane` from `host`, in a fixed order: other sites, other racks, then rack peers.
    pub fn children(&self, lane: LaneIndex, host: HostIndex) -> Vec<HostIndex> {
        if lane.0 >= self.lanes() {
            return Vec::new();
        }
        if self.root == Some(host) {
            return self.tops(lane);
        }
        let Some((rack, row)) = self.forest.seat(host).filter(|(_, row)| self.is_live(row)) else { return Vec::new() };
        match self.rack_owner(lane, rack) {
            Some(owner) if owner == row.host => self.children_as_owner(lane, host),
            Some(owner) => self.rack_peer_children(rack, owner, host),
            None => Vec::new(),
        }
    }

    /// Returns the hosts that would take `lane` from `host` if `host` owned it. A parent whose view of our rack peers
    /// differs may treat us as the owner.
    pub fn children_as_owner(&self, lane: LaneIndex, host: HostIndex) -> Vec<HostIndex> {
        let Some(rack) = self.rack(host).filter(|_| lane.0 < self.lanes()) else { return Vec::new() };
        let mut children = Vec::new();
        let Rack { site: site_id, .. } = self.forest.racks[rack as usize];
        let site = &self.forest.sites[site_id as usize];
        let racks = self.rack_lane(lane, site);
        let place = rack - site.racks.start;
        if racks.tops().first() == Some(&place) {
            for below in self.site_lane(lane).children(site_id) {
                children.extend(self.site_head(lane, below));
            }
        }
        for below in racks.children(place) {
            children.extend(self.rack_owner(lane, site.racks.start + below));
        }
        children.extend(self.rack_peer_children(rack, host, host));
        children
    }

    /// Returns the targeted rack peers of `host` that are in no tree, because they are away or avoided. By
    /// [`Plan::parent`] they take lanes from the owners, although they are not among the owners' children.
    pub fn leaves(&self, host: HostIndex) -> impl Iterator<Item = HostIndex> {
        let rows = self.rack(host).map(|rack| self.forest.rows(rack));
        rows.into_iter().flatten().filter(move |row| row.host != host && !self.is_live(row)).map(|row| row.host)
    }

    /// Returns about how many racks a piece passes on its way to the last rack.
    pub fn height(&self) -> u32 {
        self.forest.racks.len().max(1).ilog2()
    }

    /// Returns the number of links between the top of `lane` and `host`; `None` if `host` is not in the tree.
    pub fn depth(&self, lane: LaneIndex, host: HostIndex) -> Option<u32> {
        if !self.contains(host) || lane.0 >= self.lanes() {
            return None;
        }
        let mut depth = 0;
        let mut at = host;
        while let Some(above) = self.parent(lane, at) {
            at = above;
            depth += 1;
        }
        Some(depth)
    }

    /// Returns the live targeted rack peers of `host`, in the plan's order.
    pub fn rack_peers(&self, host: HostIndex) -> impl Iterator<Item = HostIndex> {
        let rows = self.rack(host).map(|rack| self.live_rows(rack));
        rows.into_iter().flatten().map(|row| row.host).filter(move |peer| *peer != host)
    }

    /// Returns the owners of `lane` in all racks, in the lane's order. They may have what the parents lack.
    pub fn owners(&self, lane: LaneIndex) -> impl Iterator<Item = HostIndex> {
        let in_range = lane.0 < self.lanes();
        let sites: Vec<u32> = if in_range { self.site_lane(lane).live_places().collect() } else { Vec::new() };
        sites.into_iter().flat_map(move |site| {
            let site = &self.forest.sites[site as usize];
            let racks: Vec<u32> = self.rack_lane(lane, site).live_places().collect();
            racks.into_iter().filter_map(move |place| self.rack_owner(lane, site.racks.start + place))
        })
    }

    /// Whether two targeted hosts are in one rack.
    pub fn same_rack(&self, a: HostIndex, b: HostIndex) -> bool {
        self.rack(a).is_some_and(|rack| self.rack(b) == Some(rack))
    }

    fn rack(&self, host: HostIndex) -> Option<u32> {
        self.forest.seat(host).map(|(rack, _)| rack)
    }

    fn is_live(&self, row: &HostRow) -> bool {
        row.up && !self.avoid.contains(&row.host)
    }

    fn live_rows(&self, rack: u32) -> impl Iterator<Item = &HostRow> {
        self.forest.rows(rack).filter(|row| self.is_live(row))
    }

    fn rack_is_live(&self, rack: u32) -> bool {
        self.racks.get(&rack).map_or(self.forest.racks[rack as usize].live, |patch| patch.live) > 0
    }

    fn site_is_live(&self, site: u32) -> bool {
        self.sites.get(&site).copied().unwrap_or(self.forest.sites[site as usize].live) > 0
    }

    fn rack_owner(&self, lane: LaneIndex, rack: u32) -> Option<HostIndex> {
        let owners = self.racks.get(&rack).map_or(&self.forest.racks[rack as usize].owners, |patch| &patch.owners);
        let owners = owners.get_or_init(|| {
            let rows: Vec<&HostRow> = self.forest.rows(rack).collect();
            lane_owners::assign(&rows, |row| self.is_live(row), self.lanes())
        });
        let at = *owners.as_ref()?.get(lane.index())?;
        self.forest.rows(rack).nth(at as usize).map(|row| row.host)
    }

    fn rack_lane<'a>(&'a self, lane: LaneIndex, site: &'a Site) -> LaneTree<impl Fn(u32) -> bool + 'a> {
        let turn = rack_ring::stride(lane.0, self.lanes());
        site.ring.lane(turn, self.lanes().into(), move |place| self.rack_is_live(site.racks.start + place))
    }

    fn site_lane(&self, lane: LaneIndex) -> LaneTree<impl Fn(u32) -> bool> {
        self.forest.ring.lane(lane.0.into(), self.lanes().into(), |site| self.site_is_live(site))
    }

    /// The owner in the rack that imports `lane` for a whole site.
    fn site_head(&self, lane: LaneIndex, site: u32) -> Option<HostIndex> {
        let site = &self.forest.sites[site as usize];
        let top = *self.rack_lane(lane, site).tops().first()?;
        self.rack_owner(lane, site.racks.start + top)
    }

    fn rack_parent(&self, lane: LaneIndex, rack: u32) -> Option<HostIndex> {
        if lane.0 >= self.lanes() {
            return None;
        }
        let Rack { site: site_id, .. } = self.forest.racks[rack as usize];
        let site = &self.forest.sites[site_id as usize];
        if let Some(above) = self.rack_lane(lane, site).parent(rack - site.racks.start) {
            return self.rack_owner(lane, site.racks.start + above);
        }
        match self.site_lane(lane).parent(site_id) {
            Some(above) => self.site_head(lane, above),
            None => self.root,
        }
    }

    /// The hosts that take `lane` from the seeder.
    fn tops(&self, lane: LaneIndex) -> Vec<HostIndex> {
        match &self.forest.sites[..] {
            [only] => {
                let racks = self.rack_lane(lane, only).tops();
                racks.into_iter().filter_map(|place| self.rack_owner(lane, only.racks.start + place)).collect()
            }
            _ => {
                let sites = self.site_lane(lane).tops();
                sites.into_iter().filter_map(|site| self.site_head(lane, site)).collect()
            }
        }
    }
}
