//! The mirror's port: accepting, bounds on connections, and closing it from outside.
//!
//! Invariant: connections, the time for a head and the time a client may take nothing are bounded.

use super::Mirror;
use super::handler::without_body;
use super::watchdog::Open;
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
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 128;
/// For a request's head, and between two requests.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A client that takes nothing for this long is let go.
const STUCK_MAX: Duration = Duration::from_secs(60);
/// Between two attempts to open the port again.
const REOPEN_EVERY: Duration = Duration::from_millis(200);

/// Serves until the token is cancelled.
pub(super) async fn run(mirror: Arc<Mirror>, first: TcpListener, addr: SocketAddr, token: CancellationToken) {
    let mut listener = Some(first);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Some(port) = take_or_bind(&mut listener, addr) else {
            tokio::select! {
                () = token.cancelled() => break,
                () = tokio::time::sleep(REOPEN_EVERY) => continue,
            }
        };
        let opened = mirror.health.open(&port);
        loop {
            let accepted = tokio::select! {
                biased;
                () = token.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = accept(&port, &permits) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let mirror = mirror.clone();
                    connections.spawn(async move {
                        serve(&mirror, stream).await;
                        drop(permit);
                    });
                }
                // The watchdog closed it, or there are no descriptors left: either way begin anew.
                Err(error) => {
                    tracing::warn!(%error, "the mirror's port was closed");
                    break;
                }
            }
        }
        drop((opened, port));
        if token.is_cancelled() {
            break;
        }
        mirror.health.recovered(&token).await;
    }
    // Pulls that are cut go on elsewhere.
    connections.shutdown().await;
}

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
            tracing::info!(%addr, "the mirror's port is open again");
            Some(port)
        }
        Err(error) => {
            tracing::warn!(%addr, %error, "cannot open the mirror's port");
            None
        }
    }
}

async fn accept(
    port: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = port.accept().await?;
    let _ = stream.set_nodelay(true);
    Ok((stream, permit))
}

async fn serve(mirror: &Arc<Mirror>, stream: TcpStream) {
    // Held while the connection lives, so that the watchdog can end it.
    let _open: Option<Open> = mirror.health.connection(&stream);
    let service = service_fn(|request: Request<hyper::body::Incoming>| async {
        match without_body(request).await {
            Some(request) => mirror.serve(request).await,
            None => {
                let mut refused = Response::new(super::body::Answer::Empty);
                *refused.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                Ok(refused)
            }
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE_MAX).max_headers(64);
    let io = TokioIo::new(Patient { stream, stuck: None });
    if let Err(error) = builder.serve_connection(io, service).await {
        tracing::debug!(%error, "mirror connection");
    }
}

/// A connection that ends when its client takes nothing for too long.
struct Patient {
    stream: TcpStream,
    /// Runs while a write waits for the client.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn judge<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stuck = None;
            return polled;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(STUCK_MAX)));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, polled)
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
