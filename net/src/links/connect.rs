//! Connections before they are links: listening, dialling, TLS and `Hello`. Also the periodic checks of links.
//!
//! Invariant: each connection is a link or closed when the handshake timeout has passed.

use super::context::EndpointContext;
use super::error::{AddressError, BindError, DialError, FailedAddress, Refusal};
use super::event::LinkEvent;
use super::hello::{HelloError, HelloOutcome, exchange_hello};
use super::link::Link;
use super::rate_limit::LinkScope;
use super::send_queue::SendQueue;
use super::session::Session;
use super::trust_exchange;
use crate::tls::{self, TlsError};
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::NodeId;
use shoal_proto::limits;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections that the kernel keeps until the endpoint accepts them.
const BACKLOG: i32 = 1024;
/// Pause after the operating system refused to accept. Mostly it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A dial that was refused as a duplicate waits this long for the other end's link.
const DUPLICATE_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval of the checks of credentials that may have expired.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(10);

/// A bound listener with its address, in which the port is known.
pub struct Listener {
    listener: TcpListener,
    pub(super) addr: SocketAddr,
}

impl Listener {
    /// Listens on `addr`. An IPv6 listener takes no IPv4 connections, so both can use one port.
    pub fn bind(addr: SocketAddr) -> Result<Self, BindError> {
        let bind = || -> io::Result<_> {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
            if addr.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            // Without this a restarted process would wait for the TIME_WAIT of its former connections.
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from_std(socket.into())?;
            let addr = listener.local_addr()?;
            Ok(Self { listener, addr })
        };
        bind().map_err(|source| BindError::Listen { addr, source })
    }

