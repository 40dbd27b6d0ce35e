//! Assembly of the libp2p swarm: transport, limits and protocol.
//!
//! Invariant: limits come before the protocol in [`Behaviour`]. A behaviour that refuses a connection must do so before
//! another behaviour notes the connection (rust-libp2p issue 4870).

use super::address::{multiaddr, socket_addr};
use super::byte_counter::{ByteCounter, CountedStream};
use super::codec::Codec;
use super::config::ControlConfig;
use super::context::ControlContext;
use super::entrance::{self, Limits};
use super::error::{StartError, innermost};
use super::gate::Gates;
use crate::range::KnownRanges;
use futures::stream::StreamExt;
use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::ConnectedPoint;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, ListenerId, Transport};
use libp2p::core::upgrade::Version;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, tcp, tls, yamux};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Name and version of the protocol.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/control/1");
/// Connections to one node: one, and another one while the first is being given up.
const CONNECTIONS_PER_NODE_MAX: u32 = 2;
/// The time in which every listener must be ready.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The behaviours of the swarm. The order of the fields matters, see the module's invariant.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) entrance: entrance::Behaviour,
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) requests: request_response::Behaviour<Codec>,
}

/// Returns the swarm, not listening yet. Its tasks are tracked and end with `context.stop`.
pub fn swarm(config: &ControlConfig, context: &ControlContext) -> Result<Swarm<Behaviour>, StartError> {
    // The entrance keeps fewer. These limits also count connections that have given way and end just now.
    let unadmitted = config.unadmitted_max.saturating_mul(2);
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(unadmitted.saturating_mul(2)))
        .with_max_established_incoming(Some(config.connections_max.saturating_add(unadmitted)))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_NODE_MAX));
    let gates = Gates::default();
    let codec = Codec::new(config.request_bytes_max, config.response_bytes_max);
    let requests = request_response::Config::default()
        .with_request_timeout(config.timeout)
        .with_max_concurrent_streams(config.requests_per_connection_max);
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        entrance: entrance(config, context, gates.clone()),
        blocked: allow_block_list::Behaviour::default(),
        requests: request_response::Behaviour::with_codec(codec, [(PROTOCOL, ProtocolSupport::Full)], requests),
    };
    let (tasks, stop) = (context.tasks.clone(), context.stop.clone());
    let executor = move |task: Pin<Box<dyn Future<Output = ()> + Send>>| {
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    };
    let swarm_config = libp2p::swarm::Config::with_executor(executor).with_idle_connection_timeout(config.idle_timeout);
    let transport = transport(config, context.byte_counter.clone(), gates)?;
    Ok(Swarm::new(transport, behaviour, config.identity.peer_id(), swarm_config))
}

fn entrance(config: &ControlConfig, context: &ControlContext, gates: Gates) -> entrance::Behaviour {
    let limits = Limits {
        places: config.unadmitted_max as usize,
        places_per_range: config.unadmitted_per_range_max as usize,
        request_within: config.unadmitted_timeout,
        answer_within: config.timeout,
        admitted_max: config.connections_max as usize,
    };
    let known = KnownRanges::default();
    config.known.iter().for_each(|addr| known.add(*addr));
    entrance::Behaviour::new(limits, known, gates, context.entrance.clone())
}

fn transport(
    config: &ControlConfig,
    byte_counter: Arc<ByteCounter>,
    gates: Gates,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let tls = tls::Config::new(config.identity.libp2p())?;
    Ok(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |stream, point| {
            let gate = match &point {
                ConnectedPoint::Listener { local_addr, send_back_addr } => Some(gates.take(local_addr, send_back_addr)),
                ConnectedPoint::Dialer { .. } => None,
            };
            CountedStream::new(stream, byte_counter.clone(), gate)
        })
        .upgrade(Version::V1)
        .authenticate(tls)
        .multiplex(multiplexing(config))
        .timeout(config.timeout)
        .boxed())
}

/// A node may have a stream for each request, and some more that are just ending.
fn multiplexing(config: &ControlConfig) -> yamux::Config {
    let mut multiplexing = yamux::Config::default();
    multiplexing.set_max_num_streams(4 * config.requests_per_connection_max);
    multiplexing
}

/// Listens on `addrs`. Returns them with their ports, once every port is known.
pub async fn listen(swarm: &mut Swarm<Behaviour>, addrs: &[SocketAddr]) -> Result<Vec<SocketAddr>, StartError> {
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
                // An unspecified address yields one event for each interface. All of them have the same port.
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
            Err(_) => return fail(waiting.values().copied().next().unwrap_or(0), "not ready in time".to_string()),
        }
    }
    Ok(local)
}
