//! Ports: places where payload queues for a rate, shared fairly between flows as TCP shares a bottleneck.
//!
//! Packets of many flows mix, so a small transfer does not wait for every large one before it: each transfer gets the time
//! at which it would be through if all flows were served at once, and these times set the order (Goyal, Vin, Cheng,
//! "Start-time fair queuing", SIGCOMM 1996, by finish tags).
//! Invariant: a port serves one transfer at a time and is idle only when nothing waits.

use crate::layout::UNLIMITED;
use std::collections::{BTreeMap, BTreeSet};

/// A link's two ends and the urgency of what it carries, as a number: what is urgent does not queue behind what is not.
pub(crate) type Flow = u128;

/// Where payload queues.
#[derive(Debug, Default)]
pub(crate) struct Port {
    /// Bytes/s; 0 serves nothing.
    pub(crate) rate: u64,
    /// When what is being served is through, nanoseconds.
    pub(crate) free_at: u64,
    /// An event will come when it is free.
    pub(crate) awaited: bool,
    /// Waiting: tag, turn, transfer.
    waiting: BTreeSet<(u64, u64, u32)>,
    /// Bytes by weight each flow was served, had it been served all the time since the port was idle.
    served: BTreeMap<Flow, u64>,
    /// The tag of what is being served.
    virtual_now: u64,
    turn: u64,
}

impl Port {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, ..Self::default() }
    }

    /// Whether it lets everything through at once.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.rate == UNLIMITED
    }

    /// Time to serve, nanoseconds.
    pub(crate) fn span(&self, bytes: u64) -> u64 {
        (u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.max(1))) as u64
    }

    /// Whether something can be served now.
    pub(crate) fn is_idle(&self, now: u64) -> bool {
        self.rate > 0 && self.free_at <= now && self.waiting.is_empty()
    }

    /// Puts a transfer into its flow's queue. A flow of weight `w` gets `w` times the share of one of weight 1.
    pub(crate) fn wait(&mut self, flow: Flow, transfer: u32, bytes: u64, weight: f64) {
        if self.waiting.is_empty() {
            // Flows that were served before have no claim and no debt left.
            self.served.clear();
            self.virtual_now = 0;
        }
        let served = self.served.entry(flow).or_default();
        *served = (*served).max(self.virtual_now) + (bytes as f64 / weight) as u64;
        self.turn += 1;
        self.waiting.insert((*served, self.turn, transfer));
    }

    /// The next transfer.
    pub(crate) fn next(&mut self) -> Option<u32> {
        let (tag, _, transfer) = self.waiting.pop_first()?;
        self.virtual_now = tag;
        Some(transfer)
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_share_and_the_small_overtakes_the_large() {
        let mut port = Port::new(1000);
        for transfer in 0..3 {
            port.wait(1, transfer, 100, 1.0);
            port.wait(2, 10 + transfer, 100, 1.0);
        }
        assert_eq!(port.next(), Some(0));
        port.wait(3, 20, 10, 1.0);
        let order: Vec<u32> = std::iter::from_fn(|| port.next()).collect();
        assert_eq!(order, [10, 20, 1, 11, 2, 12]);
        assert!(!port.has_waiting());
        assert_eq!(port.span(500), 500_000_000);
    }

    #[test]
    fn a_light_flow_gets_a_smaller_share() {
        let mut port = Port::new(1000);
        for transfer in 0..4 {
            port.wait(1, transfer, 100, 0.5);
            port.wait(2, 10 + transfer, 100, 1.0);
        }
        let order: Vec<u32> = std::iter::from_fn(|| port.next()).collect();
        assert_eq!(order, [10, 0, 11, 12, 1, 13, 2, 3]);
    }
}
