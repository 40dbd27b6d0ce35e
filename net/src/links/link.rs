//! One link, from `LinkUp` to `LinkDown`: reader, writer and keep-alive as one task.
//!
//! Invariant: `LinkUp` is emitted before anything the link brings, and `LinkDown` after all of it, while the node's
//! seat in the table is still taken.

use super::LinkEvent;
use super::ledbat::Ledbat;
use super::rate_limit::LinkRateLimiter;
use super::reader::{ReadEnd, Reader};
use super::registry::LinkSlot;
use super::send_queue::Queue;
use super::{LinkStats, context::EndpointContext, writer};
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::{ContentId, NodeId};
use shoal_proto::trust::Credential;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, timeout};

/// What may be needed to write out the rest of a slice, what must still go, and `Bye`.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the other end may take to read our `Bye` and close. Closing a socket with unread bytes in it makes the
/// kernel send a reset, which can overtake the `Bye`.
const LINGER: Duration = Duration::from_secs(1);
/// Manifests a link may be expected to bring at a time.
const EXPECTED_MAX: usize = 64;

/// How long after its last payload, either way, a link is still busy.
const BUSY: Duration = Duration::from_secs(10);

/// When a link last heard and said something, kept as milliseconds since it came up.
pub(super) struct Activity {
    born: Instant,
    heard_ms: AtomicU64,
    said_ms: AtomicU64,
    slice_ms: AtomicU64,
    /// It is busy from the one to the other.
    busy_since_ms: AtomicU64,
    busy_until_ms: AtomicU64,
    /// Woken when it becomes busy.
    became_busy: Notify,
    /// Parts half received.
    open_parts: AtomicU64,
    /// The reader waits for us: for the driver or for memory.
    blocked: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            born: Instant::now(),
            heard_ms: zero(),
            said_ms: zero(),
            slice_ms: zero(),
            busy_since_ms: zero(),
            busy_until_ms: zero(),
            became_busy: Notify::new(),
            open_parts: zero(),
            blocked: AtomicBool::new(false),
        }
    }

    /// Since the link came up.
    pub(super) fn now(&self) -> Duration {
        self.born.elapsed()
    }

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    pub(super) fn heard(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn said(&self) {
        self.said_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Payload passed.
    pub(super) fn note_payload(&self) {
        let now = self.now_ms();
        if self.busy_until_ms.swap(now + BUSY.as_millis() as u64, Ordering::Relaxed) <= now {
            self.busy_since_ms.store(now, Ordering::Relaxed);
            self.became_busy.notify_one();
        }
    }

    pub(super) fn slice_heard(&self, open_parts: usize) {
        self.slice_ms.store(self.now_ms(), Ordering::Relaxed);
        self.open_parts.store(open_parts as u64, Ordering::Relaxed);
    }

    pub(super) fn block(&self) {
        self.blocked.store(true, Ordering::Relaxed);
    }

    pub(super) fn unblock(&self) {
        // While we did not read, silence was ours: the other end's time begins anew.
        self.heard();
        self.slice_ms.store(self.now_ms(), Ordering::Relaxed);
        self.blocked.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    fn since(&self, ms: &AtomicU64) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(ms.load(Ordering::Relaxed)))
    }

    fn silent(&self) -> Duration {
        self.since(&self.heard_ms)
    }

    fn is_busy(&self) -> bool {
        self.now_ms() < self.busy_until_ms.load(Ordering::Relaxed)
    }

    fn part_stalled(&self) -> Duration {
        if self.open_parts.load(Ordering::Relaxed) == 0 {
            return Duration::ZERO;
        }
        self.since(&self.slice_ms)
    }
}

/// Counters of one link.
#[derive(Default)]
pub(super) struct LinkCounters {
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) payload_in: AtomicU64,
    pub(super) payload_out: AtomicU64,
}

/// A manifest the driver lets the other end send.
pub(super) struct Expected {
    pub(super) total: u32,
    pub(super) permit: OwnedSemaphorePermit,
}

/// What others may touch of a link that is up.
pub(super) struct Link {
    pub(super) node: NodeId,
    pub(super) credential: Arc<Credential>,
    pub(super) queue: Queue,
    pub(super) limit: LinkRateLimiter,
    pacer: Mutex<Ledbat>,
    pub(super) activity: Activity,
    pub(super) counters: LinkCounters,
    /// Woken by each `Pong`.
    pub(super) answered: Notify,
    expected: Mutex<HashMap<ContentId, Expected>>,
    cut: watch::Sender<Option<&'static str>>,
}

impl Link {
    pub(super) fn new(node: NodeId, credential: Arc<Credential>, queue: Queue, limit: LinkRateLimiter) -> Self {
        Self {
            node,
            credential,
            queue,
            limit,
            pacer: Mutex::new(Ledbat::new()),
            activity: Activity::new(),
            counters: LinkCounters::default(),
            answered: Notify::new(),
            expected: Mutex::default(),
            cut: watch::Sender::new(None),
        }
    }

    /// What its bulk keeps to while something urgent is about.
    pub(super) fn pacer(&self) -> MutexGuard<'_, Ledbat> {
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the link without a word to the other end, which has forgotten it.
    pub(super) fn cut(&self, why: &'static str) {
        self.cut.send_replace(Some(why));
    }

