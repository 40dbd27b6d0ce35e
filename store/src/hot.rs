//! Shards that arrived a moment ago: most are sent on at once, from memory.
//!
//! Invariant: never holds more than its bytes, but for one shard and for what is not yet written; what is not yet
//! written stays.

use bytes::Bytes;
use shoal_proto::ids::{ContentId, ShardIndex};
use std::collections::{HashMap, VecDeque};

type Key = (ContentId, ShardIndex);

/// First in, first out: what was sent on to all children is not asked for again. Shards are written in the same order, so
/// those not yet written are the last ones in.
#[derive(Debug)]
pub(crate) struct Hot {
    max: usize,
    bytes: usize,
    /// Bytes of the last ones that are not written.
    unwritten: usize,
    shards: HashMap<Key, Bytes>,
    order: VecDeque<Key>,
}

impl Hot {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, bytes: 0, unwritten: 0, shards: HashMap::new(), order: VecDeque::new() }
    }

    /// Takes in a shard that is about to be written.
    pub(crate) fn insert(&mut self, key: Key, bytes: Bytes) {
        let len = bytes.len();
        self.unwritten += len;
        if self.shards.insert(key, bytes).is_some() {
            return;
        }
        self.bytes += len;
        self.order.push_back(key);
        self.shrink();
    }

    /// So many bytes of the oldest that were not written are, or never will be.
    pub(crate) fn written(&mut self, bytes: usize) {
        self.unwritten = self.unwritten.saturating_sub(bytes);
        self.shrink();
    }

    /// Bytes that are not written.
    pub(crate) fn unwritten(&self) -> usize {
        self.unwritten
    }

    fn shrink(&mut self) {
        while self.bytes > self.max && self.order.len() > 1 {
            let Some(dropped) = self.order.front().and_then(|oldest| self.shards.get(oldest)) else { return };
            if self.bytes - dropped.len() < self.unwritten {
                return;
            }
            self.bytes -= dropped.len();
            self.order.pop_front().and_then(|oldest| self.shards.remove(&oldest));
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Bytes> {
        self.shards.get(key).cloned()
    }

    pub(crate) fn forget(&mut self, content: &ContentId) {
        self.order.retain(|key| key.0 != *content);
        let gone: Vec<Key> = self.shards.keys().filter(|key| key.0 == *content).copied().collect();
        for key in gone {
            if let Some(bytes) = self.shards.remove(&key) {
                self.bytes -= bytes.len();
            }
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

    #[test]
    fn only_what_is_written_goes() {
        let mut hot = Hot::new(30);
        for shard in 0..5 {
            hot.insert(key(shard), Bytes::from_static(&[0; 10]));
        }
        assert_eq!(held(&hot), [0, 1, 2, 3, 4], "none is written");
        hot.written(10);
        assert_eq!(held(&hot), [1, 2, 3, 4]);
        hot.written(40);
        assert_eq!(held(&hot), [2, 3, 4]);
        assert_eq!(hot.unwritten(), 0);
    }

    #[test]
    fn what_is_forgotten_may_still_be_written() {
        let mut hot = Hot::new(20);
        hot.insert(key(0), Bytes::from_static(&[0; 10]));
        hot.insert(key(0), Bytes::from_static(&[0; 10]));
        hot.forget(&ContentId([7; 32]));
        assert_eq!(hot.unwritten(), 20);
        hot.written(20);
        hot.insert(key(1), Bytes::from_static(&[0; 10]));
        assert_eq!((held(&hot), hot.unwritten()), (vec![1], 10));
    }
}
