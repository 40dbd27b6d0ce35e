//! The task that owns the libp2p swarm.
//!
//! Invariant: it waits for nobody: what the driver above has not taken yet is kept in a bounded backlog, and only when
//! that is full does the swarm stand still.

use super::byte_counter::ByteCounter;
use super::setup::{self, Behaviour, BehaviourEvent};
use super::{ConnectError, ControlConfig, ControlEvent, ReplySlot, RequestError, StartError};
use crate::identity::{node_of, peer_id_of};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::core::ConnectedPoint;
use libp2p::request_response::{self, OutboundFailure, OutboundRequestId, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{PeerId, Swarm};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Requests of ours that wait for an answer.
const OUTBOUND_MAX: usize = 8 * 1024;
/// Dials under way.
const DIALS_MAX: usize = 256;
/// Events that wait for the driver above.
const BACKLOG_MAX: usize = 8 * 1024;
/// Requests to one node that time out in a row before its connections are taken for dead.
const TIMEOUTS_MAX: u32 = 2;

/// What a handle asks for and waits for.
pub(super) enum Command {
    Connect { addr: SocketAddr, expected: Option<NodeId>, reply: oneshot::Sender<Result<NodeId, ConnectError>> },
    Request { node: NodeId, request: Box<Request>, reply: oneshot::Sender<Result<Response, RequestError>> },
}

/// What a handle orders without waiting. Repeating an order does not add to it, so it cannot grow beyond the nodes
/// there are.
#[derive(Default)]
pub(super) struct Orders {
    nodes: Mutex<(BTreeSet<NodeId>, BTreeSet<NodeId>)>,
    wake: Notify,
}

impl Orders {
    pub(super) fn disconnect(&self, node: NodeId) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).0.insert(node);
        self.wake.notify_one();
    }

    pub(super) fn block(&self, node: NodeId) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).1.insert(node);
        self.wake.notify_one();
    }

    fn take(&self) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        std::mem::take(&mut *self.nodes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What handle and driver share.
pub(super) struct Common {
    pub(super) byte_counter: Arc<ByteCounter>,
    pub(super) orders: Orders,
    pub(super) tasks: TaskTracker,
    /// Close every connection, then end.
    pub(super) closing: CancellationToken,
    /// End.
    pub(super) stop: CancellationToken,
    pub(super) timeout: Duration,
}

struct Dial {
    addr: SocketAddr,
    expected: Option<NodeId>,
    reply: oneshot::Sender<Result<NodeId, ConnectError>>,
}

/// An answer of the driver above; `None` when it dropped the slot or took too long.
type Answer = BoxFuture<'static, (ResponseChannel<Response>, Option<Response>)>;

/// The task's state.
pub(super) struct EventLoop {
    common: Arc<Common>,
    config: ControlConfig,
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<ControlEvent>,
    backlog: VecDeque<ControlEvent>,
    dials: HashMap<ConnectionId, Dial>,
    remotes: HashMap<ConnectionId, SocketAddr>,
    outbound: HashMap<OutboundRequestId, oneshot::Sender<Result<Response, RequestError>>>,
    timeouts: HashMap<PeerId, u32>,
    answers: FuturesUnordered<Answer>,
}

impl EventLoop {
    /// Makes the swarm and has it listen. Returns the addresses with the ports picked.
    pub(super) async fn start(
        config: ControlConfig,
        common: Arc<Common>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<ControlEvent>,
    ) -> Result<(Self, Vec<SocketAddr>), StartError> {
        let mut swarm = setup::swarm(&config, &common)?;
        let local_addrs = setup::listen(&mut swarm, &config.listen).await?;
        let driver = Self {
            common,
            config,
            swarm,
            commands,
            events,
            backlog: VecDeque::new(),
            dials: HashMap::new(),
            remotes: HashMap::new(),
            outbound: HashMap::new(),
            timeouts: HashMap::new(),
            answers: FuturesUnordered::new(),
        };
        Ok((driver, local_addrs))
    }

    /// Runs until told to close, then closes every connection.
    pub(super) async fn run(mut self) {
        let (common, events) = (self.common.clone(), self.events.clone());
        loop {
            tokio::select! {
                () = common.stop.cancelled() => return,
                () = common.closing.cancelled() => break,
                () = common.orders.wake.notified() => self.obey(),
                room = events.reserve(), if !self.backlog.is_empty() => match room {
                    Ok(room) => if let Some(event) = self.backlog.pop_front() { room.send(event) },
                    // Nobody listens any more.
                    Err(_) => break,
                },
                Some((channel, answer)) = self.answers.next() => self.answer(channel, answer),
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                event = self.swarm.select_next_some(), if self.backlog.len() < BACKLOG_MAX => self.swarm_event(event),
            }
        }
        self.close().await;
    }

    /// Says goodbye to everybody. The handle's deadline bounds it.
    async fn close(mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // An error means that it is gone already.
            let _gone = self.swarm.disconnect_peer_id(peer);
        }
        while self.swarm.connected_peers().next().is_some() {
            tokio::select! {
                () = self.common.stop.cancelled() => return,
                event = self.swarm.select_next_some() => {
                    if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
                        let _gone = self.swarm.disconnect_peer_id(peer_id);
                    }
                }
            }
        }
    }

    fn obey(&mut self) {
        let (disconnect, block) = self.common.orders.take();
        for peer in block.iter().filter_map(peer_id_of) {
            self.swarm.behaviour_mut().blocked.block_peer(peer);
        }
        for peer in disconnect.iter().filter_map(peer_id_of) {
            // An error means that it is gone already.
            let _gone = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Connect { addr, expected, reply } => self.connect(addr, expected, reply),
            Command::Request { node, request, reply } => {
                let peer = peer_id_of(&node).filter(|peer| self.swarm.is_connected(peer));
                let Some(peer) = peer else {
                    let _gone = reply.send(Err(RequestError::NotConnected));
                    return;
                };
                if self.outbound.len() >= OUTBOUND_MAX {
                    let _gone = reply.send(Err(RequestError::Unavailable("busy")));
                    return;
                }
                let id = self.swarm.behaviour_mut().requests.send_request(&peer, *request);
                self.outbound.insert(id, reply);
            }
        }
    }

    fn connect(
        &mut self,
        addr: SocketAddr,
        expected: Option<NodeId>,
        reply: oneshot::Sender<Result<NodeId, ConnectError>>,
    ) {
        let refuse = |reply: oneshot::Sender<_>, error| {
            let _gone = reply.send(Err(error));
        };
        let opts = match expected {
            Some(node) => {
                let Some(peer) = peer_id_of(&node) else {
                    return refuse(reply, ConnectError::Unreachable { addr, why: "no such key".to_string() });
                };
                if self.swarm.is_connected(&peer) {
                    let _gone = reply.send(Ok(node));
                    return;
                }
                DialOpts::peer_id(peer)
                    .addresses(vec![setup::multiaddr(addr)])
                    .condition(PeerCondition::Always)
                    .allocate_new_port()
                    .build()
            }
            None => DialOpts::unknown_peer_id().address(setup::multiaddr(addr)).allocate_new_port().build(),
        };
        if self.dials.len() >= DIALS_MAX {
            return refuse(reply, ConnectError::Unavailable("busy"));
        }
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.insert(id, Dial { addr, expected, reply });
            }
            Err(error) => refuse(reply, setup::dial_error(addr, expected, error)),
        }
    }

    fn answer(&mut self, channel: ResponseChannel<Response>, answer: Option<Response>) {
        if let Some(response) = answer {
            // An error hands the response back: the asker is gone.
            let _gone = self.swarm.behaviour_mut().requests.send_response(channel, response);
        }
    }

    fn swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Requests(event)) => self.request_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, num_established, .. } => {
                self.established(peer_id, connection_id, &endpoint, num_established.get());
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                self.remotes.remove(&connection_id);
                if num_established == 0 {
                    self.timeouts.remove(&peer_id);
                    if let Some(node) = node_of(&peer_id) {
                        self.backlog.push_back(ControlEvent::Disconnected { node });
                    }
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(Dial { addr, expected, reply }) = self.dials.remove(&connection_id) {
                    let _gone = reply.send(Err(setup::dial_error(addr, expected, error)));
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(remote = %send_back_addr, %error, "dropped a connection");
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "cannot accept a connection"),
            SwarmEvent::ListenerClosed { addresses, .. } => {
                tracing::error!(?addresses, "the control plane listens no more");
            }
            _ => {}
        }
    }

    fn established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, count: u32) {
        let remote = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr,
        };
        let dial = self.dials.remove(&id);
        let (Some(node), Some(remote)) = (node_of(&peer), setup::socket_addr(remote)) else {
            // Our cluster's keys are Ed25519; whoever comes with another is lost.
            let _gone = self.swarm.disconnect_peer_id(peer);
            return;
        };
        self.remotes.insert(id, remote);
        if count == 1 {
            self.backlog.push_back(ControlEvent::Connected { node, remote });
        }
        if let Some(dial) = dial {
            let _gone = dial.reply.send(Ok(node));
        }
    }

    fn request_event(&mut self, event: request_response::Event<Request, Response>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, connection_id, message: Message::Request { request, channel, .. } } => {
                self.inbound(peer, connection_id, request, channel);
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                self.timeouts.remove(&peer);
                if let Some(reply) = self.outbound.remove(&request_id) {
                    let _gone = reply.send(Ok(response));
                }
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                if matches!(error, OutboundFailure::Timeout) {
                    let count = self.timeouts.entry(peer).or_default();
                    *count += 1;
                    if *count >= TIMEOUTS_MAX {
                        // TCP may take many minutes to notice that the other end is gone.
                        tracing::debug!(%peer, "answers nothing: closing its connections");
                        let _gone = self.swarm.disconnect_peer_id(peer);
                    }
                }
                if let Some(reply) = self.outbound.remove(&request_id) {
                    let _gone = reply.send(Err(setup::request_error(error)));
                }
            }
            Event::InboundFailure { peer, error, .. } => tracing::debug!(%peer, %error, "a request came to nothing"),
            Event::ResponseSent { .. } => {}
        }
    }

    fn inbound(&mut self, peer: PeerId, id: ConnectionId, request: Request, channel: ResponseChannel<Response>) {
        let (Some(from), Some(remote)) = (node_of(&peer), self.remotes.get(&id).copied()) else { return };
        if self.answers.len() >= self.config.requests_max {
            self.answer(channel, Some(Response::Refused { why: "too many requests, try again later".to_string() }));
            return;
        }
        let (answer, answered) = oneshot::channel();
        let patience = self.config.timeout;
        self.answers.push(Box::pin(async move {
            let answer = tokio::time::timeout(patience, answered).await;
            (channel, answer.ok().and_then(Result::ok))
        }));
        self.backlog.push_back(ControlEvent::Request { from, remote, request, reply: ReplySlot { answer } });
    }
}
