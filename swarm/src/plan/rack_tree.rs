//! Inside a rack: how a lane gets from its owner to the owner's rack peers.
//!
//! Owns: the tree of one lane in one rack.
//! Invariant: in racks of up to `RACK_FANOUT + 1` hosts, all rack peers take the lane from the owner. In larger racks
//! no host has more than [`RACK_FANOUT`] children.

use super::Plan;
use shoal_proto::ids::HostIndex;

/// Rack peers directly below one host. Usual racks have 4 to 40 hosts and stay flat.
pub const RACK_FANOUT: usize = 40;

/// The place of the parent of the rack peer at `place`; `None` for the owner. Rack peers fill levels of `RACK_FANOUT`,
/// `RACK_FANOUT`², ... hosts. Each level is spread evenly over the one above.
fn above(place: usize) -> Option<usize> {
    let (mut start, mut size) = (0, RACK_FANOUT);
    if place < size {
        return None;
    }
    loop {
        let next = start + size;
        if place < next + size * RACK_FANOUT {
            return Some(start + (place - next) % size);
        }
        (start, size) = (next, size * RACK_FANOUT);
    }
}

/// The places of the children of the rack peer at `place`, of `len` rack peers.
fn below(place: usize, len: usize) -> impl Iterator<Item = usize> {
    let (mut start, mut size) = (0, RACK_FANOUT);
    while place >= start + size {
        (start, size) = (start + size, size * RACK_FANOUT);
    }
    (start + size + (place - start)..len).step_by(size).take(RACK_FANOUT)
}

impl Plan {
    /// Live rack peers of `owner`, from the next one in the rack's order. So each lane has other hosts on its top
    /// level.
    fn rack_peers_after(&self, rack: u32, owner: HostIndex) -> Vec<HostIndex> {
        let mut live: Vec<HostIndex> = self.live_rows(rack).map(|row| row.host).collect();
        if let Some(at) = live.iter().position(|host| *host == owner) {
            live.rotate_left(at);
            live.remove(0);
        }
        live
    }

    /// The host that the live `host` takes a lane of `owner` from.
    pub(super) fn rack_peer_parent(&self, rack: u32, owner: HostIndex, host: HostIndex) -> HostIndex {
        if self.forest.rows(rack).len() <= RACK_FANOUT + 1 {
            return owner;
        }
        let peers = self.rack_peers_after(rack, owner);
        let place = peers.iter().position(|peer| *peer == host);
        place.and_then(above).map_or(owner, |above| peers[above])
    }

    /// The rack peers that take a lane of `owner` from the live `host`, which may be the owner.
    pub(super) fn rack_peer_children(&self, rack: u32, owner: HostIndex, host: HostIndex) -> Vec<HostIndex> {
        if host != owner && self.forest.rows(rack).len() <= RACK_FANOUT + 1 {
            return Vec::new();
        }
        let mut peers = self.rack_peers_after(rack, owner);
        if host == owner {
            peers.truncate(RACK_FANOUT);
            return peers;
        }
        let Some(place) = peers.iter().position(|peer| *peer == host) else { return Vec::new() };
        below(place, peers.len()).map(|below| peers[below]).collect()
    }
}
