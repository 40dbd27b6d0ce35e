//! Room on the disk: what is taken, what can be had, who goes first.
//!
//! Invariant: bytes promised to one are not found free by another, and what is pinned or unfinished never goes.

use crate::store::{BeginError, Inner, Store, Usage, lock};
use shoal_proto::ids::ContentId;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Room for a content until it is counted among the others; given back when dropped.
pub struct SpaceReservation {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        *lock(&self.inner.promised) -= self.bytes;
    }
}

impl Store {
    /// Evicts unpinned contents that are whole or of which only a share is here, least recently used first, until `need`
    /// bytes fit; promises them.
    pub(crate) fn make_space(&self, need: u64) -> Result<(SpaceReservation, Vec<ContentId>), BeginError> {
        self.make_space_keeping(need, None)
    }

    /// The same, but one content stays.
    pub(crate) fn make_space_keeping(
        &self,
        need: u64,
        beside: Option<&ContentId>,
    ) -> Result<(SpaceReservation, Vec<ContentId>), BeginError> {
        let mut evicted = Vec::new();
        // Held throughout: what is found free here is not given to two.
        let mut promised = lock(&self.inner.promised);
        loop {
            let room = self.room(*promised);
            if need <= room {
                *promised += need;
                return Ok((SpaceReservation { inner: self.inner.clone(), bytes: need }, evicted));
            }
            let victim = lock(&self.inner.contents)
                .values()
                .filter(|content| content.may_go() && Some(&content.id) != beside)
                .min_by_key(|content| (content.used_at.load(Ordering::Relaxed), content.id))
                .map(|content| content.id);
            let Some(victim) = victim else { return Err(BeginError::WouldNotFit { need, room }) };
            self.remove(&victim)?;
            evicted.push(victim);
        }
    }

    /// Promises `need` bytes if they are free.
    pub(crate) fn reserve_if_free(&self, need: u64) -> Result<SpaceReservation, BeginError> {
        let mut promised = lock(&self.inner.promised);
        let room = self.room(*promised);
        if need > room {
            return Err(BeginError::WouldNotFit { need, room });
        }
        *promised += need;
        Ok(SpaceReservation { inner: self.inner.clone(), bytes: need })
    }

    fn room(&self, promised: u64) -> u64 {
        let usage = self.usage();
        let by_quota = usage.quota.map_or(u64::MAX, |quota| quota.saturating_sub(usage.used));
        by_quota.min(usage.free.saturating_sub(self.inner.config.min_free)).saturating_sub(promised)
    }

    /// Space taken and left.
    pub fn usage(&self) -> Usage {
        let used = self.inner.used();
        let free = rustix::fs::statvfs(&self.inner.config.dir).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        Usage { used, quota: self.inner.config.quota, free }
    }
}
