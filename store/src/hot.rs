//! Shards that arrived a moment ago: most are sent on at once, from memory.
//!
//! Invariant: never holds more than its bytes, but for one shard.

use bytes::Bytes;
use shoal_proto::ids::{ContentId, ShardIndex};
use std::collections::{HashMap, VecDeque};

type Key = (ContentId, ShardIndex);

/// First in, first out: what was sent on to all children is not asked for again.
#[derive(Debug)]
pub(crate) struct Hot {
    max: usize,
    bytes: usize,
    shards: HashMap<Key, Bytes>,
    order: VecDeque<Key>,
}

impl Hot {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, bytes: 0, shards: HashMap::new(), order: VecDeque::new() }
    }

    pub(crate) fn insert(&mut self, key: Key, bytes: Bytes) {
        let len = bytes.len();
        if self.shards.insert(key, bytes).is_some() {
            return;
        }
        self.bytes += len;
        self.order.push_back(key);
        while self.bytes > self.max && self.order.len() > 1 {
            if let Some(oldest) = self.order.pop_front()
                && let Some(dropped) = self.shards.remove(&oldest)
            {
                self.bytes -= dropped.len();
            }
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
