//! The control plane: small requests between a host and its tracker, over libp2p.
//!
//! Owns the libp2p swarm (TCP, TLS, yamux, request-response), its limits and timeouts.
//! Invariant: every request is answered or fails within the time-out, and at most
//! [`ControlConfig::requests_max`] inbound ones wait for an answer.
//!
//! The other end of a connection has proven its key, no more: whether it may ask anything but `Join` is for the
//! tracker to decide.

mod byte_counter;
mod codec;
mod event_loop;
mod pending_per_ip;
mod setup;
#[cfg(test)]
mod tests;

use crate::identity::Identity;
use event_loop::{Command, Common, EventLoop, Orders};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use shoal_proto::limits;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// How to run the control plane.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Our key.
    pub identity: Identity,
    /// Where to listen; port 0 picks one. Empty for a pure client.
    pub listen: Vec<SocketAddr>,
    /// Connections accepted at a time. Default 65,536.
    pub connections_max: u32,
    /// Accepted connections still shaking hands, at a time. Default 1,024.
    pub pending_max: u32,
    /// Of them from one address. Default 64: a rack behind one address comes back together.
    pub pending_per_addr_max: u32,
    /// Inbound requests waiting for our answer, at a time; more are refused. Default 1,024.
    pub requests_max: usize,
    /// Requests under way on one connection, both ways together; more fail at the asker. Default 16.
    pub requests_per_connection_max: usize,
    /// Longest request accepted, bytes. A tracker should lower it: it must read requests of the not yet admitted.
    pub request_bytes_max: usize,
    /// Longest response accepted, bytes.
    pub response_bytes_max: usize,
    /// Our requests must be answered, and connections made, within this. Default 10 s.
    pub timeout: Duration,
    /// A connection without a request for this long is closed. Default 60 s.
    pub idle_timeout: Duration,
}