    async fn until_cut(&self) -> &'static str {
        let mut cut = self.cut.subscribe();
        match cut.wait_for(Option::is_some).await.map(|why| *why) {
            Ok(Some(why)) => why,
            _ => std::future::pending().await,
        }
    }

    /// Lets a manifest in. False when too many are expected already.
    pub(super) fn expect(&self, content: ContentId, expected: Expected) -> bool {
        let mut all = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= EXPECTED_MAX && !all.contains_key(&content) {
            return false;
        }
        all.insert(content, expected);
        true
    }

    /// Takes the permission for a manifest of exactly `total` bytes.
    pub(super) fn take_expected(&self, content: ContentId, total: u32) -> Option<Expected> {
        let mut all = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(&content)?.total != total {
            return None;
        }
        all.remove(&content)
    }

    pub(super) fn stats(&self) -> LinkStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkStats {
            bytes_in: read(&self.counters.bytes_in),
            bytes_out: read(&self.counters.bytes_out),
            payload_in: read(&self.counters.payload_in),
            payload_out: read(&self.counters.payload_out),
        }
    }
}

/// How a link ended.
enum End {
    /// The other end said why.
    Told(CloseReason),
    /// We said why, and it is written.
    Said,
    /// It broke.
    Broke(String),
}

/// What [`run`] needs to know about the connection.
pub(super) struct Arrival {
    pub(super) remote: SocketAddr,
    pub(super) dialled: bool,
    /// Its place among the links that may be.
    pub(super) slot: OwnedSemaphorePermit,
}

/// Runs a link to its end.
pub(super) async fn run<S>(context: Arc<EndpointContext>, stream: S, link: Arc<Link>, seat: LinkSlot, arrival: Arrival)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (node, credential) = (link.node, link.credential.clone());
    let Arrival { remote, dialled, slot } = arrival;
    context.emit(LinkEvent::LinkUp { node, credential, remote, dialled }).await;
    let (read_half, mut write_half) = tokio::io::split(stream);
    let mut reader = Reader::new(context.clone(), link.clone(), read_half);
    let end = {
        let writing = writer::run(&context, &link, &mut write_half);
        serve(&context, &link, &mut reader, writing).await
    };
    seat.closing();
    let (reason, error) = match &end {
        End::Told(reason) => (Some(*reason), None),
        End::Said => (None, None),
        End::Broke(error) => (None, Some(error.clone())),
    };
    // A payload half received gives its memory back before the driver hears of the end.
    let mut read_half = reader.into_io();
    context.emit(LinkEvent::LinkDown { node, reason, error }).await;
    drop(seat);
    drop(slot);
    if let End::Told(_) | End::Said = end {
        let _best_effort = timeout(LINGER, async {
            if let Ok(()) = write_half.shutdown().await {
                drain(&mut read_half).await;
            }
        })
        .await;
    }
}

/// Reader, writer and keep-alive side by side, until one of them ends the link.
async fn serve<R>(
    context: &EndpointContext,
    link: &Link,
    reader: &mut Reader<R>,
    writing: impl Future<Output = std::io::Result<()>>,
) -> End
where
    R: AsyncRead + Unpin,
{
    let mut writing = std::pin::pin!(writing);
    let violation = {
        let reading = reader.run();
        let closing = async {
            link.queue.closing().await;
            sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            end = reading => match end {
                ReadEnd::Bye(reason) => return End::Told(reason),
                ReadEnd::Lost(error) => return End::Broke(error),
                ReadEnd::Violation(error) => error,
            },
            written = writing.as_mut() => return match written {
                Ok(()) => End::Said,
                Err(error) => End::Broke(error.to_string()),
            },
            error = keep_alive(context, link) => return End::Broke(error),
            why = link.until_cut() => return End::Broke(why.to_string()),
            () = closing => return End::Said,
        }
    };
    link.queue.close(CloseReason::Protocol);
    // The writer may be in the middle of a slice: it finishes that, then says `Bye`.
    let _best_effort = timeout(CLOSE_TIMEOUT, writing).await;
    End::Broke(violation)
}

/// Asks after a silent link; returns when it is dead.
///
/// A kernel whose packets are lost doubles its waits, so after a cut of ten seconds it may say nothing for five more, and it reports
/// nothing for a quarter hour. So both ends of a busy link say something each second, however long what they carry takes, and soon give up one
/// that brings nothing: a new connection begins at once.
async fn keep_alive(context: &EndpointContext, link: &Link) -> String {
    let (config, activity) = (&context.config, &link.activity);
    let mut asked = Instant::now();
    loop {
        let busy = activity.is_busy();
        let ping_after = if busy { config.busy_ping_after } else { config.ping_after };
        // What we say shows the other end that we live.
        let quiet = || if busy { activity.silent().max(activity.since(&activity.said_ms)) } else { activity.silent() };
        let wait = ping_after.saturating_sub(quiet().min(asked.elapsed()));
        tokio::select! {
            () = sleep(wait.max(Duration::from_millis(1))) => {}
            () = activity.became_busy.notified() => continue,
        }
        let silent = activity.silent();
        if !activity.is_blocked() {
            let busy_silent = silent.min(activity.since(&activity.busy_since_ms));
            if silent >= config.dead_after || busy && busy_silent >= config.busy_dead_after {
                return format!("nothing heard for {} s", silent.as_secs());
            }
            if activity.part_stalled() >= 2 * config.dead_after {
                return "a part stalled half received".to_string();
            }
        }
        if quiet() >= ping_after {
            // Also while we do not read: it tells the other end that we live.
            link.queue.ping();
            asked = Instant::now();
        }
    }
}

/// Reads and forgets until the other end closes.
pub(super) async fn drain(io: &mut (impl AsyncRead + Unpin)) {
    let mut sink = [0u8; 4096];
    while !matches!(io.read(&mut sink).await, Ok(0) | Err(_)) {}
}
