//! Bulk links: one TLS connection for each pair of hosts, frames of [`shoal_proto::frame`] on it.
//!
//! Owns the listener, the dials, the table of links and every byte queued or buffered for them.
//! Invariant: for one node, events come as `LinkUp`, then what the link brought, then `LinkDown`, never overlapping.
//!
//! How two hosts agree on one link, whoever dials: the node with the *greater* id says `Hello` first on every
//! connection; the one with the smaller id answers with its own `Hello` on one connection only and with
//! `Bye(Duplicate)` on any other. The greater admits and confirms with a `Pong`, from which on both may send.

mod connect;
mod context;
mod hello;
mod ledbat;
mod link;
mod rate_limit;
mod reader;
mod receive_memory;
mod registry;
mod send_queue;
#[cfg(test)]
mod tests;
mod writer;

use crate::admission::Admission;
use crate::identity::Identity;
use bytes::Bytes;
use context::EndpointContext;
use link::Expected;
pub use rate_limit::{LinkRates, LinkScope, RateLimits};
pub use receive_memory::BlockOffset;
use shoal_proto::announcement::Class;
use shoal_proto::codec;
use shoal_proto::frame::{AnnounceFrame, CloseReason, Part};
use shoal_proto::ids::{ContentId, JobId, NodeId};
use shoal_proto::limits;
use shoal_proto::locality::Locality;
use shoal_proto::message::Message;
use shoal_proto::trust::Credential;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

/// How to run bulk links.
#[derive(Clone)]
pub struct LinkConfig {
    /// Where to listen; port 0 picks one. Empty: dial only.
    pub listen: Vec<SocketAddr>,
    /// Our key.
    pub identity: Identity,
    /// Who gets in.
    pub admission: Admission,
    /// Where we are: links to hosts of the same rack do not pass the uplink. Default: none, and all do.
    pub locality: Option<Locality>,
    /// Links at a time; more are refused with `Bye(Busy)`. Default 512.
    pub links_max: usize,
    /// Connections that have not been admitted yet, at a time; more are dropped. Default 128.
    pub pending_max: usize,
    /// The same, from one address. Default 32.
    pub pending_per_ip_max: usize,
    /// Payload bytes in memory at a time, from a part's first byte until its `Bytes` are dropped, for each class.
    /// When they are used up, links are not read. At least 8 MiB; default 64 MiB for `Bulk`, 16 MiB for each other.
    pub receive_bytes: usize,
    /// Where shards will lie on the disk. Default: not known.
    pub block_offset: Option<BlockOffset>,
    /// Bytes of expected manifests at a time. Default 256 MiB, the largest manifest there is.
    pub manifest_bytes: usize,
    /// Parts queued on a link, for each class; more are refused with [`SendError::Full`]. Default 64.
    pub parts_max: usize,
    /// Messages and announcements queued on a link; more are refused with [`SendError::Full`]. Default 1024, and
    /// 4 MiB in all.
    pub messages_max: usize,
    /// Events queued for the driver. When full, links are not read. Default 256.
    pub events_max: usize,
    /// Unsent bytes the kernel may hold for a link (`TCP_NOTSENT_LOWAT`), so that urgent frames are not stuck behind
    /// megabytes. Default 64 KiB.
    pub kernel_unsent_bytes: u32,
    /// A connection must be up, admitted and confirmed within this. Default 5 s.
    pub handshake_timeout: Duration,
    /// One address of a host must answer within this before the next is tried. Default 2 s.
    pub connect_timeout: Duration,
    /// A link that has brought nothing for this long is asked with a `Ping`. Default 10 s.
    pub ping_after: Duration,
    /// A link that has brought nothing for this long, though asked, is dead. Default 30 s.
    pub dead_after: Duration,
    /// A link that note_payload payload within ten seconds says something at least this often. Default 1 s.
    pub busy_ping_after: Duration,
    /// One that has brought nothing for this long is dead. Default 5 s.
    pub busy_dead_after: Duration,
}

impl LinkConfig {
    /// The defaults.
    pub fn new(listen: Vec<SocketAddr>, identity: Identity, admission: Admission) -> Self {
        Self {
            listen,
            identity,
            admission,
            locality: None,
            links_max: 512,
            pending_max: 128,
            pending_per_ip_max: 32,
            receive_bytes: 64 << 20,
            block_offset: None,
            manifest_bytes: limits::MANIFEST_BYTES_MAX,
            parts_max: 64,
            messages_max: 1024,
            events_max: 256,
            kernel_unsent_bytes: 64 << 10,
            handshake_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            ping_after: Duration::from_secs(10),
            dead_after: Duration::from_secs(30),
            busy_ping_after: Duration::from_secs(1),
            busy_dead_after: Duration::from_secs(5),
        }
    }
}

