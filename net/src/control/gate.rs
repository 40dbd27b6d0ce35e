//! What one accepted connection may read before its node is admitted.
//!
//! Owns: a gate for each accepted socket, below TLS and multiplexing. So no protocol above it can make the process
//! buffer more for a stranger, whatever frames the stranger sends.
//! Invariant: an accepted socket without a gate reads nothing.

use futures::task::AtomicWaker;
use libp2p::multiaddr::Multiaddr;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;

/// Bytes of the handshake that are read. A handshake with a certificate takes about 3 KiB.
const HANDSHAKE_BYTES_MAX: u64 = 8 * 1024;
/// Bytes read between the handshake and admission: one request of 8 KiB and its framing.
const REQUEST_BYTES_MAX: u64 = 10 * 1024;
/// More than a connection can ever read, but far from an overflow.
const UNLIMITED: u64 = u64::MAX / 2;

/// The gate of one connection.
#[derive(Debug, Default)]
pub struct Gate {
    closed: AtomicBool,
    allowance: AtomicU64,
    reader: AtomicWaker,
}

impl Gate {
    fn new(allowance: u64) -> Self {
        Self { allowance: allowance.into(), ..Self::default() }
    }

    /// Returns how many bytes may be read now.
    pub fn readable(&self, cx: &Context<'_>) -> io::Result<usize> {
        // Registered first, so that a close after the check wakes the reader.
        self.reader.register(cx.waker());
        self.check()?;
        match self.allowance.load(Ordering::Relaxed) {
            0 => Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than a node may send before admission")),
            allowance => Ok(usize::try_from(allowance).unwrap_or(usize::MAX)),
        }
    }

    /// # Errors
    /// Fails once the gate is closed.
    pub fn check(&self) -> io::Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "not admitted in time"));
        }
        Ok(())
    }

    /// Counts bytes that were read. They are at most what [`Gate::readable`] returned.
    pub fn on_read(&self, bytes: usize) {
        self.allowance.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Notes the end of the handshake.
    pub fn on_established(&self) {
        self.allowance.store(REQUEST_BYTES_MAX, Ordering::Relaxed);
    }

    /// Notes that the node is admitted.
    pub fn on_admitted(&self) {
        self.allowance.store(UNLIMITED, Ordering::Relaxed);
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.reader.wake();
    }
}

type Ends = (Multiaddr, Multiaddr);

/// Gates of connections whose socket is not yet in use, by the addresses of both ends.
#[derive(Clone, Debug, Default)]
pub struct Gates {
    waiting: Arc<Mutex<HashMap<Ends, Arc<Gate>>>>,
}

impl Gates {
    fn waiting(&self) -> MutexGuard<'_, HashMap<Ends, Arc<Gate>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the gate of an accepted connection.
    pub fn make(&self, local: &Multiaddr, remote: &Multiaddr) -> Arc<Gate> {
        let gate = Arc::new(Gate::new(HANDSHAKE_BYTES_MAX));
        self.waiting().insert((local.clone(), remote.clone()), gate.clone());
        gate
    }

    /// Returns the gate that was made for a connection, or a closed one.
    pub fn take(&self, local: &Multiaddr, remote: &Multiaddr) -> Arc<Gate> {
        let made = self.waiting().remove(&(local.clone(), remote.clone()));
        made.unwrap_or_else(|| Arc::new(Gate { closed: true.into(), ..Gate::default() }))
    }

    /// Removes gates whose connection ended before its socket was in use.
    pub fn sweep(&self) {
        // The other owner of a gate is the table of unadmitted connections.
        self.waiting().retain(|_, gate| Arc::strong_count(gate) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker;

    #[test]
    fn a_gate_limits_bytes_until_its_node_is_admitted() {
        let (waker, gates) = (noop_waker(), Gates::default());
        let cx = Context::from_waker(&waker);
        let ends: [Multiaddr; 2] = ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"].map(|addr| addr.parse().unwrap());
        let made = gates.make(&ends[0], &ends[1]);
        let gate = gates.take(&ends[0], &ends[1]);
        assert_eq!(gate.readable(&cx).unwrap() as u64, HANDSHAKE_BYTES_MAX);
        gate.on_read(HANDSHAKE_BYTES_MAX as usize);
        assert!(gate.readable(&cx).is_err());
        made.on_established();
        assert_eq!(gate.readable(&cx).unwrap() as u64, REQUEST_BYTES_MAX);
        made.on_admitted();
        assert!(gate.readable(&cx).unwrap() > 1 << 30);
        made.close();
        assert!(gate.readable(&cx).is_err() && gate.check().is_err());
        assert!(gates.take(&ends[0], &ends[1]).check().is_err(), "no gate was made for another connection");
        drop(gates.make(&ends[1], &ends[0]));
        gates.sweep();
        assert!(gates.waiting().is_empty());
    }
}
