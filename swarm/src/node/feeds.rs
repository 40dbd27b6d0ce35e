//! Feeds: their latest versions, spread as they come, and had again where they were missed.
//!
//! A small version is its announcement: it travels whole, is relayed whole, and is asked for whole. A large one is a
//! content like any other, whose former version is left as soon as a newer one is known.
//! Invariant: of a feed only the newest version known is remembered and fetched, and data is passed on in the order of its
//! sequences, each version once.

use super::content::announce_offset;
use super::{Job, Node, bounds};
use crate::io::Output;
use crate::plan::{Plan, PlanRequest, Shape};
use crate::time::Instant;
use shoal_proto::announcement::Announcement;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::feed::FeedRow;
use shoal_proto::ids::{Epoch, HostIndex, JobId};
use shoal_proto::limits::{FEED_EVERY_LANE_BYTES_MAX, FEEDS_MAX};
use shoal_proto::message::Message;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// What is known of a feed beside the announcement of its newest version, which is in the jobs.
#[derive(Debug)]
pub(super) struct Feed {
    sequence: u64,
    /// The version travels in its announcement.
    small: bool,
    /// The newest small version whose data is here.
    held: Option<u64>,
    /// Children were told of the version, without its data.
    told: bool,
    /// Who announced it to us without its data.
    sources: VecDeque<HostIndex>,
    /// How often the data was asked for.
    asked: usize,
    /// When to ask, while the data is wanted and not here.
    ask_at: Option<Instant>,
    /// Since when no version's data has been here as soon as it was known.
    lacks: Option<Instant>,
    /// The last version had to be asked for: its lane leads elsewhere, so the next is asked for at once.
    astray: bool,
    /// Who asked us before it was here.
    waiters: BTreeSet<HostIndex>,
    /// The hosts it is for, as of an epoch.
    targets: Option<(Epoch, Bitmap)>,
}

impl Feed {
    fn new(announcement: &Announcement) -> Self {
        Self {
            sequence: announcement.sequence,
            small: announcement.is_small(),
            held: None,
            told: false,
            sources: VecDeque::new(),
            asked: 0,
            ask_at: None,
            lacks: None,
            astray: false,
            waiters: BTreeSet::new(),
            targets: None,
        }
    }

    /// The newest version's data is here, and it is small.
    fn is_held(&self) -> bool {
        self.held == Some(self.sequence)
    }
}

impl Node {
    /// A version of a feed was announced: a newer one replaces what is known, of an older one only its data is news.
    pub(super) fn on_feed(&mut self, from: Option<HostIndex>, lane: u8, announcement: Arc<Announcement>, inline: bool) {
        let (id, content) = (announcement.job, announcement.content);
        match self.feeds.get(&id).map(|feed| feed.sequence) {
            Some(known) if known > announcement.sequence => {
                if inline {
                    self.older_arrived(from, lane, &announcement);
                }
                return;
            }
            Some(known) if known == announcement.sequence => {
                if !self.jobs[&id].ours {
                } else if !self.feeds[&id].small {
                    self.manifest_source(content, from, lane);
                } else if inline {
                    self.feed_arrived(id, from, lane);
                } else {
                    self.feed_source(id, from, lane);
                }
                return;
            }
            None if self.feeds.len() >= FEEDS_MAX => return,
            _ => {}
        }
        let ours = self.is_for_us(&announcement);
        let former = self.jobs.get(&id).map(|job| job.announcement.clone());
        let mut feed = Feed::new(&announcement);
        if let Some(known) = self.feeds.remove(&id) {
            let same = former.as_ref().is_some_and(|former| former.selector == announcement.selector);
            feed.targets = known.targets.filter(|_| same);
            // Whoever waits for an older version is as well served by this one.
            feed.waiters = known.waiters;
            // Else versions that follow each other fast would put off asking for ever.
            (feed.held, feed.lacks, feed.astray) = (known.held, known.lacks, known.astray);
        }
        let small = feed.small;
        self.feeds_wanted.remove(&id);
        self.feeds.insert(id, feed);
        if former.is_some() {
            self.jobs.insert(id, Job { announcement: announcement.clone(), ours });
        } else {
            self.remember(id, Job { announcement: announcement.clone(), ours });
        }
        if ours && small && inline {
            // At a restart neighbours compare what they know; nobody need be told.
            if from.is_none() && lane == bounds::ENTROPY_LANE {
                self.hold(id);
            } else {
                self.feed_arrived(id, from, lane);
            }
        } else if ours && small {
            self.spread_feed(&announcement, from, lane, false);
            self.feed_source(id, from, lane);
        } else if ours {
            self.take_job(id, from, lane, false);
        }
        if former.is_none() && self.feeds.len() <= bounds::KEEP_OPEN_FEEDS_MAX {
            self.warm_feed(id);
        }
        if let Some(former) = former.filter(|former| former.content != content) {
            self.leave_version(id, &former);
        }
    }

    /// A feed that a change of membership makes ours.
    pub(super) fn feed_is_ours(&mut self, id: JobId) {
        if self.feeds.get(&id).is_some_and(|feed| feed.small) {
            self.feed_source(id, None, bounds::ENTROPY_LANE);
        } else {
            self.take_job(id, None, bounds::ENTROPY_LANE, false);
        }
    }

