//! Links: one TLS connection for each pair of hosts, with the frames of [`shoal_proto::frame`] on it.
//!
//! Owns the listeners, the dials, the registry of links, and every byte that is queued or buffered for links.
//! Invariant: the driver gets the events of one node as `LinkUp`, then what the link brought, then `LinkDown`. The
//! events of two links to one node never overlap.
//!
//! Two hosts agree on one link as follows, whichever host dials. The node with the *greater* id sends `Hello` first on
//! every connection. The node with the smaller id answers with its own `Hello` on one connection, and with
//! `Bye(Duplicate)` on every other. The greater id then admits the other end and confirms with a `Pong`. From then on
//! both ends may send (`hello.rs`).
//!
//! Where to look:
//!
//! - settings in `config.rs`, events and frames in `event.rs`
//! - one link's life in `session.rs`, trust documents in `trust_exchange.rs`
//! - priorities in `send_queue.rs`, memory in `receive_memory.rs`
//! - pacing of bulk in `ledbat.rs`, rates in `rate_limit/`

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod activity;
mod config;
mod connect;
mod context;
mod counters;
mod error;
mod event;
mod event_queue;
mod hello;
mod keep_alive;
mod ledbat;
mod link;
mod pending_limiter;
mod rate_limit;
mod reader;
mod receive_memory;
mod refused_nodes;
mod registry;
mod send_queue;
mod session;
mod sizes;
#[cfg(test)]
mod tests;
mod trust_exchange;
mod writer;

pub use crate::tls::RecordLayer;
pub use config::LinkConfig;
use connect::Listener;
use context::EndpointContext;
pub use counters::{EndpointStats, LinkStats};
pub use error::{
    AbortReason, AddressError, BindError, DialError, ExpectError, FailedAddress, LinkError, ProtocolViolation, Refusal,
    SendError,
};
pub use event::{FeedKey, LinkEvent, OutFrame, encode_announce};
pub use event_queue::LinkEvents;
use link::ExpectedManifest;
pub use rate_limit::{LinkRates, LinkScope, RateLimits};
pub use receive_memory::BlockOffset;
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::{ContentId, NodeId};
use shoal_proto::limits;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::DropGuard;

/// The links of one node. Cheap to clone. Dropping every clone ends all tasks, but only [`LinkEndpoint::shutdown`] says
/// `Bye` to the other ends.
#[derive(Clone)]
pub struct LinkEndpoint {
    context: Arc<EndpointContext>,
    local_addrs: Arc<[SocketAddr]>,
    _stop: Arc<DropGuard>,
}

impl LinkEndpoint {
    /// Starts to listen, within a tokio runtime. Links make progress only while the driver takes the events.
    ///
    /// # Errors
    ///
    /// Fails if an address cannot be listened on, the key yields no TLS configuration, or a setting is out of range.
    pub async fn bind(config: LinkConfig) -> Result<(Self, LinkEvents), BindError> {
        let listeners = config.listen.iter().map(|addr| Listener::bind(*addr)).collect::<Result<Vec<_>, _>>()?;
        let (context, events) = EndpointContext::new(config)?;
        let local_addrs = listeners.iter().map(|listener| listener.addr).collect();
        for listener in listeners {
            context.spawn(listener.accept_all(context.clone()));
        }
        context.spawn(connect::keep_house(context.clone()));
        let stop = Arc::new(context.stop_token().drop_guard());
        Ok((Self { context, local_addrs, _stop: stop }, events))
    }

    /// Puts announcements into a queue of their own from now on, so they do not wait for the payload before them. They
    /// may then arrive before the `LinkUp` of their link or after its `LinkDown`. `None` on a second call.
    pub fn split_announcements(&self) -> Option<LinkEvents> {
        self.context.split_announcements()
    }

    /// Returns the addresses that the endpoint listens on, with the ports picked.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Brings up a link to `node`. `LinkUp` or `DialFailed` follows. Nothing happens if a link is up, a dial is under
    /// way, or the endpoint shuts down. Tries at most [`shoal_proto::limits::ADDRS_MAX`] addresses, in order.
    pub fn dial(&self, node: NodeId, addrs: Vec<SocketAddr>) {
        if self.context.is_closing() {
            return;
        }
        if let Some(cancelled) = self.context.registry().begin_dial(node) {
            self.context.spawn(connect::dial(self.context.clone(), node, addrs, cancelled));
        }
    }

