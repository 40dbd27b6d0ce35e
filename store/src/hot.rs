//! Shards that arrived a moment ago: most are sent on at once, from memory.
//!
//! Invariant: never holds more than its bytes, but for one shard and for what is not yet written; what is not yet
//! written stays.

use crate::store::lock;
use bytes::Bytes;
use shoal_proto::ids::{ContentId, ShardIndex};
use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};

type Key = (ContentId, ShardIndex);

/// The cache, shared by the store's threads.
#[derive(Debug)]
pub(crate) struct Hot {
    max: usize,
    unwritten_max: usize,
    shards: Mutex<Shards>,
    /// Told when fewer bytes wait to be written; one thread takes shards in.
    drained: Condvar,
}

/// First in, first out: what was sent on to all children is not asked for again. Shards are written in the same order, so
/// those not yet written are the last ones in.
#[derive(Debug, Default)]
struct Shards {
    bytes: usize,
    /// Bytes of the last ones that are not written.
    unwritten: usize,
    shards: HashMap<Key, Bytes>,
    order: VecDeque<Key>,
}

impl Hot {
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
        if shards.shards.insert(key, bytes).is_none() {
            shards.bytes += len;
            shards.order.push_back(key);
            shards.shrink(self.max);
        }
    }

    /// So many bytes of the oldest that were not written are, or never will be.
    pub(crate) fn written(&self, bytes: usize) {
        let mut shards = lock(&self.shards);
        shards.unwritten = shards.unwritten.saturating_sub(bytes);
        shards.shrink(self.max);
        drop(shards);
        self.drained.notify_one();
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Bytes> {
        lock(&self.shards).shards.get(key).cloned()
    }

    pub(crate) fn forget(&self, content: &ContentId) {
        let shards = &mut *lock(&self.shards);
        shards.order.retain(|key| key.0 != *content);
        let bytes = &mut shards.bytes;
        shards.shards.retain(|key, shard| {
            let stays = key.0 != *content;
            *bytes -= if stays { 0 } else { shard.len() };
            stays
        });
    }
}

impl Shards {
    fn shrink(&mut self, max: usize) {
        while self.bytes > max && self.order.len() > 1 {
            let oldest = self.order[0];
            let len = self.shards.get(&oldest).map_or(0, Bytes::len);
            if self.bytes - len < self.unwritten {
                return;
            }
            self.bytes -= len;
            self.shards.remove(&oldest);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(shard: u32) -> Key {
        (ContentId([7; 32]), ShardIndex(shard))
    }

    fn held(hot: &Hot) -> Vec<u32> {
        (0..100).filter(|shard| hot.get(&key(*shard)).is_some()).collect()
    }

    fn unwritten(hot: &Hot) -> usize {
        lock(&hot.shards).unwritten
    }

    #[test]
    fn only_what_is_written_goes() {
        let hot = Hot::new(30, 100);
        for shard in 0..5 {
            hot.insert(key(shard), Bytes::from_static(&[0; 10]));
        }
        assert_eq!(held(&hot), [0, 1, 2, 3, 4], "none is written");
        hot.written(10);
        assert_eq!(held(&hot), [1, 2, 3, 4]);
        hot.written(40);
        assert_eq!(held(&hot), [2, 3, 4]);
        assert_eq!(unwritten(&hot), 0);
    }

    #[test]
    fn what_is_forgotten_may_still_be_written() {
        let hot = Hot::new(20, 100);
        hot.insert(key(0), Bytes::from_static(&[0; 10]));
        hot.insert(key(0), Bytes::from_static(&[0; 10]));
        hot.forget(&ContentId([7; 32]));
        assert_eq!(unwritten(&hot), 20);
        hot.written(20);
        hot.insert(key(1), Bytes::from_static(&[0; 10]));
        assert_eq!((held(&hot), unwritten(&hot)), (vec![1], 10));
    }
}
