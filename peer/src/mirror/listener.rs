//! The mirror's port: accepts connections, bounds them, and reopens the port after the watchdog closed it.
//!
//! Invariant: the number of connections, the time for a request's head, and the time of a stuck write are bounded.

use super::body::Body;
use super::handler::{Handler, discard_body};
use super::watchdog::{Watchdog, Watched};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

/// Open connections. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;
/// Time limit for a request's head, also for the wait between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after which a connection whose client reads nothing is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two attempts to reopen the port.
const REOPEN_EVERY: Duration = Duration::from_millis(200);

/// Serves until the token is cancelled.
pub async fn run(
    handler: Arc<Handler>,
    watchdog: Arc<Watchdog>,
    first: TcpListener,
    addr: SocketAddr,
    token: CancellationToken,
) {
    let mut listener = Some(first);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Some(port) = take_or_bind(&mut listener, addr) else {
            tokio::select! {
                () = token.cancelled() => break,
                () = tokio::time::sleep(REOPEN_EVERY) => continue,
            }
        };
        let watched = watchdog.watch(&port);
        loop {
            let accepted = tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = accept(&port, &permits) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let (handler, watchdog) = (handler.clone(), watchdog.clone());
                    connections.spawn(async move {
                        serve(&handler, &watchdog, stream).await;
                        drop(permit);
                    });
                }
                // The watchdog closed the port, or the process has no file descriptors left. A new port helps in both
                // cases.
                Err(error) => {
                    tracing::warn!(%error, "the mirror's port was closed");
                    break;
                }
            }
        }
        drop((watched, port));
        if token.is_cancelled() {
            break;
        }
        watchdog.until_healthy(&token).await;
    }
    // Clients resume cut pulls at the registry.
    connections.shutdown().await;
}

/// Returns the first listener once, then binds the address again.
fn take_or_bind(listener: &mut Option<TcpListener>, addr: SocketAddr) -> Option<TcpListener> {
    if let Some(first) = listener.take() {
        return Some(first);
    }
    let bound = std::net::TcpListener::bind(addr).and_then(|port| {
        port.set_nonblocking(true)?;
        TcpListener::from_std(port)
    });
    match bound {
        Ok(port) => {
            tracing::info!(%addr, "reopened the mirror's port");
            Some(port)
        }
        Err(error) => {
            tracing::warn!(%addr, %error, "cannot reopen the mirror's port");
            None
        }
    }
}

async fn accept(port: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = port.accept().await?;
    let _ = stream.set_nodelay(true); // without it the connection is only slower
    Ok((stream, permit))
}

async fn serve(handler: &Handler, watchdog: &Arc<Watchdog>, stream: TcpStream) {
    // Lives as long as the connection, so that the watchdog can close it.
    let _watched: Option<Watched> = watchdog.watch(&stream);
    let service = service_fn(|request: Request<hyper::body::Incoming>| async {
        match discard_body(request).await {
            Some(request) => handler.handle(request, watchdog.is_healthy()).await,
            None => {
                let mut refused = Response::new(Body::Empty);
                *refused.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                Ok(refused)
            }
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64);
    let io = TokioIo::new(BoundedWrites { stream, stuck: None });
    if let Err(error) = builder.serve_connection(io, service).await {
        tracing::debug!(%error, "a connection to the mirror failed");
    }
}

/// A connection that fails when its client reads nothing for [`WRITE_TIMEOUT`].
struct BoundedWrites {
    stream: TcpStream,
    /// Set while a write waits for the client.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl BoundedWrites {
    /// Turns a write that is stuck for too long into an error.
    fn bound<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stuck = None;
            return polled;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl AsyncRead for BoundedWrites {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for BoundedWrites {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bound(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bound(cx, polled)
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
