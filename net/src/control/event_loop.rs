//! The task that owns the libp2p swarm.
//!
//! Invariant: the task never waits for the driver. Events that the driver has not taken are kept in a bounded backlog,
//! and only a full backlog stops the swarm.

use super::address::{multiaddr, socket_addr};
use super::config::ControlConfig;
use super::context::ControlContext;
use super::entrance::Turn;
use super::error::{ConnectError, RequestError, StartError, Unavailable, connect_error, request_error};
use super::event::{ControlEvent, Reply, ReplySlot};
use super::setup::{self, Behaviour, BehaviourEvent};
use crate::identity::{node_of, peer_id_of};
use crate::log_limit::LogLimit;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::core::ConnectedPoint;
use libp2p::request_response::{self, OutboundFailure, OutboundRequestId, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{PeerId, Swarm};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Requests of this node that wait for an answer.
const OUTBOUND_MAX: usize = 8 * 1024;
/// Dials under way.
const DIALS_MAX: usize = 256;
/// Events that the driver has not taken.
const BACKLOG_MAX: usize = 8 * 1024;
/// After this many timeouts in a row to one node, its connections count as dead.
const TIMEOUTS_MAX: u32 = 2;

type ConnectReply = oneshot::Sender<Result<NodeId, ConnectError>>;
type RequestReply = oneshot::Sender<Result<Response, RequestError>>;

/// A request of a handle that waits for an answer.
pub enum Command {
    Connect { addr: SocketAddr, expected: Option<NodeId>, reply: ConnectReply },
    Request { node: NodeId, request: Box<Request>, reply: RequestReply },
}

struct Dial {
    addr: SocketAddr,
    expected: Option<NodeId>,
    reply: ConnectReply,
}

/// The driver's answer to an inbound request.
struct Answer {
    connection: ConnectionId,
    channel: ResponseChannel<Response>,
    /// The node was admitted when it asked.
    admitted: bool,
    /// `None` if the driver dropped the slot or took too long.
    reply: Option<Reply>,
}

/// The state of the task.
pub struct EventLoop {
    context: Arc<ControlContext>,
    config: ControlConfig,
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<ControlEvent>,
    backlog: VecDeque<ControlEvent>,
    dials: HashMap<ConnectionId, Dial>,
    remotes: HashMap<ConnectionId, SocketAddr>,
    outbound: HashMap<OutboundRequestId, RequestReply>,
    /// Timeouts in a row, for each connected node.
    timeouts: HashMap<PeerId, u32>,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Answers to admitted nodes among `answers`. The places before admission bound the others.
    admitted_waiting: usize,
    accept_errors: LogLimit,
}

impl EventLoop {
    /// Makes the swarm and lets it listen. Returns the addresses with the ports picked.
    pub async fn start(
        config: ControlConfig,
        context: Arc<ControlContext>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<ControlEvent>,
    ) -> Result<(Self, Vec<SocketAddr>), StartError> {
        let mut swarm = setup::swarm(&config, &context)?;
        let local_addrs = setup::listen(&mut swarm, &config.listen).await?;
        let event_loop = Self {
            context,
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
            admitted_waiting: 0,
            accept_errors: LogLimit::new(1, Duration::from_secs(10)),
        };
        Ok((event_loop, local_addrs))
    }

    /// Runs until the control plane closes, and then closes every connection.
    pub async fn run(mut self) {
        let (context, events) = (self.context.clone(), self.events.clone());
        loop {
            tokio::select! {
                () = context.stop.cancelled() => return,
                () = context.closing.cancelled() => break,
                () = context.node_orders.until_changed() => self.apply_node_orders(),
                room = events.reserve(), if !self.backlog.is_empty() => match room {
                    Ok(room) => if let Some(event) = self.backlog.pop_front() { room.send(event) },
                    // The driver has dropped its queue.
                    Err(_) => break,
                },
                Some(answer) = self.answers.next() => self.on_answer(answer),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                event = self.swarm.select_next_some(), if self.backlog.len() < BACKLOG_MAX => {
                    self.on_swarm_event(event);
                }
            }
        }
        self.close().await;
    }

    /// Closes every connection. The deadline of the handle's shutdown bounds the wait.
    async fn close(mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            self.disconnect(peer);
        }
        while self.swarm.connected_peers().next().is_some() {
            tokio::select! {
                () = self.context.stop.cancelled() => return,
                event = self.swarm.select_next_some() => {
                    if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
                        self.disconnect(peer_id);
                    }
                }
            }
        }
    }

    fn disconnect(&mut self, peer: PeerId) {
        let _ = self.swarm.disconnect_peer_id(peer); // an error means that the connection is gone already
    }

    fn apply_node_orders(&mut self) {
        let orders = self.context.node_orders.take();
        for peer in orders.block().filter_map(peer_id_of) {
            self.swarm.behaviour_mut().blocked.block_peer(peer);
        }
        orders.close().for_each(|connection| self.close_one(*connection));
        for peer in orders.disconnect().filter_map(peer_id_of) {
            self.disconnect(peer);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { addr, expected, reply } => self.connect(addr, expected, reply),
            Command::Request { node, request, reply } => match self.check_request(node) {
                Ok(peer) => {
                    let id = self.swarm.behaviour_mut().requests.send_request(&peer, *request);
                    self.outbound.insert(id, reply);
                }
                Err(error) => {
                    let _ = reply.send(Err(error)); // the requester may have given up
                }
            },
        }
    }

    fn check_request(&self, node: NodeId) -> Result<PeerId, RequestError> {
        let peer = peer_id_of(&node).filter(|peer| self.swarm.is_connected(peer));
        let peer = peer.ok_or(RequestError::NotConnected)?;
        if self.outbound.len() >= OUTBOUND_MAX {
            return Err(Unavailable::Busy.into());
        }
        Ok(peer)
    }

    fn connect(&mut self, addr: SocketAddr, expected: Option<NodeId>, reply: ConnectReply) {
        match self.dial(addr, expected) {
            Ok(Dialled::Now(id)) => {
                self.dials.insert(id, Dial { addr, expected, reply });
            }
            Ok(Dialled::Before(node)) => {
                let _ = reply.send(Ok(node)); // the requester may have given up
            }
            Err(error) => {
                let _ = reply.send(Err(error)); // the requester may have given up
            }
        }
    }

    fn dial(&mut self, addr: SocketAddr, expected: Option<NodeId>) -> Result<Dialled, ConnectError> {
        let opts = match expected {
            Some(node) => {
                let unreachable = || ConnectError::Unreachable { addr, why: "the node id is not a valid key".into() };
                let peer = peer_id_of(&node).ok_or_else(unreachable)?;
                if self.swarm.is_connected(&peer) {
                    return Ok(Dialled::Before(node));
                }
                DialOpts::peer_id(peer)
                    .addresses(vec![multiaddr(addr)])
                    .condition(PeerCondition::Always)
                    .allocate_new_port()
                    .build()
            }
            None => DialOpts::unknown_peer_id().address(multiaddr(addr)).allocate_new_port().build(),
        };
        if self.dials.len() >= DIALS_MAX {
            return Err(Unavailable::Busy.into());
        }
        let id = opts.connection_id();
        self.swarm.dial(opts).map_err(|error| connect_error(addr, expected, error))?;
        Ok(Dialled::Now(id))
    }

    fn on_answer(&mut self, Answer { connection, channel, admitted, reply }: Answer) {
        if admitted {
            self.admitted_waiting -= 1;
            if let Some(Reply { response, .. }) = reply {
                self.send(channel, response);
            }
            return;
        }
        let entrance = &mut self.swarm.behaviour_mut().entrance;
        match reply {
            Some(Reply { response, admits: true }) if entrance.admit(connection) => self.send(channel, response),
            Some(Reply { response, admits }) => {
                entrance.on_refused(connection);
                let full = || refused("the tracker has as many connections as it may have: try another tracker");
                self.send(channel, if admits { full() } else { response });
            }
            None => self.close_one(connection),
        }
    }

    fn send(&mut self, channel: ResponseChannel<Response>, response: Response) {
        // An error hands the response back if the requester is gone.
        let _ = self.swarm.behaviour_mut().requests.send_response(channel, response);
    }

    fn close_one(&mut self, connection: ConnectionId) {
        self.swarm.close_connection(connection); // `false` means that the connection is gone already
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Requests(event)) => self.on_request_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, num_established, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint, num_established.get());
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                self.remotes.remove(&connection_id);
                let last = num_established == 0;
                if last {
                    self.timeouts.remove(&peer_id);
                }
                if let Some(node) = node_of(&peer_id) {
                    self.backlog.push_back(ControlEvent::Disconnected { node, connection: connection_id, last });
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(Dial { addr, expected, reply }) = self.dials.remove(&connection_id) {
                    let _ = reply.send(Err(connect_error(addr, expected, error))); // the requester may have given up
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(remote = %send_back_addr, %error, "dropped a connection");
            }
            SwarmEvent::ListenerError { error, .. } => {
                if let Some(skipped) = self.accept_errors.pass() {
                    tracing::warn!(%error, skipped, "cannot accept a connection");
                }
            }
            SwarmEvent::ListenerClosed { addresses, .. } => {
                tracing::error!(?addresses, "a listener of the control plane closed");
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, count: u32) {
        let remote = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr,
        };
        let dial = self.dials.remove(&id);
        let (Some(node), Some(remote)) = (node_of(&peer), socket_addr(remote)) else {
            // Keys of a cluster are Ed25519, so this peer belongs to no cluster.
            self.disconnect(peer);
            return;
        };
        self.remotes.insert(id, remote);
        if count == 1 {
            self.backlog.push_back(ControlEvent::Connected { node, remote });
        }
        if let Some(dial) = dial {
            let _ = dial.reply.send(Ok(node)); // the requester may have given up
        }
    }

    fn on_request_event(&mut self, event: request_response::Event<Request, Response>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, connection_id, message: Message::Request { request, channel, .. } } => {
                self.on_request(peer, connection_id, request, channel);
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                self.timeouts.remove(&peer);
                if let Some(reply) = self.outbound.remove(&request_id) {
                    let _ = reply.send(Ok(response)); // the requester may have given up
                }
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                if matches!(error, OutboundFailure::Timeout) {
                    self.on_timeout(peer);
                }
                if let Some(reply) = self.outbound.remove(&request_id) {
                    let _ = reply.send(Err(request_error(error))); // the requester may have given up
                }
            }
            Event::InboundFailure { peer, connection_id, error, .. } => {
                tracing::debug!(%peer, %error, "an inbound request failed");
                if self.swarm.behaviour().entrance.is_waiting(connection_id) {
                    self.close_one(connection_id);
                }
            }
            Event::ResponseSent { connection_id, .. } => {
                self.swarm.behaviour_mut().entrance.on_answered(connection_id);
            }
        }
    }

    /// Counts a timeout. TCP may take minutes to notice that the other end is gone.
    fn on_timeout(&mut self, peer: PeerId) {
        let count = self.timeouts.entry(peer).or_default();
        *count += 1;
        if *count >= TIMEOUTS_MAX {
            tracing::debug!(%peer, "the node answers no request: closing its connections");
            self.disconnect(peer);
        }
    }

    fn on_request(&mut self, peer: PeerId, id: ConnectionId, request: Request, channel: ResponseChannel<Response>) {
        let (Some(from), Some(remote)) = (node_of(&peer), self.remotes.get(&id).copied()) else { return };
        let admitted = match self.swarm.behaviour_mut().entrance.on_request(id) {
            Turn::Admitted if self.admitted_waiting >= self.config.requests_max => {
                return self.send(channel, refused("too many requests, try again later"));
            }
            Turn::Admitted => true,
            Turn::First => false,
            Turn::Excess => return self.close_one(id),
        };
        self.admitted_waiting += usize::from(admitted);
        let (reply, answer) = ReplySlot::new();
        let timeout = self.config.timeout;
        self.answers.push(Box::pin(async move {
            let answered = tokio::time::timeout(timeout, answer).await;
            Answer { connection: id, channel, admitted, reply: answered.ok().and_then(Result::ok) }
        }));
        self.backlog.push_back(ControlEvent::Request { from, connection: id, remote, request, reply });
    }
}

fn refused(why: &str) -> Response {
    Response::Refused { why: why.to_string() }
}

/// The result of a dial that can be made.
enum Dialled {
    Now(ConnectionId),
    /// A connection to the node exists.
    Before(NodeId),
}
