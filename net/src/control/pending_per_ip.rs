//! Connections that are still being made, by address: a stranger who opens many does not keep others out.
//!
//! Invariant: every connection counted is let go when it is made or has failed.

use libp2p::PeerId;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Multiaddr;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};

use super::setup::socket_addr;

/// Too many connections from one address are being made.
#[derive(Debug, thiserror::Error)]
#[error("too many connections from {0} are being made")]
struct TooManyPending(IpAddr);

/// Counts inbound connections being made.
#[derive(Debug)]
pub(super) struct Behaviour {
    most: u32,
    pending: HashMap<ConnectionId, IpAddr>,
    counts: HashMap<IpAddr, u32>,
}

impl Behaviour {
    /// At most `most` for each address.
    pub(super) fn new(most: u32) -> Self {
        Self { most, pending: HashMap::new(), counts: HashMap::new() }
    }

    fn let_go(&mut self, connection: ConnectionId) {
        let Some(addr) = self.pending.remove(&connection) else { return };
        if let Some(count) = self.counts.get_mut(&addr) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&addr);
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(addr) = socket_addr(remote).map(|addr| addr.ip()) else { return Ok(()) };
        let count = self.counts.entry(addr).or_default();
        if *count >= self.most {
            return Err(ConnectionDenied::new(TooManyPending(addr)));
        }
        *count += 1;
        self.pending.insert(connection, addr);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.let_go(connection);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _connection: ConnectionId,
        _peer: PeerId,
        _addr: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ListenFailure(failure) = event {
            self.let_go(failure.connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _peer: PeerId, _connection: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
