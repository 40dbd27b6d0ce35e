//! The first frames of a connection: credentials both ways, and the choice of one link for each pair of nodes.
//!
//! Invariant: a connection becomes a link only after both ends have admitted each other. Of several connections between
//! two nodes the node with the smaller id picks one.
//!
//! ```text
//! greater id                smaller id
//!    Hello  ------------------->   admit, then take the slot or send Bye(Duplicate)
//!    admit  <-------------------   Hello
//!    Pong   ------------------->   up
//!    up
//! ```

use super::context::EndpointContext;
use super::error::{AbortReason, Refusal};
use super::link::Link;
use super::reader::discard_until_closed;
use super::registry::{ClaimResult, LinkSlot};
use shoal_proto::announcement::Class;
use shoal_proto::frame::{CloseReason, FrameKind, HEADER_BYTES, Header, PROTOCOL_VERSION};
use shoal_proto::ids::NodeId;
use shoal_proto::trust::{Admitted, Role};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// A link whose other end dials again must answer a `Ping` within this time. Otherwise the link is dead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the other end to read our `Bye`.
const BYE_LINGER: Duration = Duration::from_secs(1);

/// The reason for which a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("peer refused the link: {0}")]
    RefusedByPeer(CloseReason),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the exchange of `Hello` yields.
pub struct HelloOutcome {
    pub(super) credential: Admitted,
    pub(super) slot: LinkSlot<Link>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Exchanges `Hello` with `node`, whose key TLS has proven. On a refusal the other end learns the reason. The caller
/// sets a deadline.
pub async fn exchange_hello<S>(context: &EndpointContext, io: &mut S, node: NodeId) -> Result<HelloOutcome, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let result = match context.node().cmp(&node) {
        std::cmp::Ordering::Greater => say_hello_first(context, io, node).await,
        std::cmp::Ordering::Less => answer_hello(context, io, node).await,
        std::cmp::Ordering::Equal => Err(Refusal::OwnKey.into()),
    };
    if let Err(HelloError::Refused(refusal)) = &result {
        let reason = refusal.close_reason();
        if reason == CloseReason::NotAdmitted {
            context.counters().count_refused();
        }
        let say_bye = async {
            write_frame(io, FrameKind::Bye, &[reason as u8]).await?;
            io.shutdown().await?;
            discard_until_closed(io).await;
            io::Result::Ok(())
        };
        let _ = timeout(BYE_LINGER, say_bye).await; // the connection is refused in any case
    }
    result
}

/// The side of the greater id: it speaks first and follows the other end's choice.
async fn say_hello_first<S>(context: &EndpointContext, io: &mut S, node: NodeId) -> Result<HelloOutcome, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let permit = context.try_link_permit().ok_or(Refusal::TooManyLinks)?;
    send_hello(context, io).await?;
    let credential = receive_hello(context, io, node).await?;
    // The other end has picked this connection. So a link that this end still has is gone at the other end.
    let mut changes = context.registry().changes();
    let slot = loop {
        match context.registry().claim(node) {
            ClaimResult::Claimed(slot) => break slot,
            ClaimResult::Up(former) => former.abort(AbortReason::Replaced),
            ClaimResult::Busy => {}
        }
        changes.next().await;
    };
    write_frame(io, FrameKind::Pong, &[]).await?;
    Ok(HelloOutcome { credential, slot, permit })
}

/// The side of the smaller id: it answers on the connection that it picks.
async fn answer_hello<S>(context: &EndpointContext, io: &mut S, node: NodeId) -> Result<HelloOutcome, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let credential = receive_hello(context, io, node).await?;
    let permit = context.try_link_permit().ok_or(Refusal::TooManyLinks)?;
    let slot = pick_connection(context, node).await?;
    send_hello(context, io).await?;
    let header = read_header(io).await?;
    match header.kind {
        FrameKind::Pong => Ok(HelloOutcome { credential, slot, permit }),
        FrameKind::Bye => Err(HelloError::RefusedByPeer(read_reason(io, header).await?)),
        _ => Err(Refusal::ExpectedPong.into()),
    }
}

/// Takes the node's slot unless a living link holds it.
async fn pick_connection(context: &EndpointContext, node: NodeId) -> Result<LinkSlot<Link>, Refusal> {
    let mut changes = context.registry().changes();
    loop {
        match context.registry().claim(node) {
            ClaimResult::Claimed(slot) => return Ok(slot),
            ClaimResult::Busy => {}
            ClaimResult::Up(former) => {
                // Either both ends dialled at once, or the other end has restarted and our link is dead. A ping tells.
                let pong = former.pong().notified();
                tokio::pin!(pong);
                pong.as_mut().enable();
                former.queue().ping();
                tokio::select! {
                    () = pong => return Err(Refusal::LinkExists),
                    () = changes.next() => continue,
                    () = tokio::time::sleep(PROBE_TIMEOUT) => {}
                }
                if former.activity().is_reading_paused() {
                    // We do not read the link, so its silence tells nothing.
                    return Err(Refusal::LinkExists);
                }
                former.abort(AbortReason::SilentWhileDialled);
            }
        }
        changes.next().await;
    }
}

async fn send_hello<S: AsyncWrite + Unpin>(context: &EndpointContext, io: &mut S) -> io::Result<()> {
    let credential = context.config().admission.credential();
    let mut body = Vec::with_capacity(1 + credential.len());
    body.push(PROTOCOL_VERSION);
    body.extend_from_slice(&credential);
    write_frame(io, FrameKind::Hello, &body).await
}

async fn receive_hello<S>(context: &EndpointContext, io: &mut S, node: NodeId) -> Result<Admitted, HelloError>
where
    S: AsyncRead + Unpin,
{
    let header = read_header(io).await?;
    match header.kind {
        FrameKind::Hello => {}
        FrameKind::Bye => return Err(HelloError::RefusedByPeer(read_reason(io, header).await?)),
        _ => return Err(Refusal::ExpectedHello.into()),
    }
    let mut body = vec![0; header.body_len as usize];
    io.read_exact(&mut body).await?;
    let [version, credential @ ..] = body.as_slice() else { return Err(Refusal::EmptyHello.into()) };
    if *version != PROTOCOL_VERSION {
        return Err(Refusal::Version(*version).into());
    }
    let admitted = context.config().admission.admit(credential, node).map_err(Refusal::NotAdmitted)?;
    if context.refused().contains(&node) {
        return Err(Refusal::Banned.into());
    }
    match admitted.role {
        Role::Peer | Role::Seeder => Ok(admitted),
        // Trackers and hubs carry no payload, so a link would only give a stolen key more to attack.
        role => Err(Refusal::Role(role).into()),
    }
}

async fn read_header<S: AsyncRead + Unpin>(io: &mut S) -> Result<Header, HelloError> {
    let mut head = [0; HEADER_BYTES];
    io.read_exact(&mut head).await?;
    Ok(Header::from_bytes(&head).map_err(Refusal::Malformed)?)
}

async fn read_reason<S: AsyncRead + Unpin>(io: &mut S, header: Header) -> Result<CloseReason, HelloError> {
    let number = if header.body_len == 1 { io.read_u8().await? } else { 0 };
    Ok(CloseReason::from_wire(number).ok_or(Refusal::ByeWithoutReason)?)
}

async fn write_frame<S: AsyncWrite + Unpin>(io: &mut S, kind: FrameKind, body: &[u8]) -> io::Result<()> {
    let header = Header { kind, class: Class::Control, body_len: body.len() as u32, stamp: 0 };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(body);
    io.write_all(&frame).await?;
    io.flush().await
}
