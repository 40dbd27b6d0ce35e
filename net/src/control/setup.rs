//! How the libp2p swarm is put together, and what its addresses and errors are in our words.

use super::byte_counter::{ByteCounter, CountedStream};
use super::codec::Codec;
use super::event_loop::Common;
use super::pending_per_ip;
use super::{ConnectError, ControlConfig, RequestError, StartError};
use crate::identity::node_of;
use futures::stream::StreamExt;
use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, ListenerId, Transport};
use libp2p::core::upgrade::Version;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::request_response::{self, OutboundFailure, ProtocolSupport};
use libp2p::swarm::{DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, tcp, tls, yamux};
use shoal_proto::ids::NodeId;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Name and version of the protocol.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/control/1");
/// Connections to one node: one, and one more while the other is being given up.
const PER_NODE_MAX: u32 = 2;
/// Listening takes no longer than this.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits come first: a behaviour that refuses a connection must do so before others note it (rust-libp2p #4870).
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) pending_per_ip: pending_per_ip::Behaviour,
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) requests: request_response::Behaviour<Codec>,
}

/// The swarm, not listening yet. Its tasks are tracked and end with `common.stop`.
pub(super) fn swarm(config: &ControlConfig, common: &Common) -> Result<Swarm<Behaviour>, StartError> {
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(config.pending_max))
        .with_max_established_incoming(Some(config.connections_max))
        .with_max_established_per_peer(Some(PER_NODE_MAX));
    let codec = Codec { request_bytes_max: config.request_bytes_max, response_bytes_max: config.response_bytes_max };
    let requests = request_response::Config::default()
        .with_request_timeout(config.timeout)
        .with_max_concurrent_streams(config.requests_per_connection_max);
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        pending_per_ip: pending_per_ip::Behaviour::new(config.pending_per_addr_max),
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
    let swarm_config = libp2p::swarm::Config::with_executor(executor).with_idle_connection_timeout(config.idle_timeout);
    let transport = transport(config, common.byte_counter.clone())?;
    Ok(Swarm::new(transport, behaviour, config.identity.peer_id(), swarm_config))
}

fn transport(
    config: &ControlConfig,
    byte_counter: Arc<ByteCounter>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let tls = tls::Config::new(config.identity.libp2p()).map_err(|error| StartError::Tls(error.to_string()))?;
    Ok(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |stream, _| CountedStream::new(stream, byte_counter.clone()))
        .upgrade(Version::V1)
        .authenticate(tls)
        .multiplex(yamux::Config::default())
        .timeout(config.timeout)
        .boxed())
}

pub(super) fn multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Tcp(addr.port()))
}

pub(super) fn socket_addr(addr: &Multiaddr) -> Option<SocketAddr> {
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

/// Listens, and waits until every port is known.
pub(super) async fn listen(swarm: &mut Swarm<Behaviour>, addrs: &[SocketAddr]) -> Result<Vec<SocketAddr>, StartError> {
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

pub(super) fn dial_error(addr: SocketAddr, expected: Option<NodeId>, error: DialError) -> ConnectError {
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

pub(super) fn request_error(error: OutboundFailure) -> RequestError {
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
