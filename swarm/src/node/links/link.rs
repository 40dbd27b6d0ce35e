//! One link: whether it is up, what is under way on it, and what waits for it.
//!
//! Invariant: shards of one class that are outstanding never exceed the window, except for two that are larger than it.

use crate::io::Via;
use crate::node::bounds;
use crate::time::Instant;
use shoal_proto::announcement::Class;
use shoal_proto::ids::{ContentId, JobId, ShardIndex};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The length that a manifest takes in the window, bytes. Its real length is not known to the core.
const MANIFEST_LEN: u32 = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down,
    Dialling,
    Up,
}

/// Something handed to the driver and not sent yet.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    content: ContentId,
    /// `None` for the manifest.
    shard: Option<ShardIndex>,
    /// Bytes.
    len: u32,
    class: Class,
}

/// An announcement that waits for the link to come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingAnnouncement {
    pub job: JobId,
    pub via: Via,
    pub inline: bool,
}

/// A manifest that is next on a link.
#[derive(Clone, Copy, Debug)]
pub struct NextManifest {
    place: usize,
    pub class: Class,
}

#[derive(Debug)]
pub struct Link {
    state: State,
    /// Since when the host could not be reached.
    lost_at: Option<Instant>,
    /// Not dialled again before this.
    retry_at: Instant,
    last_used: Instant,
    outstanding: VecDeque<Outstanding>,
    /// Contents with something to send, by urgency.
    ready: BTreeSet<(Class, ContentId)>,
    /// The content served last, by class: contents of one class take turns.
    last_served: BTreeMap<Class, ContentId>,
    /// Manifests that the other end wants.
    manifests: VecDeque<ContentId>,
    announcements: VecDeque<WaitingAnnouncement>,
    bad_shards: u8,
}