impl ControlConfig {
    /// The defaults.
    pub fn new(identity: Identity, listen: Vec<SocketAddr>) -> Self {
        Self {
            identity,
            listen,
            connections_max: 65_536,
            pending_max: 1024,
            pending_per_addr_max: 64,
            requests_max: 1024,
            requests_per_connection_max: 16,
            request_bytes_max: limits::CONTROL_PLANE_BYTES_MAX,
            response_bytes_max: limits::CONTROL_PLANE_BYTES_MAX,
            timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// What the control plane tells its driver.
#[derive(Debug)]
pub enum ControlEvent {
    /// The first connection to this node is up, whoever dialled.
    Connected {
        /// The other end.
        node: NodeId,
        /// Where it is connected from or to.
        remote: SocketAddr,
    },
    /// The last connection to this node is gone.
    Disconnected {
        /// The other end.
        node: NodeId,
    },
    /// A request came; its bounds are checked.
    Request {
        /// Who asks. Its key is proven; its credential is not known here.
        from: NodeId,
        /// Where it is connected from or to.
        remote: SocketAddr,
        /// What it asks.
        request: Request,
        /// Where the answer goes.
        reply: ReplySlot,
    },
}

/// Where the answer to a request goes. Dropped without one, the asker's request fails.
#[derive(Debug)]
pub struct ReplySlot {
    answer: oneshot::Sender<Response>,
}

impl ReplySlot {
    /// Answers. It is lost when the asker is gone or has given up.
    pub fn send(self, response: Response) {
        // The asker's absence is reported by `Disconnected`; here it means only that nobody wants the answer.
        let _gone = self.answer.send(response);
    }
}

/// Why the control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {why}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What libp2p said.
        why: String,
    },
    /// No certificate could be made from the key.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers there, or not with our protocol.
    #[error("cannot reach {addr}: {why}")]
    Unreachable {
        /// The address dialled.
        addr: SocketAddr,
        /// What libp2p said.
        why: String,
    },
    /// Somebody else answers there.
    #[error("{addr} is {found}, not {expected}")]
    WrongNode {
        /// The address dialled.
        addr: SocketAddr,
        /// Who was expected.
        expected: NodeId,
        /// Who answered.
        found: String,
    },
    /// It took too long.
    #[error("{addr} did not answer in time")]
    Timeout {
        /// The address dialled.
        addr: SocketAddr,
    },
    /// The control plane is shutting down, or has too much to do.
    #[error("the control plane is {0}")]
    Unavailable(&'static str),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no connection to that node.
    #[error("not connected")]
    NotConnected,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection was lost before the answer came.
    #[error("the connection was lost")]
    Lost,
    /// The other end gave no answer, or not one of our protocol.
    #[error("{0}")]
    Protocol(String),
    /// The request is longer than the other end may accept.
    #[error("the request is over its limit")]
    TooLong,
    /// The control plane is shutting down, or has too much to do.
    #[error("the control plane is {0}")]
    Unavailable(&'static str),
}

/// Commands that wait for the driver's task.
const COMMANDS_MAX: usize = 256;
/// Events handed over but not taken yet; more wait in the driver's backlog.
const EVENTS_MAX: usize = 256;
/// libp2p's own time-outs strike first; ours is for when the task itself stands still.
const GRACE: Duration = Duration::from_secs(2);

/// Where the control plane begins.
pub struct ControlPlane;

impl ControlPlane {
    /// Starts it. Events must be taken, or it stands still once its queue is full.
    pub async fn start(config: ControlConfig) -> Result<(ControlHandle, mpsc::Receiver<ControlEvent>), StartError> {
        let common = Arc::new(Common {
            byte_counter: Arc::default(),
            orders: Orders::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            timeout: config.timeout,
        });
        let stop = Arc::new(common.stop.clone().drop_guard());
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let (events, event_queue) = mpsc::channel(EVENTS_MAX);
        let (event_loop, local_addrs) = EventLoop::start(config, common.clone(), command_queue, events).await?;
        common.tasks.spawn(event_loop.run());
        let handle = ControlHandle { common, commands, local_addrs: local_addrs.into(), _stop: stop };
        Ok((handle, event_queue))
    }
}

/// The control plane of one node. Cheap to clone. Dropping every clone ends all tasks, but only
/// [`ControlHandle::shutdown`] does so politely.
#[derive(Clone)]
pub struct ControlHandle {
    common: Arc<Common>,
    commands: mpsc::Sender<Command>,
    local_addrs: Arc<[SocketAddr]>,
    _stop: Arc<DropGuard>,
}

impl ControlHandle {
    /// Where we listen, with the ports picked.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Connects to the node at `addr`, which must be `expected` if given. Returns at once when already connected to it.
    pub async fn connect(&self, addr: SocketAddr, expected: Option<NodeId>) -> Result<NodeId, ConnectError> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            if self.commands.send(Command::Connect { addr, expected, reply }).await.is_err() {
                return Err(ConnectError::Unavailable("shut down"));
            }
            answer.await.unwrap_or(Err(ConnectError::Unavailable("shut down")))
        };
        timeout(self.common.timeout + GRACE, asking).await.unwrap_or(Err(ConnectError::Timeout { addr }))
    }

    /// Asks a connected node. Fails after [`ControlConfig::timeout`] or a little later at the latest.
    pub async fn request(&self, node: NodeId, request: Request) -> Result<Response, RequestError> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            let request = Box::new(request);
            if self.commands.send(Command::Request { node, request, reply }).await.is_err() {
                return Err(RequestError::Unavailable("shut down"));
            }
            answer.await.unwrap_or(Err(RequestError::Unavailable("shut down")))
        };
        timeout(self.common.timeout + GRACE, asking).await.unwrap_or(Err(RequestError::Timeout))
    }

    /// Closes every connection to `node`; `Disconnected` follows if there was one.
    pub fn disconnect(&self, node: NodeId) {
        self.common.orders.disconnect(node);
    }

    /// Refuses `node` from now on and closes its connections.
    pub fn block(&self, node: NodeId) {
        self.common.orders.block(node);
    }

    /// Bytes received on our sockets since start, TLS and all.
    pub fn bytes_in(&self) -> u64 {
        self.common.byte_counter.bytes_in()
    }

    /// Bytes sent on our sockets since start, TLS and all.
    pub fn bytes_out(&self) -> u64 {
        self.common.byte_counter.bytes_out()
    }

    /// Closes every connection and waits until every task has ended; at `deadline` from now they are cut off.
    pub async fn shutdown(&self, deadline: Duration) {
        let Common { closing, stop, tasks, .. } = &*self.common;
        closing.cancel();
        tasks.close();
        if timeout(deadline, tasks.wait()).await.is_err() {
            stop.cancel();
            tasks.wait().await;
        }
    }
}