    /// A version that was replaced: its pieces are neither fetched nor served any more.
    fn leave_version(&mut self, id: JobId, former: &Announcement) {
        let Some(content) = self.contents.get_mut(&former.content) else { return };
        content.jobs.remove(&id);
        if !content.jobs.is_empty() {
            return;
        }
        let whole = content.body.as_ref().is_some_and(|body| body.missing == 0);
        self.remove_content(former.content);
        // What is whole is what readers have until the newer one is: the shell lets go of it then.
        if !whole {
            self.push(Output::Abandon { content: former.content });
        }
    }

    fn hold(&mut self, id: JobId) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        feed.held = Some(feed.sequence);
        (feed.ask_at, feed.lacks) = (None, None);
        feed.sources.clear();
        self.feeds_wanted.remove(&id);
    }

    /// The data of a small version is here: whoever hangs off us gets it now.
    fn feed_arrived(&mut self, id: JobId, from: Option<HostIndex>, lane: u8) {
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        feed.astray &= lane != 0;
        if feed.is_held() {
            return;
        }
        self.hold(id);
        let announcement = self.jobs[&id].announcement.clone();
        self.spread_feed(&announcement, from, lane, true);
        let waiters = self.feeds.get_mut(&id).map(|feed| std::mem::take(&mut feed.waiters)).unwrap_or_default();
        for host in waiters.into_iter().filter(|host| Some(*host) != from) {
            self.announce_again(host, id);
        }
    }

    /// The data of a version comes though a newer one was told of on another lane: both go on, in this order.
    fn older_arrived(&mut self, from: Option<HostIndex>, lane: u8, announcement: &Announcement) {
        let id = announcement.job;
        let Some(feed) = self.feeds.get_mut(&id).filter(|feed| feed.held < Some(announcement.sequence)) else { return };
        if !self.jobs[&id].ours || !announcement.is_small() {
            return;
        }
        feed.held = Some(announcement.sequence);
        feed.astray &= lane != 0;
        // Its lane brings what it should, if late: the newest is likely behind it.
        let patience = self.now + self.config.tuning.feed_patience;
        feed.lacks = feed.lacks.map(|_| self.now);
        feed.ask_at = feed.ask_at.map(|at| if feed.asked == 0 { at.max(patience) } else { at });
        self.spread_feed(announcement, from, lane, true);
    }

    /// Tells the children on the announcement lanes of a version, each once. Without the data, those on the first lane are not
    /// told: what they get is the data. Nor is anybody told so of a version that is not the newest any more.
    fn spread_feed(&mut self, announcement: &Announcement, from: Option<HostIndex>, by: u8, with_data: bool) {
        let id = announcement.job;
        let Some(plan) = self.feed_plan(id) else { return };
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        let told = announcement.sequence < feed.sequence || std::mem::replace(&mut feed.told, true);
        let everywhere = with_data && announcement.size <= FEED_EVERY_LANE_BYTES_MAX;
        let mut reached: BTreeSet<HostIndex> = from.into_iter().collect();
        for (number, lane) in super::announce::lanes_of(announce_offset(&announcement.name), plan.lanes()) {
            let data = with_data && (number == 0 || everywhere);
            if !data && (told || number == 0) {
                continue;
            }
            for child in self.hearers(&plan, (number, lane), from, by) {
                if reached.insert(child) {
                    self.announce_to(child, id, number, data);
                }
            }
        }
    }

    fn feed_plan(&mut self, id: JobId) -> Option<Arc<Plan>> {
        let announcement = self.jobs.get(&id)?.announcement.clone();
        let epoch = self.membership.epoch();
        let feed = self.feeds.get_mut(&id)?;
        if feed.targets.as_ref().is_none_or(|(of, _)| *of != epoch) {
            feed.targets = Some((epoch, self.membership.select(&announcement.selector)));
        }
        let (_, targets) = feed.targets.as_ref()?;
        let avoid: BTreeSet<HostIndex> = self.avoid.keys().copied().collect();
        let root = self.membership.by_node(&announcement.origin);
        let request = PlanRequest { targets, root, avoid: &avoid, lanes: self.config.lanes, shape: Shape::WIDE };
        Some(self.planner.plan(&self.membership, &request))
    }

    /// Has the links to those who tell us of a feed's versions stay up.
    pub(super) fn warm_feed(&mut self, id: JobId) {
        let Some(plan) = self.feed_plan(id) else { return };
        let me = self.config.me;
        let hosts: Vec<HostIndex> = parents(&plan, &self.jobs[&id].announcement, me).collect();
        for host in hosts.into_iter().filter(|host| *host != me) {
            self.warm.insert(host);
            self.connect(host);
        }
    }

    /// Notes who knows of a small version whose data is not here. It is likely on its way down the first lane, unless the one
    /// before it was not.
    fn feed_source(&mut self, id: JobId, from: Option<HostIndex>, lane: u8) {
        let now = self.now;
        let Some(feed) = self.feeds.get_mut(&id).filter(|feed| !feed.is_held()) else { return };
        if let Some(from) = from
            && !feed.sources.contains(&from)
            && feed.sources.len() < bounds::MANIFEST_HOSTS_MAX
        {
            feed.sources.push_back(from);
        }
        let lacks = *feed.lacks.get_or_insert(now);
        let at =
            if lane == bounds::ENTROPY_LANE || feed.astray { now } else { lacks + self.config.tuning.feed_patience };
        if feed.asked == 0 {
            feed.ask_at = Some(feed.ask_at.map_or(at, |former| former.min(at)));
        }
        self.feeds_wanted.insert(id);
        self.hunt_feed(id);
    }

    /// Asks for the data of a small version, of another host each time.
    fn hunt_feed(&mut self, id: JobId) {
        if self.feeds.get(&id).is_none_or(|feed| feed.ask_at.is_none_or(|at| at > self.now)) {
            return;
        }
        let Some(plan) = self.feed_plan(id) else { return };
        let announcement = self.jobs[&id].announcement.clone();
        let Some(feed) = self.feeds.get(&id) else { return };
        let me = self.config.me;
        let above = parents(&plan, &announcement, me);
        let mut hosts: Vec<HostIndex> = Vec::new();
        for host in feed.sources.iter().copied().chain(above).chain(plan.mates(me).take(8)).chain(plan.root()) {
            if host != me && self.is_linked(host) && !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let asked = feed.asked;
        let again = self.config.tuning.feed_patience * 2u32.pow(asked.min(8) as u32 + 1);
        let wait =
            if hosts.is_empty() { self.config.tuning.redial_first } else { again.min(self.config.tuning.want_timeout) };
        let now = self.now;
        if let Some(feed) = self.feeds.get_mut(&id) {
            feed.ask_at = Some(now + wait);
            feed.asked += usize::from(!hosts.is_empty());
            feed.astray = true;
        }
        match hosts.get(asked % hosts.len().max(1)) {
            Some(host) => self.send(*host, Message::WantAnnounce { jobs: vec![id] }),
            None => {
                if let Some(parent) = parents(&plan, &announcement, me).next() {
                    self.connect(parent);
                }
            }
        }
    }

    /// When the next is to be asked for.
    pub(super) fn feeds_at(&self) -> Option<Instant> {
        self.feeds_wanted.iter().filter_map(|id| self.feeds.get(id)?.ask_at).min()
    }

    /// Asks for what did not come, where it is time.
    pub(super) fn check_feeds(&mut self) {
        let wanted: Vec<JobId> = self.feeds_wanted.iter().copied().collect();
        for id in wanted {
            self.hunt_feed(id);
        }
    }

    /// Somebody asks for a feed's newest version; false when it is to wait until the data is here.
    pub(super) fn may_serve_feed(&mut self, from: HostIndex, id: &JobId) -> bool {
        let ours = self.jobs.get(id).is_some_and(|job| job.ours);
        match self.feeds.get_mut(id) {
            Some(feed) if ours && feed.small && !feed.is_held() => {
                if feed.waiters.len() < bounds::MANIFEST_HOSTS_MAX {
                    feed.waiters.insert(from);
                }
                false
            }
            _ => true,
        }
    }

    /// Whether a feed's data can go along with its announcement.
    pub(super) fn is_feed_held(&self, id: &JobId) -> bool {
        self.feeds.get(id).is_some_and(Feed::is_held)
    }

    /// Tells a neighbour which versions are known here.
    pub(super) fn send_feeds(&mut self, to: HostIndex) {
        if self.feeds.is_empty() {
            return;
        }
        let rows = self.feeds.iter().map(|(id, feed)| FeedRow { feed: *id, sequence: feed.sequence }).collect();
        self.send(to, Message::Feeds { rows });
    }

    /// A neighbour's versions: what is newer there is asked for, what is newer here is told.
    pub(super) fn on_feeds(&mut self, from: HostIndex, rows: &[FeedRow]) {
        let mut wanted = Vec::new();
        for row in rows {
            match self.feeds.get(&row.feed) {
                Some(feed) if feed.sequence > row.sequence => {}
                Some(feed) if feed.sequence == row.sequence && feed.ask_at.is_none() => {}
                None if self.feeds.len() >= FEEDS_MAX => {}
                _ => wanted.push(row.feed),
            }
        }
        let newer: Vec<JobId> = self
            .feeds
            .iter()
            .filter(|(id, feed)| rows.iter().all(|row| row.feed != **id || row.sequence < feed.sequence))
            .map(|(id, _)| *id)
            .collect();
        if !wanted.is_empty() {
            self.send(from, Message::WantAnnounce { jobs: wanted });
        }
        for id in newer {
            if self.may_serve_feed(from, &id) {
                self.announce_again(from, id);
            }
        }
    }
}

/// Our parents on the announcement lanes of a feed.
fn parents(plan: &Plan, announcement: &Announcement, me: HostIndex) -> impl Iterator<Item = HostIndex> {
    let lanes = super::announce::lanes_of(announce_offset(&announcement.name), plan.lanes());
    lanes.filter_map(move |(_, lane)| plan.parent(lane, me))
}
