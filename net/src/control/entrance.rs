//! The accepted connections whose node is not admitted yet, and which of them gives way to another.
//!
//! Strangers that renew their connections all the time would keep everybody else out if a full tracker refused new
//! connections. So the oldest one goes, of the address range that has the most. Ranges from which a node was admitted
//! before have places of their own.
//!
//! Invariant: at most [`Limits::places`] connections of strangers, and as many of known address ranges, wait for
//! admission. A range has at most [`Limits::places_per_range`] of each kind. Each waits at most until its deadline.

use super::address::socket_addr;
use super::gate::{Gate, Gates};
use crate::range::range_of;
use libp2p::PeerId;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Multiaddr;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use shoal_proto::limits;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Interval, interval};

/// How often deadlines are checked.
const TICK: Duration = Duration::from_millis(200);
/// How long a connection stays after its refusal was sent. A close right after the answer can overtake it at the other
/// end, which drops what it has not read.
const LINGER: Duration = Duration::from_secs(1);
/// A connection from a known range gives way only after this time. Hosts that return together after a restart of their
/// tracker would otherwise end one another's handshakes.
const KNOWN_STAYS: Duration = Duration::from_secs(1);

/// Bounds on connections before admission.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Places of strangers. Known ranges have as many.
    pub places: usize,
    /// Places of one address range.
    pub places_per_range: usize,
    /// Time from the accepted connection to the whole request.
    pub request_within: Duration,
    /// Time for the driver's answer.
    pub answer_within: Duration,
    /// Admitted connections.
    pub admitted_max: usize,
}

/// Address ranges from which a node was admitted. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KnownRanges {
    ranges: Arc<Mutex<HashSet<IpAddr>>>,
}

impl KnownRanges {
    pub fn add(&self, addr: IpAddr) {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        if ranges.len() < limits::HOSTS_MAX as usize {
            ranges.insert(range_of(addr));
        }
    }

    fn contains(&self, range: &IpAddr) -> bool {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).contains(range)
    }
}

/// Counters that handles read.
#[derive(Debug, Default)]
pub struct EntranceCounts {
    /// Connections that wait for admission.
    pub waiting: AtomicUsize,
    /// Accepted connections that ended or were refused before admission.
    pub dropped: AtomicU64,
}

/// What a request is to the connection that it came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The node is admitted, or this node dialled it.
    Admitted,
    /// The one request before admission.
    First,
    /// A further request before admission, or a request on a connection that gave way.
    Excess,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No request has arrived.
    Silent,
    /// The driver has the request.
    Asked,
    /// The driver has answered and not admitted the node.
    Refused,
}

#[derive(Debug)]
struct Waiting {
    range: IpAddr,
    known: bool,
    since: Instant,
    deadline: Instant,
    stage: Stage,
    gate: Arc<Gate>,
}

/// There is no place for one more connection.
#[derive(Debug, thiserror::Error)]
#[error("too many connections wait for admission")]
struct NoPlace;

/// The connections that wait for admission. Ids of connections grow, so the first one is the oldest.
#[derive(Debug)]
struct Places {
    limits: Limits,
    waiting: BTreeMap<ConnectionId, Waiting>,
}

impl Places {
    /// Makes room for a connection. The one that gives way is closed and forgotten at once.
    fn make_room(&mut self, range: IpAddr, known: bool, now: Instant) -> Result<Option<ConnectionId>, NoPlace> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        let same_kind = self.waiting.values().filter(|one| one.known == known);
        same_kind.for_each(|one| *counts.entry(one.range).or_default() += 1);
        let from = if counts.get(&range).is_some_and(|count| *count >= self.limits.places_per_range) {
            range
        } else if counts.values().sum::<usize>() >= self.limits.places {
            // Many connections from a few ranges do not end the only one of another range. Of equal ranges, the one
            // with the oldest connection loses it. `waiting` is in the order of arrival.
            let same_kind = self.waiting.values().filter(|one| one.known == known);
            let largest = counts.values().copied().max().unwrap_or(0);
            same_kind.map(|one| one.range).find(|range| counts.get(range) == Some(&largest)).ok_or(NoPlace)?
        } else {
            return Ok(None);
        };
        let oldest = self.waiting.iter().find(|(_, one)| one.known == known && one.range == from);
        let (id, since) = oldest.map(|(id, one)| (*id, one.since)).ok_or(NoPlace)?;
        if known && now.saturating_duration_since(since) < KNOWN_STAYS {
            return Err(NoPlace);
        }
        if let Some(gone) = self.waiting.remove(&id) {
            gone.gate.close();
        }
        Ok(Some(id))
    }

    fn expire(&mut self, now: Instant) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|_, one| {
            let stays = one.deadline > now;
            if !stays {
                one.gate.close();
            }
            stays
        });
        before - self.waiting.len()
    }
}

