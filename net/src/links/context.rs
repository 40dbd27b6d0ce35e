//! What every task of an endpoint shares.
//!
//! Invariant: no event is dropped while the endpoint is in use; once it shuts down, none holds a task up.

use super::ledbat::UrgentActivity;
use super::link::LinkCounters;
use super::rate_limit::RateLimits;
use super::receive_memory::{Budgets, Pool};
use super::registry::Registry;
use super::{BindError, EndpointStats, LinkConfig, LinkEvent};
use crate::tls::Tls;
use shoal_proto::ids::NodeId;
use shoal_proto::limits;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Counters of an endpoint.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) links: LinkCounters,
    pub(super) unexpected: AtomicU64,
    pub(super) strangers: AtomicU64,
    pub(super) not_admitted: AtomicU64,
}

/// What every task of an endpoint shares.
pub(super) struct EndpointContext {
    pub(super) node: NodeId,
    pub(super) config: LinkConfig,
    pub(super) tls: Tls,
    pub(super) registry: Registry,
    pub(super) budgets: Budgets,
    pub(super) pool: Arc<Pool>,
    pub(super) rate_limits: RateLimits,
    pub(super) urgent: UrgentActivity,
    pub(super) counters: Counters,
    /// Links that may be.
    pub(super) link_permits: Arc<Semaphore>,
    /// Connections that may await admission.
    pub(super) pending: PendingLimiter,
    pub(super) tasks: TaskTracker,
    /// Refuse what is new, finish what is not.
    pub(super) closing: CancellationToken,
    /// Drop everything.
    pub(super) stop: CancellationToken,
    events: mpsc::Sender<LinkEvent>,
    /// Where announcements go once somebody takes them apart from the rest.
    announcements: OnceLock<mpsc::Sender<LinkEvent>>,
}

impl EndpointContext {
    pub(super) fn new(config: LinkConfig) -> Result<(Arc<Self>, mpsc::Receiver<LinkEvent>), BindError> {
        if config.receive_bytes < limits::PIECE_BYTES_MAX as usize {
            return Err(BindError::Config("the receive budget is smaller than one piece"));
        }
        if config.links_max == 0 || config.events_max == 0 || config.parts_max == 0 || config.messages_max == 0 {
            return Err(BindError::Config("a limit of bulk links is zero"));
        }
        let tls = Tls::new(&config.identity).map_err(BindError::Tls)?;
        let (events, receiver) = mpsc::channel(config.events_max);
        let context = Self {
            node: config.identity.node(),
            tls,
            registry: Registry::new(),
            budgets: Budgets::new(config.receive_bytes, config.manifest_bytes),
            pool: Arc::new(Pool::new(config.receive_bytes)),
            rate_limits: RateLimits::default(),
            urgent: UrgentActivity::new(),
            counters: Counters::default(),
            link_permits: Arc::new(Semaphore::new(config.links_max)),
            pending: PendingLimiter::new(config.pending_max, config.pending_per_ip_max),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            events,
            announcements: OnceLock::new(),
            config,
        };
        Ok((Arc::new(context), receiver))
    }

    /// Starts a task that ends when `stop` is called.
    pub(super) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Gives announcements a queue of their own from now on; `None` when they have one.
    pub(super) fn split_announcements(&self) -> Option<mpsc::Receiver<LinkEvent>> {
        let (sender, receiver) = mpsc::channel(self.config.events_max);
        self.announcements.set(sender).ok().map(|()| receiver)
    }

    fn sink(&self, event: &LinkEvent) -> &mpsc::Sender<LinkEvent> {
        match event {
            LinkEvent::Announce { .. } => self.announcements.get().unwrap_or(&self.events),
            _ => &self.events,
        }
    }

    /// Hands an event to the driver if there is room at once.
    pub(super) fn try_emit(&self, event: LinkEvent) -> Result<(), Box<LinkEvent>> {
        match self.sink(&event).try_send(event) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(event)) => Err(Box::new(event)),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                // Nobody listens any more, so nobody can want links.
                self.stop.cancel();
                Ok(())
            }
        }
    }

    /// Hands an event to the driver, waiting for room.
    pub(super) async fn emit(&self, event: LinkEvent) {
        let Err(event) = self.try_emit(event) else { return };
        tokio::select! {
            () = self.closing.cancelled() => {}
            sent = self.sink(&event).send(*event) => if sent.is_err() { self.stop.cancel() },
        }
    }

    pub(super) fn stats(&self) -> EndpointStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { links, unexpected, strangers, not_admitted } = &self.counters;
        EndpointStats {
            links: self.registry.link_count(),
            bytes_in: read(&links.bytes_in),
            bytes_out: read(&links.bytes_out),
            payload_in: read(&links.payload_in),
            payload_out: read(&links.payload_out),
            held: self.pool.held(),
            unexpected: read(unexpected),
            strangers: read(strangers),
            not_admitted: read(not_admitted),
        }
    }
}

/// Counts connections that are not admitted yet, in all and for each address.
pub(super) struct PendingLimiter {
    inside: Arc<Mutex<HashMap<IpAddr, usize>>>,
    room: Arc<Semaphore>,
    per_ip_max: usize,
}

impl PendingLimiter {
    fn new(max: usize, per_ip_max: usize) -> Self {
        Self { inside: Arc::default(), room: Arc::new(Semaphore::new(max)), per_ip_max }
    }

    /// Lets a connection in, if there is room.
    pub(super) fn try_acquire(&self, ip: IpAddr) -> Option<PendingPermit> {
        let room = self.room.clone().try_acquire_owned().ok()?;
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let count = inside.entry(ip).or_default();
        if *count >= self.per_ip_max {
            // Then it is above zero, and the entry is no leak.
            return None;
        }
        *count += 1;
        drop(inside);
        Some(PendingPermit { inside: self.inside.clone(), ip, _room: room })
    }
}

/// The right to await admission. Dropping it makes room.
pub(super) struct PendingPermit {
    inside: Arc<Mutex<HashMap<IpAddr, usize>>>,
    ip: IpAddr,
    _room: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = inside.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.ip);
            }
        }
    }
}
