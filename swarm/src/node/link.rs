//! A neighbour: whether its link is up, what is under way on it, and why we want it.
//!
//! Invariant: what is outstanding on a link of one class never exceeds the window, but for two shards larger than it.

use super::bounds;
use crate::time::Instant;
use shoal_proto::announcement::Class;
use shoal_proto::ids::{ContentId, JobId, ShardIndex};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Whether a link is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not up and not being dialled.
    Down,
    /// `Connect` was wished.
    Dialling,
    /// Up.
    Up,
}

/// A neighbour.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) state: State,
    /// Since when it could not be reached.
    pub(super) lost_at: Option<Instant>,
    /// When it may be dialled again.
    pub(super) retry_at: Instant,
    pub(super) last_used: Instant,
    /// Handed to the shell and not yet sent, with lengths in bytes.
    pub(super) outstanding: VecDeque<(ContentId, Option<ShardIndex>, u32, Class)>,
    /// Contents with something to send it.
    pub(super) ready: BTreeSet<(Class, ContentId)>,
    /// Whose turn it was last, by class.
    pub(super) last_served: BTreeMap<Class, ContentId>,
    /// Manifests it asked for.
    pub(super) manifests: VecDeque<ContentId>,
    /// Announcements that wait for the link: job, lane, inline.
    pub(super) announcements: VecDeque<(JobId, u8, bool)>,
    /// Bad shards it sent.
    pub(super) bad: u8,
}

impl Link {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Down,
            lost_at: None,
            retry_at: now,
            last_used: now,
            outstanding: VecDeque::new(),
            ready: BTreeSet::new(),
            last_served: BTreeMap::new(),
            manifests: VecDeque::new(),
            announcements: VecDeque::new(),
            bad: 0,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Whether a shard of this length and class may be handed to the shell now. What is less urgent takes no room: it is
    /// overtaken where it waits.
    pub(super) fn has_room(&self, class: Class, len: u32) -> bool {
        let ahead = self.outstanding.iter().filter(|(.., of)| *of <= class);
        let (count, bytes) = ahead.fold((0, 0), |(count, bytes), (_, _, len, _)| (count + 1, bytes + u64::from(*len)));
        count < 2 || (count < bounds::LINK_WINDOW_SHARDS && bytes + u64::from(len) <= bounds::LINK_WINDOW_BYTES)
    }

    /// Whether each class keeps to the window.
    pub(super) fn keeps_window(&self) -> bool {
        Class::ALL.into_iter().all(|class| {
            let lens = self.outstanding.iter().filter(|(.., of)| *of == class).map(|(_, _, len, _)| u64::from(*len));
            lens.clone().count() <= 2 || lens.sum::<u64>() <= bounds::LINK_WINDOW_BYTES
        })
    }

    pub(super) fn hand_over(&mut self, content: ContentId, shard: Option<ShardIndex>, len: u32, class: Class) {
        self.outstanding.push_back((content, shard, len, class));
    }

    /// Takes a sent shard off the window; gives its length, `None` when it was not on it.
    pub(super) fn sent(&mut self, content: ContentId, shard: Option<ShardIndex>) -> Option<u32> {
        let place = self.outstanding.iter().position(|(of, sent, ..)| *of == content && *sent == shard);
        place.and_then(|place| self.outstanding.remove(place)).map(|(_, _, len, _)| len)
    }

    /// The next content to serve: the most urgent class, and within it the one after the last served.
    pub(super) fn next_ready(&self) -> Option<(Class, ContentId)> {
        let class = self.ready.first()?.0;
        let after = self.last_served.get(&class).copied();
        let mut in_class = self.ready.iter().filter(|(c, _)| *c == class);
        let first = in_class.clone().next().copied();
        match after {
            Some(after) => in_class.find(|(_, content)| *content > after).copied().or(first),
            None => first,
        }
    }

    /// Everything under way is lost.
    pub(super) fn reset(&mut self) {
        self.outstanding.clear();
        self.ready.clear();
        self.manifests.clear();
        self.announcements.clear();
    }
}