/// The behaviour that holds the places.
pub struct Behaviour {
    places: Places,
    admitted: HashSet<ConnectionId>,
    /// Connections that this node dialled.
    dialled: HashSet<ConnectionId>,
    known: KnownRanges,
    gates: Gates,
    counts: Arc<EntranceCounts>,
    tick: Interval,
}

impl Behaviour {
    pub fn new(limits: Limits, known: KnownRanges, gates: Gates, counts: Arc<EntranceCounts>) -> Self {
        let places = Places { limits, waiting: BTreeMap::new() };
        let (admitted, dialled) = (HashSet::new(), HashSet::new());
        Self { places, admitted, dialled, known, gates, counts, tick: interval(TICK) }
    }

    /// Notes a request.
    pub fn on_request(&mut self, connection: ConnectionId) -> Turn {
        if self.admitted.contains(&connection) || self.dialled.contains(&connection) {
            return Turn::Admitted;
        }
        let answer_within = self.places.limits.answer_within;
        match self.places.waiting.get_mut(&connection) {
            Some(waiting) if waiting.stage == Stage::Silent => {
                waiting.stage = Stage::Asked;
                waiting.deadline = Instant::now() + answer_within;
                Turn::First
            }
            _ => Turn::Excess,
        }
    }

    /// Admits a waiting connection. Returns `false` if it has ended, or there are as many admitted connections as there
    /// may be.
    pub fn admit(&mut self, connection: ConnectionId) -> bool {
        if self.admitted.len() >= self.places.limits.admitted_max {
            return false;
        }
        let Some(waiting) = self.places.waiting.remove(&connection) else { return false };
        waiting.gate.on_admitted();
        self.known.add(waiting.range);
        self.admitted.insert(connection);
        self.count();
        true
    }

    /// Whether the node of a connection is not admitted yet.
    pub fn is_waiting(&self, connection: ConnectionId) -> bool {
        self.places.waiting.contains_key(&connection)
    }

    /// Notes that the answer to a waiting connection does not admit it. The connection ends after the answer.
    pub fn on_refused(&mut self, connection: ConnectionId) {
        if let Some(waiting) = self.places.waiting.get_mut(&connection) {
            waiting.stage = Stage::Refused;
            waiting.deadline = Instant::now() + self.places.limits.request_within;
        }
    }

    /// Notes that an answer was sent. A connection that the answer refuses ends soon.
    pub fn on_answered(&mut self, connection: ConnectionId) {
        if let Some(waiting) = self.places.waiting.get_mut(&connection)
            && waiting.stage == Stage::Refused
        {
            waiting.deadline = waiting.deadline.min(Instant::now() + LINGER);
        }
    }

    fn release(&mut self, connection: ConnectionId) {
        self.admitted.remove(&connection);
        self.dialled.remove(&connection);
        if self.places.waiting.remove(&connection).is_some() {
            self.dropped(1);
        }
    }

    fn dropped(&self, connections: usize) {
        self.counts.dropped.fetch_add(connections as u64, Ordering::Relaxed);
        self.count();
    }

