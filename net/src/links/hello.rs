//! The first frames of a connection: credentials both ways, and the choice of one link for each pair of nodes.
//!
//! Invariant: a connection becomes a link only after both ends have admitted each other, and only one connection
//! between two nodes does so at a time: the node with the smaller id picks it.
//!
//! ```text
//! greater id                smaller id
//!    Hello  ------------------->   admit; take the seat, or Bye(Duplicate)
//!    admit  <-------------------   Hello
//!    Pong   ------------------->   up
//!    up
//! ```

use super::context::EndpointContext;
use super::link::drain;
use super::registry::{ClaimResult, LinkSlot};
use shoal_proto::announcement::Class;
use shoal_proto::frame::{CloseReason, FrameKind, HEADER_BYTES, Header, PROTOCOL_VERSION};
use shoal_proto::ids::NodeId;
use shoal_proto::trust::Credential;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// A link that does not answer a `Ping` within this, while its other end dials anew, is dead.
const PROBE: Duration = Duration::from_secs(2);
/// How long the other end may take to read our `Bye`.
const BYE_LINGER: Duration = Duration::from_secs(1);

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    /// The other end refused us.
    #[error("refused: {0}")]
    Refused(CloseReason),
    /// We refused the other end.
    #[error("{why}")]
    Refuse {
        /// What it was told.
        reason: CloseReason,
        /// What we say of it.
        why: String,
    },
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn refuse(reason: CloseReason, why: impl ToString) -> HelloError {
    HelloError::Refuse { reason, why: why.to_string() }
}

/// What a greeting yields.
pub(super) struct HelloOutcome {
    pub(super) credential: Credential,
    pub(super) seat: LinkSlot,
    pub(super) slot: OwnedSemaphorePermit,
}

/// Greets `node`, whose key the connection has proven. On refusal the other end is told why. The caller sets a
/// deadline.
pub(super) async fn exchange_hello<S>(
    context: &EndpointContext,
    io: &mut S,
    node: NodeId,
) -> Result<HelloOutcome, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let result = match context.node.cmp(&node) {
        std::cmp::Ordering::Greater => say_hello_first(context, io, node).await,
        std::cmp::Ordering::Less => answer_hello(context, io, node).await,
        std::cmp::Ordering::Equal => Err(refuse(CloseReason::NotAdmitted, "that is this node's own key")),
    };
    if let Err(HelloError::Refuse { reason, .. }) = &result {
        if *reason == CloseReason::NotAdmitted {
            context.counters.not_admitted.fetch_add(1, Ordering::Relaxed);
        }
        let _best_effort = timeout(BYE_LINGER, async {
            write_frame(io, FrameKind::Bye, &[*reason as u8]).await?;
            io.shutdown().await?;
            drain(io).await;
            std::io::Result::Ok(())
        })
        .await;
    }
    result
}

async fn say_hello_first<S>(context: &EndpointContext, io: &mut S, node: NodeId) -> Result<HelloOutcome, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let slot = take_link_permit(context)?;
    send_hello(context, io).await?;
    let credential = receive_hello(context, io, node).await?;
    // The other end picks, and has picked this connection: a link we still believe in is gone there.
    let mut changes = context.registry.changes();
    let seat = loop {
        match context.registry.claim(node) {
            ClaimResult::Claimed(seat) => break seat,
            ClaimResult::Up(old) => old.cut("the other end has replaced it"),
            ClaimResult::Busy => {}
        }
        changes.next().await;
    };
    write_frame(io, FrameKind::Pong, &[]).await?;
    Ok(HelloOutcome { credential, seat, slot })
}

async fn answer_hello<S>(context: &EndpointContext, io: &mut S, node: NodeId) -> Result<HelloOutcome, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let credential = receive_hello(context, io, node).await?;
    let slot = take_link_permit(context)?;
    let seat = pick(context, node).await?;
    send_hello(context, io).await?;
    let header = read_header(io).await?;
    match header.kind {
        FrameKind::Pong => Ok(HelloOutcome { credential, seat, slot }),
        FrameKind::Bye => Err(HelloError::Refused(read_reason(io, header).await?)),
        _ => Err(refuse(CloseReason::Protocol, "expected a pong")),
    }
}

