//! Events and their order.
//!
//! Invariant: events come out in the order of their times. Events of the same time come out in the order in which they
//! were added.

use shoal_proto::ids::HostIndex;
use shoal_swarm::io::Input;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Something that happens at a time.
#[derive(Debug)]
pub(super) enum Event {
    /// The core of a host receives an input, unless the host has restarted since.
    Input { host: HostIndex, life: u32, input: Box<Input> },
    /// A deadline of a core, unless the host has restarted since.
    Tick { host: HostIndex, life: u32 },
    /// A port may serve the next transfer.
    PortFree(u32),
    /// A transfer reaches its receiver.
    Arrive(u32),
    /// The tracker checks whether a host runs.
    Check(HostIndex),
    /// The tracker publishes a membership.
    Publish,
    /// Links through a rack's uplink end if the uplink has been cut since that time.
    LinksDead { rack: u32, since: u64 },
}

#[derive(Debug)]
struct Timed {
    at: u64,
    turn: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.turn) == (other.at, other.turn)
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    // Reversed, because `BinaryHeap` returns the greatest element first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.turn).cmp(&(self.at, self.turn))
    }
}

/// The events that have not happened yet.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    heap: BinaryHeap<Timed>,
    turn: u64,
}

impl EventQueue {
    pub(super) fn push(&mut self, at: u64, event: Event) {
        self.turn += 1;
        self.heap.push(Timed { at, turn: self.turn, event });
    }

    /// The time of the next event, nanoseconds.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|timed| timed.at)
    }

    pub(super) fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|timed| (timed.at, timed.event))
    }
}
