//! Jobs: learning of them, passing them on, and getting hold of their contents' manifests.

use super::content::{Body, Content};
use super::{Job, Node, bounds, entropy};
use crate::io::Output;
use crate::plan::Plan;
use shoal_proto::announcement::{Announcement, Kind, Order};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, HostIndex, JobId, LaneIndex};
use shoal_proto::message::Message;
use std::sync::Arc;

impl Node {
    pub(super) fn on_announced(
        &mut self,
        from: Option<HostIndex>,
        lane: u8,
        announcement: Arc<Announcement>,
        inline: bool,
    ) {
        if announcement.feed.is_some() {
            self.on_feed(from, lane, announcement, inline);
            return;
        }
        let (job, id) = (announcement.job, announcement.content);
        if let Some(known) = self.jobs.get(&job) {
            if known.ours && !inline {
                self.manifest_source(id, from, lane);
            }
            return;
        }
        let ours = self.is_for_us(&announcement);
        self.remember(job, Job { announcement, ours });
        if ours {
            self.take_job(job, from, lane, inline);
        }
    }

    pub(super) fn is_for_us(&self, announcement: &Announcement) -> bool {
        let Some(me) = self.membership.get(self.config.me) else { return false };
        announcement.origin == me.node
            || (me.role == shoal_proto::trust::Role::Peer && announcement.selector.matches(&me.locality, &me.labels))
    }

