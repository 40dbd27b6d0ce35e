//! The watchdog: a puller never waits for a daemon that hangs.
//!
//! A pulse asks the driver once a second whether it is there. A thread of its own, which needs neither the driver nor
//! the runtime, closes the port and every connection when the pulse stops; containerd then goes on to the registry,
//! which it would not do on an open port that is silent. A process that is stopped altogether is beyond it.
//! Invariant: an answer that takes the driver longer than [`WELL_FOR`] makes the mirror refuse, longer than
//! [`CLOSE_AFTER`] closes the port.

use crate::handle::NodeHandle;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{Shutdown, shutdown};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two questions to the driver.
const PULSE_EVERY: Duration = Duration::from_secs(1);
/// The last answer makes the mirror well for this long.
const WELL_FOR: Duration = Duration::from_secs(4);
/// Without an answer for this long the port is closed.
const CLOSE_AFTER: Duration = Duration::from_secs(10);
/// How often the thread looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Whether the daemon lives, and what to close when it does not.
pub(super) struct Health {
    state: Mutex<State>,
    well_for: Duration,
    close_after: Duration,
}

struct State {
    /// When the driver answered last.
    beat: Instant,
    closed: bool,
    turn: u64,
    /// The port and the connections, held open a second time so that they can be shut from here.
    open: BTreeMap<u64, OwnedFd>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(WELL_FOR, CLOSE_AFTER)
    }
}

/// Something that can be shut from outside, until it is dropped.
pub(super) struct Open {
    health: Arc<Health>,
    turn: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.health.state().open.remove(&self.turn);
    }
}

impl Health {
    fn new(well_for: Duration, close_after: Duration) -> Self {
        let state = State { beat: Instant::now(), closed: false, turn: 0, open: BTreeMap::new() };
        Self { state: Mutex::new(state), well_for, close_after }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(&self) {
        let mut state = self.state();
        state.beat = Instant::now();
        state.closed = false;
    }

    /// Whether the driver answered of late.
    pub(super) fn is_well(&self) -> bool {
        let state = self.state();
        !state.closed && state.beat.elapsed() < self.well_for
    }

    fn add(self: &Arc<Self>, socket: impl AsFd) -> Option<Open> {
        let fd = rustix::io::dup(socket).ok()?;
        let mut state = self.state();
        if state.closed {
            let _ = shutdown(&fd, Shutdown::Both);
            return None;
        }
        state.turn += 1;
        let turn = state.turn;
        state.open.insert(turn, fd);
        Some(Open { health: self.clone(), turn })
    }

    /// A port to close when the daemon hangs.
    pub(super) fn open(self: &Arc<Self>, port: impl AsFd) -> Option<Open> {
        self.add(port)
    }

    /// A connection to end when the daemon hangs.
    pub(super) fn connection(self: &Arc<Self>, stream: impl AsFd) -> Option<Open> {
        self.add(stream)
    }

    /// Waits until the driver answers again.
    pub(super) async fn recovered(&self, token: &CancellationToken) {
        while !token.is_cancelled() && !self.is_well() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Shuts everything when the pulse has stopped.
    fn look(&self) {
        let mut state = self.state();
        if state.closed || state.beat.elapsed() < self.close_after {
            return;
        }
        state.closed = true;
        tracing::error!(sockets = state.open.len(), "the daemon hangs: the mirror's port is closed");
        for fd in std::mem::take(&mut state.open).into_values() {
            let _ = shutdown(&fd, Shutdown::Both);
        }
    }
}

/// Starts the thread. It ends soon after the token is cancelled.
pub(super) fn guard(health: &Arc<Health>, token: &CancellationToken) -> io::Result<()> {
    let (health, token) = (health.clone(), token.clone());
    let thread = std::thread::Builder::new().name("mirror watchdog".into()).stack_size(128 * 1024).spawn(move || {
        while !token.is_cancelled() {
            std::thread::sleep(LOOK_EVERY);
            health.look();
        }
    });
    thread.map(drop)
}

/// Asks the driver whether it is there.
pub(super) async fn pulse(health: Arc<Health>, node: NodeHandle, token: CancellationToken) {
    let mut tick = tokio::time::interval(PULSE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = token.cancelled() => return,
            _ = tick.tick() => {}
        }
        tokio::select! {
            biased;
            () = token.cancelled() => return,
            there = node.is_alive() => if there {
                health.beat();
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_hung_daemon_is_refused_rather_than_waited_for() {
        let health = Arc::new(Health::new(Duration::from_millis(1), Duration::from_millis(2)));
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = port.local_addr().unwrap();
        let mut client = TcpStream::connect(addr).unwrap();
        let (served, _) = port.accept().unwrap();
        let (of_port, of_stream) = (health.open(&port).unwrap(), health.connection(&served).unwrap());
        while health.is_well() {
            std::thread::yield_now();
        }
        while !health.state().closed {
            health.look();
        }
        let refused = TcpStream::connect(addr).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "the port is closed while somebody holds it");
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "the pull was cut");
        assert!(health.add(&served).is_none(), "nobody comes in meanwhile");
        drop((of_port, of_stream, port));
        health.beat();
        let again = TcpListener::bind(addr).unwrap();
        assert!(health.open(&again).is_some());
        TcpStream::connect(addr).unwrap();
    }

    #[test]
    fn what_is_done_is_forgotten() {
        let health = Arc::new(Health::default());
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = health.open(&port).unwrap();
        assert_eq!(health.state().open.len(), 1);
        drop(open);
        assert!(health.state().open.is_empty());
        health.look();
        assert!(health.is_well());
    }
}
