//! Nodes that get no link for a while.
//!
//! Invariant: at most [`NODES_MAX`] nodes are remembered. When there are more, the one whose time ends first goes.

use shoal_proto::ids::NodeId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Each node needs a credential of the cluster to be remembered here.
const NODES_MAX: usize = 4096;

/// The nodes and the ends of their times.
#[derive(Debug, Default)]
pub struct RefusedNodes {
    until: Mutex<HashMap<NodeId, Instant>>,
}

impl RefusedNodes {
    fn until(&self) -> MutexGuard<'_, HashMap<NodeId, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a node from now on, for `time`.
    pub fn add(&self, node: NodeId, time: Duration) {
        let (now, mut until) = (Instant::now(), self.until());
        if until.len() >= NODES_MAX {
            until.retain(|_, end| *end > now);
        }
        if until.len() >= NODES_MAX
            && let Some(first) = until.iter().min_by_key(|(_, end)| **end).map(|(node, _)| *node)
        {
            until.remove(&first);
        }
        until.insert(node, now + time);
    }

    pub fn contains(&self, node: &NodeId) -> bool {
        self.until().get(node).is_some_and(|end| *end > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_is_refused_for_its_time() {
        let refused = RefusedNodes::default();
        let node = |number: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            NodeId(id)
        };
        refused.add(node(0), Duration::from_secs(5));
        assert!(refused.contains(&node(0)) && !refused.contains(&node(1)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!refused.contains(&node(0)));
        for number in 0..2 * NODES_MAX as u32 {
            refused.add(node(number), Duration::from_secs(10 + u64::from(number)));
        }
        assert_eq!(refused.until().len(), NODES_MAX);
        assert!(refused.contains(&node(2 * NODES_MAX as u32 - 1)));
    }
}
