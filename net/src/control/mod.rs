//! The control plane: small requests between a host and its tracker, over libp2p.
//!
//! Owns the libp2p swarm (TCP, TLS, yamux, request-response), its limits and timeouts.
//! Invariant: every request is answered or fails within the timeout. At most [`ControlConfig::requests_max`] inbound
//! requests of admitted nodes wait for an answer. A node that connected has one request of 8 KiB until the driver
//! admits it.
//!
//! The other end of a connection has proven its key and nothing else. The driver's answer to the first request admits
//! the node ([`ReplySlot::admit`]), or the connection ends after the answer.
//!
//! Where to look: settings in `config.rs`, the task in `event_loop.rs`, libp2p's assembly in `setup.rs`, the encoding
//! of requests in `codec.rs`, connections before admission in `entrance.rs` and `gate.rs`.

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod address;
mod byte_counter;
mod codec;
mod config;
mod context;
mod entrance;
mod error;
mod event;
mod event_loop;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod setup;
#[cfg(test)]
mod tests;

pub use config::ControlConfig;
use context::ControlContext;
pub use error::{ConnectError, RequestError, StartError, Unavailable};
pub use event::{ControlEvent, ReplySlot};
use event_loop::{Command, EventLoop};
pub use libp2p::swarm::ConnectionId;
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

/// Commands that wait for the event loop.
const COMMANDS_MAX: usize = 256;
/// Events that the driver has not taken. More wait in the backlog of the event loop.
const EVENTS_MAX: usize = 256;
/// The handle waits this much longer than libp2p. It strikes only if the event loop itself stalls.
const GRACE: Duration = Duration::from_secs(2);

/// Starts control planes.
pub struct ControlPlane;

impl ControlPlane {
    /// Starts a control plane. The driver must take the events, because the control plane stops while its queue is
    /// full.
    ///
    /// # Errors
    ///
    /// Fails if an address cannot be listened on or the key yields no TLS configuration.
    pub async fn start(config: ControlConfig) -> Result<(ControlHandle, mpsc::Receiver<ControlEvent>), StartError> {
        let context = Arc::new(ControlContext::new(config.timeout));
        let stop = Arc::new(context.stop.clone().drop_guard());
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let (events, event_queue) = mpsc::channel(EVENTS_MAX);
        let (event_loop, local_addrs) = EventLoop::start(config, context.clone(), command_queue, events).await?;
        context.tasks.spawn(event_loop.run());
        let handle = ControlHandle { context, commands, local_addrs: local_addrs.into(), _stop: stop };
        Ok((handle, event_queue))
    }
}

/// The control plane of one node. Cheap to clone. Dropping every clone ends all tasks, but only
/// [`ControlHandle::shutdown`] closes the connections in an orderly way.
#[derive(Clone)]
pub struct ControlHandle {
    context: Arc<ControlContext>,
    commands: mpsc::Sender<Command>,
    local_addrs: Arc<[SocketAddr]>,
    _stop: Arc<DropGuard>,
}

impl ControlHandle {
    /// Returns the addresses that the control plane listens on, with the ports picked.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Connects to the node at `addr`, which must be `expected` if that is given. Returns at once if a connection to
    /// `expected` exists.
    ///
    /// # Errors
    ///
    /// Fails if the address does not answer in time, another node answers, or the control plane is busy or shut down.
    pub async fn connect(&self, addr: SocketAddr, expected: Option<NodeId>) -> Result<NodeId, ConnectError> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            let command = Command::Connect { addr, expected, reply };
            self.commands.send(command).await.map_err(|_| Unavailable::ShutDown)?;
            answer.await.unwrap_or(Err(Unavailable::ShutDown.into()))
        };
        timeout(self.context.timeout + GRACE, answered).await.unwrap_or(Err(ConnectError::Timeout { addr }))
    }

    /// Sends a request to a connected node and returns the answer.
    ///
    /// # Errors
    ///
    /// Fails if the node is not connected or does not answer within [`ControlConfig::timeout`], the request is too
    /// long, or the control plane is busy or shut down.
    pub async fn request(&self, node: NodeId, request: Request) -> Result<Response, RequestError> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            let command = Command::Request { node, request: Box::new(request), reply };
            self.commands.send(command).await.map_err(|_| Unavailable::ShutDown)?;
            answer.await.unwrap_or(Err(Unavailable::ShutDown.into()))
        };
        timeout(self.context.timeout + GRACE, answered).await.unwrap_or(Err(RequestError::Timeout))
    }

    /// Closes every connection to `node`. `Disconnected` follows if there was one.
    pub fn disconnect(&self, node: NodeId) {
        self.context.node_orders.disconnect(node);
    }

    /// Closes one connection. `Disconnected` follows.
    pub fn close(&self, connection: ConnectionId) {
        self.context.node_orders.close(connection);
    }

    /// Refuses `node` from now on and closes its connections.
    pub fn block(&self, node: NodeId) {
        self.context.node_orders.block(node);
    }

    /// Returns how many accepted connections wait for admission.
    pub fn unadmitted(&self) -> usize {
        self.context.entrance.waiting.load(Ordering::Relaxed)
    }

    /// Returns how many accepted connections ended before admission since the start.
    pub fn dropped_unadmitted(&self) -> u64 {
        self.context.entrance.dropped.load(Ordering::Relaxed)
    }

    /// Returns the bytes received on all sockets since the start, with TLS and multiplexing.
    pub fn bytes_in(&self) -> u64 {
        self.context.byte_counter.bytes_in()
    }

    /// Returns the bytes sent on all sockets since the start, with TLS and multiplexing.
    pub fn bytes_out(&self) -> u64 {
        self.context.byte_counter.bytes_out()
    }

    /// Closes every connection and waits until every task has ended. Tasks that still run after `deadline` are cut off.
    pub async fn shutdown(&self, deadline: Duration) {
        let ControlContext { closing, stop, tasks, .. } = &*self.context;
        closing.cancel();
        tasks.close();
        if timeout(deadline, tasks.wait()).await.is_err() {
            stop.cancel();
            tasks.wait().await;
        }
    }
}
