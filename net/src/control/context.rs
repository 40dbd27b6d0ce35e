//! The state that the handles and the event loop of a control plane share.
//!
//! Invariant: an order of a handle is kept once, however often it is repeated. So orders never outgrow the number of
//! nodes.

use super::byte_counter::ByteCounter;
use super::entrance::EntranceCounts;
use libp2p::swarm::ConnectionId;
use shoal_proto::ids::NodeId;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The state that handles and event loop share.
pub struct ControlContext {
    pub(super) byte_counter: Arc<ByteCounter>,
    pub(super) entrance: Arc<EntranceCounts>,
    pub(super) node_orders: NodeOrders,
    pub(super) tasks: TaskTracker,
    /// Set when the event loop must close every connection and end.
    pub(super) closing: CancellationToken,
    /// Set when every task must end at once.
    pub(super) stop: CancellationToken,
    pub(super) timeout: Duration,
}

impl ControlContext {
    pub fn new(timeout: Duration) -> Self {
        Self {
            byte_counter: Arc::default(),
            entrance: Arc::default(),
            node_orders: NodeOrders::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            timeout,
        }
    }
}

/// The nodes to disconnect and to block, and the connections to close.
#[derive(Default)]
pub struct PendingOrders {
    disconnect: BTreeSet<NodeId>,
    block: BTreeSet<NodeId>,
    close: BTreeSet<ConnectionId>,
}

impl PendingOrders {
    pub fn disconnect(&self) -> impl Iterator<Item = &NodeId> {
        self.disconnect.iter()
    }

    pub fn block(&self) -> impl Iterator<Item = &NodeId> {
        self.block.iter()
    }

    pub fn close(&self) -> impl Iterator<Item = &ConnectionId> {
        self.close.iter()
    }
}

/// Orders of handles that need no answer and must not wait.
#[derive(Default)]
pub struct NodeOrders {
    pending: Mutex<PendingOrders>,
    changed: Notify,
}

impl NodeOrders {
    fn pending(&self) -> MutexGuard<'_, PendingOrders> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn disconnect(&self, node: NodeId) {
        self.pending().disconnect.insert(node);
        self.changed.notify_one();
    }

    pub fn block(&self, node: NodeId) {
        self.pending().block.insert(node);
        self.changed.notify_one();
    }

    pub fn close(&self, connection: ConnectionId) {
        self.pending().close.insert(connection);
        self.changed.notify_one();
    }

    pub fn take(&self) -> PendingOrders {
        std::mem::take(&mut *self.pending())
    }

    /// Returns once an order may have come.
    pub async fn until_changed(&self) {
        self.changed.notified().await;
    }
}
