//! Counters of the bytes that pass the sockets, with TLS and multiplexing, and the gates of accepted sockets.
//!
//! Invariant: every byte is counted once, when the socket has taken or returned it. A socket with a gate reads no byte
//! that the gate does not allow.

use super::gate::Gate;
use futures::io::{AsyncRead, AsyncWrite};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

/// Bytes in both directions since the start.
#[derive(Debug, Default)]
pub struct ByteCounter {
    read: AtomicU64,
    written: AtomicU64,
}

impl ByteCounter {
    pub fn bytes_in(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    pub fn bytes_out(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// A socket with a counter, and with a gate if it was accepted.
pub struct CountedStream<S> {
    io: S,
    byte_counter: Arc<ByteCounter>,
    gate: Option<Arc<Gate>>,
}

impl<S> CountedStream<S> {
    pub fn new(io: S, byte_counter: Arc<ByteCounter>, gate: Option<Arc<Gate>>) -> Self {
        Self { io, byte_counter, gate }
    }

    fn check(&self) -> io::Result<()> {
        self.gate.as_ref().map_or(Ok(()), |gate| gate.check())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let readable = match &self.gate {
            Some(gate) => gate.readable(cx)?.min(buffer.len()),
            None => buffer.len(),
        };
        let n = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer[..readable]))?;
        self.byte_counter.read.fetch_add(n as u64, Ordering::Relaxed);
        if let Some(gate) = &self.gate {
            gate.on_read(n);
        }
        Poll::Ready(Ok(n))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        let n = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.byte_counter.written.fetch_add(n as u64, Ordering::Relaxed);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, buffers))?;
        self.byte_counter.written.fetch_add(n as u64, Ordering::Relaxed);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_close(cx)
    }
}
