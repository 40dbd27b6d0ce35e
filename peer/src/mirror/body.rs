//! What an answer carries: nothing, a few bytes, or a blob as it is read.
//!
//! Invariant: a streamed body gives exactly its length or ends with an error, which cuts the connection; a cut pull goes
//! on elsewhere, a stalled one never would.

use super::Counters;
use crate::images::{Blob, PieceFault};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// How often a piece that has not arrived is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(30);

/// A body.
pub(super) enum Answer {
    Empty,
    Bytes(Bytes),
    Stream {
        parts: mpsc::Receiver<io::Result<Bytes>>,
        left: u64,
        counters: Counters,
        /// Its place among the bodies being sent.
        _permit: OwnedSemaphorePermit,
    },
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Stream { left: 0, .. } => Poll::Ready(None),
            Self::Stream { parts, left, counters, .. } => {
                let part = std::task::ready!(parts.poll_recv(context));
                let part = part.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
                match part {
                    Ok(mut bytes) => {
                        bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                        *left -= bytes.len() as u64;
                        counters.bytes.inc_by(bytes.len() as u64);
                        Poll::Ready(Some(Ok(Frame::data(bytes))))
                    }
                    Err(error) => {
                        *left = 0;
                        counters.cut.inc();
                        Poll::Ready(Some(Err(error)))
                    }
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stream { left, .. } => *left,
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty | Self::Stream { left: 0, .. })
    }
}

/// Reads from `offset` to the end of the piece, waiting for it as long as its content does not stand still for `patience`.
pub(super) async fn read(
    blob: &Blob,
    offset: u64,
    patience: Duration,
    readers: &Arc<Semaphore>,
) -> Result<Bytes, PieceFault> {
    let mut seen = blob.progress();
    let mut still_since = tokio::time::Instant::now();
    loop {
        // Few at a time: the driver's own reads use the same threads.
        let permit = readers.clone().acquire_owned().await;
        let source = blob.clone();
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            source.read_from(offset)
        });
        match read.await {
            Ok(Err(PieceFault::NotHere)) => {}
            Ok(read) => return read,
            Err(panic) => return Err(PieceFault::Io(io::Error::other(panic))),
        }
        let now = blob.progress();
        if now.is_none() {
            return Err(PieceFault::NotHere);
        }
        if now != seen {
            (seen, still_since) = (now, tokio::time::Instant::now());
        } else if still_since.elapsed() >= patience {
            return Err(PieceFault::NotHere);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A body of the blob's bytes from `from` to before `to`, of which `first` is here already. It reads one piece ahead of
/// the client, and ends when the client goes.
pub(super) fn stream(
    blob: Blob,
    (from, to): (u64, u64),
    first: Bytes,
    patience: Duration,
    counters: Counters,
    readers: Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
) -> Answer {
    let (sink, parts) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut at = from + first.len() as u64;
        if sink.send(Ok(first)).await.is_err() {
            return;
        }
        while at < to {
            let read = tokio::select! {
                biased;
                () = sink.closed() => return,
                read = read(&blob, at, patience, &readers) => read,
            };
            let part = match read {
                Ok(bytes) => {
                    at += bytes.len() as u64;
                    Ok(bytes)
                }
                Err(error) => {
                    tracing::warn!(digest = %blob.digest, at, %error, "cut a blob short");
                    at = to;
                    Err(io::Error::other(error))
                }
            };
            if sink.send(part).await.is_err() {
                return;
            }
        }
    });
    Answer::Stream { parts, left: to - from, counters, _permit: permit }
}
