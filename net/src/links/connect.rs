//! Connections until they are links: listening, dialling, TLS, greeting; and the housekeeping of links that are up.
//!
//! Invariant: every connection is a link or closed when the handshake's time is up.

use super::context::EndpointContext;
use super::hello::{HelloError, HelloOutcome, exchange_hello};
use super::link::{self, Arrival, Link};
use super::rate_limit;
use super::send_queue::Queue;
use super::{BindError, LinkEvent};
use crate::tls::{accept as accept_tls, connect as connect_tls};
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::NodeId;
use shoal_proto::limits;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections the kernel keeps for us until we accept them.
const BACKLOG: i32 = 1024;
/// Pause after the operating system refuses to accept (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A dial that lost to the other end's waits this long for that one to come up.
const DUPLICATE_WAIT: Duration = Duration::from_secs(3);
/// Between two looks at credentials that may have expired.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// Listens on one address. An IPv6 address takes no IPv4 connections, so that both can be given with one port.
pub(super) fn listen(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let bind = || -> io::Result<_> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Or a restart would wait for the old connections' TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    bind().map_err(|source| BindError::Listen { addr, source })
}

/// Accepts until the endpoint closes.
pub(super) async fn accept(context: Arc<EndpointContext>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = context.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => match context.pending.try_acquire(remote.ip()) {
                Some(permit) => {
                    let task = context.clone();
                    context.spawn(async move {
                        welcome(&task, stream, remote).await;
                        drop(permit);
                    });
                }
                None => stranger(&context, remote, &"too many connections await admission"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn stranger(context: &EndpointContext, remote: SocketAddr, why: &dyn std::fmt::Display) {
    context.counters.strangers.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(%remote, %why, "dropped a connection");
}

async fn welcome(context: &Arc<EndpointContext>, stream: TcpStream, remote: SocketAddr) {
    let handshake = async {
        set_options(context, &stream)?;
        let (node, mut tls) = accept_tls(&context.tls, stream).await?;
        let hello = exchange_hello(context, &mut tls, node).await;
        Ok::<_, io::Error>((tls, node, hello))
    };
    let outcome = tokio::select! {
        () = context.closing.cancelled() => return,
        outcome = timeout(context.config.handshake_timeout, handshake) => outcome,
    };
    match outcome {
        Ok(Ok((tls, node, Ok(hello)))) => start(context, tls, node, hello, remote, false),
        Ok(Ok((_, node, Err(error)))) => {
            tracing::debug!(node = %node.short(), %remote, %error, "no link");
            if let HelloError::Io(error) = error {
                stranger(context, remote, &error);
            }
        }
        Ok(Err(error)) => stranger(context, remote, &error),
        Err(_) => stranger(context, remote, &"not admitted in time"),
    }
}

fn set_options(context: &EndpointContext, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(context.config.kernel_unsent_bytes)?;
    Ok(())
}

/// Makes a hello connection a link. There is no point of waiting in here, so it cannot happen by halves.
pub(super) fn start<S>(
    context: &Arc<EndpointContext>,
    stream: S,
    node: NodeId,
    hello: HelloOutcome,
    remote: SocketAddr,
    dialled: bool,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let HelloOutcome { credential, seat, slot } = hello;
    let queue = Queue::new(context.config.messages_max, context.config.parts_max);
    let scope = rate_limit::scope(context.config.locality.as_ref(), &credential.locality);
    let limit = context.rate_limits.of_link(scope);
    let link = Arc::new(Link::new(node, Arc::new(credential), queue, limit));
    seat.up(link.clone());
    if context.closing.is_cancelled() {
        link.queue.close(CloseReason::Shutdown);
    }
    context.spawn(link::run(context.clone(), stream, link, seat, Arrival { remote, dialled, slot }));
}

/// One dial, to its answer.
pub(super) async fn dial(
    context: Arc<EndpointContext>,
    node: NodeId,
    addrs: Vec<SocketAddr>,
    cancelled: CancellationToken,
) {
    let work = async {
        // The last link's `LinkDown` comes first, so that the driver can tell to which of both a later event belongs.
        context.registry.until_settled(node).await;
        reach(&context, node, &addrs).await
    };
    let error = tokio::select! {
        () = context.closing.cancelled() => Some("shutting down".to_string()),
        () = cancelled.cancelled() => Some("cancelled".to_string()),
        () = context.registry.until_up(node) => None,
        outcome = work => outcome.err(),
    };
    let up = context.registry.link(&node).is_some();
    // Before the answer: a dial asked for once the answer is out must not be taken for this one.
    context.registry.end_dial(&node);
    if let (Some(error), false) = (error, up) {
        context.emit(LinkEvent::DialFailed { node, error }).await;
    }
}

/// Tries the addresses in order.
async fn reach(context: &Arc<EndpointContext>, node: NodeId, addrs: &[SocketAddr]) -> Result<(), String> {
    let mut errors = Vec::new();
    for addr in addrs.iter().copied().take(limits::ADDRS_MAX) {
        let connected = match timeout(context.config.connect_timeout, TcpStream::connect(addr)).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err("no answer".to_string()),
        };
        let outcome = match connected {
            Ok(stream) => timeout(context.config.handshake_timeout, introduce(context, stream, node, addr))
                .await
                .unwrap_or_else(|_| Err(Attempt::Other("no link in time".to_string()))),
            Err(error) => Err(Attempt::Other(error)),
        };
        match outcome {
            Ok(()) => return Ok(()),
            Err(Attempt::Refused(CloseReason::Duplicate)) => {
                // Its own dial to us is on the way, or up already.
                let up = timeout(DUPLICATE_WAIT, context.registry.until_up(node)).await;
                return up.map_err(|_| "refused: it has a link to us that we do not know".to_string());
            }
            Err(Attempt::Refused(reason)) => return Err(format!("refused: {reason}")),
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Other(error)) => errors.push(format!("{addr}: {error}")),
        }
    }
    Err(if errors.is_empty() { "no address".to_string() } else { errors.join("; ") })
}

/// Why one address did not work.
enum Attempt {
    /// The node itself said no: other addresses lead to the same node.
    Refused(CloseReason),
    /// We said no to the node.
    Final(String),
    /// Anything about this address.
    Other(String),
}

async fn introduce(
    context: &Arc<EndpointContext>,
    stream: TcpStream,
    node: NodeId,
    addr: SocketAddr,
) -> Result<(), Attempt> {
    let other = |error: io::Error| Attempt::Other(error.to_string());
    set_options(context, &stream).map_err(other)?;
    let (found, mut tls) = connect_tls(&context.tls, stream).await.map_err(other)?;
    if found != node {
        return Err(Attempt::Other(format!("is {}, not {}", found.short(), node.short())));
    }
    match exchange_hello(context, &mut tls, node).await {
        Ok(hello) => {
            start(context, tls, node, hello, addr, true);
            Ok(())
        }
        Err(HelloError::Refused(reason)) => Err(Attempt::Refused(reason)),
        // We are the one to pick, and have a link: not a failure.
        Err(HelloError::Refuse { reason: CloseReason::Duplicate, .. }) => Err(Attempt::Refused(CloseReason::Duplicate)),
        Err(error @ HelloError::Refuse { .. }) => Err(Attempt::Final(error.to_string())),
        Err(HelloError::Io(error)) => Err(other(error)),
    }
}

/// Closes links whose credentials no longer hold, and frees memory that is not in use.
pub(super) async fn keep_house(context: Arc<EndpointContext>) {
    let mut trust = context.config.admission.changes();
    loop {
        tokio::select! {
            () = context.closing.cancelled() => return,
            _ = trust.changed() => {}
            () = tokio::time::sleep(HOUSEKEEPING) => context.pool.trim(),
        }
        for link in context.registry.links() {
            if let Err(error) = context.config.admission.still_holds(&link.credential) {
                tracing::info!(node = %link.node.short(), %error, "closing a link");
                link.queue.close(CloseReason::NotAdmitted);
            }
        }
    }
}
