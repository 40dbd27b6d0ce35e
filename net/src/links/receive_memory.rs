//! Memory for received payload: a budget for each class, and buffers that are used again.
//!
//! A shard starts in memory at the offset that it will have in a block of the disk ([`BlockOffset`]). So the store can
//! write the shard with direct I/O from where it lies.
//!
//! Links cannot wait for each other's memory in a circle. Each class has a budget of its own, and a link opens a part
//! of a class only while no part of a more urgent class is open on the link. So a link that waits for a budget holds
//! memory of less urgent classes only.
//!
//! Invariant: the permits of a payload return only when its last `Bytes` is dropped.

use bytes::Bytes;
use shoal_proto::announcement::Class;
use shoal_proto::ids::{ContentId, ShardIndex};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The allocator handles buffers below this length, in bytes.
const POOLED_BYTES_MIN: usize = 16 * 1024;
/// The alignment of memory for direct I/O, in bytes.
const BLOCK_BYTES: usize = 4096;
/// Capacities are multiples of this, in bytes, so that pieces of similar length use the same buffers.
const CAPACITY_STEP: usize = POOLED_BYTES_MIN;

/// Returns the offset of a shard's first byte in its block of 4096 bytes on the disk, or 0 if the offset is not known.
pub type BlockOffset = Arc<dyn Fn(&ContentId, ShardIndex) -> usize + Send + Sync>;

#[derive(Default)]
struct IdleBuffers {
    buffers: Vec<Vec<u8>>,
    /// The sum of the capacities.
    bytes: usize,
}

/// Idle buffers, and the count of bytes in use.
pub struct Pool {
    idle: Mutex<IdleBuffers>,
    idle_bytes_max: usize,
    held: AtomicU64,
}

impl Pool {
    /// Keeps up to `idle_bytes_max` bytes of idle buffers. With less than the peak use, the kernel would have to map
    /// the difference again and again.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self { idle: Mutex::default(), idle_bytes_max, held: AtomicU64::new(0) }
    }

    /// Returns a buffer that holds `len` bytes after a start at `offset` in a block. It is filled up to that start, and
    /// its other memory is not zeroed.
    pub fn take(&self, len: usize, offset: usize) -> Vec<u8> {
        if len < POOLED_BYTES_MIN {
            return Vec::with_capacity(len);
        }
        let mut buffer = self.take_empty(len + BLOCK_BYTES);
        let start = (offset % BLOCK_BYTES + BLOCK_BYTES - buffer.as_ptr().addr() % BLOCK_BYTES) % BLOCK_BYTES;
        buffer.resize(start, 0);
        buffer
    }

    fn take_empty(&self, len: usize) -> Vec<u8> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest buffer that fits, but none of more than twice the size. Memory in use must stay near the
        // permits.
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
                Vec::with_capacity(len.next_multiple_of(CAPACITY_STEP))
            }
        }
    }

    fn put_back(&self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if !(POOLED_BYTES_MIN..=self.idle_bytes_max).contains(&capacity) {
            return;
        }
        buffer.clear();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.bytes + capacity <= self.idle_bytes_max {
            idle.bytes += capacity;
            idle.buffers.push(buffer);
        }
    }

    /// Frees the idle buffers.
    pub fn trim(&self) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = IdleBuffers::default();
    }

    /// Returns the bytes under permits.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// A payload that is being filled, with the permit for its whole length.
pub struct Payload {
    buffer: Vec<u8>,
    /// Where the payload starts in the buffer.
    start: usize,
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl Payload {
    /// Returns a payload that starts at the present end of `buffer`.
    pub fn new(pool: &Arc<Pool>, buffer: Vec<u8>, permit: OwnedSemaphorePermit) -> Self {
        pool.held.fetch_add(permit.num_permits() as u64, Ordering::Relaxed);
        Self { start: buffer.len(), buffer, pool: pool.clone(), permit }
    }

    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Returns the whole payload without a copy.
    pub fn into_bytes(self) -> Bytes {
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
        self.pool.put_back(std::mem::take(&mut self.buffer));
    }
}

/// The payload bytes of each class, and of manifests, that may be in memory.
pub struct Budgets {
    classes: [Arc<Semaphore>; 4],
    manifests: Arc<Semaphore>,
}

impl Budgets {
    /// Bulk has `bulk` bytes. Each other class has a quarter of that, but at least one largest piece.
    pub fn new(bulk: usize, manifests: usize) -> Self {
        let other = (bulk / 4).max(shoal_proto::limits::PIECE_BYTES_MAX as usize);
        let classes = Class::ALL.map(|class| Arc::new(Semaphore::new(if class == Class::Bulk { bulk } else { other })));
        Self { classes, manifests: Arc::new(Semaphore::new(manifests)) }
    }

    pub fn class(&self, class: Class) -> &Arc<Semaphore> {
        &self.classes[class as usize]
    }

    /// Returns the permit for a manifest, or `None` if the budget has no room now.
    pub fn manifest(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        self.manifests.clone().try_acquire_many_owned(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_starts_at_its_offset_in_a_block() {
        let (pool, budget) = (Arc::new(Pool::new(1 << 20)), Arc::new(Semaphore::new(1 << 20)));
        for (len, offset) in [(POOLED_BYTES_MIN, 0), (100_000, 1), (100_001, 4095), (65_536, 2048), (100_000, 17)] {
            let permit = budget.clone().try_acquire_many_owned(len as u32).unwrap();
            let mut payload = Payload::new(&pool, pool.take(len, offset), permit);
            let before = payload.buffer().capacity();
            let whole = payload.start + len;
            payload.buffer().resize(whole, 7);
            assert_eq!(payload.buffer().capacity(), before, "the buffer did not move");
            let bytes = payload.into_bytes();
            assert_eq!((bytes.len(), bytes.as_ptr().addr() % BLOCK_BYTES), (len, offset));
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
        assert_eq!((pool.held(), budget.available_permits()), (0, 1 << 20));
    }
}
