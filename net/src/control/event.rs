//! What a driver gets from its control plane.
//!
//! Invariant: the bounds of every request are checked. The key of its sender is proven, and its credential is not
//! known.

use libp2p::swarm::ConnectionId;
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use std::net::SocketAddr;
use tokio::sync::oneshot;

/// What happened on the control plane.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields carry their types' names, and `remote` is the address of the other end")]
pub enum ControlEvent {
    /// The first connection to this node is up. Either end may have dialled.
    Connected { node: NodeId, remote: SocketAddr },
    /// A connection to this node is gone.
    Disconnected {
        node: NodeId,
        connection: ConnectionId,
        /// Whether no other connection to the node is left.
        last: bool,
    },
    /// A request arrived.
    Request {
        /// The sender. Its key is proven, and its credential is not known here.
        from: NodeId,
        connection: ConnectionId,
        remote: SocketAddr,
        request: Request,
        reply: ReplySlot,
    },
}

/// An answer to a request, and whether it admits the node that asked.
#[derive(Debug)]
pub struct Reply {
    pub response: Response,
    pub admits: bool,
}

/// The place for the answer to a request. Dropping it makes the request fail at its sender.
#[derive(Debug)]
pub struct ReplySlot {
    answer: oneshot::Sender<Reply>,
}

impl ReplySlot {
    pub(super) fn new() -> (Self, oneshot::Receiver<Reply>) {
        let (answer, receiver) = oneshot::channel();
        (Self { answer }, receiver)
    }

    /// Sends the answer. It is lost if the sender of the request is gone or has given up. A connection whose node is
    /// not admitted ends afterwards.
    pub fn send(self, response: Response) {
        let _ = self.answer.send(Reply { response, admits: false }); // `Disconnected` reports a sender that is gone
    }

    /// Sends the answer and admits the node on this connection, which may send further requests from now on.
    pub fn admit(self, response: Response) {
        let _ = self.answer.send(Reply { response, admits: true }); // as in `send`
    }
}