    /// Closes the link and drops what is queued on it. `LinkDown` follows. Also ends a dial, and `DialFailed` follows.
    pub fn close(&self, node: NodeId, reason: CloseReason) {
        self.context.registry().cancel_dial(&node);
        if let Some(link) = self.context.registry().link(&node) {
            link.queue().close(reason);
        }
    }

    /// Queues a frame without waiting.
    ///
    /// # Errors
    ///
    /// Fails if the node has no link, the link's queue is full, or the frame breaks a limit of its kind.
    pub fn send(&self, node: NodeId, frame: OutFrame) -> Result<(), SendError> {
        self.context.registry().link(&node).ok_or(SendError::Gone)?.queue().push(frame)
    }

    /// Lets `node` send the manifest of `content`, of exactly `bytes` bytes. The caller knows the length from a signed
    /// announcement. The endpoint drops every other manifest unread. The permission ends with the manifest or the link.
    ///
    /// # Errors
    ///
    /// Fails if the node has no link, the length is out of range, or the budget has no room now.
    pub fn expect_manifest(&self, node: NodeId, content: ContentId, bytes: u64) -> Result<(), ExpectError> {
        let max = limits::MANIFEST_BYTES_MAX.min(self.context.config().manifest_bytes);
        let total = u32::try_from(bytes).map_err(|_| ExpectError::Invalid)?;
        if total == 0 || total as usize > max {
            return Err(ExpectError::Invalid);
        }
        let link = self.context.registry().link(&node).ok_or(ExpectError::Gone)?;
        let permit = self.context.budgets().manifest(total).ok_or(ExpectError::Full)?;
        let expected = link.expect_manifest(content, ExpectedManifest::new(total, permit));
        if expected { Ok(()) } else { Err(ExpectError::Full) }
    }

    /// Lets `node` send shards of `content`, each of at most `shard_max` bytes, because this node asked for some. The
    /// endpoint drops all other shards unread. The permission ends with the link, and with
    /// [`LinkEndpoint::expect_no_shards`].
    pub fn expect_shards(&self, node: NodeId, content: ContentId, shard_max: u32) {
        if let Some(link) = self.context.registry().link(&node) {
            link.expect_shards(content, shard_max);
        }
    }

    /// Ends the link of a node, and gives the node no other one for `time`.
    pub fn ban(&self, node: NodeId, time: Duration) {
        self.context.refused().add(node, time);
        self.close(node, CloseReason::Banned);
    }

    /// Whether a node is banned now.
    pub fn is_banned(&self, node: &NodeId) -> bool {
        self.context.refused().contains(node)
    }

    /// Lets no node send more shards of `content`, because this node has it or gave it up.
    pub fn expect_no_shards(&self, content: &ContentId) {
        self.context.registry().links().iter().for_each(|link| link.expect_no_shards(content));
    }

    /// Keeps places of their own, before admission, for connections from these addresses.
    pub fn know(&self, addrs: impl IntoIterator<Item = IpAddr>) {
        addrs.into_iter().for_each(|addr| self.context.pending().known().add(addr));
    }

    /// Returns the rate limits of all links.
    pub fn rate_limits(&self) -> &RateLimits {
        self.context.rate_limits()
    }

    /// Returns the counters of all links.
    pub fn stats(&self) -> EndpointStats {
        self.context.stats()
    }

    /// Returns the counters of one link.
    pub fn link_stats(&self, node: NodeId) -> Option<LinkStats> {
        Some(self.context.registry().link(&node)?.counters().stats())
    }

    /// Stops to listen and dial, says `Bye(Shutdown)` on every link, and waits until every task has ended. Queued
    /// messages leave, queued parts do not. Tasks that still run after `deadline` are cut off. The driver need not take
    /// events meanwhile.
    pub async fn shutdown(&self, deadline: Duration) {
        let close_links = || {
            for link in self.context.registry().links() {
                link.queue().close(CloseReason::Shutdown);
            }
        };
        self.context.shutdown(deadline, close_links).await;
    }
}
