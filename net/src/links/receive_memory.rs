//! Memory for what arrives: budgets per class, and buffers that are used again.
//!
//! Invariant: the permits a payload was read under are returned only when its last `Bytes` is dropped.
//!
//! A shard begins in memory where it will begin in a block of the disk ([`BlockOffset`]), so that it can be written around the page
//! cache from where it is.
//!
//! Each class has a budget of its own, and a link opens a part of a class only while no part of a more urgent class is
//! open on it. So whoever waits for a budget holds only parts of less urgent classes, and waiting cannot go in a ring.

use bytes::Bytes;
use shoal_proto::announcement::Class;
use shoal_proto::ids::{ContentId, ShardIndex};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Buffers below this are left to the allocator, bytes.
const POOLED_MIN: usize = 16 * 1024;
/// What memory is aligned to for writes around the page cache, bytes.
const BLOCK: usize = 4096;
/// Capacities are rounded up to a multiple of this, bytes, so that pieces of about the same length share buffers.
const ROUND: usize = POOLED_MIN;

/// How far into a block of the disk, of 4096 bytes, a shard's first byte will lie; 0 if that is not known.
pub type BlockOffset = Arc<dyn Fn(&ContentId, ShardIndex) -> usize + Send + Sync>;

#[derive(Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// Idle buffers, and the count of bytes in use.
pub(super) struct Pool {
    idle: Mutex<Idle>,
    /// Bytes of idle buffers kept.
    idle_max: usize,
    held: AtomicU64,
}

impl Pool {
    /// Keeps up to `idle_max` bytes of idle buffers: fewer than are in use at times are faulted in again each time.
    pub(super) fn new(idle_max: usize) -> Self {
        Self { idle: Mutex::default(), idle_max, held: AtomicU64::new(0) }
    }

    /// A buffer with room for `len` bytes from `phase` bytes into a block on, not zeroed; filled up to there.
    pub(super) fn take(&self, len: usize, phase: usize) -> Vec<u8> {
        if len < POOLED_MIN {
            return Vec::with_capacity(len);
        }
        let mut buffer = self.take_empty(len + BLOCK);
        let start = (phase % BLOCK + BLOCK - buffer.as_ptr().addr() % BLOCK) % BLOCK;
        buffer.resize(start, 0);
        buffer
    }

    fn take_empty(&self, len: usize) -> Vec<u8> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Smallest that fits, but none of more than twice the size: memory in use must stay near the permits held.
        let fits = |buffer: &Vec<u8>| (len..=2 * len).contains(&buffer.capacity());
        let best =
            (0..idle.buffers.len()).filter(|at| fits(&idle.buffers[*at])).min_by_key(|at| idle.buffers[*at].capacity());
        match best {
            Some(at) => {
                let buffer = idle.buffers.swap_remove(at);
                idle.bytes -= buffer.capacity();
                buffer
            }
            None => {
                drop(idle);
                Vec::with_capacity(len.next_multiple_of(ROUND))
            }
        }
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if !(POOLED_MIN..=self.idle_max).contains(&capacity) {
            return;
        }
        buffer.clear();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.bytes + capacity <= self.idle_max {
            idle.bytes += capacity;
            idle.buffers.push(buffer);
        }
    }

    /// Frees the idle buffers.
    pub(super) fn trim(&self) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Idle::default();
    }

    /// Bytes under permits now.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// A payload being filled, with the permit that covers its whole length.
pub(super) struct Payload {
    buffer: Vec<u8>,
    /// Where it begins in the buffer.
    start: usize,
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl Payload {
    /// Begins where the buffer ends now.
    pub(super) fn new(pool: &Arc<Pool>, buffer: Vec<u8>, permit: OwnedSemaphorePermit) -> Self {
        pool.held.fetch_add(permit.num_permits() as u64, Ordering::Relaxed);
        Self { start: buffer.len(), buffer, pool: pool.clone(), permit }
    }

    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The payload, whole: no copy is made.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.pool.held.fetch_sub(self.permit.num_permits() as u64, Ordering::Relaxed);
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

/// How many bytes of each class, and of manifests, may be in memory.
pub(super) struct Budgets {
    classes: [Arc<Semaphore>; 4],
    manifests: Arc<Semaphore>,
}

impl Budgets {
    /// `bulk` bytes for the bulk class, a quarter (but one largest piece at least) for each other.
    pub(super) fn new(bulk: usize, manifests: usize) -> Self {
        let other = (bulk / 4).max(shoal_proto::limits::PIECE_BYTES_MAX as usize);
        let classes = Class::ALL.map(|class| Arc::new(Semaphore::new(if class == Class::Bulk { bulk } else { other })));
        Self { classes, manifests: Arc::new(Semaphore::new(manifests)) }
    }

    /// The budget of a class.
    pub(super) fn class(&self, class: Class) -> &Arc<Semaphore> {
        &self.classes[class as usize]
    }

    /// Room for a manifest, if there is any now.
    pub(super) fn manifest(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        self.manifests.clone().try_acquire_many_owned(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_begins_where_it_will_in_a_block() {
        let (pool, budget) = (Arc::new(Pool::new(1 << 20)), Arc::new(Semaphore::new(1 << 20)));
        for (len, phase) in [(POOLED_MIN, 0), (100_000, 1), (100_001, 4095), (65_536, 2048), (100_000, 17)] {
            let permit = budget.clone().try_acquire_many_owned(len as u32).unwrap();
            let mut payload = Payload::new(&pool, pool.take(len, phase), permit);
            let before = payload.buffer().capacity();
            let whole = payload.start + len;
            payload.buffer().resize(whole, 7);
            assert_eq!(payload.buffer().capacity(), before, "it did not move");
            let bytes = payload.into_bytes();
            assert_eq!((bytes.len(), bytes.as_ptr().addr() % BLOCK), (len, phase));
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
        assert_eq!((pool.held(), budget.available_permits()), (0, 1 << 20));
    }
}
