//! The entry of the fuzz target `http`: one connection in memory, served as the server serves each connection.
//!
//! Invariant: limits and routes are those of [`Server::serve`].

use super::{Server, connection_builder};
use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes on their way in one direction.
const PIPE_BYTES: usize = 64 * 1024;

/// The routes of a server, without its port.
pub struct App {
    router: Router,
}

impl App {
    /// Returns the routes of a server.
    pub fn new(server: Server) -> Self {
        Self { router: server.into_router() }
    }

    /// Serves a connection on which a client sends these bytes and closes its direction. Returns the bytes of all
    /// answers.
    pub async fn answer(&self, request: &[u8]) -> Vec<u8> {
        let (client, server) = tokio::io::duplex(PIPE_BYTES);
        let service = TowerToHyperService::new(self.router.clone());
        let serving = connection_builder().serve_connection(TokioIo::new(server), service);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let sending = async {
            // The server may have closed the connection by now.
            let _ = to_server.write_all(request).await;
            let _ = to_server.shutdown().await;
        };
        let mut answer = Vec::new();
        let (_, (), _) = tokio::join!(serving, sending, from_server.read_to_end(&mut answer));
        answer
    }
}
