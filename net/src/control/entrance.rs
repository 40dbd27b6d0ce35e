//! The accepted connections whose node is not admitted yet, and which of them gives way to another.
//!
//! Invariant: a connection has a place, or it is admitted, dialled by this node, or its gate is closed. Each waits at
//! most until its deadline.

use super::address::socket_addr;
use super::gate::{Gate, Gates};
use crate::places::{NoPlace, PlaceLimits, Places};
use crate::range::KnownRanges;
use libp2p::PeerId;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Multiaddr;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Interval, interval};

/// How often deadlines are checked.
const TICK: Duration = Duration::from_millis(200);
/// How long a connection stays after its refusal was sent. A close right after the answer can overtake it at the other
/// end, which drops what it has not read.
const LINGER: Duration = Duration::from_secs(1);

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
    deadline: Instant,
    stage: Stage,
    gate: Arc<Gate>,
}

/// The behaviour that holds the places.
pub struct Behaviour {
    limits: Limits,
    places: Places<ConnectionId, Waiting>,
    admitted: HashSet<ConnectionId>,
    /// Connections that this node dialled.
    dialled: HashSet<ConnectionId>,
    gates: Gates,
    counts: Arc<EntranceCounts>,
    tick: Interval,
}

impl Behaviour {
    pub fn new(limits: Limits, known: KnownRanges, gates: Gates, counts: Arc<EntranceCounts>) -> Self {
        let bounds = PlaceLimits { places: limits.places, places_per_range: limits.places_per_range };
        let (places, tick) = (Places::new(bounds, known), interval(TICK));
        let (admitted, dialled) = (HashSet::new(), HashSet::new());
        Self { limits, places, admitted, dialled, gates, counts, tick }
    }

    /// Notes a request.
    pub fn on_request(&mut self, connection: ConnectionId) -> Turn {
        if self.admitted.contains(&connection) || self.dialled.contains(&connection) {
            return Turn::Admitted;
        }
        let answer_within = self.limits.answer_within;
        match self.places.get_mut(&connection) {
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
        if self.admitted.len() >= self.limits.admitted_max {
            return false;
        }
        let Some(waiting) = self.places.admit(&connection) else { return false };
        waiting.gate.on_admitted();
        self.admitted.insert(connection);
        self.count();
        true
    }

    /// Whether the node of a connection is not admitted yet.
    pub fn is_waiting(&self, connection: ConnectionId) -> bool {
        self.places.get(&connection).is_some()
    }

    /// Notes that the answer to a waiting connection does not admit it. The connection ends after the answer.
    pub fn on_refused(&mut self, connection: ConnectionId) {
        if let Some(waiting) = self.places.get_mut(&connection) {
            waiting.stage = Stage::Refused;
            waiting.deadline = Instant::now() + self.limits.request_within;
        }
    }

    /// Notes that an answer was sent. A connection that the answer refuses ends soon.
    pub fn on_answered(&mut self, connection: ConnectionId) {
        if let Some(waiting) = self.places.get_mut(&connection)
            && waiting.stage == Stage::Refused
        {
            waiting.deadline = waiting.deadline.min(Instant::now() + LINGER);
        }
    }

    fn release(&mut self, connection: ConnectionId) {
        self.admitted.remove(&connection);
        self.dialled.remove(&connection);
        if self.places.remove(&connection).is_some() {
            self.dropped(1);
        }
    }

    fn dropped(&self, connections: usize) {
        self.counts.dropped.fetch_add(connections as u64, Ordering::Relaxed);
        self.count();
    }

    fn count(&self) {
        self.counts.waiting.store(self.places.len(), Ordering::Relaxed);
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
        let now = Instant::now();
        let gate = self.gates.make(local, remote);
        let waiting = Waiting { deadline: now + self.limits.request_within, stage: Stage::Silent, gate };
        match self.places.take(connection, addr.ip(), waiting, now) {
            Ok(gone) => {
                self.dropped(usize::from(gone.is_some()));
                if let Some(gone) = gone {
                    gone.gate.close();
                }
                Ok(())
            }
            Err(error) => {
                self.dropped(1);
                Err(ConnectionDenied::new(error))
            }
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let waiting = self.places.get(&connection).ok_or_else(|| ConnectionDenied::new(NoPlace))?;
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
            let now = Instant::now();
            let expired = self.places.remove_if(|waiting| {
                let is_over = waiting.deadline <= now;
                if is_over {
                    waiting.gate.close();
                }
                is_over
            });
            self.dropped(expired);
            self.gates.sweep();
        }
        Poll::Pending
    }
}
