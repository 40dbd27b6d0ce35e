//! Memory for what arrives: budgets per class, and buffers that are used again.
//!
//! Invariant: the permits a payload was read under are returned only when its last `Bytes` is dropped.
//!
//! Each class has a budget of its own, and a link opens a part of a class only while no part of a more urgent class is
//! open on it. So whoever waits for a budget holds only parts of less urgent classes, and waiting cannot go in a ring.

use bytes::Bytes;
use shoal_proto::announcement::Class;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Buffers below this are left to the allocator, bytes.
const POOLED_MIN: usize = 16 * 1024;
/// Bytes of idle buffers kept.
const POOL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Capacities are rounded up to a multiple of this, bytes, so that pieces of about the same length share buffers.
const ROUND: usize = POOLED_MIN;

#[derive(Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// Idle buffers, and the count of bytes in use.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Idle>,
    held: AtomicU64,
}

impl Pool {
    /// An empty buffer with room for `len` bytes, not zeroed.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        if len < POOLED_MIN {
            return Vec::with_capacity(len);
        }
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
        if !(POOLED_MIN..=POOL_BYTES_MAX).contains(&capacity) {
            return;
        }
        buffer.clear();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.bytes + capacity <= POOL_BYTES_MAX {
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
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl Payload {
    pub(super) fn new(pool: &Arc<Pool>, buffer: Vec<u8>, permit: OwnedSemaphorePermit) -> Self {
        pool.held.fetch_add(permit.num_permits() as u64, Ordering::Relaxed);
        Self { buffer, pool: pool.clone(), permit }
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
        &self.buffer
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
