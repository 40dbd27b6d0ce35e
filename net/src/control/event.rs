//! What a driver gets from its control plane.
//!
//! Invariant: the bounds of every request are checked. The key of its sender is proven, and its credential is not
//! known.

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
    /// The last connection to this node is gone.
    Disconnected { node: NodeId },
    /// A request arrived.
    Request {
        /// The sender. Its key is proven, and its credential is not known here.
        from: NodeId,
        remote: SocketAddr,
        request: Request,
        reply: ReplySlot,
    },
}

/// The place for the answer to a request. Dropping it makes the request fail at its sender.
#[derive(Debug)]
pub struct ReplySlot {
    answer: oneshot::Sender<Response>,
}

impl ReplySlot {
    pub(super) fn new() -> (Self, oneshot::Receiver<Response>) {
        let (answer, receiver) = oneshot::channel();
        (Self { answer }, receiver)
    }

    /// Sends the answer. It is lost if the sender of the request is gone or has given up.
    pub fn send(self, response: Response) {
        let _ = self.answer.send(response); // `Disconnected` reports a sender that is gone
    }
}
