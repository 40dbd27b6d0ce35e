//! This host's place in the region: the membership, the own roster index, and the links by node.
//!
//! A link can come up before the membership names its other end. Its events wait here until the membership does.
//! Invariant: only one membership counts at a time. The tracker's membership replaces a rack peer's at once.

use super::rack_recovery::{RackListError, RackMembership, RackPeer, RackRecovery};
use crate::row_check::RowCheck;
use shoal_net::links::LinkEvent;
use shoal_proto::announcement::Announcement;
use shoal_proto::ids::{HostIndex, NodeId};
use shoal_proto::membership::{Member, MembershipUpdate};
use shoal_proto::trust::{Credential, Role};
use shoal_store::Store;
use shoal_swarm::membership::{ApplyError, Membership, Tier};
use shoal_swarm::time::Instant;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Memory of messages kept for a link whose other end the membership does not name yet, and for all such links.
const WAITING_BYTES_MAX: usize = 64 * 1024;
const ALL_WAITING_BYTES_MAX: usize = 1024 * 1024;
/// The least that a kept message counts, for its place in a list.
const EVENT_BYTES_MIN: usize = 256;
/// How long the events of such a link wait.
const UNKNOWN_LINK_PATIENCE: Duration = Duration::from_secs(30);

const MEMBERSHIP_KEY: &str = "membership";
const INDEX_KEY: &str = "host-index";

/// A link whose other end the membership does not name yet.
struct UnknownLink {
    since: Instant,
    events: Vec<LinkEvent>,
    bytes: usize,
}

/// Our place in the region.
pub struct Region {
    node: NodeId,
    /// Our roster index, from the tracker or from a rack peer.
    me: Option<HostIndex>,
    membership: Arc<Membership>,
    published: watch::Sender<Arc<Membership>>,
    /// The membership came from a rack peer.
    is_hearsay: bool,
    is_saved: bool,
    /// Links that are up, also before the core runs.
    linked: HashSet<NodeId>,
    unknown_links: HashMap<NodeId, UnknownLink>,
    recovery: RackRecovery,
    rows: Arc<Mutex<RowCheck>>,
}

