//! The connections that wait for admission. When there are too many, the oldest one ends.
//!
//! Invariant: a connection has a place as long as its [`PendingPermit`] lives or until it must give way.

use crate::places::{PlaceLimits, Places};
use crate::range::KnownRanges;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

type Shared = Arc<Mutex<Places<u64, CancellationToken>>>;

fn lock(places: &Shared) -> MutexGuard<'_, Places<u64, CancellationToken>> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands out permits to wait for admission.
pub struct PendingLimiter {
    places: Shared,
    known: KnownRanges,
    next: AtomicU64,
}

impl PendingLimiter {
    pub fn new(places: usize, places_per_range: usize) -> Self {
        let known = KnownRanges::default();
        let places = Places::new(PlaceLimits { places, places_per_range }, known.clone());
        Self { places: Arc::new(Mutex::new(places)), known, next: AtomicU64::new(0) }
    }

    /// Address ranges whose connections have places of their own.
    pub fn known(&self) -> &KnownRanges {
        &self.known
    }

    /// Returns a permit for a connection from `ip`. Another connection may have to give way for it. `None` if none can.
    pub fn acquire(&self, ip: IpAddr) -> Option<PendingPermit> {
        let (number, gives_way) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        let gone = lock(&self.places).take(number, ip, gives_way.clone(), Instant::now()).ok()?;
        if let Some(gone) = gone {
            gone.cancel();
        }
        Some(PendingPermit { places: self.places.clone(), number, gives_way })
    }
}

/// The right of one connection to wait for admission. Dropping the permit makes room for another connection.
pub struct PendingPermit {
    places: Shared,
    number: u64,
    gives_way: CancellationToken,
}

impl PendingPermit {
    /// Returns when the connection must end for another one.
    pub async fn until_gone(&self) {
        self.gives_way.cancelled().await;
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        lock(&self.places).remove(&self.number);
    }
}
