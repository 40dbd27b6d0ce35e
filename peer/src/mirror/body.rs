//! The body of an answer: nothing, a few bytes, or a blob that is read while it is sent.
//!
//! Invariant: a streamed body yields exactly its length, or ends with an error that cuts the connection. A client
//! resumes a cut pull at the registry, but would wait for a stalled one.

use super::metrics::MirrorMetrics;
use crate::arrivals::Arrivals;
use crate::images::{Blob, PieceError};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// The body of an answer.
pub enum Body {
    Empty,
    Bytes(Bytes),
    Blob(BlobBody),
}

/// The rest of a blob that is being sent.
pub struct BlobBody {
    parts: mpsc::Receiver<io::Result<Bytes>>,
    /// Bytes still to send.
    left: u64,
    metrics: MirrorMetrics,
    /// One of the bounded number of streamed bodies.
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for Body {
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
            Self::Blob(BlobBody { left: 0, .. }) => Poll::Ready(None),
            Self::Blob(blob) => {
                let part = ready!(blob.parts.poll_recv(context));
                match part.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())) {
                    Ok(mut bytes) => {
                        // A piece may reach beyond the requested range.
                        bytes.truncate(usize::try_from(blob.left).unwrap_or(usize::MAX));
                        blob.left -= bytes.len() as u64;
                        blob.metrics.sent_bytes.inc_by(bytes.len() as u64);
                        Poll::Ready(Some(Ok(Frame::data(bytes))))
                    }
                    Err(error) => {
                        blob.left = 0;
                        blob.metrics.cut.inc();
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
            Self::Blob(blob) => blob.left,
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty | Self::Blob(BlobBody { left: 0, .. }))
    }
}

/// Reads pieces, and waits for pieces that are still arriving.
#[derive(Clone)]
pub struct PieceReader {
    arrivals: Arrivals,
    /// Reads at one time. The driver's own reads use the same threads.
    permits: Arc<Semaphore>,
    /// Longest wait without any progress of the content.
    max_wait: Duration,
}

impl PieceReader {
    pub fn new(arrivals: Arrivals, reads_max: usize, max_wait: Duration) -> Self {
        Self { arrivals, permits: Arc::new(Semaphore::new(reads_max)), max_wait }
    }

    /// Returns the bytes from `offset` to the end of their piece. Waits while the content makes progress.
    pub async fn read(&self, blob: &Blob, offset: u64) -> Result<Bytes, PieceError> {
        // Created before the first look, so that no arrival is missed.
        let mut arrivals = self.arrivals.of_content(blob.content());
        loop {
            if blob.is_here(offset) {
                match self.read_now(blob, offset).await {
                    // The store removed the piece between the two looks.
                    Err(PieceError::NotHere) => {}
                    read => return read,
                }
            }
            if !blob.is_known() {
                return Err(PieceError::NotHere);
            }
            // Each arrival of the content starts a new wait.
            match tokio::time::timeout(self.max_wait, arrivals.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(PieceError::NotHere),
            }
        }
    }

    async fn read_now(&self, blob: &Blob, offset: u64) -> Result<Bytes, PieceError> {
        let permit = self.permits.clone().acquire_owned().await;
        let source = blob.clone();
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            source.read_from(offset)
        });
        read.await.unwrap_or_else(|panic| Err(PieceError::Io(io::Error::other(panic))))
    }

    /// Returns a body of the blob's bytes from `from` to before `to`. `first` holds the first of them.
    ///
    /// A task reads one piece ahead of the client and ends when the client disconnects.
    pub fn stream(
        self,
        blob: Blob,
        (from, to): (u64, u64),
        first: Bytes,
        metrics: MirrorMetrics,
        permit: OwnedSemaphorePermit,
    ) -> Body {
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
                    read = self.read(&blob, at) => read,
                };
                let part = match read {
                    Ok(bytes) => {
                        at += bytes.len() as u64;
                        Ok(bytes)
                    }
                    Err(error) => {
                        tracing::warn!(digest = %blob.digest, at, %error, "the mirror cuts a blob short");
                        at = to;
                        Err(io::Error::other(error))
                    }
                };
                if sink.send(part).await.is_err() {
                    return;
                }
            }
        });
        Body::Blob(BlobBody { parts, left: to - from, metrics, _permit: permit })
    }
}
