//! One link from `LinkUp` to `LinkDown`: reader, writer and keep-alive in one task.
//!
//! Invariant: `LinkUp` is emitted before anything that the link brings, and `LinkDown` after all of it, while the link
//! still holds its node's slot.

use super::context::EndpointContext;
use super::error::LinkError;
use super::event::LinkEvent;
use super::keep_alive;
use super::link::Link;
use super::reader::{ReadEnd, Reader, discard_until_closed};
use super::registry::LinkSlot;
use super::trust_exchange;
use super::writer;
use shoal_proto::frame::CloseReason;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

/// Time to write out the rest of a slice, the messages that still go, and `Bye`.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the other end to read our `Bye` and close. The kernel resets a connection that is closed with unread
/// bytes, and the reset can overtake the `Bye`.
const LINGER: Duration = Duration::from_secs(1);

/// What a session owns for its whole life.
pub struct Session {
    pub(super) link: Arc<Link>,
    pub(super) slot: LinkSlot<Link>,
    /// The permit among all links of the endpoint.
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) remote: SocketAddr,
    /// Whether this node dialled.
    pub(super) dialled: bool,
}

/// How a link ended.
enum LinkEnd {
    /// The other end sent `Bye`.
    ClosedByPeer(CloseReason),
    /// We sent `Bye`.
    Closed,
    Failed(LinkError),
}

impl Session {
    /// Runs the link to its end.
    pub async fn run<S>(self, context: Arc<EndpointContext>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send,
    {
        let Self { link, slot, permit, remote, dialled } = self;
        let node = link.node();
        context.emit(LinkEvent::LinkUp { node, credential: link.credential().clone(), remote, dialled }).await;
        trust_exchange::tell_version(&context, &link);
        let (read_half, mut write_half) = tokio::io::split(stream);
        let mut reader = Reader::new(context.clone(), link.clone(), read_half);
        let end = {
            let writing = writer::run(&context, &link, &mut write_half);
            serve(&context, &link, &mut reader, writing).await
        };
        slot.set_closing();
        let polite = !matches!(end, LinkEnd::Failed(_));
        let (reason, error) = match end {
            LinkEnd::ClosedByPeer(reason) => (Some(reason), None),
            LinkEnd::Closed => (None, None),
            LinkEnd::Failed(error) => (None, Some(error)),
        };
        // This drops parts received so far, so their memory is free before the driver learns of the end.
        let mut read_half = reader.into_io();
        context.emit(LinkEvent::LinkDown { node, reason, error }).await;
        drop((slot, permit));
        if polite {
            let close = async {
                if let Ok(()) = write_half.shutdown().await {
                    discard_until_closed(&mut read_half).await;
                }
            };
            let _ = timeout(LINGER, close).await; // the link is over in any case
        }
    }
}

/// Runs reader, writer and keep-alive side by side until one of them ends the link.
async fn serve<R>(
    context: &EndpointContext,
    link: &Link,
    reader: &mut Reader<R>,
    writing: impl Future<Output = io::Result<()>>,
) -> LinkEnd
where
    R: AsyncRead + Unpin,
{
    let mut writing = std::pin::pin!(writing);
    let violation = {
        let closing = async {
            link.queue().until_closing().await;
            sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            end = reader.run() => match end {
                ReadEnd::Bye(reason) => return LinkEnd::ClosedByPeer(reason),
                ReadEnd::Lost(error) => return LinkEnd::Failed(error),
                ReadEnd::Violation(violation) => violation,
            },
            written = writing.as_mut() => return match written {
                Ok(()) => LinkEnd::Closed,
                Err(error) => LinkEnd::Failed(LinkError::Io(error)),
            },
            error = keep_alive::run(context.config(), link) => return LinkEnd::Failed(error),
            reason = link.until_aborted() => return LinkEnd::Failed(LinkError::Aborted(reason)),
            () = closing => return LinkEnd::Closed,
        }
    };
    link.queue().close(CloseReason::Protocol);
    // The writer may be in the middle of a slice. It finishes the slice and then sends `Bye`.
    let _ = timeout(CLOSE_TIMEOUT, writing).await; // the link is over in any case
    LinkEnd::Failed(violation.into())
}
