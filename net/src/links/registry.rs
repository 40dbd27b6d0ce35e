//! Which nodes have a link, and which are being dialled.
//!
//! Invariant: a node has at most one slot; its next link takes the slot only after the last one's `LinkDown` is out.

use super::link::Link;
use shoal_proto::ids::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The state of a node's slot.
enum SlotState {
    /// A handshake has it.
    Claimed,
    /// A link has it.
    Up(Arc<Link>),
    /// The link has ended; its `LinkDown` is not out yet.
    Closing,
}

#[derive(Default)]
struct State {
    places: HashMap<NodeId, SlotState>,
    dials: HashMap<NodeId, CancellationToken>,
}

/// All seats. Cheap to clone.
#[derive(Clone)]
pub(super) struct Registry {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

/// What a claim found.
pub(super) enum ClaimResult {
    /// The slot is ours.
    Claimed(LinkSlot),
    /// A link has it.
    Up(Arc<Link>),
    /// It is between two states: wait for a change.
    Busy,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribe before looking, and no change is missed.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.changed.subscribe())
    }

    /// Takes the node's slot if it is free.
    pub(super) fn claim(&self, node: NodeId) -> ClaimResult {
        let mut state = self.state();
        match state.places.get(&node) {
            None => {
                state.places.insert(node, SlotState::Claimed);
                ClaimResult::Claimed(LinkSlot { registry: self.clone(), node })
            }
            Some(SlotState::Up(link)) => ClaimResult::Up(link.clone()),
            Some(SlotState::Claimed | SlotState::Closing) => ClaimResult::Busy,
        }
    }

    /// The node's link, if one is up.
    pub(super) fn link(&self, node: &NodeId) -> Option<Arc<Link>> {
        match self.state().places.get(node) {
            Some(SlotState::Up(link)) => Some(link.clone()),
            _ => None,
        }
    }

    /// Every link that is up.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        let state = self.state();
        state
            .places
            .values()
            .filter_map(|place| if let SlotState::Up(link) = place { Some(link.clone()) } else { None })
            .collect()
    }

    /// How many links are up.
    pub(super) fn link_count(&self) -> usize {
        self.state().places.values().filter(|place| matches!(place, SlotState::Up(_))).count()
    }

    /// Notes a dial; `None` when there is nothing to do: a link is up, or a dial under way.
    pub(super) fn begin_dial(&self, node: NodeId) -> Option<CancellationToken> {
        let mut state = self.state();
        if matches!(state.places.get(&node), Some(SlotState::Up(_))) || state.dials.contains_key(&node) {
            return None;
        }
        let token = CancellationToken::new();
        state.dials.insert(node, token.clone());
        Some(token)
    }

    /// Forgets a dial.
    pub(super) fn end_dial(&self, node: &NodeId) {
        self.state().dials.remove(node);
    }

    /// Ends a dial under way.
    pub(super) fn cancel_dial(&self, node: &NodeId) {
        if let Some(token) = self.state().dials.get(node) {
            token.cancel();
        }
    }

    /// Returns once a link to `node` is up.
    pub(super) async fn until_up(&self, node: NodeId) {
        let mut changes = self.changes();
        while self.link(&node).is_none() {
            changes.next().await;
        }
    }

    /// Returns once the slot of `node` is neither closing nor claimed.
    pub(super) async fn until_settled(&self, node: NodeId) {
        let mut changes = self.changes();
        while matches!(self.state().places.get(&node), Some(SlotState::Claimed | SlotState::Closing)) {
            changes.next().await;
        }
    }
}

/// Tells when a slot was taken or left.
pub(super) struct Changes(watch::Receiver<()>);

impl Changes {
    /// Returns after the next change.
    pub(super) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // The table is gone, and no task of an endpoint outlives it.
            std::future::pending::<()>().await;
        }
    }
}

/// A node's slot. Dropping it frees the slot.
pub(super) struct LinkSlot {
    registry: Registry,
    node: NodeId,
}

impl LinkSlot {
    /// Hands the slot to a link: from now on it can be sent to.
    pub(super) fn up(&self, link: Arc<Link>) {
        self.registry.state().places.insert(self.node, SlotState::Up(link));
        self.registry.changed.send_replace(());
    }

    /// The link has ended: nothing can be sent to it, but the slot is not free yet.
    pub(super) fn closing(&self) {
        self.registry.state().places.insert(self.node, SlotState::Closing);
        self.registry.changed.send_replace(());
    }
}

impl Drop for LinkSlot {
    fn drop(&mut self) {
        self.registry.state().places.remove(&self.node);
        self.registry.changed.send_replace(());
    }
}
