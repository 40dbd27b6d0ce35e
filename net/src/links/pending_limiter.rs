//! A limit for connections that wait for admission, in all and for each address.
//!
//! Invariant: the count of an address equals the number of its [`PendingPermit`]s. Addresses without one use no memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type CountByIp = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// Hands out permits to wait for admission.
pub struct PendingLimiter {
    counts: CountByIp,
    total: Arc<Semaphore>,
    per_ip_max: usize,
}

impl PendingLimiter {
    pub fn new(max: usize, per_ip_max: usize) -> Self {
        Self { counts: Arc::default(), total: Arc::new(Semaphore::new(max)), per_ip_max }
    }

    /// Returns a permit for a connection from `ip`, or `None` at a limit.
    pub fn try_acquire(&self, ip: IpAddr) -> Option<PendingPermit> {
        let total = self.total.clone().try_acquire_owned().ok()?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= self.per_ip_max {
            // The count is above zero here, so a permit exists that will remove the entry.
            return None;
        }
        *count += 1;
        drop(counts);
        Some(PendingPermit { counts: self.counts.clone(), ip, _total: total })
    }
}

/// The right of one connection to wait for admission. Dropping the permit makes room for another connection.
pub struct PendingPermit {
    counts: CountByIp,
    ip: IpAddr,
    _total: OwnedSemaphorePermit,
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}
