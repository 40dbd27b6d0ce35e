//! Ports: places where payload queues for a rate. Flows share a port as TCP connections share a bottleneck.
//!
//! The packets of many flows mix on a real link, so a small transfer does not wait for every large one before it. Each
//! transfer gets a tag, which is the time at which it would be through if all flows were served at once. The tags set
//! the order (Goyal, Vin, Cheng, "Start-time fair queuing", SIGCOMM 1996, by finish tags).
//! Invariant: a port serves one transfer at a time, and it is idle only when no transfer waits.

use crate::layout::UNLIMITED;
use std::collections::{BTreeMap, BTreeSet};

/// Sender, receiver and priority class, packed into a number. Traffic of one class does not queue behind another class.
pub(crate) type Flow = u128;

/// A queue with a rate.
#[derive(Debug, Default)]
pub(crate) struct Port {
    /// Bytes/s; 0 serves nothing.
    pub(crate) rate: u64,
    /// When the transfer in service is through, nanoseconds.
    pub(crate) free_at: u64,
    /// An event is due when the port becomes free.
    pub(crate) awaited: bool,
    /// Waiting transfers by tag. The turn decides between equal tags.
    waiting: BTreeSet<(u64, u64, u32)>,
    /// The last tag of each flow since the port was idle, in bytes divided by weight.
    served: BTreeMap<Flow, u64>,
    /// The tag of the transfer in service.
    virtual_now: u64,
    turn: u64,
}

impl Port {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, ..Self::default() }
    }

    /// Whether transfers take no time.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.rate == UNLIMITED
    }

    /// The time that a transfer takes, nanoseconds.
    pub(crate) fn span(&self, bytes: u64) -> u64 {
        (u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.max(1))) as u64
    }

    /// Whether a transfer that arrives now is served at once.
    pub(crate) fn is_idle(&self, now: u64) -> bool {
        self.rate > 0 && self.free_at <= now && self.waiting.is_empty()
    }

    /// Adds a transfer to its flow. A flow of weight `w` gets `w` times the rate of a flow of weight 1.
    pub(crate) fn wait(&mut self, flow: Flow, transfer: u32, bytes: u64, weight: f64) {
        if self.waiting.is_empty() {
            // The port was idle, so no flow has a claim or a debt.
            self.served.clear();
            self.virtual_now = 0;
        }
        let served = self.served.entry(flow).or_default();
        *served = (*served).max(self.virtual_now) + (bytes as f64 / weight) as u64;
        self.turn += 1;
        self.waiting.insert((*served, self.turn, transfer));
    }

    /// Removes the next transfer from the queue.
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
    fn flows_take_turns_and_a_small_transfer_overtakes_large_ones() {
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
    fn a_flow_of_half_the_weight_gets_half_the_rate() {
        let mut port = Port::new(1000);
        for transfer in 0..4 {
            port.wait(1, transfer, 100, 0.5);
            port.wait(2, 10 + transfer, 100, 1.0);
        }
        let order: Vec<u32> = std::iter::from_fn(|| port.next()).collect();
        assert_eq!(order, [10, 0, 11, 12, 1, 13, 2, 3]);
    }
}
