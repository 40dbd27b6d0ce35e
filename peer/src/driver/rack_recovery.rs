//! A host that lost everything finds its rack again without a tracker: it remembers a few rack peers in a file beside its
//! store, and asks one of them who is in the rack.
//!
//! What a mate says counts only while no membership is known, and only for the rack (and the seeders): the tracker's word
//! replaces it whole. Whatever then comes is checked as ever: links by credential, contents by signature and hash.
//! Invariant: a membership heard from a mate is never passed off as the tracker's, neither to the tracker nor on disk.

use super::Driver;
use shoal_net::links::OutFrame;
use shoal_proto::codec::encode;
use shoal_proto::ids::{Epoch, NodeId};
use shoal_proto::limits;
use shoal_proto::locality::Locality;
use shoal_proto::membership::{Member, MembershipUpdate, Presence};
use shoal_proto::message::Message;
use shoal_proto::trust::{Credential, Role};
use shoal_swarm::membership::Membership;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Mates remembered.
const MATES_KEPT: usize = 8;
/// Most of a message that rows may take, bytes.
const ROWS_BYTES: usize = limits::CONTROL_FRAME_BYTES_MAX / 2;

/// What is needed to find the rack again.
pub(super) struct Mates {
    file: Option<PathBuf>,
    locality: Locality,
    /// Links to hosts of our rack, by credential.
    near: HashSet<NodeId>,
    /// The membership held is a mate's word.
    pub(super) hearsay: bool,
    complained: bool,
}

impl Mates {
    /// `store` is the store's folder; the file lies beside it. Only peers have mates.
    pub(super) fn new(role: Role, store: &Path, locality: Locality) -> Self {
        let file = (role == Role::Peer).then(|| store.with_extension("mates"));
        Self { file, locality, near: HashSet::new(), hearsay: false, complained: false }
    }
}

/// Lines of a key and addresses, as the file has them. What cannot be read is left out.
fn parse(text: &str) -> Vec<(NodeId, Vec<SocketAddr>)> {
    let rows = text.lines().filter_map(|line| {
        let (node, addrs) = line.split_once(' ')?;
        let addrs: Vec<SocketAddr> = addrs.split(',').filter_map(|addr| addr.parse().ok()).collect();
        (!addrs.is_empty() && addrs.len() <= limits::ADDRS_MAX).then_some((node.parse().ok()?, addrs))
    });
    rows.take(MATES_KEPT).collect()
}

fn write(file: &Path, mates: &[&Member]) -> io::Result<()> {
    let line = |mate: &&Member| {
        let addrs: Vec<String> = mate.addrs.iter().map(SocketAddr::to_string).collect();
        format!("{} {}\n", mate.node, addrs.join(","))
    };
    let text: String = mates.iter().map(line).collect();
    if fs::read_to_string(file).is_ok_and(|former| former == text) {
        return Ok(());
    }
    let fresh = file.with_extension("mates-new");
    fs::write(&fresh, text)?;
    fs::rename(fresh, file)
}

impl Driver {
    /// Dials the mates remembered, while nobody else has told who is in the region.
    pub(super) fn look_for_mates(&mut self) {
        if !self.membership.is_empty() {
            return;
        }
        let Some(text) = self.mates.file.as_ref().and_then(|file| fs::read_to_string(file).ok()) else { return };
        let me = self.node;
        for (node, addrs) in parse(&text).into_iter().filter(|(node, _)| *node != me) {
            if self.linked.contains(&node) {
                self.ask_mate(node);
            } else {
                self.endpoint.dial(node, addrs);
            }
        }
    }

    /// A link came up; `credential` was checked.
    pub(super) fn met(&mut self, node: NodeId, credential: &Credential) {
        if credential.role == Role::Peer && credential.locality.same_rack(&self.mates.locality) {
            self.mates.near.insert(node);
            self.ask_mate(node);
        }
    }

    pub(super) fn parted(&mut self, node: &NodeId) {
        self.mates.near.remove(node);
    }

    fn ask_mate(&mut self, node: NodeId) {
        if self.membership.is_empty() && self.mates.near.contains(&node) {
            let _asked_again = self.endpoint.send(node, OutFrame::Message(Message::WantRackPeers));
        }
    }

    /// A host asks who is in its rack, which is ours.
    pub(super) fn tell_mates_of(&mut self, node: NodeId) {
        // What we have heard ourselves is not passed on.
        if !self.mates.near.contains(&node) || self.mates.hearsay || self.membership.is_empty() {
            return;
        }
        let near = |member: &&Member| member.role == Role::Seeder || member.locality.same_rack(&self.mates.locality);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for member in self.membership.iter().filter(near).take(limits::RACK_PEERS_MAX) {
            bytes += encode(member).len();
            if bytes > ROWS_BYTES {
                break;
            }
            rows.push(member.clone());
        }
        let _asks_again = self.endpoint.send(node, OutFrame::Message(Message::RackPeers { rows }));
    }

    /// A mate says who is in the rack.
    pub(super) fn hear_of_mates(&mut self, node: NodeId, mut rows: Vec<Member>) {
        if !self.membership.is_empty() || !self.mates.near.contains(&node) {
            return;
        }
        rows.retain(|row| row.role == Role::Seeder || row.locality.same_rack(&self.mates.locality));
        let Some(ours) = rows.iter_mut().find(|row| row.node == self.node) else {
            tracing::debug!(node = %node.short(), "a mate does not know us");
            return;
        };
        ours.presence = Presence::Up;
        let index = ours.index;
        let update = MembershipUpdate { epoch: Epoch(0), base: None, upserts: rows, removed: Vec::new() };
        let mut membership = Membership::default();
        if let Err(error) = update.validate().map_err(Into::into).and_then(|()| membership.apply(update)) {
            tracing::warn!(node = %node.short(), %error, "a mate told of a rack that cannot be");
            return;
        }
        tracing::info!(hosts = membership.len(), from = %node.short(), "no tracker: a mate told who is in the rack");
        self.mates.hearsay = true;
        self.me = Some(index);
        self.membership = std::sync::Arc::new(membership);
        self.book.metrics.members.set(self.membership.len() as i64);
        self.membership_out.send_replace(self.membership.clone());
        self.start_brain();
        self.greet_strangers();
    }

    /// Writes a few mates to the file beside the store.
    pub(super) fn remember_mates(&mut self) {
        let (Some(file), Some(me), false) = (&self.mates.file, self.me, self.mates.hearsay) else { return };
        let mates = self.membership.rack_peers(me).into_iter().filter_map(|mate| self.membership.get(mate));
        let mut mates: Vec<&Member> = mates.filter(|mate| !mate.addrs.is_empty()).collect();
        mates.sort_by_key(|mate| (mate.presence != Presence::Up, mate.index));
        mates.truncate(MATES_KEPT);
        if mates.is_empty() {
            return;
        }
        if let Err(error) = write(file, &mates)
            && !std::mem::replace(&mut self.mates.complained, true)
        {
            tracing::warn!(file = %file.display(), %error, "cannot remember rack peers");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_tampered_with_gives_what_can_be_read() {
        let node = NodeId([7; 32]);
        let good = format!("{node} 10.0.0.1:7700,[::1]:7700");
        let text = format!("{good}\nnonsense\n{node} nowhere\n{node}\n\n{good}\n");
        let rows = parse(&text);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].0, rows[0].1.len()), (node, 2));
        assert_eq!(parse(&format!("{good}\n").repeat(100)).len(), MATES_KEPT);
    }
}
