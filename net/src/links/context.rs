//! The state that all tasks of an endpoint share.
//!
//! Invariant: no event is dropped while the endpoint is in use. Once the endpoint shuts down, no event delays a task.

use super::config::LinkConfig;
use super::counters::{EndpointCounters, EndpointStats};
use super::error::{AbortReason, BindError};
use super::event::LinkEvent;
use super::event_queue::{self, EventSender, LinkEvents, SendError};
use super::ledbat::UrgentActivity;
use super::link::{Link, PART_TIME_MAX};
use super::pending_limiter::PendingLimiter;
use super::rate_limit::RateLimits;
use super::receive_memory::{Budgets, Pool};
use super::refused_nodes::RefusedNodes;
use super::registry::Registry;
use crate::log_limit::LogLimit;
use crate::tls::Tls;
use shoal_proto::announcement::Class;
use shoal_proto::ids::NodeId;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often a link may end because its part is slow.
const SHED_EVERY: Duration = Duration::from_secs(2);
/// A part that takes this many times as long as the median part is slow.
const SLOW_BESIDE_OTHERS: u32 = 8;
/// Lines per second that others can cause.
const WARNINGS_LOGGED: u32 = 2;

/// The state that all tasks of an endpoint share.
pub struct EndpointContext {
    config: LinkConfig,
    tls: Tls,
    registry: Registry<Link>,
    budgets: Budgets,
    pool: Arc<Pool>,
    rate_limits: RateLimits,
    urgent: UrgentActivity,
    counters: EndpointCounters,
    pending: PendingLimiter,
    refused: RefusedNodes,
    warnings: LogLimit,
    /// When a link last ended because of a slow part.
    shed: Mutex<Option<Instant>>,
    /// One permit for each link that may exist.
    link_permits: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Set when the endpoint refuses new connections and finishes its links.
    closing: CancellationToken,
    /// Set when every task must end at once.
    stop: CancellationToken,
    events: EventSender,
    /// The separate queue of announcements, once the driver asked for one.
    announcements: OnceLock<EventSender>,
}

impl EndpointContext {
    pub fn new(config: LinkConfig) -> Result<(Arc<Self>, LinkEvents), BindError> {
        config.validate()?;
        let tls = Tls::new(&config.identity)?;
        let (events, receiver) = event_queue::queue(config.events_max);
        let context = Self {
            tls,
            registry: Registry::new(),
            budgets: Budgets::new(config.receive_bytes, config.manifest_bytes),
            pool: Arc::new(Pool::new(config.receive_bytes)),
            rate_limits: RateLimits::default(),
            urgent: UrgentActivity::new(),
            counters: EndpointCounters::default(),
            pending: PendingLimiter::new(config.pending_max, config.pending_per_range_max),
            refused: RefusedNodes::default(),
            warnings: LogLimit::new(WARNINGS_LOGGED, Duration::from_secs(1)),
            shed: Mutex::default(),
            link_permits: Arc::new(Semaphore::new(config.links_max)),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            events,
            announcements: OnceLock::new(),
            config,
        };
        Ok((Arc::new(context), receiver))
    }

    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    pub fn registry(&self) -> &Registry<Link> {
        &self.registry
    }

    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub fn rate_limits(&self) -> &RateLimits {
        &self.rate_limits
    }

    pub fn urgent(&self) -> &UrgentActivity {
        &self.urgent
    }

    pub fn counters(&self) -> &EndpointCounters {
        &self.counters
    }

    pub fn pending(&self) -> &PendingLimiter {
        &self.pending
    }

    /// The nodes that get no link.
    pub fn refused(&self) -> &RefusedNodes {
        &self.refused
    }

    /// The limit of log lines that others can cause.
    pub fn warnings(&self) -> &LogLimit {
        &self.warnings
    }

    pub fn node(&self) -> NodeId {
        self.config.identity.node()
    }

    /// Starts a task that ends at the latest when the endpoint stops.
    pub fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Returns a token that stops every task when it is cancelled.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    pub fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Returns once the endpoint shuts down.
    pub async fn until_closing(&self) {
        self.closing.cancelled().await;
    }

    /// Refuses new connections, calls `close_links`, and waits for every task. Aborts the tasks after `deadline`.
    pub async fn shutdown(&self, deadline: Duration, close_links: impl FnOnce()) {
        self.closing.cancel();
        self.tasks.close();
        close_links();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            self.stop.cancel();
            self.tasks.wait().await;
        }
    }

    /// Ends the link whose part of a class holds its memory longest, if that part is slow beside the others or by
    /// itself. At most one link in [`SHED_EVERY`]: where a whole site is slow, each part that is lost makes it slower.
    pub fn end_slowest_part(&self, class: Class) {
        let mut last = self.shed.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < SHED_EVERY) {
            return;
        }
        let links = self.registry.links();
        let mut times: Vec<_> = links.iter().filter_map(|link| Some((link.part_time(class)?, link))).collect();
        times.sort_unstable_by_key(|(time, _)| *time);
        let Some(((worst, link), (median, _))) = times.last().zip(times.get(times.len() / 2)) else { return };
        if *worst > PART_TIME_MAX || *worst > median.saturating_mul(SLOW_BESIDE_OTHERS) {
            *last = Some(Instant::now());
            link.abort(AbortReason::PartTooSlow);
        }
    }

    /// Returns the permit for one more link, or `None` if there are as many links as there may be.
    pub fn try_link_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.link_permits.clone().try_acquire_owned().ok()
    }

    /// Puts announcements into a queue of their own from now on. `None` if they have one.
    pub fn split_announcements(&self) -> Option<LinkEvents> {
        let (sender, receiver) = event_queue::queue(self.config.events_max);
        self.announcements.set(sender).ok().map(|()| receiver)
    }

    fn queue_of(&self, event: &LinkEvent) -> &EventSender {
        match event {
            LinkEvent::Announce { .. } => self.announcements.get().unwrap_or(&self.events),
            _ => &self.events,
        }
    }

    /// Hands an event to the driver if its queue has room. Returns the event otherwise. `bytes` is the memory
    /// that the event takes.
    pub fn try_emit(&self, event: LinkEvent, bytes: usize) -> Result<(), Box<LinkEvent>> {
        match self.queue_of(&event).try_send(event, bytes) {
            Ok(()) => Ok(()),
            Err(SendError::Full(event)) => Err(event),
            Err(SendError::Closed) => {
                // The driver has dropped its queue, so it needs no links.
                self.stop.cancel();
                Ok(())
            }
        }
    }

    /// Hands a small event to the driver and waits for room in its queue.
    pub async fn emit(&self, event: LinkEvent) {
        self.emit_body(event, 0).await;
    }

    /// Hands an event to the driver and waits for room in its queue. `bytes` is the memory that the event
    /// takes.
    pub async fn emit_body(&self, event: LinkEvent, bytes: usize) {
        let Err(event) = self.try_emit(event, bytes) else { return };
        tokio::select! {
            () = self.until_closing() => {}
            sent = self.queue_of(&event).send(*event, bytes) => if !sent { self.stop.cancel() },
        }
    }

    pub fn stats(&self) -> EndpointStats {
        self.counters.stats(self.registry.link_count(), self.pool.held())
    }

    #[cfg(test)]
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }
}
