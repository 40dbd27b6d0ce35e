//! Lets a host that lost everything find its rack again without a tracker.
//!
//! A host keeps the addresses of a few rack peers in a file beside its store. While it has no membership, it dials them
//! and asks for the members of the rack. The answer counts only for the own rack and for seeders, and only until the
//! tracker's membership replaces all of it. Admission and hashes protect links and contents as always.
//! Invariant: a membership from a rack peer is not passed on, neither to the tracker, to the disk nor to other hosts.

use shoal_proto::codec::{DecodeError, encode};
use shoal_proto::ids::{Epoch, HostIndex, NodeId};
use shoal_proto::limits;
use shoal_proto::locality::Locality;
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::trust::{Credential, Role};
use shoal_swarm::membership::{ApplyError, Membership};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Rack peers in the file.
const REMEMBERED_MAX: usize = 8;
/// Largest part of a message that members may take, bytes.
const MEMBERS_BYTES_MAX: usize = limits::CONTROL_FRAME_BYTES_MAX / 2;

/// Why a rack peer's list of members is refused.
#[derive(Debug, thiserror::Error)]
pub enum RackListError {
    #[error("the list does not contain this host")]
    WithoutUs,
    #[error("the list has invalid members")]
    Invalid(#[from] DecodeError),
    #[error("the list contradicts itself")]
    Contradiction(#[from] ApplyError),
}

/// A rack peer that this host remembers.
#[derive(Debug, PartialEq, Eq)]
pub struct RackPeer {
    pub node: NodeId,
    pub addrs: Vec<SocketAddr>,
}

/// The membership that a rack peer sent.
pub struct RackMembership {
    /// This host's roster index.
    pub me: HostIndex,
    pub membership: Membership,
}

/// Returns the addresses of the rack peers that a host remembers. `store` is the folder of its store.
pub fn remembered_rack_peers(store: &Path) -> Vec<Vec<SocketAddr>> {
    let text = fs::read_to_string(store.with_extension("rack-peers")).unwrap_or_default();
    parse(&text).into_iter().map(|row| row.addrs).collect()
}

/// The rack peers that can help, by file and by link.
pub struct RackRecovery {
    /// Only peers have a file.
    file: Option<PathBuf>,
    locality: Locality,
    /// Hosts of the own rack with a link, by their credentials.
    linked: HashSet<NodeId>,
    /// A failed write was logged. Later failures are not.
    has_warned: bool,
}

impl RackRecovery {
    /// `store` is the store's folder. The file is beside it.
    pub fn new(role: Role, store: &Path, locality: Locality) -> Self {
        let file = (role == Role::Peer).then(|| store.with_extension("rack-peers"));
        Self { file, locality, linked: HashSet::new(), has_warned: false }
    }

    /// The rack peers in the file.
    pub fn remembered(&self) -> Vec<RackPeer> {
        let text = self.file.as_ref().and_then(|file| fs::read_to_string(file).ok());
        text.map_or_else(Vec::new, |text| parse(&text))
    }

    /// Notes a new link. Returns true for a host of the own rack. `credential` is checked.
    pub fn on_link_up(&mut self, node: NodeId, credential: &Credential) -> bool {
        let is_rack_peer = credential.role == Role::Peer && credential.locality.same_rack(&self.locality);
        if is_rack_peer {
            self.linked.insert(node);
        }
        is_rack_peer
    }

    pub fn on_link_down(&mut self, node: &NodeId) {
        self.linked.remove(node);
    }

    pub fn is_linked_rack_peer(&self, node: &NodeId) -> bool {
        self.linked.contains(node)
    }

    fn is_shared(&self, member: &Member) -> bool {
        member.role == Role::Seeder || member.locality.same_rack(&self.locality)
    }

    /// The members that a rack peer may learn from this host, as many as fit into a message.
    pub fn members_for_rack_peer(&self, membership: &Membership) -> Vec<Member> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for member in membership.iter().filter(|member| self.is_shared(member)).take(limits::RACK_PEERS_MAX) {
            bytes += encode(member).len();
            if bytes > MEMBERS_BYTES_MAX {
                break;
            }
            rows.push(member.clone());
        }
        rows
    }

    /// Builds a membership from a rack peer's list.
    ///
    /// # Errors
    /// Fails if the list does not contain `node`, which is this host, or if it is no valid membership.
    pub fn read_list(&self, node: NodeId, mut rows: Vec<Member>) -> Result<RackMembership, RackListError> {
        rows.retain(|member| self.is_shared(member));
        let ours = rows.iter_mut().find(|row| row.node == node).ok_or(RackListError::WithoutUs)?;
        // The rack peer saw this host fail. It is back.
        ours.presence = Presence::Up;
        let me = ours.index;
        // Any membership of the tracker has a higher epoch.
        let update = MembershipUpdate { epoch: Epoch(0), base: None, upserts: rows, removed: Vec::new() };
        update.validate()?;
        let mut membership = Membership::default();
        membership.apply(update)?;
        Ok(RackMembership { me, membership })
    }

    /// Writes a few rack peers of `me` to the file. Present hosts go first.
    pub fn remember(&mut self, membership: &Membership, me: HostIndex) {
        let Some(file) = &self.file else { return };
        let rack_peers = membership.rack_peers(me).into_iter().filter_map(|host| membership.get(host));
        let mut rack_peers: Vec<&Member> = rack_peers.filter(|member| !member.addrs.is_empty()).collect();
        rack_peers.sort_by_key(|member| (member.presence != Presence::Up, member.index));
        rack_peers.truncate(REMEMBERED_MAX);
        if rack_peers.is_empty() {
            return;
        }
        if let Err(error) = write(file, &rack_peers)
            && !std::mem::replace(&mut self.has_warned, true)
        {
            tracing::warn!(file = %file.display(), %error, "cannot remember rack peers");
        }
    }
}

/// Reads lines of a key and addresses. Skips what it cannot read.
fn parse(text: &str) -> Vec<RackPeer> {
    let rows = text.lines().filter_map(|line| {
        let (node, addrs) = line.split_once(' ')?;
        let addrs: Vec<SocketAddr> = addrs.split(',').filter_map(|addr| addr.parse().ok()).collect();
        let is_usable = !addrs.is_empty() && addrs.len() <= limits::ADDRS_MAX;
        is_usable.then_some(RackPeer { node: node.parse().ok()?, addrs })
    });
    rows.take(REMEMBERED_MAX).collect()
}

/// Replaces the file in one step, unless it has this text already.
fn write(file: &Path, rack_peers: &[&Member]) -> io::Result<()> {
    let line = |member: &&Member| {
        let addrs: Vec<String> = member.addrs.iter().map(SocketAddr::to_string).collect();
        format!("{} {}\n", member.node, addrs.join(","))
    };
    let text: String = rack_peers.iter().map(line).collect();
    if fs::read_to_string(file).is_ok_and(|former| former == text) {
        return Ok(());
    }
    let fresh = file.with_extension("rack-peers-new");
    fs::write(&fresh, text)?;
    fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_yields_the_lines_that_can_be_read() {
        let node = NodeId([7; 32]);
        let good = format!("{node} 10.0.0.1:7700,[::1]:7700");
        let text = format!("{good}\nnonsense\n{node} nowhere\n{node}\n\n{good}\n");
        let rows = parse(&text);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].node, rows[0].addrs.len()), (node, 2));
        assert_eq!(parse(&format!("{good}\n").repeat(100)).len(), REMEMBERED_MAX);
    }
}