    pub(super) fn remember(&mut self, job: JobId, row: Job) {
        if self.jobs.len() >= bounds::JOBS_MAX {
            let jobs = self.jobs.iter().filter(|(_, job)| job.announcement.feed.is_none());
            let oldest = jobs.min_by_key(|(id, job)| (job.announcement.created_at, **id));
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.forget_job(oldest);
            }
        }
        self.jobs.insert(job, row);
        self.jobs_hash = entropy::hash_of(self.jobs.keys());
    }

    pub(super) fn forget_job(&mut self, job: JobId) {
        let Some(row) = self.jobs.remove(&job) else { return };
        self.feeds.remove(&job);
        self.feeds_wanted.remove(&job);
        self.jobs_hash = entropy::hash_of(self.jobs.keys());
        if let Some(content) = self.contents.get_mut(&row.announcement.content) {
            content.jobs.remove(&job);
        }
    }

    /// A job for us: make its content known, tell the children, look for the manifest.
    pub(super) fn take_job(&mut self, job: JobId, from: Option<HostIndex>, lane: u8, inline: bool) {
        let announcement = self.jobs[&job].announcement.clone();
        let id = announcement.content;
        if self.contents.len() >= bounds::CONTENTS_MAX && !self.contents.contains_key(&id) {
            return;
        }
        let origin = self.membership.by_node(&announcement.origin);
        let content = self.contents.entry(id).or_insert_with(|| Box::new(Content::new(&announcement, origin)));
        content.jobs.insert(job);
        if self.is_demoted(id) {
            // Older words on it are passed on all the same.
            self.follow_order(id);
            self.retarget(id);
            self.replan(id);
            self.pass_on(job, id, from, lane, false);
            return;
        }
        self.supersede(&announcement);
        let Some(content) = self.contents.get_mut(&id) else { return };
        // Where a rack holds shares of it, they are looked for first.
        content.late = lane == bounds::ENTROPY_LANE || announcement.order == Some(Order::Promote);
        (content.refused, content.gave_up) = (false, false);
        self.follow_order(id);
        self.active.insert(id);
        self.retarget(id);
        self.replan(id);
        self.pass_on(job, id, from, lane, inline);
        if origin != Some(self.config.me) && !inline {
            self.manifest_source(id, from, lane);
        }
        // It may be here already, from another job: then it is complete for this one too.
        self.finish_if_whole(id);
    }

    /// Decisions age fast: an older version still on its way is abandoned.
    fn supersede(&mut self, announcement: &Announcement) {
        if announcement.kind != Kind::Gslb || announcement.feed.is_some() {
            return;
        }
        let older: Vec<ContentId> = self
            .contents
            .values()
            .filter(|content| {
                content.kind == Kind::Gslb
                    && !content.feed
                    && content.name == announcement.name
                    && content.sequence < announcement.sequence
                    && content.id != announcement.content
                    && self.active.contains(&content.id)
            })
            .map(|content| content.id)
            .collect();
        for content in older {
            self.remove_content(content);
            self.push(Output::Abandon { content });
        }
    }

    /// Tells the children on the announcement lanes. One that told us by another lane hears of the first lane all the same:
    /// it waits for it to ask for the manifest.
    fn pass_on(&mut self, job: JobId, id: ContentId, from: Option<HostIndex>, by: u8, inline: bool) {
        let content = &self.contents[&id];
        let Some(plan) = content.plan.clone() else { return };
        for (number, lane) in lanes_of(content.announce_offset, plan.lanes()) {
            for child in self.hearers(&plan, (number, lane), from, by) {
                let waits = number == 0 && (1..bounds::ANNOUNCE_LANES).contains(&by);
                if Some(child) != from || waits {
                    self.announce_to(child, job, number, inline && number == 0);
                }
            }
        }
    }

    /// Whom to tell on a lane of what came from `from` by the lane numbered `by`: our children, and rack peers that we do not
    /// count on but have a link to, who may be well and hear of it from nobody else. Hosts may differ on whom to count on: what
    /// came from another rack makes us the lane's owner in ours, for its sender told nobody else here; and where we are the
    /// owner and a mate brought it, the mate was one before us and told all.
    pub(super) fn hearers(
        &self,
        plan: &Plan,
        (number, lane): (u8, LaneIndex),
        from: Option<HostIndex>,
        by: u8,
    ) -> Vec<HostIndex> {
        let me = self.config.me;
        let owner = plan.owner(lane, me) == Some(me);
        let by_mate = from.filter(|_| by == number && plan.targets(me)).map(|from| plan.same_rack(from, me));
        let mut hearers = match by_mate {
            Some(true) if owner => return Vec::new(),
            Some(false) => plan.children_as_owner(lane, me),
            _ => plan.children(lane, me),
        };
        if owner || by_mate == Some(false) {
            hearers.extend(plan.leaves(me).filter(|host| self.is_linked(*host)));
        }
        hearers
    }

    pub(super) fn announce_to(&mut self, host: HostIndex, job: JobId, lane: u8, inline: bool) {
        if self.is_linked(host) {
            self.push(Output::SendAnnounce { to: host, job, lane, inline });
            return;
        }
        self.connect(host);
        if let Some(link) = self.links.get_mut(&host)
            && link.announcements.len() < bounds::JOBS_MAX
            && !link.announcements.contains(&(job, lane, inline))
        {
            link.announcements.push_back((job, lane, inline));
        }
    }

    /// Jobs that a change of membership makes ours, or whose origin it brings.
    pub(super) fn reconsider_jobs(&mut self) {
        let fresh: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| !job.ours && self.is_for_us(&job.announcement))
            .map(|(id, _)| *id)
            .collect();
        for job in fresh {
            if let Some(row) = self.jobs.get_mut(&job) {
                row.ours = true;
            }
            if self.feeds.contains_key(&job) {
                self.feed_is_ours(job);
            } else {
                self.take_job(job, None, bounds::ENTROPY_LANE, false);
            }
        }
    }

    /// Computes a content's targets and origin anew.
    pub(super) fn retarget(&mut self, id: ContentId) {
        let Some(content) = self.contents.get_mut(&id) else { return };
        let mut targets = Bitmap::new(self.membership.index_space());
        for job in &content.jobs {
            if let Some(job) = self.jobs.get(job) {
                targets.union(&self.membership.select(&job.announcement.selector));
                content.origin = self.membership.by_node(&job.announcement.origin).or(content.origin);
            }
        }
        content.targets = targets;
    }

    /// Notes who may have the manifest, and asks at once when it came down the manifest's own lane.
    pub(super) fn manifest_source(&mut self, id: ContentId, from: Option<HostIndex>, lane: u8) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else { return };
        if content.body.is_some() || content.refused {
            return;
        }
        let hunt = &mut content.manifest;
        if let Some(from) = from
            && !hunt.tried.contains(&from)
            && !hunt.sources.contains(&from)
            && hunt.sources.len() < bounds::MANIFEST_HOSTS_MAX
        {
            if lane == 0 { hunt.sources.push_front(from) } else { hunt.sources.push_back(from) }
        }
        let at = if lane == 0 { now } else { now + self.config.tuning.manifest_patience };
        hunt.ask_at = Some(hunt.ask_at.map_or(at, |former| former.min(at)));
        self.hunt_manifest(id);
    }

    /// Asks the next source when it is time.
    pub(super) fn hunt_manifest(&mut self, id: ContentId) {
        let (now, me) = (self.now, self.config.me);
        let Some(content) = self.contents.get_mut(&id) else { return };
        if content.body.is_some() || content.manifest.found || content.refused || content.origin == Some(me) {
            return;
        }
        let late = content.manifest.asked.filter(|(_, until)| *until <= now);
        if let Some((host, _)) = late {
            self.manifest_source_failed(id, host);
            return;
        }
        let asked_in_vain = content.asked_in_vain(now, &self.config.tuning);
        let hunt = &mut content.manifest;
        if hunt.asked.is_some() && !asked_in_vain || hunt.ask_at.is_some_and(|at| at > now) {
            return;
        }
        if hunt.sources.is_empty() {
            if !asked_in_vain {
                hunt.tried.clear();
            }
            self.widen_hunt(id);
        }
        let Some(content) = self.contents.get_mut(&id) else { return };
        if content.manifest.sources.is_empty() {
            if !asked_in_vain {
                content.manifest.ask_at = Some(now + self.config.tuning.want_timeout);
            }
            return;
        }
        // The first with a link; dial the very first if there is none.
        let sources: Vec<HostIndex> = content.manifest.sources.iter().copied().collect();
        let linked = sources.iter().copied().find(|host| self.is_linked(*host));
        let Some(content) = self.contents.get_mut(&id) else { return };
        match linked {
            Some(host) => {
                content.manifest.sources.retain(|source| *source != host);
                content.manifest.tried.insert(host);
                content.manifest.asked = Some((host, now + self.config.tuning.manifest_timeout));
                content.manifest.ask_at = None;
                self.send(host, Message::WantManifest { content: id });
            }
            None => {
                content.manifest.ask_at = Some(now + self.config.tuning.redial_first);
                let Some(first) = content.manifest.sources.pop_front() else { return };
                content.manifest.sources.push_back(first);
                self.connect(first);
            }
        }
    }

    /// Nobody who announced it is left to ask: whoever is above us once those asked in vain are left out, our mates, and the origin.
    fn widen_hunt(&mut self, id: ContentId) {
        let me = self.config.me;
        let Some(content) = self.contents.get_mut(&id) else { return };
        let mut others: Vec<HostIndex> = Vec::new();
        if let Some(plan) = &content.plan {
            let around = self.avoid.keys().chain(&content.manifest.tried).copied().collect();
            let plan = plan.avoiding(&around);
            let lanes = lanes_of(content.announce_offset, plan.lanes());
            others.extend(lanes.filter_map(|(_, lane)| plan.parent(lane, me)));
            others.extend(plan.mates(me).take(8));
        }
        others.extend(content.origin);
        let hunt = &mut content.manifest;
        for host in others {
            if host != me && !hunt.tried.contains(&host) && !hunt.sources.contains(&host) {
                hunt.sources.push_back(host);
            }
        }
    }

    /// `host` will not give us the manifest: ask another.
    pub(super) fn manifest_source_failed(&mut self, id: ContentId, host: HostIndex) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else { return };
        if content.body.is_some() || content.manifest.found {
            return;
        }
        content.manifest.sources.retain(|source| *source != host);
        content.manifest.tried.remove(&host);
        if content.manifest.asked.is_some_and(|(asked, _)| asked == host) {
            content.manifest.asked = None;
            // With nobody else to ask, give it a moment before beginning again.
            let wait = if content.manifest.sources.is_empty() {
                self.config.tuning.redial_first
            } else {
                std::time::Duration::ZERO
            };
            content.manifest.ask_at = Some(now + wait);
            self.hunt_manifest(id);
        }
    }

    pub(super) fn on_want_manifest(&mut self, from: HostIndex, id: ContentId) {
        let Some(content) = self.contents.get_mut(&id).filter(|content| !content.refused) else {
            self.send(from, Message::NotServed { content: id });
            return;
        };
        if content.body.is_none() && !content.manifest.found {
            if content.manifest.waiters.len() < bounds::MANIFEST_HOSTS_MAX {
                content.manifest.waiters.insert(from);
            } else {
                self.send(from, Message::NotServed { content: id });
            }
            return;
        }
        self.queue_manifest(from, id);
    }

    fn queue_manifest(&mut self, to: HostIndex, id: ContentId) {
        if let Some(link) = self.links.get_mut(&to).filter(|link| link.is_up())
            && !link.manifests.contains(&id)
            && link.manifests.len() < bounds::CONTENTS_MAX
        {
            link.manifests.push_back(id);
            self.dirty.insert(to);
        }
    }

    /// The manifest is here, though what it describes is not begun yet.
    pub(super) fn on_manifest_verified(&mut self, id: ContentId) {
        if let Some(content) = self.contents.get_mut(&id).filter(|content| !content.refused) {
            content.manifest.found = true;
            self.hand_on_manifest(id);
        }
    }

    /// Nobody needs to be asked for the manifest any more; who waited for it gets it.
    fn hand_on_manifest(&mut self, id: ContentId) {
        let Some(content) = self.contents.get_mut(&id) else { return };
        content.manifest.asked = None;
        content.manifest.ask_at = None;
        content.manifest.sources.clear();
        for host in std::mem::take(&mut content.manifest.waiters) {
            self.queue_manifest(host, id);
        }
    }

    pub(super) fn on_content_ready(&mut self, id: ContentId, geometry: Geometry, have: Bitmap) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&id) else { return };
        if content.body.is_some() || have.len() != geometry.piece_count() {
            return;
        }
        content.refused = false;
        let mut body = Body::new(geometry, have, now, &self.config.tuning);
        if content.late {
            let promoted = self
                .jobs
                .iter()
                .any(|(job, row)| content.jobs.contains(job) && row.announcement.order == Some(Order::Promote));
            body.import_at = now
                + if promoted { self.config.tuning.promote_patience } else { self.config.tuning.rack_peers_patience };
        }
        content.body = Some(body);
        self.hand_on_manifest(id);
        let parked: Vec<_> = {
            let (ours, rest) = std::mem::take(&mut self.parked).into_iter().partition(|parked| parked.content == id);
            self.parked = rest;
            ours
        };
        for parked in parked {
            self.on_subscribe(parked.from, id, parked.lanes, parked.have);
        }
        self.replan(id);
        self.finish_if_whole(id);
        self.follow_order(id);
    }

    pub(super) fn on_content_refused(&mut self, id: ContentId) {
        let Some(content) = self.contents.get_mut(&id) else { return };
        content.refused = true;
        (content.body, content.cold, content.warm) = (None, None, None);
        self.cooling.remove(&id);
        self.warming.remove(&id);
        content.manifest.asked = None;
        content.manifest.found = false;
        let waiters = std::mem::take(&mut content.manifest.waiters);
        for link in self.links.values_mut() {
            link.manifests.retain(|manifest| *manifest != id);
        }
        self.active.remove(&id);
        for host in waiters {
            self.send(host, Message::NotServed { content: id });
        }
        let parked: Vec<HostIndex> =
            self.parked.iter().filter(|parked| parked.content == id).map(|parked| parked.from).collect();
        self.parked.retain(|parked| parked.content != id);
        for host in parked {
            self.send(host, Message::NotServed { content: id });
        }
    }

    pub(super) fn remove_content(&mut self, id: ContentId) {
        let Some(content) = self.contents.remove(&id) else { return };
        self.active.remove(&id);
        self.cooling.remove(&id);
        self.warming.remove(&id);
        for host in content.manifest.waiters {
            self.send(host, Message::NotServed { content: id });
        }
        let Some(body) = content.body else { return };
        for host in body.children.keys() {
            self.send(*host, Message::NotServed { content: id });
            if let Some(link) = self.links.get_mut(host) {
                link.ready.remove(&(content.class, id));
                link.manifests.retain(|manifest| *manifest != id);
            }
        }
        let mut parents: Vec<HostIndex> =
            body.lanes.iter().filter(|lane| lane.subscribed).filter_map(|lane| lane.parent).collect();
        parents.sort_unstable();
        parents.dedup();
        let lanes = shoal_proto::message::LaneSet::first(body.geometry.lanes());
        for parent in parents {
            self.send(parent, Message::Unsubscribe { content: id, lanes });
        }
    }
}

/// The trees that announcements of a name go down, numbered.
pub(super) fn lanes_of(offset: u8, lanes: u8) -> impl Iterator<Item = (u8, LaneIndex)> {
    (0..bounds::ANNOUNCE_LANES.min(lanes)).map(move |number| {
        let spread = u32::from(number) * u32::from(lanes) / u32::from(bounds::ANNOUNCE_LANES);
        (number, LaneIndex(((u32::from(offset) + spread) % u32::from(lanes)) as u8))
    })
}
