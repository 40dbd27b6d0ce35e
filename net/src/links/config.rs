//! How an endpoint runs its links.
//!
//! Invariant: [`LinkConfig::validate`] accepts only settings under which a link can make progress.

use super::error::BindError;
use super::receive_memory::BlockOffset;
use crate::admission::Admission;
use crate::identity::Identity;
use crate::tls::RecordLayer;
use shoal_proto::limits;
use shoal_proto::locality::Locality;
use std::net::SocketAddr;
use std::time::Duration;

/// The settings of an endpoint.
#[derive(Clone)]
pub struct LinkConfig {
    /// The addresses to listen on. Port 0 picks a free port. Without an address the endpoint only dials.
    pub listen: Vec<SocketAddr>,
    /// This node's key.
    pub identity: Identity,
    /// Decides which nodes are admitted.
    pub admission: Admission,
    /// This host's place. Links to hosts of the same rack do not pass the uplink. Without it every link counts as
    /// passing the uplink.
    pub locality: Option<Locality>,
    /// The implementation that seals and opens TLS records. Both interoperate. Default: [`RecordLayer::Own`].
    pub records: RecordLayer,
    /// Links at a time. More are refused with `Bye(Busy)`. Default 512.
    pub links_max: usize,
    /// Connections that wait for admission at a time. When more come, the oldest one of the address range with the
    /// most ends. Ranges with nodes of the cluster have as many places of their own. Default 128.
    pub pending_max: usize,
    /// The same from one IPv4 address or one IPv6 network of 64 bits. Default 32.
    pub pending_per_range_max: usize,
    /// Payload bytes of class `Bulk` in memory at a time, from the first byte of a part until its `Bytes` are dropped.
    /// Each other class has a quarter. The endpoint does not read links beyond that. At least 8 MiB, default 64 MiB.
    pub receive_bytes: usize,
    /// Tells where shards will lie on the disk. Without it the endpoint aligns nothing.
    pub block_offset: Option<BlockOffset>,
    /// Bytes of expected manifests at a time. Default 256 MiB, the largest manifest there is.
    pub manifest_bytes: usize,
    /// Parts that wait on a link, for each class. More are refused with [`super::SendError::Full`]. Default 64.
    pub parts_max: usize,
    /// Messages and announcements that wait on a link. More are refused with [`super::SendError::Full`]. Default 1024,
    /// and 4 MiB in all.
    pub messages_max: usize,
    /// Events that wait for the driver, with at most 8 MiB of messages. The endpoint does not read links while the
    /// queue is full. Default 256.
    pub events_max: usize,
    /// Unsent bytes that the kernel may hold for a link (`TCP_NOTSENT_LOWAT`). A small value keeps urgent frames from
    /// waiting behind megabytes. Default 64 KiB.
    pub kernel_unsent_bytes: u32,
    /// TLS and `Hello` of a connection must be complete within this time. Default 5 s.
    pub handshake_timeout: Duration,
    /// An address must answer within this time before the next address is tried. Default 2 s.
    pub connect_timeout: Duration,
    /// An idle link that received nothing for this time is pinged. Default 10 s.
    pub ping_after: Duration,
    /// A link that received nothing for this time is dead. Default 30 s.
    pub dead_after: Duration,
    /// Each end of a link that carried payload within 10 s sends something at least this often. Default 1 s.
    pub busy_ping_after: Duration,
    /// A busy link that received nothing for this time is dead. Default 5 s.
    pub busy_dead_after: Duration,
}

impl LinkConfig {
    /// Returns the defaults.
    pub fn new(listen: Vec<SocketAddr>, identity: Identity, admission: Admission) -> Self {
        Self {
            listen,
            identity,
            admission,
            locality: None,
            records: RecordLayer::default(),
            links_max: 512,
            pending_max: 128,
            pending_per_range_max: 32,
            receive_bytes: 64 << 20,
            block_offset: None,
            manifest_bytes: limits::MANIFEST_BYTES_MAX,
            parts_max: 64,
            messages_max: 1024,
            events_max: 256,
            kernel_unsent_bytes: 64 << 10,
            handshake_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            ping_after: Duration::from_secs(10),
            dead_after: Duration::from_secs(30),
            busy_ping_after: Duration::from_secs(1),
            busy_dead_after: Duration::from_secs(5),
        }
    }

    /// Checks what the types cannot.
    pub(super) fn validate(&self) -> Result<(), BindError> {
        if self.receive_bytes < limits::PIECE_BYTES_MAX as usize {
            return Err(BindError::Config("the receive budget is smaller than one piece of 8 MiB"));
        }
        if self.links_max == 0 || self.events_max == 0 || self.parts_max == 0 || self.messages_max == 0 {
            return Err(BindError::Config("a maximum of links, events, parts or messages is zero"));
        }
        Ok(())
    }
}
