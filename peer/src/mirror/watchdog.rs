//! The watchdog closes the mirror's port when the daemon hangs, so that no client waits for it.
//!
//! A pulse pings the driver once a second. A thread of its own checks the time of the last answer. The thread needs
//! neither the driver nor the runtime. It closes the port and every connection when the pulse stops, and containerd
//! continues with the registry. containerd would wait for an open port that is silent. A process stopped by a signal is
//! out of reach.
//! Invariant: the mirror refuses requests when the last answer is older than [`HEALTHY_FOR`]. It closes the port when
//! the last answer is older than [`CLOSE_AFTER`].

use crate::handle::NodeHandle;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{Shutdown, shutdown};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time between two pings of the driver.
const PULSE_EVERY: Duration = Duration::from_secs(1);
/// Time after an answer within which the mirror serves.
const HEALTHY_FOR: Duration = Duration::from_secs(4);
/// Time without an answer after which the port is closed.
const CLOSE_AFTER: Duration = Duration::from_secs(10);
/// Time between two checks of the thread.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// Knows whether the driver answers, and which sockets to close when it does not.
pub struct Watchdog {
    state: Mutex<State>,
    healthy_for: Duration,
    close_after: Duration,
}

struct State {
    last_answer: Instant,
    /// True from the closing of the sockets until the driver answers again.
    closed: bool,
    next_id: u64,
    /// Duplicates of the sockets. The thread can shut them down while their owners hang.
    sockets: BTreeMap<u64, OwnedFd>,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self::new(HEALTHY_FOR, CLOSE_AFTER)
    }
}

/// A socket that the watchdog can close. Dropping this ends the watch.
pub struct Watched {
    watchdog: Arc<Watchdog>,
    id: u64,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watchdog.state().sockets.remove(&self.id);
    }
}

impl Watchdog {
    fn new(healthy_for: Duration, close_after: Duration) -> Self {
        let state = State { last_answer: Instant::now(), closed: false, next_id: 0, sockets: BTreeMap::new() };
        Self { state: Mutex::new(state), healthy_for, close_after }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_answer(&self) {
        let mut state = self.state();
        state.last_answer = Instant::now();
        state.closed = false;
    }

    /// Whether the driver answered recently.
    pub fn is_healthy(&self) -> bool {
        let state = self.state();
        !state.closed && state.last_answer.elapsed() < self.healthy_for
    }

    /// Registers a port or a connection. Returns `None` and shuts the socket down while the watchdog keeps all closed.
    pub fn watch(self: &Arc<Self>, socket: impl AsFd) -> Option<Watched> {
        let fd = rustix::io::dup(socket).ok()?;
        let mut state = self.state();
        if state.closed {
            let _ = shutdown(&fd, Shutdown::Both); // the client may have disconnected
            return None;
        }
        state.next_id += 1;
        let id = state.next_id;
        state.sockets.insert(id, fd);
        Some(Watched { watchdog: self.clone(), id })
    }

    /// Waits until the driver answers again.
    pub async fn until_healthy(&self, token: &CancellationToken) {
        while !token.is_cancelled() && !self.is_healthy() {
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    /// Shuts all sockets down if the last answer is too old.
    fn check(&self) {
        let mut state = self.state();
        if state.closed || state.last_answer.elapsed() < self.close_after {
            return;
        }
        state.closed = true;
        tracing::error!(sockets = state.sockets.len(), "the daemon hangs, so the mirror closes its port");
        for fd in std::mem::take(&mut state.sockets).into_values() {
            let _ = shutdown(&fd, Shutdown::Both); // the client may have disconnected
        }
    }
}

/// Starts the thread, which ends soon after the token is cancelled.
pub fn start_thread(watchdog: &Arc<Watchdog>, token: &CancellationToken) -> io::Result<()> {
    let (watchdog, token) = (watchdog.clone(), token.clone());
    let thread = std::thread::Builder::new().name("mirror watchdog".into()).stack_size(128 * 1024).spawn(move || {
        while !token.is_cancelled() {
            std::thread::sleep(CHECK_EVERY);
            watchdog.check();
        }
    });
    thread.map(drop)
}

/// Pings the driver until the token is cancelled.
pub async fn pulse(watchdog: Arc<Watchdog>, node: NodeHandle, token: CancellationToken) {
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
            alive = node.is_alive() => if alive {
                watchdog.on_answer();
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
    fn clients_of_a_hung_daemon_are_refused_at_once() {
        let watchdog = Arc::new(Watchdog::new(Duration::from_millis(1), Duration::from_millis(2)));
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = port.local_addr().unwrap();
        let mut client = TcpStream::connect(addr).unwrap();
        let (served, _) = port.accept().unwrap();
        let (of_port, of_stream) = (watchdog.watch(&port).unwrap(), watchdog.watch(&served).unwrap());
        while watchdog.is_healthy() {
            std::thread::yield_now();
        }
        while !watchdog.state().closed {
            watchdog.check();
        }
        let refused = TcpStream::connect(addr).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "the port is closed while its owner still has it");
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "the pull was cut");
        assert!(watchdog.watch(&served).is_none(), "a new connection is shut down meanwhile");
        drop((of_port, of_stream, port));
        watchdog.on_answer();
        let again = TcpListener::bind(addr).unwrap();
        assert!(watchdog.watch(&again).is_some());
        TcpStream::connect(addr).unwrap();
    }

    #[test]
    fn a_dropped_watch_releases_its_socket() {
        let watchdog = Arc::new(Watchdog::default());
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let watched = watchdog.watch(&port).unwrap();
        assert_eq!(watchdog.state().sockets.len(), 1);
        drop(watched);
        assert!(watchdog.state().sockets.is_empty());
        watchdog.check();
        assert!(watchdog.is_healthy());
    }
}
