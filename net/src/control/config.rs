//! How a node runs its control plane.
//!
//! Invariant: every queue and every wait of the control plane has a bound here.

use crate::identity::Identity;
use shoal_proto::limits;
use std::net::SocketAddr;
use std::time::Duration;

/// The settings of a control plane.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// This node's key.
    pub identity: Identity,
    /// The addresses to listen on. Port 0 picks a free port. A pure client listens on none.
    pub listen: Vec<SocketAddr>,
    /// Accepted connections at a time. Default 65,536.
    pub connections_max: u32,
    /// Accepted connections at a time whose handshake is not complete. Default 1,024.
    pub pending_max: u32,
    /// The same from one address. Default 64, because a rack behind one address reconnects together.
    pub pending_per_ip_max: u32,
    /// Inbound requests at a time that wait for this node's answer. More are refused. Default 1,024.
    pub requests_max: usize,
    /// Requests at a time on one connection, in both directions together. More fail at the requester. Default 16.
    pub requests_per_connection_max: usize,
    /// The longest request that is accepted, in bytes. A tracker should lower it, because it reads requests of nodes
    /// that are not admitted yet.
    pub request_bytes_max: usize,
    /// The longest response that is accepted, in bytes.
    pub response_bytes_max: usize,
    /// Connections must be made, and requests answered, within this time. Default 10 s.
    pub timeout: Duration,
    /// A connection without a request for this time is closed. Default 60 s.
    pub idle_timeout: Duration,
}

impl ControlConfig {
    /// Returns the defaults.
    pub fn new(identity: Identity, listen: Vec<SocketAddr>) -> Self {
        Self {
            identity,
            listen,
            connections_max: 65_536,
            pending_max: 1024,
            pending_per_ip_max: 64,
            requests_max: 1024,
            requests_per_connection_max: 16,
            request_bytes_max: limits::CONTROL_PLANE_BYTES_MAX,
            response_bytes_max: limits::CONTROL_PLANE_BYTES_MAX,
            timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}