impl Link {
    pub fn new(now: Instant) -> Self {
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
            bad_shards: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    pub fn is_down(&self) -> bool {
        self.state == State::Down
    }

    pub fn last_used(&self) -> Instant {
        self.last_used
    }

    pub fn touch(&mut self, now: Instant) {
        self.last_used = now;
    }

    pub fn lost_at(&self) -> Option<Instant> {
        self.lost_at
    }

    pub fn may_dial(&self, now: Instant) -> bool {
        self.retry_at <= now
    }

    pub fn dial_after(&mut self, at: Instant) {
        self.retry_at = at;
    }

    pub fn on_dialling(&mut self, now: Instant) {
        self.state = State::Dialling;
        self.last_used = now;
    }

    /// The host was reached. Returns since when it could not be, if it could not.
    pub fn take_lost_at(&mut self) -> Option<Instant> {
        self.lost_at.take()
    }

    /// The link is up. Returns what waited for it.
    pub fn on_up(&mut self, now: Instant) -> VecDeque<WaitingAnnouncement> {
        let waiting = std::mem::take(&mut self.announcements);
        self.reset();
        self.state = State::Up;
        self.last_used = now;
        waiting
    }

    pub fn on_down(&mut self, retry_at: Instant) {
        self.reset();
        self.state = State::Down;
        self.retry_at = retry_at;
    }

    /// A dial failed. Returns since when the host cannot be reached, or `None` if it was not being dialled.
    pub fn on_dial_failed(&mut self, now: Instant) -> Option<Instant> {
        if self.state != State::Dialling {
            return None;
        }
        self.state = State::Down;
        self.reset();
        Some(*self.lost_at.get_or_insert(now))
    }

    fn reset(&mut self) {
        self.outstanding.clear();
        self.ready.clear();
        self.manifests.clear();
        self.announcements.clear();
    }

    /// Counts a bad shard. Returns whether the host has sent too many of them.
    pub fn count_bad_shard(&mut self) -> bool {
        self.bad_shards = self.bad_shards.saturating_add(1);
        let too_many = self.bad_shards >= bounds::BAD_SHARDS_MAX;
        if too_many {
            self.bad_shards = 0;
        }
        too_many
    }

    pub fn has_waiting(&self) -> bool {
        !self.announcements.is_empty()
    }

    pub fn queue_announcement(&mut self, announcement: WaitingAnnouncement) {
        if self.announcements.len() < bounds::JOBS_MAX && !self.announcements.contains(&announcement) {
            self.announcements.push_back(announcement);
        }
    }

    /// Whether the driver may have one more shard of this length and class.
    ///
    /// Less urgent shards take no room, because more urgent ones overtake them in the driver's queue.
    pub fn has_room(&self, class: Class, len: u32) -> bool {
        let ahead = self.outstanding.iter().filter(|sent| sent.class <= class);
        let (count, bytes) = ahead.fold((0, 0), |(count, bytes), sent| (count + 1, bytes + u64::from(sent.len)));
        count < 2 || (count < bounds::LINK_WINDOW_SHARDS && bytes + u64::from(len) <= bounds::LINK_WINDOW_BYTES)
    }

    /// Whether every class keeps to the window.
    pub fn keeps_window(&self) -> bool {
        Class::ALL.into_iter().all(|class| {
            let lens = self.outstanding.iter().filter(|sent| sent.class == class).map(|sent| u64::from(sent.len));
            lens.clone().count() <= 2 || lens.sum::<u64>() <= bounds::LINK_WINDOW_BYTES
        })
    }

    pub fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// A shard goes to the driver.
    pub fn hand_over(&mut self, content: ContentId, shard: ShardIndex, len: u32, class: Class, now: Instant) {
        self.outstanding.push_back(Outstanding { content, shard: Some(shard), len, class });
        self.last_served.insert(class, content);
        self.last_used = now;
    }

    /// The driver sent something. Returns its length in bytes, or `None` when it was not outstanding.
    pub fn on_sent(&mut self, content: ContentId, shard: Option<ShardIndex>, now: Instant) -> Option<u32> {
        let place = self.outstanding.iter().position(|sent| sent.content == content && sent.shard == shard)?;
        let len = self.outstanding.remove(place).map(|sent| sent.len)?;
        self.last_used = now;
        Some(len)
    }

    pub fn is_under_way(&self, content: ContentId, shard: ShardIndex) -> bool {
        self.outstanding.iter().any(|sent| sent.content == content && sent.shard == Some(shard))
    }

    pub fn under_way(&self, content: ContentId) -> impl Iterator<Item = ShardIndex> {
        self.outstanding.iter().filter(move |sent| sent.content == content).filter_map(|sent| sent.shard)
    }

    pub fn mark_ready(&mut self, class: Class, content: ContentId) {
        self.ready.insert((class, content));
    }

    pub fn unmark_ready(&mut self, class: Class, content: ContentId) {
        self.ready.remove(&(class, content));
    }

    /// The next content to serve: of the most urgent class, the one after the content served last.
    pub fn next_ready(&self) -> Option<(Class, ContentId)> {
        let class = self.ready.first()?.0;
        let after = self.last_served.get(&class).copied();
        let mut in_class = self.ready.iter().filter(|(of, _)| *of == class);
        let first = in_class.clone().next().copied();
        match after {
            Some(after) => in_class.find(|(_, content)| *content > after).copied().or(first),
            None => first,
        }
    }

    /// Queues a manifest for the other end. Returns false when it is queued already or the queue is full.
    pub fn queue_manifest(&mut self, content: ContentId) -> bool {
        let fits = !self.manifests.contains(&content) && self.manifests.len() < bounds::CONTENTS_MAX;
        if fits {
            self.manifests.push_back(content);
        }
        fits
    }

    pub fn drop_manifest(&mut self, content: ContentId) {
        self.manifests.retain(|queued| *queued != content);
    }

    /// Finds the most urgent queued manifest. Drops those of contents whose class is not known any more.
    pub fn next_manifest(&mut self, class_of: impl Fn(&ContentId) -> Option<Class>) -> Option<NextManifest> {
        self.manifests.retain(|content| class_of(content).is_some());
        let queued = self.manifests.iter().enumerate();
        let classes = queued.filter_map(|(place, content)| Some((class_of(content)?, place)));
        classes.min().map(|(class, place)| NextManifest { place, class })
    }

    /// Hands the manifest over if the window has room. Returns its content then.
    pub fn hand_over_manifest(&mut self, next: NextManifest) -> Option<ContentId> {
        if !self.has_room(next.class, MANIFEST_LEN) {
            return None;
        }
        let content = self.manifests.remove(next.place)?;
        self.outstanding.push_back(Outstanding { content, shard: None, len: MANIFEST_LEN, class: next.class });
        Some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(number: u8) -> ContentId {
        ContentId([number; 32])
    }

    #[test]
    fn contents_of_the_most_urgent_class_take_turns() {
        let mut link = Link::new(Instant::ZERO);
        let [urgent, .., bulk] = Class::ALL;
        link.mark_ready(bulk, content(0));
        for number in 1..4 {
            link.mark_ready(urgent, content(number));
        }
        let mut served = Vec::new();
        for _ in 0..4 {
            let (class, next) = link.next_ready().unwrap();
            assert_eq!(class, urgent);
            served.push(next.0[0]);
            link.hand_over(next, ShardIndex(0), 1, class, Instant::ZERO);
        }
        assert_eq!(served, [1, 2, 3, 1]);
    }

    #[test]
    fn less_urgent_shards_take_no_room() {
        let mut link = Link::new(Instant::ZERO);
        let [urgent, .., bulk] = Class::ALL;
        let len = bounds::LINK_WINDOW_BYTES as u32;
        for shard in 0..2 {
            assert!(link.has_room(bulk, len), "two shards may always be outstanding");
            link.hand_over(content(0), ShardIndex(shard), len, bulk, Instant::ZERO);
        }
        assert!(!link.has_room(bulk, 1) && link.has_room(urgent, len));
        assert_eq!(link.on_sent(content(0), Some(ShardIndex(0)), Instant::ZERO), Some(len));
        assert!(link.has_room(bulk, len) && link.keeps_window());
    }
}
