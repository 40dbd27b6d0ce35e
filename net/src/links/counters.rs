//! Counters of one link and of a whole endpoint.
//!
//! Invariant: every counter only grows.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one link since it came up. Bytes are those of frames, before TLS, which adds about 0.2 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Payload bytes of shards and manifests received.
    pub payload_in: u64,
    /// Payload bytes of shards and manifests sent.
    pub payload_out: u64,
}

/// Counters of an endpoint since it started. Bytes are those of frames, before TLS, which adds about 0.2 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Links that are up now.
    pub links: usize,
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Payload bytes of shards and manifests received.
    pub payload_in: u64,
    /// Payload bytes of shards and manifests sent.
    pub payload_out: u64,
    /// Payload bytes that count against the receive budgets now.
    pub payload_held: u64,
    /// Bytes of manifests that the driver did not expect. They were dropped.
    pub unexpected_bytes: u64,
    /// Connections dropped before admission: not TLS, silent, too slow, or too many at a time.
    pub dropped_connections: u64,
    /// Connections refused because their credential is not valid.
    pub refused_connections: u64,
}

/// Bytes in both directions, of one link or of all links.
#[derive(Default)]
pub struct ByteCounters {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    payload_in: AtomicU64,
    payload_out: AtomicU64,
}

impl ByteCounters {
    pub fn add_in(&self, bytes: usize, payload: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        self.payload_in.fetch_add(payload as u64, Ordering::Relaxed);
    }

    pub fn add_out(&self, bytes: usize, payload: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
        self.payload_out.fetch_add(payload as u64, Ordering::Relaxed);
    }

    pub fn stats(&self) -> LinkStats {
        LinkStats {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            payload_in: self.payload_in.load(Ordering::Relaxed),
            payload_out: self.payload_out.load(Ordering::Relaxed),
        }
    }
}

/// Counters that every task of an endpoint adds to.
#[derive(Default)]
pub struct EndpointCounters {
    links: ByteCounters,
    unexpected_bytes: AtomicU64,
    dropped_connections: AtomicU64,
    refused_connections: AtomicU64,
}

impl EndpointCounters {
    /// The sum over all links.
    pub fn links(&self) -> &ByteCounters {
        &self.links
    }

    pub fn add_unexpected(&self, bytes: usize) {
        self.unexpected_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn count_dropped(&self) {
        self.dropped_connections.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_refused(&self) {
        self.refused_connections.fetch_add(1, Ordering::Relaxed);
    }

    pub fn stats(&self, links: usize, payload_held: u64) -> EndpointStats {
        let LinkStats { bytes_in, bytes_out, payload_in, payload_out } = self.links.stats();
        EndpointStats {
            links,
            bytes_in,
            bytes_out,
            payload_in,
            payload_out,
            payload_held,
            unexpected_bytes: self.unexpected_bytes.load(Ordering::Relaxed),
            dropped_connections: self.dropped_connections.load(Ordering::Relaxed),
            refused_connections: self.refused_connections.load(Ordering::Relaxed),
        }
    }
}
