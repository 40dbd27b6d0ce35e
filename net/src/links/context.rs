//! The state that all tasks of an endpoint share.
//!
//! Invariant: no event is dropped while the endpoint is in use. Once the endpoint shuts down, no event delays a task.

use super::config::LinkConfig;
use super::counters::{EndpointCounters, EndpointStats};
use super::error::BindError;
use super::event::LinkEvent;
use super::ledbat::UrgentActivity;
use super::link::Link;
use super::pending_limiter::PendingLimiter;
use super::rate_limit::RateLimits;
use super::receive_memory::{Budgets, Pool};
use super::registry::Registry;
use crate::tls::Tls;
use shoal_proto::ids::NodeId;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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
    /// One permit for each link that may exist.
    link_permits: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Set when the endpoint refuses new connections and finishes its links.
    closing: CancellationToken,
    /// Set when every task must end at once.
    stop: CancellationToken,
    events: mpsc::Sender<LinkEvent>,
    /// The separate queue of announcements, once the driver asked for one.
    announcements: OnceLock<mpsc::Sender<LinkEvent>>,
}

impl EndpointContext {
    pub fn new(config: LinkConfig) -> Result<(Arc<Self>, mpsc::Receiver<LinkEvent>), BindError> {
        config.validate()?;
        let tls = Tls::new(&config.identity)?;
        let (events, receiver) = mpsc::channel(config.events_max);
        let context = Self {
            tls,
            registry: Registry::new(),
            budgets: Budgets::new(config.receive_bytes, config.manifest_bytes),
            pool: Arc::new(Pool::new(config.receive_bytes)),
            rate_limits: RateLimits::default(),
            urgent: UrgentActivity::new(),
            counters: EndpointCounters::default(),
            pending: PendingLimiter::new(config.pending_max, config.pending_per_ip_max),
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

    /// Returns the permit for one more link, or `None` if there are as many links as there may be.
    pub fn try_link_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.link_permits.clone().try_acquire_owned().ok()
    }

    /// Puts announcements into a queue of their own from now on. `None` if they have one.
    pub fn split_announcements(&self) -> Option<mpsc::Receiver<LinkEvent>> {
        let (sender, receiver) = mpsc::channel(self.config.events_max);
        self.announcements.set(sender).ok().map(|()| receiver)
    }

    fn queue_of(&self, event: &LinkEvent) -> &mpsc::Sender<LinkEvent> {
        match event {
            LinkEvent::Announce { .. } => self.announcements.get().unwrap_or(&self.events),
            _ => &self.events,
        }
    }

    /// Hands an event to the driver if its queue has room. Returns the event otherwise.
    pub fn try_emit(&self, event: LinkEvent) -> Result<(), Box<LinkEvent>> {
        match self.queue_of(&event).try_send(event) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(event)) => Err(Box::new(event)),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                // The driver has dropped its queue, so it needs no links.
                self.stop.cancel();
                Ok(())
            }
        }
    }

    /// Hands an event to the driver and waits for room in its queue.
    pub async fn emit(&self, event: LinkEvent) {
        let Err(event) = self.try_emit(event) else { return };
        tokio::select! {
            () = self.until_closing() => {}
            sent = self.queue_of(&event).send(*event) => if sent.is_err() { self.stop.cancel() },
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