/// What a link tells its driver.
#[derive(Debug)]
pub enum LinkEvent {
    /// A link is up: both ends are admitted.
    LinkUp {
        /// The other end.
        node: NodeId,
        /// Its credential, checked.
        credential: Arc<Credential>,
        /// Where it is connected from or to.
        remote: SocketAddr,
        /// Whether we dialled.
        dialled: bool,
    },
    /// A link is gone, and with it whatever was queued or half received. Both fields empty: we closed it.
    LinkDown {
        /// The other end.
        node: NodeId,
        /// What the other end said, if it said anything.
        reason: Option<CloseReason>,
        /// What went wrong, if something did.
        error: Option<String>,
    },
    /// [`LinkEndpoint::dial`] did not lead to a link.
    DialFailed {
        /// Whom we wanted.
        node: NodeId,
        /// Why, in words.
        error: String,
    },
    /// A message came; its bounds are checked.
    Message {
        /// Who sent it.
        node: NodeId,
        /// The message.
        message: Message,
    },
    /// An announcement came; its signature is not checked yet.
    Announce {
        /// Who sent it.
        node: NodeId,
        /// The announcement.
        frame: AnnounceFrame,
    },
    /// A shard or manifest came whole; its hash is not checked yet.
    Part {
        /// Who sent it.
        node: NodeId,
        /// The content.
        content: ContentId,
        /// What of it.
        part: Part,
        /// Its urgency.
        class: Class,
        /// Its bytes. They count against the receive budget until the last clone is dropped.
        payload: Bytes,
    },
    /// A queued part was handed to the operating system.
    Sent {
        /// To whom.
        node: NodeId,
        /// The content.
        content: ContentId,
        /// What of it.
        part: Part,
    },
}

/// What a driver can send.
#[derive(Clone, Debug)]
pub enum OutFrame {
    /// A message.
    Message(Message),
    /// An encoded [`AnnounceFrame`], from [`encode_announce`]: encoded once, context by all children.
    Announce(Bytes),
    /// The same for a feed, of which only the latest counts: where several wait already, it takes the place of the last.
    Latest {
        /// The feed, and the lane it goes down.
        key: (JobId, u8),
        /// From [`encode_announce`].
        body: Bytes,
    },
    /// A shard or manifest, answered with [`LinkEvent::Sent`].
    Part {
        /// The content.
        content: ContentId,
        /// What of it.
        part: Part,
        /// Its urgency.
        class: Class,
        /// Its bytes; not copied.
        payload: Bytes,
    },
}

/// Encodes an announcement for [`OutFrame::Announce`].
pub fn encode_announce(frame: &AnnounceFrame) -> Bytes {
    codec::encode(frame).into()
}

/// Why a frame was not queued. The frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link's queue of this class is full.
    #[error("the link's queue is full")]
    Full,
    /// There is no such link, or it is closing.
    #[error("no such link")]
    Gone,
    /// The frame is empty or over the limit of its kind.
    #[error("the frame is empty or over its limit")]
    Invalid,
}

/// Why a manifest cannot be expected now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpectError {
    /// Too many bytes of manifests are expected or held already: ask again later.
    #[error("the budget for manifests is used up")]
    Full,
    /// There is no such link.
    #[error("no such link")]
    Gone,
    /// Longer than a manifest, or than the whole budget, may be.
    #[error("longer than a manifest may be")]
    Invalid,
}

/// Why bulk links cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No certificate could be made from the key.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// A setting makes no sense.
    #[error("{0}")]
    Config(&'static str),
}

/// Counters since start. Bytes are of frames, before TLS (which adds about 0.2 %).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Links up now.
    pub links: usize,
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Payload bytes of shards and manifests received.
    pub payload_in: u64,
    /// Payload bytes of shards and manifests sent.
    pub payload_out: u64,
    /// Payload bytes held in memory now against the receive budgets.
    pub held: u64,
    /// Bytes of manifests nobody expected, dropped.
    pub unexpected: u64,
    /// Connections dropped before admission: not TLS, silent, too slow, too many.
    pub strangers: u64,
    /// Connections refused for want of a valid credential.
    pub not_admitted: u64,
}

/// Counters of one link since it came up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Payload bytes received.
    pub payload_in: u64,
    /// Payload bytes sent.
    pub payload_out: u64,
}

