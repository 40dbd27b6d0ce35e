//! Feeds: their newest versions, spread as they come, and requested again where they were missed.
//!
//! A small version is its announcement: it travels, is passed on and is requested as a whole. A large version is a
//! content like any other. The former version is left as soon as a newer one is known.
//! Owns: what is known of each feed beside its newest announcement, which is among the jobs.
//! Invariant: only the newest known version of a feed is remembered and fetched. Data is passed on in the order of
//! sequences, each version once.

use super::bounds;
use super::cx::Cx;
use super::jobs::anti_entropy::announce_again;
use super::jobs::spread::{Announced, Arrival, announce_lanes, announce_offset, hearers};
use super::jobs::{Job, Jobs, is_for_us};
use super::links::Links;
use super::transfer::Transfers;
use crate::io::{Output, Via};
use crate::plan::{Plan, PlanRequest, Shape};
use crate::time::Instant;
use shoal_proto::announcement::Announcement;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::feed::FeedRow;
use shoal_proto::ids::{Epoch, HostIndex, JobId};
use shoal_proto::limits::{FEED_EVERY_LANE_BYTES_MAX, FEEDS_MAX};
use shoal_proto::message::Message;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Rack peers that may be asked for a version's data.
const RACK_PEERS_ASKED: usize = 8;
/// The wait between requests doubles this often, from twice the patience.
const ASK_DOUBLINGS: u32 = 8;

/// The hosts that a feed is for, as of one epoch.
#[derive(Debug)]
struct Targets {
    epoch: Epoch,
    hosts: Bitmap,
}

#[derive(Debug)]
struct Feed {
    sequence: u64,
    /// The version travels in its announcement.
    small: bool,
    /// The newest small version whose data is here.
    stored: Option<u64>,
    /// Children have heard of the version without its data.
    announced: bool,
    /// Hosts that announced it to us without its data.
    sources: VecDeque<HostIndex>,
    /// Requests for the data.
    requests: u32,
    /// When the data is requested next, while it is missing.
    ask_at: Option<Instant>,
    /// Since when some version's data has been missing all the time.
    missing_since: Option<Instant>,
    /// The last version had to be requested, because lane 0 does not reach us. The next one is requested at once.
    lane_broken: bool,
    /// Hosts that asked us before the data was here.
    waiters: BTreeSet<HostIndex>,
    targets: Option<Targets>,
}

impl Feed {
    fn new(announcement: &Announcement) -> Self {
        Self {
            sequence: announcement.sequence,
            small: announcement.is_small(),
            stored: None,
            announced: false,
            sources: VecDeque::new(),
            requests: 0,
            ask_at: None,
            missing_since: None,
            lane_broken: false,
            waiters: BTreeSet::new(),
            targets: None,
        }
    }

    /// Takes over from the former version what still holds.
    fn inherit(&mut self, former: Self, same_selector: bool) {
        self.targets = former.targets.filter(|_| same_selector);
        // A host that waits for an older version is as well served by this one.
        self.waiters = former.waiters;
        // If these began again, versions that follow each other fast would delay the request for ever.
        self.stored = former.stored;
        self.missing_since = former.missing_since;
        self.lane_broken = former.lane_broken;
    }

    fn has_newest(&self) -> bool {
        self.stored == Some(self.sequence)
    }
}

#[derive(Default)]
pub struct Feeds {
    by_id: BTreeMap<JobId, Feed>,
    /// Small feeds that are for us and whose newest data is missing.
    missing: BTreeSet<JobId>,
}

impl Feeds {
    pub fn contains(&self, id: &JobId) -> bool {
        self.by_id.contains_key(id)
    }

    pub fn remove(&mut self, id: &JobId) {
        self.by_id.remove(id);
        self.missing.remove(id);
    }

    /// Whether the newest version's data can go along with its announcement.
    pub fn has_newest(&self, id: &JobId) -> bool {
        self.by_id.get(id).is_some_and(Feed::has_newest)
    }

    /// A version was announced. A newer one replaces what is known. Of an older one only the data is news.
    pub fn on_announced(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &mut Jobs,
        transfers: &mut Transfers,
        announced: Announced,
    ) {
        let (id, announcement) = (announced.announcement.job, &announced.announcement);
        match self.by_id.get(&id).map(|feed| feed.sequence) {
            Some(known) if known > announcement.sequence => {
                if announced.inline {
                    self.on_older_data(cx, links, jobs, announced.arrival, announcement);
                }
            }
            Some(known) if known == announcement.sequence => {
                self.on_known_version(cx, links, jobs, transfers, &announced);
            }
            None if self.by_id.len() >= FEEDS_MAX => {}
            _ => self.on_newer_version(cx, links, jobs, transfers, announced),
        }
    }

