//! Shards that arrived a moment ago and are to be sent on: they are, from memory.
//!
//! Invariant: what is not yet written stays; what is written stays while it is due, as far as there is room.

use crate::store::lock;
use bytes::Bytes;
use shoal_proto::ids::{ContentId, ShardIndex};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex, PoisonError};

type Key = (ContentId, ShardIndex);

/// The cache, shared by the store's threads.
#[derive(Debug)]
pub(crate) struct ShardCache {
    max: usize,
    unwritten_max: usize,
    shards: Mutex<Shards>,
    /// Told when fewer bytes wait to be written; one thread takes shards in.
    drained: Condvar,
}

/// Where there is no room for all that are due, the oldest go: those that came last are asked for next.
#[derive(Debug, Default)]
struct Shards {
    bytes: usize,
    /// Bytes that are not written.
    unwritten: usize,
    turn: u64,
    shards: HashMap<Key, Shard>,
    /// By when they came.
    order: BTreeMap<u64, Key>,
}

#[derive(Debug)]
struct Shard {
    bytes: Bytes,
    turn: u64,
    /// Times it is yet to be written.
    writes: u32,
    /// Somebody may ask for it.
    due: bool,
}

impl ShardCache {
    /// Of `max` bytes, and `unwritten_max` that wait to be written.
    pub(crate) fn new(max: usize, unwritten_max: usize) -> Self {
        Self { max, unwritten_max, shards: Mutex::default(), drained: Condvar::new() }
    }

    /// Takes in a shard that is about to be written, once there is room for it.
    pub(crate) fn insert(&self, key: Key, bytes: Bytes) {
        let len = bytes.len();
        let full = |shards: &mut Shards| shards.unwritten > 0 && shards.unwritten + len > self.unwritten_max;
        let shards = self.drained.wait_while(lock(&self.shards), full);
        let mut shards = shards.unwrap_or_else(PoisonError::into_inner);
        shards.unwritten += len;
        if let Some(shard) = shards.shards.get_mut(&key) {
            shard.writes += 1;
            return;
        }
        let turn = shards.turn;
        shards.turn += 1;
        shards.bytes += len;
        shards.order.insert(turn, key);
        shards.shards.insert(key, Shard { bytes, turn, writes: 1, due: true });
        shards.shrink(self.max);
    }

    /// A shard of so many bytes is written, or never will be.
    pub(crate) fn written(&self, key: &Key, bytes: usize) {
        let mut shards = lock(&self.shards);
        shards.unwritten = shards.unwritten.saturating_sub(bytes);
        if let Some(shard) = shards.shards.get_mut(key) {
            shard.writes = shard.writes.saturating_sub(1);
            shards.drop_if_done(key);
        }
        shards.shrink(self.max);
        drop(shards);
        self.drained.notify_one();
    }

    /// Nobody is to be sent this shard any more.
    pub(crate) fn release(&self, key: &Key) {
        let mut shards = lock(&self.shards);
        if let Some(shard) = shards.shards.get_mut(key) {
            shard.due = false;
            shards.drop_if_done(key);
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Bytes> {
        lock(&self.shards).shards.get(key).map(|shard| shard.bytes.clone())
    }

    pub(crate) fn forget(&self, content: &ContentId) {
        let mut shards = lock(&self.shards);
        let gone: Vec<Key> = shards.shards.keys().filter(|key| key.0 == *content).copied().collect();
        gone.iter().for_each(|key| shards.remove(key));
    }
}

impl Shards {
    fn remove(&mut self, key: &Key) {
        if let Some(shard) = self.shards.remove(key) {
            self.order.remove(&shard.turn);
            self.bytes -= shard.bytes.len();
        }
    }

    fn drop_if_done(&mut self, key: &Key) {
        if self.shards.get(key).is_some_and(|shard| shard.writes == 0 && !shard.due) {
            self.remove(key);
        }
    }

    fn shrink(&mut self, max: usize) {
        while self.bytes > max && self.order.len() > 1 {
            let Some(oldest) = self.order.values().next().copied() else { return };
            // They are written in the order they came.
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

    fn held(cache: &ShardCache) -> Vec<u32> {
        (0..100).filter(|shard| cache.get(&key(*shard)).is_some()).collect()
    }

    fn unwritten(cache: &ShardCache) -> usize {
        lock(&cache.shards).unwritten
    }

    #[test]
    fn only_what_is_written_goes() {
        let cache = ShardCache::new(30, 100);
        for shard in 0..5 {
            cache.insert(key(shard), Bytes::from_static(&[0; 10]));
        }
        assert_eq!(held(&cache), [0, 1, 2, 3, 4], "none is written");
        cache.written(&key(0), 10);
        assert_eq!(held(&cache), [1, 2, 3, 4]);
        (1..5).for_each(|shard| cache.written(&key(shard), 10));
        assert_eq!(held(&cache), [2, 3, 4]);
        assert_eq!(unwritten(&cache), 0);
    }

    #[test]
    fn what_is_due_to_nobody_goes_once_it_is_written() {
        let cache = ShardCache::new(30, 100);
        for shard in 0..3 {
            cache.insert(key(shard), Bytes::from_static(&[0; 10]));
        }
        cache.written(&key(0), 10);
        cache.release(&key(0));
        cache.release(&key(1));
        assert_eq!(held(&cache), [1, 2]);
        cache.written(&key(1), 10);
        assert_eq!(held(&cache), [2]);
        // There is room for three others again.
        (3..5).for_each(|shard| cache.insert(key(shard), Bytes::from_static(&[0; 10])));
        (2..5).for_each(|shard| cache.written(&key(shard), 10));
        assert_eq!(held(&cache), [2, 3, 4]);
        assert_eq!(lock(&cache.shards).order.len(), 3);
    }

    #[test]
    fn what_is_forgotten_may_still_be_written() {
        let cache = ShardCache::new(20, 100);
        cache.insert(key(0), Bytes::from_static(&[0; 10]));
        cache.insert(key(0), Bytes::from_static(&[0; 10]));
        cache.forget(&ContentId([7; 32]));
        assert_eq!(unwritten(&cache), 20);
        (0..2).for_each(|_| cache.written(&key(0), 10));
        cache.insert(key(1), Bytes::from_static(&[0; 10]));
        assert_eq!((held(&cache), unwritten(&cache)), (vec![1], 10));
    }
}
