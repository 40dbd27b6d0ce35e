//! The task that owns the libp2p swarm.
//!
//! Invariant: it waits for nobody: what the driver above has not taken yet is kept in a bounded backlog, and only when
//! that is full does the swarm stand still.

use super::codec::Codec;
use super::meter::{Meter, Metered};
use super::{ConnectError, ControlConfig, ControlEvent, ReplySlot, RequestError, StartError};
use crate::identity::{node_of, peer_id_of};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::ConnectedPoint;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, ListenerId, Transport};
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::request_response::{self, OutboundFailure, OutboundRequestId, ProtocolSupport, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, tcp, tls, yamux};
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Name and version of the protocol.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/control/1");
/// Connections to one node: one, and one more while the other is being given up.
const PER_NODE_MAX: u32 = 2;
/// Requests of ours that wait for an answer.
const OUTBOUND_MAX: usize = 8 * 1024;
/// Dials under way.
const DIALS_MAX: usize = 256;
/// Events that wait for the driver above.
const BACKLOG_MAX: usize = 8 * 1024;
/// Requests to one node that time out in a row before its connections are taken for dead.
const TIMEOUTS_MAX: u32 = 2;
/// Listening takes no longer than this.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits come first: a behaviour that refuses a connection must do so before others note it (rust-libp2p #4870).
#[derive(NetworkBehaviour)]
struct Behaviour {
    limits: connection_limits::Behaviour,
    blocked: allow_block_list::Behaviour<BlockedPeers>,
    requests: request_response::Behaviour<Codec>,
}

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
    pub(super) meter: Arc<Meter>,
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
pub(super) struct Driver {
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

fn transport(config: &ControlConfig, meter: Arc<Meter>) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let tls = tls::Config::new(config.identity.libp2p()).map_err(|error| StartError::Tls(error.to_string()))?;
    Ok(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |stream, _| Metered::new(stream, meter.clone()))
        .upgrade(Version::V1)
        .authenticate(tls)
        .multiplex(yamux::Config::default())
        .timeout(config.timeout)
        .boxed())
}

fn multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Tcp(addr.port()))
}

fn socket_addr(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

impl Driver {
    /// Makes the swarm and has it listen. Returns the addresses with the ports picked.
    pub(super) async fn start(
        config: ControlConfig,
        common: Arc<Common>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<ControlEvent>,
    ) -> Result<(Self, Vec<SocketAddr>), StartError> {
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(config.pending_max))
            .with_max_established_incoming(Some(config.connections_max))
            .with_max_established_per_peer(Some(PER_NODE_MAX));
        let codec =
            Codec { request_bytes_max: config.request_bytes_max, response_bytes_max: config.response_bytes_max };
        let requests = request_response::Config::default()
            .with_request_timeout(config.timeout)
            .with_max_concurrent_streams(config.requests_per_connection_max);
        let behaviour = Behaviour {
            limits: connection_limits::Behaviour::new(limits),
            blocked: allow_block_list::Behaviour::default(),
            requests: request_response::Behaviour::with_codec(codec, [(PROTOCOL, ProtocolSupport::Full)], requests),
        };
        let (tasks, stop) = (common.tasks.clone(), common.stop.clone());
        let executor = move |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = task => {}
                }
            });
        };
        let swarm_config =
            libp2p::swarm::Config::with_executor(executor).with_idle_connection_timeout(config.idle_timeout);
        let transport = transport(&config, common.meter.clone())?;
        let mut swarm = Swarm::new(transport, behaviour, config.identity.peer_id(), swarm_config);
        let local_addrs = listen(&mut swarm, &config.listen).await?;
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
                    .addresses(vec![multiaddr(addr)])
                    .condition(PeerCondition::Always)
                    .allocate_new_port()
                    .build()
            }
            None => DialOpts::unknown_peer_id().address(multiaddr(addr)).allocate_new_port().build(),
        };
        if self.dials.len() >= DIALS_MAX {
            return refuse(reply, ConnectError::Unavailable("busy"));
        }
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.insert(id, Dial { addr, expected, reply });
            }
            Err(error) => refuse(reply, dial_error(addr, expected, error)),
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
                    let _gone = reply.send(Err(dial_error(addr, expected, error)));
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
        let (Some(node), Some(remote)) = (node_of(&peer), socket_addr(remote)) else {
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
                    let _gone = reply.send(Err(request_error(error)));
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

/// Listens, and waits until every port is known.
async fn listen(swarm: &mut Swarm<Behaviour>, addrs: &[SocketAddr]) -> Result<Vec<SocketAddr>, StartError> {
    let mut local = addrs.to_vec();
    let mut waiting: HashMap<ListenerId, usize> = HashMap::new();
    for (at, addr) in addrs.iter().enumerate() {
        let id = swarm
            .listen_on(multiaddr(*addr))
            .map_err(|error| StartError::Listen { addr: *addr, why: innermost(&error) })?;
        waiting.insert(id, at);
    }
    while !waiting.is_empty() {
        let event = tokio::time::timeout(LISTEN_TIMEOUT, swarm.select_next_some()).await;
        let fail = |at: usize, why: String| Err(StartError::Listen { addr: addrs[at], why });
        match event {
            Ok(SwarmEvent::NewListenAddr { listener_id, address }) => {
                // An unspecified address yields one event for each interface; they share the port.
                if let (Some(at), Some(found)) = (waiting.remove(&listener_id), socket_addr(&address)) {
                    local[at].set_port(found.port());
                }
            }
            Ok(SwarmEvent::ListenerClosed { listener_id, reason, .. }) => {
                if let Some(at) = waiting.get(&listener_id) {
                    return fail(*at, reason.err().map_or("closed".to_string(), |error| error.to_string()));
                }
            }
            Ok(SwarmEvent::ListenerError { listener_id, error }) => {
                if let Some(at) = waiting.get(&listener_id) {
                    return fail(*at, innermost(&error));
                }
            }
            Ok(_) => {}
            Err(_) => return fail(waiting.values().copied().next().unwrap_or(0), "no answer in time".to_string()),
        }
    }
    Ok(local)
}

fn dial_error(addr: SocketAddr, expected: Option<NodeId>, error: DialError) -> ConnectError {
    match (error, expected) {
        (DialError::WrongPeerId { obtained, .. }, Some(expected)) => {
            let found = node_of(&obtained).map_or_else(|| obtained.to_string(), |node| node.to_string());
            ConnectError::WrongNode { addr, expected, found }
        }
        (DialError::Transport(errors), _) => {
            let why: Vec<String> = errors.into_iter().map(|(_, error)| innermost(&error)).collect();
            ConnectError::Unreachable { addr, why: why.join("; ") }
        }
        (error, _) => ConnectError::Unreachable { addr, why: innermost(&error) },
    }
}

/// libp2p wraps what the operating system said several times; the innermost is what helps an operator.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn request_error(error: OutboundFailure) -> RequestError {
    match error {
        OutboundFailure::DialFailure => RequestError::NotConnected,
        OutboundFailure::Timeout => RequestError::Timeout,
        OutboundFailure::ConnectionClosed => RequestError::Lost,
        OutboundFailure::UnsupportedProtocols => {
            RequestError::Protocol("the other end does not speak our control protocol".to_string())
        }
        OutboundFailure::Io(error) => match error.kind() {
            std::io::ErrorKind::InvalidInput => RequestError::TooLong,
            std::io::ErrorKind::UnexpectedEof => RequestError::Protocol("the other end gave no answer".to_string()),
            _ => RequestError::Protocol(error.to_string()),
        },
    }
}
