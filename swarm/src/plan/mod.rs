//! The lane plan: a pure function from membership to L distribution trees, computed by every host for itself.
//!
//! Owns: which rack hangs off which in a lane ([`order`]), and which host of a rack imports it ([`owners`]).
//! Invariant: equal inputs give equal trees on every host, and each tree reaches every live targeted host with one
//! import a rack (and a site) a lane.

mod order;
mod owners;
#[cfg(test)]
mod tests;

use crate::membership::Membership;
use order::LaneOrder;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{HostIndex, LaneIndex};
use shoal_proto::membership::Presence;
use shoal_proto::trust::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Rack-mates that hang directly off one host; more hang below these.
pub const RACK_FANOUT: usize = 32;

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRequest<'a> {
    /// The hosts to reach, by roster index.
    pub targets: &'a Bitmap,
    /// The seeder at the root, when it is known and up.
    pub root: Option<HostIndex>,
    /// Hosts not to be used as parents.
    pub avoid: &'a BTreeSet<HostIndex>,
    /// Distribution trees.
    pub lanes: u8,
}

/// A rack with at least one targeted host, live or not.
#[derive(Debug)]
struct Rack {
    site: u32,
    /// Place in the site's base order.
    place: u32,
    /// Targeted hosts, in order of their keys' hash.
    members: Vec<owners::Candidate>,
    /// Owner of each lane, as a place in `members`. Made on first use: a host needs few racks' owners.
    owners: OnceLock<Option<Box<[u16]>>>,
}

#[derive(Debug)]
struct Site {
    place: u32,
    /// Racks in base order.
    racks: Vec<order::Item>,
    lanes: Vec<OnceLock<LaneOrder>>,
}

/// The trees. Immutable and the same for every host that asks, so one can be shared.
#[derive(Debug)]
pub struct Plan {
    lanes: u8,
    root: Option<HostIndex>,
    /// Rack of each host by roster index; `NO_RACK` when not targeted.
    rack_of: Vec<u32>,
    racks: Vec<Rack>,
    sites: Vec<Site>,
    /// Sites in base order.
    site_items: Vec<order::Item>,
    site_lanes: Vec<OnceLock<LaneOrder>>,
}

const NO_RACK: u32 = u32::MAX;

impl Plan {
    /// Computes the plan. Costs O(hosts log hosts); owners and orders are filled in as they are asked for.
    pub fn new(membership: &Membership, request: &PlanRequest<'_>) -> Self {
        let lanes = request.lanes.max(1);
        let mut rack_of = vec![NO_RACK; membership.index_space() as usize];
        let mut rack_ids: BTreeMap<(&str, &str, &str), u32> = BTreeMap::new();
        let mut racks: Vec<Rack> = Vec::new();
        let mut uplinks: Vec<u32> = Vec::new();
        let mut site_ids: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for member in membership.iter() {
            if member.role != Role::Peer || !request.targets.get(member.index.0) {
                continue;
            }
            let at = &member.locality;
            let next_site = site_ids.len() as u32;
            let site = *site_ids.entry((&at.region, &at.site)).or_insert(next_site);
            let rack = *rack_ids.entry((&at.region, &at.site, &at.rack)).or_insert_with(|| {
                racks.push(Rack { site, place: 0, members: Vec::new(), owners: OnceLock::new() });
                uplinks.push(0);
                racks.len() as u32 - 1
            });
            let live = member.presence == Presence::Up && !request.avoid.contains(&member.index);
            rack_of[member.index.index()] = rack;
            uplinks[rack as usize] = uplinks[rack as usize].max(member.uplink_mbit);
            racks[rack as usize].members.push(owners::Candidate {
                host: member.index,
                key: member.node.prefix(),
                weight: member.weight,
                live,
            });
        }
        for rack in &mut racks {
            rack.members.sort_unstable_by_key(|candidate| (order::mix(candidate.key), candidate.host));
        }
        let slow = order::slow_racks(&uplinks);
        let mut sites: Vec<Site> =
            (0..site_ids.len()).map(|_| Site { place: 0, racks: Vec::new(), lanes: lane_cells(lanes) }).collect();
        for (path, id) in &rack_ids {
            let rack = &racks[*id as usize];
            sites[rack.site as usize].racks.push(order::Item {
                id: *id,
                hash: order::hash_path(&[path.0, path.1, path.2]),
                live: rack.members.iter().any(|candidate| candidate.live),
                slow: slow[*id as usize],
            });
        }
        let mut site_items = Vec::with_capacity(sites.len());
        for (path, id) in &site_ids {
            let site = &mut sites[*id as usize];
            order::sort(&mut site.racks);
            for (place, item) in site.racks.iter().enumerate() {
                racks[item.id as usize].place = place as u32;
            }
            site_items.push(order::Item {
                id: *id,
                hash: order::hash_path(&[path.0, path.1]),
                live: site.racks.iter().any(|item| item.live),
                slow: site.racks.iter().all(|item| item.slow),
            });
        }
        order::sort(&mut site_items);
        for (place, item) in site_items.iter().enumerate() {
            sites[item.id as usize].place = place as u32;
        }
        let root = request.root.filter(|root| membership.is_up(*root) && !request.avoid.contains(root));
        Self { lanes, root, rack_of, racks, sites, site_items, site_lanes: lane_cells(lanes) }
    }