    fn on_known_version(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        transfers: &mut Transfers,
        announced: &Announced,
    ) {
        let (id, arrival) = (announced.announcement.job, announced.arrival);
        if !jobs.is_ours(&id) {
            return;
        }
        if !self.by_id[&id].small {
            if let Some(transfer) = transfers.get_mut(&announced.announcement.content) {
                transfer.add_manifest_source(cx, links, arrival.from, arrival.via);
            }
        } else if announced.inline {
            self.on_data(cx, links, jobs, id, arrival);
        } else {
            self.add_source(cx, links, jobs, id, arrival);
        }
    }

    fn on_newer_version(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &mut Jobs,
        transfers: &mut Transfers,
        announced: Announced,
    ) {
        let Announced { arrival, announcement, inline } = announced;
        let id = announcement.job;
        let ours = is_for_us(cx, &announcement);
        let former = jobs.get(&id).map(|job| job.announcement.clone());
        let mut feed = Feed::new(&announcement);
        if let Some(known) = self.by_id.remove(&id) {
            feed.inherit(known, former.as_ref().is_some_and(|former| former.selector == announcement.selector));
        }
        let small = feed.small;
        self.missing.remove(&id);
        self.by_id.insert(id, feed);
        let job = Job { announcement: announcement.clone(), ours };
        if former.is_some() {
            jobs.replace(job);
        } else if let Some(forgotten) = jobs.add(job) {
            transfers.forget_job(&forgotten);
        }
        if ours && small && inline {
            if arrival.from.is_none() && arrival.via == Via::AntiEntropy {
                // At a restart no announcement goes out. Neighbours compare what they know.
                self.store(id);
            } else {
                self.on_data(cx, links, jobs, id, arrival);
            }
        } else if ours && small {
            self.spread(cx, links, jobs, &announcement, arrival, false);
            self.add_source(cx, links, jobs, id, arrival);
        } else if ours {
            transfers.take_job(cx, links, jobs, id, arrival, false);
        }
        if former.is_none() && self.by_id.len() <= bounds::KEEP_OPEN_FEEDS_MAX {
            self.keep_parents_open(cx, links, jobs, id);
        }
        if let Some(former) = former.filter(|former| former.content != announcement.content) {
            leave_version(cx, links, transfers, id, &former);
        }
    }

    /// A change of membership makes the feed ours.
    pub fn on_newly_ours(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, transfers: &mut Transfers, id: JobId) {
        let arrival = Arrival::BY_ANTI_ENTROPY;
        if self.by_id.get(&id).is_some_and(|feed| feed.small) {
            self.add_source(cx, links, jobs, id, arrival);
        } else {
            transfers.take_job(cx, links, jobs, id, arrival, false);
        }
    }

    /// The newest version's data is here.
    fn store(&mut self, id: JobId) {
        let Some(feed) = self.by_id.get_mut(&id) else { return };
        feed.stored = Some(feed.sequence);
        (feed.ask_at, feed.missing_since) = (None, None);
        feed.sources.clear();
        self.missing.remove(&id);
    }

    /// The data of the newest version came: children and waiters get it now.
    fn on_data(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, id: JobId, arrival: Arrival) {
        let Some(feed) = self.by_id.get_mut(&id) else { return };
        feed.lane_broken &= arrival.via != Via::Lane(0);
        if feed.has_newest() {
            return;
        }
        self.store(id);
        let Some(job) = jobs.get(&id) else { return };
        self.spread(cx, links, jobs, &job.announcement, arrival, true);
        let waiters = self.by_id.get_mut(&id).map(|feed| std::mem::take(&mut feed.waiters)).unwrap_or_default();
        for host in waiters.into_iter().filter(|host| Some(*host) != arrival.from) {
            announce_again(cx, links, self, host, id);
        }
    }

    /// The data of a version came after a newer one was announced on another lane. Both are passed on, in this order.
    fn on_older_data(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        arrival: Arrival,
        announcement: &Announcement,
    ) {
        let id = announcement.job;
        let Some(feed) = self.by_id.get_mut(&id).filter(|feed| feed.stored < Some(announcement.sequence)) else {
            return;
        };
        if !jobs.is_ours(&id) || !announcement.is_small() {
            return;
        }
        feed.stored = Some(announcement.sequence);
        feed.lane_broken &= arrival.via != Via::Lane(0);
        // Its lane brings what it should, if late. The newest version is likely behind it, so wait once more.
        let patience = cx.now + cx.tuning.feed_patience;
        feed.missing_since = feed.missing_since.map(|_| cx.now);
        feed.ask_at = feed.ask_at.map(|at| if feed.requests == 0 { at.max(patience) } else { at });
        self.spread(cx, links, jobs, announcement, arrival, true);
    }

