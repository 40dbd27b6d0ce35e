//! Recent shards in memory, for forwarding and until they are written.
//!
//! Invariant: a shard stays until it is written. A written shard stays while another host may need it and space is
//! left.

use crate::lock::lock;
use bytes::Bytes;
use shoal_proto::ids::{ContentId, ShardIndex};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex, PoisonError};

type Key = (ContentId, ShardIndex);

/// The cache, shared by the store's threads.
#[derive(Debug)]
pub(crate) struct ShardCache {
    bytes_max: usize,
    unwritten_bytes_max: usize,
    state: Mutex<CacheState>,
    /// Notified when fewer bytes wait to be written. Only the verifying thread waits for it.
    drained: Condvar,
}

/// If there is no space for every needed shard, the oldest go first, because other hosts ask for the newest next.
#[derive(Debug, Default)]
struct CacheState {
    bytes: usize,
    /// Bytes that are not written.
    unwritten: usize,
    /// The number of the next arrival.
    next_arrival: u64,
    shards: HashMap<Key, CachedShard>,
    /// The shards in the order of their arrival.
    order: BTreeMap<u64, Key>,
}

#[derive(Debug)]
struct CachedShard {
    bytes: Bytes,
    arrival: u64,
    /// Writes that are pending. A shard that arrives twice is written twice.
    writes: u32,
    /// Another host may ask for the shard.
    needed: bool,
}

impl ShardCache {
    /// Returns an empty cache of `bytes_max` bytes, of which `unwritten_bytes_max` may wait to be written.
    pub(crate) fn new(bytes_max: usize, unwritten_bytes_max: usize) -> Self {
        Self { bytes_max, unwritten_bytes_max, state: Mutex::default(), drained: Condvar::new() }
    }

    /// Adds a shard that is about to be written. Waits while too many bytes wait to be written.
    pub(crate) fn insert(&self, key: Key, bytes: Bytes) {
        let len = bytes.len();
        // A single shard always fits, or one larger than the limit would wait for ever.
        let is_full = |state: &mut CacheState| state.unwritten > 0 && state.unwritten + len > self.unwritten_bytes_max;
        let state = self.drained.wait_while(lock(&self.state), is_full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.unwritten += len;
        if let Some(shard) = state.shards.get_mut(&key) {
            shard.writes += 1;
            return;
        }
        let arrival = state.next_arrival;
        state.next_arrival += 1;
        state.bytes += len;
        state.order.insert(arrival, key);
        state.shards.insert(key, CachedShard { bytes, arrival, writes: 1, needed: true });
        state.shrink(self.bytes_max);
    }

    /// Notes that a shard of this length is written, or that its write failed.
    pub(crate) fn on_written(&self, key: &Key, bytes: usize) {
        let mut state = lock(&self.state);
        state.unwritten = state.unwritten.saturating_sub(bytes);
        if let Some(shard) = state.shards.get_mut(key) {
            shard.writes = shard.writes.saturating_sub(1);
            state.remove_if_done(key);
        }
        state.shrink(self.bytes_max);
        drop(state);
        self.drained.notify_one();
    }

    /// Notes that no other host needs the shard from here.
    pub(crate) fn release(&self, key: &Key) {
        let mut state = lock(&self.state);
        if let Some(shard) = state.shards.get_mut(key) {
            shard.needed = false;
            state.remove_if_done(key);
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Bytes> {
        lock(&self.state).shards.get(key).map(|shard| shard.bytes.clone())
    }

    /// Removes the shards of a content. Their pending writes still count as unwritten bytes.
    pub(crate) fn remove_content(&self, content: &ContentId) {
        let mut state = lock(&self.state);
        let keys: Vec<Key> = state.shards.keys().filter(|key| key.0 == *content).copied().collect();
        keys.iter().for_each(|key| state.remove(key));
    }
}

impl CacheState {
    fn remove(&mut self, key: &Key) {
        if let Some(shard) = self.shards.remove(key) {
            self.order.remove(&shard.arrival);
            self.bytes -= shard.bytes.len();
        }
    }

    fn remove_if_done(&mut self, key: &Key) {
        if self.shards.get(key).is_some_and(|shard| shard.writes == 0 && !shard.needed) {
            self.remove(key);
        }
    }

    /// Removes written shards, oldest first, until the cache has at most `bytes_max` bytes.
    fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.order.len() > 1 {
            let Some(oldest) = self.order.values().next().copied() else { return };
            // Shards are written in the order of their arrival, so no later shard is written either.
            if self.shards.get(&oldest).is_some_and(|shard| shard.writes > 0) {
                return;
            }
            self.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(shard: u32) -> Key {
        (ContentId([7; 32]), ShardIndex(shard))
    }

    fn cached(cache: &ShardCache) -> Vec<u32> {
        (0..100).filter(|shard| cache.get(&key(*shard)).is_some()).collect()
    }

    fn unwritten(cache: &ShardCache) -> usize {
        lock(&cache.state).unwritten
    }

    #[test]
    fn only_written_shards_are_removed() {
        let cache = ShardCache::new(30, 100);
        for shard in 0..5 {
            cache.insert(key(shard), Bytes::from_static(&[0; 10]));
        }
        assert_eq!(cached(&cache), [0, 1, 2, 3, 4], "no shard is written");
        cache.on_written(&key(0), 10);
        assert_eq!(cached(&cache), [1, 2, 3, 4]);
        (1..5).for_each(|shard| cache.on_written(&key(shard), 10));
        assert_eq!(cached(&cache), [2, 3, 4]);
        assert_eq!(unwritten(&cache), 0);
    }

    #[test]
    fn a_released_shard_is_removed_once_it_is_written() {
        let cache = ShardCache::new(30, 100);
        for shard in 0..3 {
            cache.insert(key(shard), Bytes::from_static(&[0; 10]));
        }
        cache.on_written(&key(0), 10);
        cache.release(&key(0));
        cache.release(&key(1));
        assert_eq!(cached(&cache), [1, 2]);
        cache.on_written(&key(1), 10);
        assert_eq!(cached(&cache), [2]);
        // There is space for three other shards again.
        (3..5).for_each(|shard| cache.insert(key(shard), Bytes::from_static(&[0; 10])));
        (2..5).for_each(|shard| cache.on_written(&key(shard), 10));
        assert_eq!(cached(&cache), [2, 3, 4]);
        assert_eq!(lock(&cache.state).order.len(), 3);
    }

    #[test]
    fn a_removed_shard_may_still_be_written() {
        let cache = ShardCache::new(20, 100);
        cache.insert(key(0), Bytes::from_static(&[0; 10]));
        cache.insert(key(0), Bytes::from_static(&[0; 10]));
        cache.remove_content(&ContentId([7; 32]));
        assert_eq!(unwritten(&cache), 20);
        (0..2).for_each(|_| cache.on_written(&key(0), 10));
        cache.insert(key(1), Bytes::from_static(&[0; 10]));
        assert_eq!((cached(&cache), unwritten(&cache)), (vec![1], 10));
    }
}
