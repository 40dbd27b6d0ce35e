//! How a node runs its control plane.
//!
//! Invariant: every queue and every wait of the control plane has a bound here.

use crate::identity::Identity;
use shoal_proto::limits;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The settings of a control plane.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// This node's key.
    pub identity: Identity,
    /// The addresses to listen on. Port 0 picks a free port. A pure client listens on none.
    pub listen: Vec<SocketAddr>,
    /// Accepted connections of admitted nodes at a time. Default 65,536.
    pub connections_max: u32,
    /// Accepted connections at a time that wait for admission. When more come, the oldest one of the range
    /// with the most ends. Address ranges from which a node was admitted have as many places of their own. Default 512.
    pub unadmitted_max: u32,
    /// The same from one IPv4 address or one IPv6 network of 64 bits. Default 64, because a rack behind one address
    /// reconnects together.
    pub unadmitted_per_range_max: u32,
    /// Time from an accepted connection to its whole first request. Default 5 s.
    pub unadmitted_timeout: Duration,
    /// Addresses of nodes that were admitted before this start.
    pub known: Vec<IpAddr>,
    /// Requests of admitted nodes at a time that wait for this node's answer. More are refused. Default 1,024.
    pub requests_max: usize,
    /// Requests at a time on one connection, in both directions together. More fail at the requester. Default 16.
    pub requests_per_connection_max: usize,
    /// The longest request of an admitted node that is accepted, in bytes. Before admission it is 8 KiB.
    pub request_bytes_max: usize,
    /// The longest response that is accepted, in bytes.
    pub response_bytes_max: usize,
    /// Connections must be made, and requests answered, within this time. Default 10 s.
    pub timeout: Duration,
    /// A connection without a request for this time is closed. Default 60 s.
    pub idle_timeout: Duration,
}

impl ControlConfig {
    /// Returns the greatest number of descriptors of connections before admission, those that just end included.
    pub fn unadmitted_descriptors(&self) -> u32 {
        self.unadmitted_max.saturating_mul(6)
    }

    /// Returns the defaults.
    pub fn new(identity: Identity, listen: Vec<SocketAddr>) -> Self {
        Self {
            identity,
            listen,
            connections_max: 65_536,
            unadmitted_max: 512,
            unadmitted_per_range_max: 64,
            unadmitted_timeout: Duration::from_secs(5),
            known: Vec::new(),
            requests_max: 1024,
            requests_per_connection_max: 16,
            request_bytes_max: limits::CONTROL_PLANE_BYTES_MAX,
            response_bytes_max: limits::CONTROL_PLANE_BYTES_MAX,
            timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}
