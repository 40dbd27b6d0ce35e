//! A limit for connections of one address whose handshake is not complete. One address that opens many connections does
//! not keep others out.
//!
//! Invariant: each counted connection is released when its handshake ends.

use super::address::socket_addr;
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

/// An address has as many pending connections as it may have.
#[derive(Debug, thiserror::Error)]
#[error("too many pending connections from {0}")]
struct TooManyPending(IpAddr);

/// Counts inbound connections whose handshake is not complete.
#[derive(Debug)]
pub struct Behaviour {
    per_ip_max: u32,
    pending: HashMap<ConnectionId, IpAddr>,
    counts: HashMap<IpAddr, u32>,
}

impl Behaviour {
    pub fn new(per_ip_max: u32) -> Self {
        Self { per_ip_max, pending: HashMap::new(), counts: HashMap::new() }
    }

    fn release(&mut self, connection: ConnectionId) {
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
        if *count >= self.per_ip_max {
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
        self.release(connection);
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
            self.release(failure.connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _peer: PeerId, _connection: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
