//! The nodes that have a link and the nodes that are being dialled.
//!
//! Invariant: a node has at most one slot. Its next link takes the slot only after the `LinkDown` of the last one was
//! emitted.

use shoal_proto::ids::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The state of a node's slot.
enum SlotState<L> {
    /// A handshake holds the slot.
    Claimed,
    /// A link holds the slot.
    Up(Arc<L>),
    /// The link has ended. Its `LinkDown` is not emitted yet.
    Closing,
}

struct Nodes<L> {
    slots: HashMap<NodeId, SlotState<L>>,
    dials: HashMap<NodeId, CancellationToken>,
}

/// All slots and dials of an endpoint. Cheap to clone. `L` is the type of a link.
pub struct Registry<L> {
    nodes: Arc<Mutex<Nodes<L>>>,
    changed: watch::Sender<()>,
}

impl<L> Clone for Registry<L> {
    fn clone(&self) -> Self {
        Self { nodes: self.nodes.clone(), changed: self.changed.clone() }
    }
}

/// The result of [`Registry::claim`].
pub enum ClaimResult<L> {
    /// The caller holds the slot now.
    Claimed(LinkSlot<L>),
    /// A link holds the slot.
    Up(Arc<L>),
    /// A handshake or an ending link holds the slot. Wait for a change.
    Busy,
}

impl<L> Registry<L> {
    pub fn new() -> Self {
        let nodes = Nodes { slots: HashMap::new(), dials: HashMap::new() };
        Self { nodes: Arc::new(Mutex::new(nodes)), changed: watch::Sender::new(()) }
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes<L>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, node: NodeId, state: SlotState<L>) {
        self.nodes().slots.insert(node, state);
        self.changed.send_replace(());
    }

    /// Returns the changes of all slots from now on. Subscribe before a look at a slot, and no change is missed.
    pub fn changes(&self) -> Changes {
        Changes(self.changed.subscribe())
    }

    /// Takes the node's slot if it is free.
    pub fn claim(&self, node: NodeId) -> ClaimResult<L> {
        let mut nodes = self.nodes();
        match nodes.slots.get(&node) {
            None => {
                nodes.slots.insert(node, SlotState::Claimed);
                ClaimResult::Claimed(LinkSlot { registry: self.clone(), node })
            }
            Some(SlotState::Up(link)) => ClaimResult::Up(link.clone()),
            Some(SlotState::Claimed | SlotState::Closing) => ClaimResult::Busy,
        }
    }

    /// Returns the node's link if one is up.
    pub fn link(&self, node: &NodeId) -> Option<Arc<L>> {
        match self.nodes().slots.get(node) {
            Some(SlotState::Up(link)) => Some(link.clone()),
            _ => None,
        }
    }

    /// Returns every link that is up.
    pub fn links(&self) -> Vec<Arc<L>> {
        let up = |state: &SlotState<L>| if let SlotState::Up(link) = state { Some(link.clone()) } else { None };
        self.nodes().slots.values().filter_map(up).collect()
    }

    /// Returns the number of links that are up.
    pub fn link_count(&self) -> usize {
        self.nodes().slots.values().filter(|state| matches!(state, SlotState::Up(_))).count()
    }

    /// Notes a dial and returns the token that cancels it. `None` if a link is up or a dial is under way.
    pub fn begin_dial(&self, node: NodeId) -> Option<CancellationToken> {
        let mut nodes = self.nodes();
        if matches!(nodes.slots.get(&node), Some(SlotState::Up(_))) || nodes.dials.contains_key(&node) {
            return None;
        }
        let token = CancellationToken::new();
        nodes.dials.insert(node, token.clone());
        Some(token)
    }

    pub fn end_dial(&self, node: &NodeId) {
        self.nodes().dials.remove(node);
    }

    /// Cancels the node's dial if one is under way.
    pub fn cancel_dial(&self, node: &NodeId) {
        if let Some(token) = self.nodes().dials.get(node) {
            token.cancel();
        }
    }

    /// Returns once a link to `node` is up.
    pub async fn until_up(&self, node: NodeId) {
        let mut changes = self.changes();
        while self.link(&node).is_none() {
            changes.next().await;
        }
    }

    /// Returns once the slot of `node` is neither claimed nor closing.
    pub async fn until_settled(&self, node: NodeId) {
        let mut changes = self.changes();
        while matches!(self.nodes().slots.get(&node), Some(SlotState::Claimed | SlotState::Closing)) {
            changes.next().await;
        }
    }
}

/// The changes of all slots.
pub struct Changes(watch::Receiver<()>);

impl Changes {
    /// Returns after the next change.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // The registry is gone, and no task of an endpoint outlives the registry.
            std::future::pending::<()>().await;
        }
    }
}

/// The right to be the node's only link. Dropping the slot frees it.
pub struct LinkSlot<L> {
    registry: Registry<L>,
    node: NodeId,
}

impl<L> LinkSlot<L> {
    /// Makes `link` the node's link. Frames can be sent on it from now on.
    pub fn set_up(&self, link: Arc<L>) {
        self.registry.set(self.node, SlotState::Up(link));
    }

    /// Marks the link as ended. Nothing can be sent on it, but the slot is not free yet.
    pub fn set_closing(&self) {
        self.registry.set(self.node, SlotState::Closing);
    }
}

impl<L> Drop for LinkSlot<L> {
    fn drop(&mut self) {
        self.registry.nodes().slots.remove(&self.node);
        self.registry.changed.send_replace(());
    }
}