/// Bulk links of one node. Cheap to clone. Dropping every clone ends all tasks, but only
/// [`LinkEndpoint::shutdown`] does so politely.
#[derive(Clone)]
pub struct LinkEndpoint {
    context: Arc<EndpointContext>,
    local_addrs: Arc<[SocketAddr]>,
    _stop: Arc<DropGuard>,
}

impl LinkEndpoint {
    /// Starts listening. Must be called within a tokio runtime. Events must be taken for links to make progress.
    pub async fn bind(config: LinkConfig) -> Result<(Self, mpsc::Receiver<LinkEvent>), BindError> {
        let listeners = config.listen.iter().map(|addr| connect::listen(*addr)).collect::<Result<Vec<_>, _>>()?;
        let (context, events) = EndpointContext::new(config)?;
        let mut local_addrs = Vec::new();
        for (listener, local) in listeners {
            local_addrs.push(local);
            context.spawn(connect::accept(context.clone(), listener));
        }
        context.spawn(connect::keep_house(context.clone()));
        let stop = Arc::new(context.stop.clone().drop_guard());
        Ok((Self { context, local_addrs: local_addrs.into(), _stop: stop }, events))
    }

    /// Announcements from now on, in a queue of their own: they need not wait for the payload before them to be taken.
    /// They may then come before their link's `LinkUp` or after its `LinkDown`. `None` when they were split before.
    pub fn split_announcements(&self) -> Option<mpsc::Receiver<LinkEvent>> {
        self.context.split_announcements()
    }

    /// Where we listen, with the ports picked.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Brings a link to `node` up: answered by `LinkUp` or `DialFailed`. Nothing happens when a link is up or being
    /// dialled already, or after [`LinkEndpoint::shutdown`]. At most [`shoal_proto::limits::ADDRS_MAX`] addresses are tried, in order.
    pub fn dial(&self, node: NodeId, addrs: Vec<SocketAddr>) {
        if self.context.closing.is_cancelled() {
            return;
        }
        if let Some(cancelled) = self.context.registry.begin_dial(node) {
            self.context.spawn(connect::dial(self.context.clone(), node, addrs, cancelled));
        }
    }

    /// Closes the link, dropping what is queued on it: `LinkDown` follows. Also ends a dial under way (`DialFailed`).
    pub fn close(&self, node: NodeId, reason: CloseReason) {
        self.context.registry.cancel_dial(&node);
        if let Some(link) = self.context.registry.link(&node) {
            link.queue.close(reason);
        }
    }

    /// Queues a frame. Never waits.
    pub fn send(&self, node: NodeId, frame: OutFrame) -> Result<(), SendError> {
        self.context.registry.link(&node).ok_or(SendError::Gone)?.queue.push(frame)
    }

    /// Lets `node` send the manifest of `content`, of exactly `bytes` bytes (from its signed announcement). Manifests
    /// that were not announced this way are dropped unread. Holds until the manifest came or the link is gone.
    pub fn expect_manifest(&self, node: NodeId, content: ContentId, bytes: u64) -> Result<(), ExpectError> {
        let max = limits::MANIFEST_BYTES_MAX.min(self.context.config.manifest_bytes);
        let total = u32::try_from(bytes).map_err(|_| ExpectError::Invalid)?;
        if total == 0 || total as usize > max {
            return Err(ExpectError::Invalid);
        }
        let link = self.context.registry.link(&node).ok_or(ExpectError::Gone)?;
        let permit = self.context.budgets.manifest(total).ok_or(ExpectError::Full)?;
        if link.expect(content, Expected { total, permit }) { Ok(()) } else { Err(ExpectError::Full) }
    }

    /// The rates that links keep to.
    pub fn rate_limits(&self) -> &RateLimits {
        &self.context.rate_limits
    }

    /// Counters of all links.
    pub fn stats(&self) -> EndpointStats {
        self.context.stats()
    }

    /// Counters of one link.
    pub fn link_stats(&self, node: NodeId) -> Option<LinkStats> {
        Some(self.context.registry.link(&node)?.stats())
    }

    /// Stops listening and dialling, says `Bye(Shutdown)` on every link, and waits until every task has ended; at
    /// `deadline` from now they are cut off. Queued messages go out, queued parts do not. Events need not be taken
    /// meanwhile.
    pub async fn shutdown(&self, deadline: Duration) {
        let EndpointContext { closing, stop, tasks, registry, .. } = &*self.context;
        closing.cancel();
        tasks.close();
        for link in registry.links() {
            link.queue.close(CloseReason::Shutdown);
        }
        if tokio::time::timeout(deadline, tasks.wait()).await.is_err() {
            stop.cancel();
            tasks.wait().await;
        }
    }
}