    /// Tells the children on the announcement lanes of a version, each child once.
    ///
    /// Without data, children on lane 0 hear nothing, because they will get the data. No child hears without data of a
    /// version that is not the newest any more.
    fn spread(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        announcement: &Announcement,
        arrival: Arrival,
        with_data: bool,
    ) {
        let id = announcement.job;
        let Some(plan) = self.plan(cx, links, jobs, id) else { return };
        let Some(feed) = self.by_id.get_mut(&id) else { return };
        let announced = announcement.sequence < feed.sequence || std::mem::replace(&mut feed.announced, true);
        // Very small data costs less than the wait for it on lane 0.
        let on_every_lane = with_data && announcement.size <= FEED_EVERY_LANE_BYTES_MAX;
        let mut reached: BTreeSet<HostIndex> = arrival.from.into_iter().collect();
        for lane in announce_lanes(announce_offset(&announcement.name), plan.lanes()) {
            let data = with_data && (lane.number == 0 || on_every_lane);
            if !data && (announced || lane.number == 0) {
                continue;
            }
            for child in hearers(cx, links, &plan, lane, arrival) {
                if reached.insert(child) {
                    links.announce(cx, child, id, Via::Lane(lane.number), data);
                }
            }
        }
    }

    /// The feed's trees: flat ones, because each step costs more time than sending a few KiB eight times.
    fn plan(&mut self, cx: &mut Cx, links: &Links, jobs: &Jobs, id: JobId) -> Option<Arc<Plan>> {
        let announcement = &jobs.get(&id)?.announcement;
        let feed = self.by_id.get_mut(&id)?;
        let epoch = cx.membership.epoch();
        if feed.targets.as_ref().is_none_or(|targets| targets.epoch != epoch) {
            feed.targets = Some(Targets { epoch, hosts: cx.membership.select(&announcement.selector) });
        }
        let targets = &feed.targets.as_ref()?.hosts;
        let avoid = links.avoidance.to_set();
        let root = cx.membership.by_node(&announcement.origin);
        Some(cx.plan(&PlanRequest { targets, root, avoid: &avoid, lanes: cx.lanes, shape: Shape::WIDE }))
    }

    /// Keeps the links to the hosts that announce the feed's versions to us open.
    fn keep_parents_open(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, id: JobId) {
        let (Some(plan), Some(job)) = (self.plan(cx, links, jobs, id), jobs.get(&id)) else { return };
        let me = cx.me;
        for host in parents(&plan, &job.announcement, me).filter(|host| *host != me) {
            links.keep_open(cx, host);
        }
    }

    /// Keeps the links to the parents of the first feeds open.
    pub fn keep_all_parents_open(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let ids: Vec<JobId> = self.by_id.keys().take(bounds::KEEP_OPEN_FEEDS_MAX).copied().collect();
        for id in ids {
            self.keep_parents_open(cx, links, jobs, id);
        }
    }

    /// Notes a host that knows a small version whose data is missing here. The data is likely on its way down lane 0,
    /// unless the version before did not come that way.
    fn add_source(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, id: JobId, arrival: Arrival) {
        let Some(feed) = self.by_id.get_mut(&id).filter(|feed| !feed.has_newest()) else { return };
        if let Some(from) = arrival.from
            && !feed.sources.contains(&from)
            && feed.sources.len() < bounds::MANIFEST_HOSTS_MAX
        {
            feed.sources.push_back(from);
        }
        let missing_since = *feed.missing_since.get_or_insert(cx.now);
        let at_once = arrival.via == Via::AntiEntropy || feed.lane_broken;
        let at = if at_once { cx.now } else { missing_since + cx.tuning.feed_patience };
        if feed.requests == 0 {
            feed.ask_at = Some(feed.ask_at.map_or(at, |former| former.min(at)));
        }
        self.missing.insert(id);
        self.request_if_due(cx, links, jobs, id);
    }