impl Region {
    /// Reads the membership and the roster index that the store keeps.
    pub fn load(node: NodeId, store: &Store, recovery: RackRecovery, rows: Arc<Mutex<RowCheck>>) -> Self {
        let mut membership = Membership::default();
        if let Ok(Some(bytes)) = store.get_state(MEMBERSHIP_KEY)
            && let Ok(update) = shoal_proto::codec::decode_exact::<MembershipUpdate>(&bytes)
            && update.validate().is_ok()
        {
            let _ = membership.apply(update); // the tracker replaces a membership that does not apply
        }
        let index = store.get_state(INDEX_KEY).ok().flatten();
        let me = index.and_then(|bytes| bytes.try_into().ok()).map(|bytes| HostIndex(u32::from_be_bytes(bytes)));
        lock(&rows).trust(membership.iter());
        let membership = Arc::new(membership);
        Self {
            node,
            me,
            published: watch::channel(membership.clone()).0,
            membership,
            is_hearsay: false,
            is_saved: true,
            linked: HashSet::new(),
            unknown_links: HashMap::new(),
            recovery,
            rows,
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<Membership>> {
        self.published.subscribe()
    }

    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    pub fn member(&self, host: HostIndex) -> Option<&Member> {
        self.membership.get(host)
    }

    pub fn host_of(&self, node: &NodeId) -> Option<HostIndex> {
        self.membership.by_node(node)
    }

    pub fn me(&self) -> Option<HostIndex> {
        self.me
    }

    /// Our own row of the membership.
    pub fn own_row(&self) -> Option<&Member> {
        self.me.and_then(|me| self.membership.get(me))
    }

    /// Our roster index, once the membership confirms that it is ours.
    pub fn confirmed_index(&self) -> Option<HostIndex> {
        self.own_row().filter(|row| row.node == self.node).map(|row| row.index)
    }

    /// The tier of payload from a host.
    pub fn tier_of(&self, from: HostIndex) -> Option<Tier> {
        Some(self.membership.tier(self.me?, from))
    }

    /// Whether an announcement selects this host.
    pub fn is_selected(&self, announcement: &Announcement) -> bool {
        self.own_row()
            .is_some_and(|row| row.role == Role::Peer && announcement.selector.matches(&row.locality, &row.labels))
    }

    /// Takes over the roster index that the tracker assigned. Returns true if it differs from the former one.
    pub fn set_index(&mut self, index: HostIndex, store: &Store) -> bool {
        if self.me == Some(index) {
            return false;
        }
        if let Some(former) = self.me.replace(index) {
            tracing::warn!(%former, %index, "the tracker assigned another roster index to this host");
        }
        if let Err(error) = store.put_state(INDEX_KEY, Some(index.0.to_be_bytes().to_vec())) {
            tracing::error!(%error, "cannot save the roster index");
        }
        true
    }

    fn replace(&mut self, membership: Membership) -> Arc<Membership> {
        let former = std::mem::replace(&mut self.membership, Arc::new(membership));
        self.published.send_replace(self.membership.clone());
        former
    }

    /// Applies the tracker's update. Returns the former membership.
    ///
    /// # Errors
    /// Fails if the update does not fit the membership. The membership stays as it is.
    pub fn apply(&mut self, update: MembershipUpdate) -> Result<Arc<Membership>, ApplyError> {
        let mut next = (*self.membership).clone();
        next.apply(update)?;
        self.is_hearsay = false;
        self.is_saved = false;
        Ok(self.replace(next))
    }

    /// Takes over a rack peer's list of members, while no other membership is known.
    ///
    /// Returns false if the list does not count.
    ///
    /// # Errors
    /// Fails if the list is no valid membership with this host.
    pub fn apply_rack_list(&mut self, from: &NodeId, mut rows: Vec<Member>) -> Result<bool, RackListError> {
        if !self.membership.is_empty() || !self.recovery.is_linked_rack_peer(from) {
            return Ok(false);
        }
        lock(&self.rows).filter_list(&mut rows);
        let RackMembership { me, membership } = self.recovery.read_list(self.node, rows)?;
        self.is_hearsay = true;
        self.me = Some(me);
        self.replace(membership);
        Ok(true)
    }

    /// The members to send to a rack peer that asks for them. `None` if `node` gets no answer.
    pub fn rack_list_for(&self, node: &NodeId) -> Option<Vec<Member>> {
        let may_answer = self.recovery.is_linked_rack_peer(node) && !self.is_hearsay && !self.membership.is_empty();
        may_answer.then(|| self.recovery.members_for_rack_peer(&self.membership))
    }

    /// The remembered rack peers, while no membership is known.
    pub fn rack_peers_to_ask(&self) -> Vec<RackPeer> {
        if !self.membership.is_empty() {
            return Vec::new();
        }
        self.recovery.remembered().into_iter().filter(|rack_peer| rack_peer.node != self.node).collect()
    }

    /// Whether this host needs the rack's members from `node`.
    pub fn should_ask_for_rack(&self, node: &NodeId) -> bool {
        self.membership.is_empty() && self.recovery.is_linked_rack_peer(node)
    }

    /// The membership, if it changed since the last call. Also remembers a few rack peers then.
    pub fn take_unsaved(&mut self) -> Option<Arc<Membership>> {
        if std::mem::replace(&mut self.is_saved, true) {
            return None;
        }
        if let Some(me) = self.me.filter(|_| !self.is_hearsay) {
            self.recovery.remember(&self.membership, me);
        }
        Some(self.membership.clone())
    }

    /// Notes a link with a checked credential.
    pub fn on_link_up(&mut self, node: NodeId, credential: &Credential) {
        self.linked.insert(node);
        self.recovery.on_link_up(node, credential);
    }

    pub fn on_link_down(&mut self, node: &NodeId) {
        self.linked.remove(node);
        self.recovery.on_link_down(node);
        self.unknown_links.remove(node);
    }

    pub fn is_linked(&self, node: &NodeId) -> bool {
        self.linked.contains(node)
    }

    pub fn linked(&self) -> Vec<NodeId> {
        self.linked.iter().copied().collect()
    }

    /// Keeps a link's events until the membership names its other end.
    pub fn wait_for_membership(&mut self, node: NodeId, now: Instant) {
        self.unknown_links.entry(node).or_insert(UnknownLink { since: now, events: Vec::new(), bytes: 0 });
    }

    pub fn is_unknown(&self, node: &NodeId) -> bool {
        self.unknown_links.contains_key(node)
    }

    /// Keeps a message of a link whose other end is unknown, while there is room. Drops everything else. This host
    /// asked the other end for no payload, and anti-entropy brings announcements later.
    pub fn keep_event(&mut self, node: &NodeId, event: LinkEvent) {
        let LinkEvent::Message { message, .. } = &event else { return };
        let kept: usize = self.unknown_links.values().map(|link| link.bytes).sum();
        let Some(link) = self.unknown_links.get_mut(node) else { return };
        let room = WAITING_BYTES_MAX.saturating_sub(link.bytes).min(ALL_WAITING_BYTES_MAX.saturating_sub(kept));
        let bytes = message.memory_bytes(EVENT_BYTES_MIN);
        if bytes <= room {
            link.bytes += bytes;
            link.events.push(event);
        }
    }

    /// Takes the links whose other ends the membership names by now.
    pub fn take_known_links(&mut self) -> Vec<(NodeId, Vec<LinkEvent>)> {
        let membership = &self.membership;
        let known = self.unknown_links.extract_if(|node, _| membership.by_node(node).is_some());
        known.map(|(node, link)| (node, link.events)).collect()
    }

    /// Drops the events of links that waited too long.
    pub fn expire_unknown_links(&mut self, now: Instant) {
        self.unknown_links.retain(|_, link| now.since(link.since) < UNKNOWN_LINK_PATIENCE);
    }
}

fn lock(rows: &Mutex<RowCheck>) -> MutexGuard<'_, RowCheck> {
    rows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a membership to the store. Blocks.
pub fn save_membership(store: &Store, membership: &Membership) {
    let bytes = shoal_proto::codec::encode(&membership.to_update());
    if let Err(error) = store.put_state(MEMBERSHIP_KEY, Some(bytes)) {
        tracing::error!(%error, "cannot save the membership");
    }
}