    /// Accepts connections until the endpoint closes.
    pub async fn accept_all(self, context: Arc<EndpointContext>) {
        loop {
            let accepted = tokio::select! {
                () = context.until_closing() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => match context.pending().acquire(remote.ip()) {
                    Some(permit) => {
                        let task = context.clone();
                        context.spawn(async move {
                            tokio::select! {
                                () = accept_connection(&task, stream, remote) => {}
                                () = permit.until_gone() => note_dropped(&task, remote, &"made room for another"),
                            }
                        });
                    }
                    None => note_dropped(&context, remote, &"too many connections wait for admission"),
                },
                Err(error) => {
                    if let Some(skipped) = context.warnings().pass() {
                        tracing::warn!(%error, skipped, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn note_dropped(context: &EndpointContext, remote: SocketAddr, reason: &dyn std::fmt::Display) {
    context.counters().count_dropped();
    tracing::debug!(%remote, %reason, "dropped a connection before admission");
}

async fn accept_connection(context: &Arc<EndpointContext>, stream: TcpStream, remote: SocketAddr) {
    let handshake = async {
        set_options(context, &stream)?;
        let (node, mut stream) = tls::accept(context.tls(), context.config().records, stream).await?;
        let hello = exchange_hello(context, &mut stream, node).await;
        Ok::<_, TlsError>((stream, node, hello))
    };
    let outcome = tokio::select! {
        () = context.until_closing() => return,
        outcome = timeout(context.config().handshake_timeout, handshake) => outcome,
    };
    match outcome {
        Ok(Ok((stream, node, Ok(hello)))) => {
            context.pending().known().add(remote.ip());
            start_session(context, stream, node, hello, remote, false);
        }
        Ok(Ok((_, node, Err(error)))) => {
            tracing::debug!(node = %node.short(), %remote, %error, "connection did not become a link");
            if let HelloError::Io(error) = error {
                note_dropped(context, remote, &error);
            }
        }
        Ok(Err(error)) => note_dropped(context, remote, &error),
        Err(_) => note_dropped(context, remote, &"not admitted in time"),
    }
}

fn set_options(context: &EndpointContext, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(context.config().kernel_unsent_bytes)?;
    Ok(())
}

/// Makes a connection a link. The function does not wait, so it cannot be cancelled halfway.
pub fn start_session<S>(
    context: &Arc<EndpointContext>,
    stream: S,
    node: NodeId,
    hello: HelloOutcome,
    remote: SocketAddr,
    dialled: bool,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let HelloOutcome { credential, slot, permit } = hello;
    let queue = SendQueue::new(context.config().messages_max, context.config().parts_max);
    let scope = LinkScope::between(context.config().locality.as_ref(), &credential.locality);
    let link = Arc::new(Link::new(node, credential, queue, context.rate_limits().limiter(scope)));
    slot.set_up(link.clone());
    // A shutdown between `Hello` and this line has not seen the link.
    if context.is_closing() {
        link.queue().close(CloseReason::Shutdown);
    }
    let session = Session { link, slot, permit, remote, dialled };
    context.spawn(session.run(context.clone(), stream));
}

/// Runs one dial. Emits `DialFailed` if no link comes up.
pub async fn dial(context: Arc<EndpointContext>, node: NodeId, addrs: Vec<SocketAddr>, cancelled: CancellationToken) {
    let attempts = async {
        // The `LinkDown` of the last link comes first, so the driver can assign later events to the right link.
        context.registry().until_settled(node).await;
        try_addresses(&context, node, &addrs).await
    };
    let error = tokio::select! {
        () = context.until_closing() => Some(DialError::ShuttingDown),
        () = cancelled.cancelled() => Some(DialError::Cancelled),
        () = context.registry().until_up(node) => None,
        outcome = attempts => outcome.err(),
    };
    let up = context.registry().link(&node).is_some();
    // Before the event, because the driver may dial again as soon as it has the event.
    context.registry().end_dial(&node);
    if let (Some(error), false) = (error, up) {
        context.emit(LinkEvent::DialFailed { node, error }).await;
    }
}

/// How an attempt at one address ended without a link.
enum FailedAttempt {
    /// The next address may work.
    Address(AddressError),
    /// Other addresses lead to the same node, so the dial is over.
    Final(DialError),
    /// The other end has a link already, or its own dial is on the way.
    Duplicate,
}

impl From<AddressError> for FailedAttempt {
    fn from(error: AddressError) -> Self {
        Self::Address(error)
    }
}

async fn try_addresses(context: &Arc<EndpointContext>, node: NodeId, addrs: &[SocketAddr]) -> Result<(), DialError> {
    let mut failures = Vec::new();
    for addr in addrs.iter().copied().take(limits::ADDRS_MAX) {
        match try_address(context, node, addr).await {
            Ok(()) => return Ok(()),
            Err(FailedAttempt::Duplicate) => {
                let up = timeout(DUPLICATE_TIMEOUT, context.registry().until_up(node)).await;
                return up.map_err(|_| DialError::MissingDuplicate);
            }
            Err(FailedAttempt::Final(error)) => return Err(error),
            Err(FailedAttempt::Address(error)) => failures.push(FailedAddress { addr, error }),
        }
    }
    Err(if failures.is_empty() { DialError::NoAddress } else { DialError::Unreachable(failures) })
}

async fn try_address(context: &Arc<EndpointContext>, node: NodeId, addr: SocketAddr) -> Result<(), FailedAttempt> {
    let connected = timeout(context.config().connect_timeout, TcpStream::connect(addr)).await;
    let stream = connected.map_err(|_| AddressError::NoAnswer)?.map_err(AddressError::Io)?;
    let handshake = timeout(context.config().handshake_timeout, introduce(context, stream, node, addr)).await;
    handshake.unwrap_or(Err(AddressError::NoLinkInTime.into()))
}

/// Runs TLS and `Hello` on a connection that this node dialled.
async fn introduce(
    context: &Arc<EndpointContext>,
    stream: TcpStream,
    node: NodeId,
    addr: SocketAddr,
) -> Result<(), FailedAttempt> {
    set_options(context, &stream).map_err(AddressError::Io)?;
    let connected = tls::connect(context.tls(), context.config().records, stream).await;
    let (found, mut stream) = connected.map_err(AddressError::Tls)?;
    if found != node {
        return Err(AddressError::WrongNode { expected: node, found }.into());
    }
    match exchange_hello(context, &mut stream, node).await {
        Ok(hello) => {
            start_session(context, stream, node, hello, addr, true);
            Ok(())
        }
        Err(HelloError::RefusedByPeer(CloseReason::Duplicate)) => Err(FailedAttempt::Duplicate),
        Err(HelloError::RefusedByPeer(reason)) => Err(FailedAttempt::Final(DialError::RefusedByPeer(reason))),
        // This node picks and has a link already. The dial does not fail then.
        Err(HelloError::Refused(Refusal::LinkExists)) => Err(FailedAttempt::Duplicate),
        Err(HelloError::Refused(refusal)) => Err(FailedAttempt::Final(refusal.into())),
        Err(HelloError::Io(error)) => Err(AddressError::Io(error).into()),
    }
}

/// Spreads a newer trust document, closes links whose credentials are no longer valid, and frees idle memory.
pub async fn keep_house(context: Arc<EndpointContext>) {
    let mut trust = context.config().admission.changes();
    loop {
        tokio::select! {
            () = context.until_closing() => return,
            _ = trust.changed() => {}
            () = tokio::time::sleep(HOUSEKEEPING_INTERVAL) => context.pool().trim(),
        }
        trust_exchange::spread(&context);
        for link in context.registry().links() {
            if let Err(error) = context.config().admission.check_again(link.credential()) {
                tracing::info!(node = %link.node().short(), %error, "closing a link whose credential is no longer valid");
                link.queue().close(CloseReason::NotAdmitted);
            }
        }
    }
}