    fn count(&self) {
        self.counts.waiting.store(self.places.waiting.len(), Ordering::Relaxed);
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let addr = socket_addr(remote).ok_or_else(|| ConnectionDenied::new(NoPlace))?;
        let (range, now) = (range_of(addr.ip()), Instant::now());
        let known = self.known.contains(&range);
        let gone = match self.places.make_room(range, known, now) {
            Ok(gone) => gone,
            Err(error) => {
                self.dropped(1);
                return Err(ConnectionDenied::new(error));
            }
        };
        let deadline = now + self.places.limits.request_within;
        let gate = self.gates.make(local, remote);
        let waiting = Waiting { range, known, since: now, deadline, stage: Stage::Silent, gate };
        self.places.waiting.insert(connection, waiting);
        self.dropped(usize::from(gone.is_some()));
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let waiting = self.places.waiting.get(&connection).ok_or_else(|| ConnectionDenied::new(NoPlace))?;
        waiting.gate.on_established();
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        _peer: PeerId,
        _addr: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.dialled.insert(connection);
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ListenFailure(failure) => self.release(failure.connection_id),
            FromSwarm::DialFailure(failure) => self.release(failure.connection_id),
            FromSwarm::ConnectionClosed(closed) => self.release(closed.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _peer: PeerId, _connection: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        while self.tick.poll_tick(cx).is_ready() {
            let expired = self.places.expire(Instant::now());
            self.dropped(expired);
            self.gates.sweep();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn places(places: usize, places_per_range: usize) -> Places {
        let limits = Limits {
            places,
            places_per_range,
            request_within: SECOND * 5,
            answer_within: SECOND * 10,
            admitted_max: 10,
        };
        Places { limits, waiting: BTreeMap::new() }
    }

    impl Places {
        /// Takes a place. Returns the number of the connection that went for it.
        fn take(&mut self, number: usize, addr: &str, known: bool, now: Instant) -> Result<Option<usize>, NoPlace> {
            let (range, id) = (range_of(addr.parse().unwrap()), ConnectionId::new_unchecked(number));
            let gone = self.make_room(range, known, now)?;
            let gate = Arc::default();
            let deadline = now + self.limits.request_within;
            self.waiting.insert(id, Waiting { range, known, since: now, deadline, stage: Stage::Silent, gate });
            let number = |id| (0..100).find(|number| ConnectionId::new_unchecked(*number) == id).unwrap();
            Ok(gone.map(number))
        }
    }

    #[test]
    fn the_oldest_of_a_full_range_or_of_the_largest_one_goes() {
        let (mut places, now) = (places(4, 2), Instant::now());
        for (number, addr) in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"].into_iter().enumerate() {
            assert_eq!(places.take(number, addr, false, now).unwrap(), None);
        }
        assert_eq!(places.take(4, "2001:db8::3", false, now).unwrap(), Some(2), "the oldest of the network");
        assert_eq!(places.take(5, "192.0.2.3", false, now).unwrap(), Some(3), "the oldest of the largest range");
        assert_eq!(places.take(6, "192.0.2.4", true, now).unwrap(), None, "known ranges have their own places");
    }

    #[test]
    fn a_known_host_finishes_its_handshake_and_cannot_hold_its_place() {
        let (mut places, now) = (places(2, 2), Instant::now());
        places.take(0, "192.0.2.1", true, now).unwrap();
        places.take(1, "192.0.2.2", true, now + SECOND / 2).unwrap();
        assert!(places.take(2, "192.0.2.3", true, now + SECOND / 2).is_err());
        assert_eq!(places.take(3, "192.0.2.3", true, now + SECOND).unwrap(), Some(0));
    }

    #[test]
    fn a_connection_ends_at_its_deadline() {
        let (mut places, now) = (places(2, 2), Instant::now());
        places.take(0, "192.0.2.1", false, now).unwrap();
        places.take(1, "192.0.2.1", false, now + SECOND).unwrap();
        let gates: Vec<Arc<Gate>> = places.waiting.values().map(|one| one.gate.clone()).collect();
        assert_eq!(places.expire(now + SECOND * 5), 1);
        assert!(gates[0].check().is_err() && gates[1].check().is_ok());
    }
}
