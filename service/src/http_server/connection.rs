//! One connection of the server: its counted bytes, and the deadlines of request bodies and of answers.
//!
//! Invariant: no body and no answer waits for the client longer than its deadline.

#![allow(unreachable_pub, reason = "the server is the only user of this module")]

use super::places::{Activity, RunningRequest};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::ServiceExt;

/// The time for the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// The time for which an answer may wait until its client reads some of it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// The address of the client, as an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddr(pub SocketAddr);

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
pub async fn with_body_deadline(request: Request) -> Request {
    request.map(|body| Body::new(BodyWithDeadline { body, deadline: Box::pin(tokio::time::sleep(BODY_TIMEOUT)) }))
}

/// The body of an answer. Its connection counts as working until the body has ended.
struct AnswerBody {
    body: Body,
    _request: RunningRequest,
}

impl http_body::Body for AnswerBody {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Runs the routes on one connection, and tells its place which requests are running.
#[derive(Clone)]
pub struct ConnectionService {
    pub app: Router,
    pub activity: Arc<Activity>,
    pub remote: RemoteAddr,
}

impl hyper::service::Service<hyper::Request<hyper::body::Incoming>> for ConnectionService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: hyper::Request<hyper::body::Incoming>) -> Self::Future {
        let (running, app) = (self.activity.request(), self.app.clone());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.remote);
        Box::pin(async move {
            let answer = app.oneshot(request).await?;
            Ok(answer.map(|body| Body::new(AnswerBody { body, _request: running })))
        })
    }
}

/// A connection whose received bytes are counted, and which ends when its client reads nothing for too long.
pub struct CountedStream<S> {
    stream: S,
    bytes_in: Arc<AtomicU64>,
    activity: Arc<Activity>,
    /// Wakes the task when the client has had its time.
    deadline: Pin<Box<tokio::time::Sleep>>,
}

impl<S> CountedStream<S> {
    pub fn new(stream: S, bytes_in: Arc<AtomicU64>, activity: Arc<Activity>) -> Self {
        Self { stream, bytes_in, activity, deadline: Box::pin(tokio::time::sleep(WRITE_TIMEOUT)) }
    }

    /// Notes the outcome of a write. A write that waits longer than [`WRITE_TIMEOUT`] fails.
    fn written<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.activity.moved();
            return polled;
        }
        if self.activity.blocked() {
            self.deadline.as_mut().reset(tokio::time::Instant::now() + WRITE_TIMEOUT);
        }
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        self.bytes_in.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, polled)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_ends() {
        let (mut client, server) = tokio::io::duplex(16);
        let activity = Arc::new(Activity::new(Instant::now()));
        let mut stream = CountedStream::new(server, Arc::default(), activity);
        stream.write_all(&[0; 16]).await.unwrap();
        let (written, read) = tokio::join!(stream.write_all(&[0; 16]), async {
            tokio::time::sleep(WRITE_TIMEOUT / 2).await;
            client.read_exact(&mut [0; 16]).await
        });
        assert!(written.is_ok() && read.is_ok(), "the client read in time");
        let error = stream.write_all(&[0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
