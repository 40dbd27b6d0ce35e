//! Space on the disk: what contents take, what is reserved, and which content is evicted first.
//!
//! Invariant: space that is reserved for one content is not free for another, and eviction never takes a pinned or
//! unfinished content.

use crate::config::Usage;
use crate::errors::BeginError;
use crate::inner::Inner;
use crate::lock::lock;
use shoal_kv::KvError;
use shoal_proto::ids::ContentId;
use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

/// Space for a content until the store counts the content itself. A drop frees the space.
pub struct SpaceReservation {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        *lock(&self.inner.reserved) -= self.bytes;
    }
}

/// Space for a new content, and the contents that were evicted for it.
pub(crate) struct FreedSpace {
    pub(crate) reservation: SpaceReservation,
    pub(crate) evicted: Vec<ContentId>,
}

impl Inner {
    /// Reserves `need` bytes. Evicts the least recently used contents until the bytes are free, but never `keep`.
    pub(crate) fn make_space(self: &Arc<Self>, need: u64, keep: Option<&ContentId>) -> Result<FreedSpace, BeginError> {
        let mut evicted = Vec::new();
        // Held throughout: two callers must not both find the same bytes free.
        let mut reserved = lock(&self.reserved);
        loop {
            let available = self.available(*reserved);
            if need <= available {
                *reserved += need;
                return Ok(FreedSpace { reservation: SpaceReservation { inner: self.clone(), bytes: need }, evicted });
            }
            let contents = self.contents();
            let evictable = contents.iter().filter(|content| content.is_evictable() && Some(&content.id) != keep);
            let victim = evictable.min_by_key(|content| (content.used_at(), content.id)).map(|content| content.id);
            let Some(victim) = victim else { return Err(BeginError::WouldNotFit { need, available }) };
            self.remove(&victim)?;
            evicted.push(victim);
        }
    }

    /// Reserves `need` bytes if they are free without an eviction.
    pub(crate) fn reserve_if_free(self: &Arc<Self>, need: u64) -> Result<SpaceReservation, BeginError> {
        let mut reserved = lock(&self.reserved);
        let available = self.available(*reserved);
        if need > available {
            return Err(BeginError::WouldNotFit { need, available });
        }
        *reserved += need;
        Ok(SpaceReservation { inner: self.clone(), bytes: need })
    }

    fn available(&self, reserved: u64) -> u64 {
        let usage = self.usage();
        let by_quota = usage.quota.map_or(u64::MAX, |quota| quota.saturating_sub(usage.used));
        by_quota.min(usage.free.saturating_sub(self.config.min_free)).saturating_sub(reserved)
    }

    pub(crate) fn usage(&self) -> Usage {
        let free = rustix::fs::statvfs(&self.config.dir).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        Usage { used: self.used_bytes(), quota: self.config.quota, free }
    }

    /// Returns the bytes of all contents and rack shares. A file with several names counts once.
    fn used_bytes(&self) -> u64 {
        // Before the contents: a content that is inserted in between then counts twice rather than not at all, and its
        // inode makes it count once.
        let linked = lock(&self.linked).clone();
        let contents = self.contents();
        let shares: u64 = contents.iter().map(|content| content.share_bytes()).sum();
        let whole = contents.iter().filter(|content| !content.is_whole_dropped());
        let files = whole.flat_map(|content| content.layout.extents()).chain(linked);
        let mut seen = HashSet::new();
        shares + files.filter(|file| seen.insert(file.inode)).map(|file| file.bytes).sum::<u64>()
    }

    /// Deletes a content.
    pub(crate) fn remove(&self, id: &ContentId) -> Result<(), KvError> {
        let Some(content) = self.take_content(id) else { return Ok(()) };
        self.cache.remove_content(id);
        content.layout.seal();
        lock(&self.blobs).remove(&content);
        if !content.is_unindexed() {
            self.reassign_pieces(&content)?;
            self.tables.contents.delete(id.0)?;
        }
        // The manifest goes first: a stop in between leaves a folder that the next start deletes.
        let _ = fs::remove_file(content.dir.join("manifest")); // the folder goes next
        if let Err(error) = fs::remove_dir_all(&content.dir) {
            tracing::warn!(content = %id.short(), %error, "cannot delete a content's folder");
        }
        Ok(())
    }
}