    /// Distribution trees.
    pub fn lanes(&self) -> u8 {
        self.lanes
    }

    /// The seeder at the root, if it is live.
    pub fn root(&self) -> Option<HostIndex> {
        self.root
    }

    fn rack(&self, host: HostIndex) -> Option<&Rack> {
        let id = *self.rack_of.get(host.index())?;
        self.racks.get(id as usize)
    }

    /// Whether the plan is for this host.
    pub fn targets(&self, host: HostIndex) -> bool {
        self.rack(host).is_some()
    }

    /// Who imports `lane` for the rack of `host`; `None` when the rack has no live host or is not targeted.
    pub fn owner(&self, lane: LaneIndex, host: HostIndex) -> Option<HostIndex> {
        self.rack_owner(lane, self.rack(host)?)
    }

    fn rack_owner(&self, lane: LaneIndex, rack: &Rack) -> Option<HostIndex> {
        let owners = rack.owners.get_or_init(|| owners::assign(&rack.members, self.lanes)).as_ref()?;
        Some(rack.members[usize::from(owners[lane.index() % owners.len()])].host)
    }

    fn rack_order<'a>(&self, lane: LaneIndex, site: &'a Site) -> &'a LaneOrder {
        site.lanes[lane.index()].get_or_init(|| LaneOrder::new(&site.racks, lane.0, self.lanes))
    }

    fn site_order(&self, lane: LaneIndex) -> &LaneOrder {
        self.site_lanes[lane.index()].get_or_init(|| LaneOrder::new(&self.site_items, lane.0, self.lanes))
    }

    /// The owner of the rack that imports `lane` for a whole site.
    fn site_head(&self, lane: LaneIndex, site: u32) -> Option<HostIndex> {
        let site = &self.sites[site as usize];
        let place = self.rack_order(lane, site).first()?;
        self.rack_owner(lane, &self.racks[site.racks[place as usize].id as usize])
    }

    /// Whom `host` takes `lane` from. `None` at the root, for hosts not targeted, and where nobody is left above.
    pub fn parent(&self, lane: LaneIndex, host: HostIndex) -> Option<HostIndex> {
        let rack = self.rack(host)?;
        match self.rack_owner(lane, rack) {
            Some(owner) if owner != host => Some(self.mate_parent(rack, owner, host)),
            _ => self.rack_parent(lane, rack),
        }
    }

    /// Inside a rack: the owner, or in a large rack the mate it is relayed by.
    fn mate_parent(&self, rack: &Rack, owner: HostIndex, host: HostIndex) -> HostIndex {
        let mates = || rack.members.iter().filter(|mate| mate.live && mate.host != owner);
        match mates().position(|mate| mate.host == host) {
            Some(place) if place >= RACK_FANOUT => {
                let above = (place - RACK_FANOUT) / RACK_FANOUT;
                mates().nth(above).map_or(owner, |mate| mate.host)
            }
            _ => owner,
        }
    }

    fn rack_parent(&self, lane: LaneIndex, rack: &Rack) -> Option<HostIndex> {
        let site = &self.sites[rack.site as usize];
        let order = self.rack_order(lane, site);
        // A rack without a live host has no place: whoever asks from there takes the lane from the site's head.
        let above = match order.position(rack.place) {
            None => order.first(),
            Some(0) => None,
            Some(position) => order.at(order::parent_of(position)),
        };
        if let Some(above) = above {
            return self.rack_owner(lane, &self.racks[site.racks[above as usize].id as usize]);
        }
        let sites = self.site_order(lane);
        let above = match sites.position(site.place) {
            None => sites.first(),
            Some(0) => None,
            Some(position) => sites.at(order::parent_of(position)),
        };
        match above {
            Some(above) => self.site_head(lane, self.site_items[above as usize].id),
            None => self.root,
        }
    }

    /// Who takes `lane` from `host`, in a fixed order: other sites and racks first, then rack-mates.
    pub fn children(&self, lane: LaneIndex, host: HostIndex) -> Vec<HostIndex> {
        if self.root == Some(host) {
            return self.root_child(lane).into_iter().collect();
        }
        let Some(rack) = self.rack(host) else { return Vec::new() };
        let Some(owner) = self.rack_owner(lane, rack) else { return Vec::new() };
        let mates: Vec<HostIndex> =
            rack.members.iter().filter(|mate| mate.live && mate.host != owner).map(|mate| mate.host).collect();
        if owner != host {
            let Some(place) = mates.iter().position(|mate| *mate == host) else { return Vec::new() };
            return mates.iter().skip((place + 1) * RACK_FANOUT).take(RACK_FANOUT).copied().collect();
        }
        let mut children = Vec::new();
        let site = &self.sites[rack.site as usize];
        let order = self.rack_order(lane, site);
        if let Some(position) = order.position(rack.place) {
            if position == 0 {
                let sites = self.site_order(lane);
                if let Some(site_position) = sites.position(site.place) {
                    for place in sites.children(site_position) {
                        children.extend(self.site_head(lane, self.site_items[place as usize].id));
                    }
                }
            }
            for place in order.children(position) {
                children.extend(self.rack_owner(lane, &self.racks[site.racks[place as usize].id as usize]));
            }
        }
        children.extend(mates.iter().take(RACK_FANOUT));
        children
    }

    /// The one host that takes `lane` from the seeder.
    fn root_child(&self, lane: LaneIndex) -> Option<HostIndex> {
        let first = self.site_order(lane).first()?;
        self.site_head(lane, self.site_items[first as usize].id)
    }

    /// Live targeted hosts of the rack of `host`, itself apart, in the plan's order.
    pub fn mates(&self, host: HostIndex) -> impl Iterator<Item = HostIndex> {
        let members = self.rack(host).map_or(&[][..], |rack| &rack.members[..]);
        members.iter().filter(move |mate| mate.live && mate.host != host).map(|mate| mate.host)
    }

    /// Owners of `lane` in all racks, sites and racks in the lane's order: where to look when the parents fail.
    pub fn owners(&self, lane: LaneIndex) -> impl Iterator<Item = HostIndex> {
        self.site_order(lane).iter().flat_map(move |place| {
            let site = &self.sites[self.site_items[place as usize].id as usize];
            let order = self.rack_order(lane, site);
            order
                .iter()
                .filter_map(move |rack| self.rack_owner(lane, &self.racks[site.racks[rack as usize].id as usize]))
        })
    }

    /// Whether two hosts are behind the same uplink, as far as the plan knows them.
    pub fn same_rack(&self, a: HostIndex, b: HostIndex) -> bool {
        let rack = |host: HostIndex| self.rack_of.get(host.index()).copied().unwrap_or(NO_RACK);
        rack(a) != NO_RACK && rack(a) == rack(b)
    }
}

fn lane_cells(lanes: u8) -> Vec<OnceLock<LaneOrder>> {
    (0..lanes).map(|_| OnceLock::new()).collect()
}