    /// Requests the data of a small version, from another host each time.
    fn request_if_due(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, id: JobId) {
        if self.by_id.get(&id).is_none_or(|feed| feed.ask_at.is_none_or(|at| at > cx.now)) {
            return;
        }
        let (Some(plan), Some(job)) = (self.plan(cx, links, jobs, id), jobs.get(&id)) else { return };
        let Some(feed) = self.by_id.get_mut(&id) else { return };
        let me = cx.me;
        let known = feed.sources.iter().copied().chain(parents(&plan, &job.announcement, me));
        let mut hosts: Vec<HostIndex> = Vec::new();
        for host in known.chain(plan.rack_peers(me).take(RACK_PEERS_ASKED)).chain(plan.root()) {
            if host != me && links.is_linked(host) && !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let turn = feed.requests;
        let again = cx.tuning.feed_patience * 2u32.pow(turn.min(ASK_DOUBLINGS) + 1);
        let wait = if hosts.is_empty() { cx.tuning.redial_first } else { again.min(cx.tuning.want_timeout) };
        feed.ask_at = Some(cx.now + wait);
        feed.requests += u32::from(!hosts.is_empty());
        feed.lane_broken = true;
        match hosts.get(turn as usize % hosts.len().max(1)) {
            Some(host) => links.send(cx, *host, Message::WantAnnounce { jobs: vec![id] }),
            None => {
                if let Some(parent) = parents(&plan, &job.announcement, me).next() {
                    links.connect(cx, parent);
                }
            }
        }
    }

    /// When the next request is due.
    pub fn next_at(&self) -> Option<Instant> {
        self.missing.iter().filter_map(|id| self.by_id.get(id)?.ask_at).min()
    }

    /// Requests what did not come, where it is time.
    pub fn request_due(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let missing: Vec<JobId> = self.missing.iter().copied().collect();
        for id in missing {
            self.request_if_due(cx, links, jobs, id);
        }
    }

    /// A host asks for a feed's newest version. Returns false when the host waits until the data is here.
    pub fn may_serve(&mut self, jobs: &Jobs, from: HostIndex, id: &JobId) -> bool {
        match self.by_id.get_mut(id) {
            Some(feed) if jobs.is_ours(id) && feed.small && !feed.has_newest() => {
                if feed.waiters.len() < bounds::MANIFEST_HOSTS_MAX {
                    feed.waiters.insert(from);
                }
                false
            }
            _ => true,
        }
    }

    /// Tells a neighbour which versions are known here.
    pub fn send_versions(&self, cx: &mut Cx, links: &mut Links, to: HostIndex) {
        if self.by_id.is_empty() {
            return;
        }
        let rows = self.by_id.iter().map(|(id, feed)| FeedRow { feed: *id, sequence: feed.sequence }).collect();
        links.send(cx, to, Message::Feeds { rows });
    }

    /// A neighbour's versions: requests what is newer there, and announces what is newer here.
    pub fn on_versions(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs, from: HostIndex, rows: &[FeedRow]) {
        let mut wanted = Vec::new();
        for row in rows {
            match self.by_id.get(&row.feed) {
                Some(feed) if feed.sequence > row.sequence => {}
                Some(feed) if feed.sequence == row.sequence && feed.ask_at.is_none() => {}
                None if self.by_id.len() >= FEEDS_MAX => {}
                _ => wanted.push(row.feed),
            }
        }
        let is_newer =
            |(id, feed): &(&JobId, &Feed)| rows.iter().all(|row| row.feed != **id || row.sequence < feed.sequence);
        let newer: Vec<JobId> = self.by_id.iter().filter(is_newer).map(|(id, _)| *id).collect();
        if !wanted.is_empty() {
            links.send(cx, from, Message::WantAnnounce { jobs: wanted });
        }
        for id in newer {
            if self.may_serve(jobs, from, &id) {
                announce_again(cx, links, self, from, id);
            }
        }
    }

    pub fn check_invariants(&self, jobs: &Jobs) {
        assert!(self.by_id.len() <= FEEDS_MAX, "feeds are bounded");
        assert!(self.by_id.keys().all(|id| jobs.contains(id)), "a feed has its announcement");
    }
}

/// Leaves a version that was replaced: its pieces are neither fetched nor served any more.
fn leave_version(cx: &mut Cx, links: &mut Links, transfers: &mut Transfers, id: JobId, former: &Announcement) {
    let Some(transfer) = transfers.get_mut(&former.content) else { return };
    transfer.jobs.remove(&id);
    if !transfer.jobs.is_empty() {
        return;
    }
    let whole = transfer.is_whole();
    transfers.remove(cx, links, former.content);
    // Readers use a whole version until the newer one is whole: the driver drops it then.
    if !whole {
        cx.push(Output::Abandon { content: former.content });
    }
}

/// Our parents on the announcement lanes of a feed.
fn parents(plan: &Plan, announcement: &Announcement, me: HostIndex) -> impl Iterator<Item = HostIndex> {
    let lanes = announce_lanes(announce_offset(&announcement.name), plan.lanes());
    lanes.filter_map(move |lane| plan.parent(lane.tree, me))
}
