//! One connection of the server: its permits, its counted bytes, and the deadline of request bodies.
//!
//! Invariant: the count of an address equals the number of its [`AddressPermit`]s. Addresses without one use no memory.

use axum::body::Body;
use axum::extract::Request;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Connections from one address at a time. More are closed.
const CONNECTIONS_PER_ADDRESS_MAX: usize = super::CONNECTIONS_MAX / 4;
/// The time for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// The number of connections of each address.
#[derive(Clone, Default)]
pub(super) struct AddressLimiter {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl AddressLimiter {
    /// Returns a permit for a connection, or `None` if its address has as many as it may have.
    pub(super) fn try_acquire(&self, stream: &TcpStream) -> Option<AddressPermit> {
        let addr = stream.peer_addr().ok()?.ip();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(addr).or_default();
        if *count >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(AddressPermit { limiter: self.clone(), addr })
    }
}

/// The right of one connection to be served. Dropping the permit makes room for another connection.
pub(super) struct AddressPermit {
    limiter: AddressLimiter,
    addr: IpAddr,
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut counts = self.limiter.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.addr) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.addr);
            }
        }
    }
}

/// A body that must arrive within its deadline.
struct BodyWithDeadline {
    body: Body,
    deadline: Pin<Box<tokio::time::Sleep>>,
}

impl http_body::Body for BodyWithDeadline {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        self.deadline.as_mut().poll(context).map(|()| {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the body of the request did not arrive in time");
            Some(Err(axum::Error::new(late)))
        })
    }
}

/// Adds the deadline to the body of a request.
pub(super) async fn with_body_deadline(request: Request) -> Request {
    request.map(|body| Body::new(BodyWithDeadline { body, deadline: Box::pin(tokio::time::sleep(BODY_TIMEOUT)) }))
}

/// A connection whose received bytes are counted.
pub(super) struct CountedStream {
    stream: TcpStream,
    bytes_in: Arc<AtomicU64>,
}

impl CountedStream {
    pub(super) fn new(stream: TcpStream, bytes_in: Arc<AtomicU64>) -> Self {
        Self { stream, bytes_in }
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.bytes_in.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