/// Takes the seat if no living link has it.
async fn pick(context: &EndpointContext, node: NodeId) -> Result<LinkSlot, HelloError> {
    let mut changes = context.registry.changes();
    loop {
        match context.registry.claim(node) {
            ClaimResult::Claimed(seat) => return Ok(seat),
            ClaimResult::Busy => {}
            ClaimResult::Up(old) => {
                // Either both dialled at once, or the other end has restarted and our old link is a corpse. Ask it.
                let answered = old.answered.notified();
                tokio::pin!(answered);
                answered.as_mut().enable();
                old.queue.ping();
                tokio::select! {
                    () = answered => return Err(refuse(CloseReason::Duplicate, "a link is up already")),
                    () = changes.next() => continue,
                    () = tokio::time::sleep(PROBE) => {}
                }
                if old.activity.is_blocked() {
                    // We are not reading it, so its silence says nothing.
                    return Err(refuse(CloseReason::Duplicate, "a link is up already"));
                }
                old.cut("silent while the other end dialled anew");
            }
        }
        changes.next().await;
    }
}

fn take_link_permit(context: &EndpointContext) -> Result<OwnedSemaphorePermit, HelloError> {
    context.link_permits.clone().try_acquire_owned().map_err(|_| refuse(CloseReason::Busy, "too many links"))
}

async fn send_hello<S: AsyncWrite + Unpin>(context: &EndpointContext, io: &mut S) -> std::io::Result<()> {
    let credential = context.config.admission.credential();
    let mut body = Vec::with_capacity(1 + credential.len());
    body.push(PROTOCOL_VERSION);
    body.extend_from_slice(credential);
    write_frame(io, FrameKind::Hello, &body).await
}

async fn receive_hello<S: AsyncRead + Unpin>(
    context: &EndpointContext,
    io: &mut S,
    node: NodeId,
) -> Result<Credential, HelloError> {
    let header = read_header(io).await?;
    match header.kind {
        FrameKind::Hello => {}
        FrameKind::Bye => return Err(HelloError::Refused(read_reason(io, header).await?)),
        _ => return Err(refuse(CloseReason::Protocol, "expected a hello")),
    }
    let mut body = vec![0; header.body_len as usize];
    io.read_exact(&mut body).await?;
    let [version, credential @ ..] = body.as_slice() else {
        return Err(refuse(CloseReason::Protocol, "empty hello"));
    };
    if *version != PROTOCOL_VERSION {
        return Err(refuse(CloseReason::Protocol, format!("speaks link protocol {version}, not {PROTOCOL_VERSION}")));
    }
    context.config.admission.admit(credential, node).map_err(|error| refuse(CloseReason::NotAdmitted, error))
}

async fn read_header<S: AsyncRead + Unpin>(io: &mut S) -> Result<Header, HelloError> {
    let mut head = [0; HEADER_BYTES];
    io.read_exact(&mut head).await?;
    Header::from_bytes(&head).map_err(|error| refuse(CloseReason::Protocol, error))
}

async fn read_reason<S: AsyncRead + Unpin>(io: &mut S, header: Header) -> Result<CloseReason, HelloError> {
    let number = if header.body_len == 1 { io.read_u8().await? } else { 0 };
    CloseReason::from_wire(number).ok_or_else(|| refuse(CloseReason::Protocol, "bye without a reason"))
}

async fn write_frame<S: AsyncWrite + Unpin>(io: &mut S, kind: FrameKind, body: &[u8]) -> std::io::Result<()> {
    let header = Header { kind, class: Class::Control, body_len: body.len() as u32, stamp: 0 };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(body);
    io.write_all(&frame).await?;
    io.flush().await
}
