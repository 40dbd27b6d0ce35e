//! The errors of the control plane, and what libp2p's errors mean.
//!
//! Invariant: an error that an operator can act on names the address or the node.

use crate::identity::node_of;
use libp2p::request_response::OutboundFailure;
use libp2p::swarm::DialError;
use libp2p::tls::certificate::GenError;
use shoal_proto::ids::NodeId;
use std::io;
use std::net::SocketAddr;

/// The reason for which the control plane cannot start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum StartError {
    /// The operating system refuses to listen on an address.
    #[error("cannot listen on {addr}: {why}")]
    Listen {
        addr: SocketAddr,
        /// The innermost cause in libp2p's words.
        why: String,
    },
    /// The node's key yields no TLS configuration.
    #[error("cannot set up TLS for the control plane: {0}")]
    Tls(#[from] GenError),
}

/// The reason for which a connection does not come about.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry their types' names")]
pub enum ConnectError {
    /// The address does not answer, or not with our protocol.
    #[error("cannot reach {addr}: {why}")]
    Unreachable {
        addr: SocketAddr,
        /// The innermost cause in libp2p's words.
        why: String,
    },
    /// Another node answers at the address.
    #[error("{addr} is {found}, not {expected}")]
    WrongNode {
        addr: SocketAddr,
        expected: NodeId,
        /// The node's id, or libp2p's peer id if the key is of another kind.
        found: String,
    },
    /// The connection took too long.
    #[error("{addr} did not answer in time")]
    Timeout { addr: SocketAddr },
    /// The control plane cannot take the request now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The reason for which a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection to the node exists.
    #[error("not connected to the node")]
    NotConnected,
    /// The answer did not arrive in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection ended before the answer arrived.
    #[error("connection was lost before the answer")]
    Lost,
    /// The other end closed the request without an answer.
    #[error("peer gave no answer")]
    NoAnswer,
    /// The other end does not offer the control protocol.
    #[error("peer does not speak the control protocol")]
    UnsupportedProtocol,
    /// The answer cannot be read.
    #[error("answer cannot be read: {0}")]
    Protocol(#[source] io::Error),
    /// The request is longer than the other end may accept.
    #[error("request is over its limit")]
    TooLong,
    /// The control plane cannot take the request now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The reason for which the control plane itself refuses work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The node is stopping.
    #[error("control plane is shut down")]
    ShutDown,
    /// Too many dials or requests are under way. Try again later.
    #[error("control plane is busy")]
    Busy,
}

/// Returns what a failed dial means.
pub fn connect_error(addr: SocketAddr, expected: Option<NodeId>, error: DialError) -> ConnectError {
    match (error, expected) {
        (DialError::WrongPeerId { obtained, .. }, Some(expected)) => {
            let found = node_of(&obtained).map_or_else(|| obtained.to_string(), |node| node.to_string());
            ConnectError::WrongNode { addr, expected, found }
        }
        (DialError::Transport(errors), _) => {
            let why: Vec<String> = errors.into_iter().map(|(_, error)| innermost(&error)).collect();
            ConnectError::Unreachable { addr, why: why.join("; ") }
        }
        (error, _) => ConnectError::Unreachable { addr, why: innermost(&error) },
    }
}

/// Returns what a failed request means.
pub fn request_error(error: OutboundFailure) -> RequestError {
    match error {
        OutboundFailure::DialFailure => RequestError::NotConnected,
        OutboundFailure::Timeout => RequestError::Timeout,
        OutboundFailure::ConnectionClosed => RequestError::Lost,
        OutboundFailure::UnsupportedProtocols => RequestError::UnsupportedProtocol,
        OutboundFailure::Io(error) => match error.kind() {
            io::ErrorKind::InvalidInput => RequestError::TooLong,
            io::ErrorKind::UnexpectedEof => RequestError::NoAnswer,
            _ => RequestError::Protocol(error),
        },
    }
}

/// Returns the text of the innermost cause. libp2p wraps the operating system's error several times, and only the
/// innermost text helps an operator.
pub fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
