//! All contents that a node knows.
//!
//! Owns: the transfers by content, subscriptions to contents that are not ready, and which unknown contents are
//! refused.
//! Invariant: a content that wants a manifest or pieces is on the agenda as active.

use super::{Body, Facts, Transfer};
use crate::io::{AvoidReason, Output, Via};
use crate::node::bounds;
use crate::node::cx::Cx;
use crate::node::demote::{DemotionReport, FoundShare, UNKNOWN_JOB, is_rack_peer};
use crate::node::jobs::spread::{Announced, Arrival, pass_on};
use crate::node::jobs::{Job, Jobs, is_for_us};
use crate::node::links::{Link, Links};
use crate::node::serve::{ParkedSubscriptions, Subscription};
use shoal_proto::announcement::{Announcement, Kind, Order};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, HostIndex, JobId, ShardIndex};
use shoal_proto::message::{DemotionStage, LaneSet, Message};
use shoal_proto::rack_placement::RackPlacement;
use std::collections::{BTreeMap, VecDeque};

#[derive(Default)]
pub struct Transfers {
    /// Boxed: transfers are large, and a map keeps room for eleven in each node.
    by_id: BTreeMap<ContentId, Box<Transfer>>,
    pub parked: ParkedSubscriptions,
    /// Contents that the driver refused with their announcements, the oldest first. No job names them here.
    turned_away: VecDeque<ContentId>,
}

impl Transfers {
    pub fn get(&self, id: &ContentId) -> Option<&Transfer> {
        self.by_id.get(id).map(|transfer| &**transfer)
    }

    pub fn get_mut(&mut self, id: &ContentId) -> Option<&mut Transfer> {
        self.by_id.get_mut(id).map(|transfer| &mut **transfer)
    }

    pub fn ids(&self) -> impl Iterator<Item = &ContentId> {
        self.by_id.keys()
    }

    /// Applies `act` to the active contents, in order of id.
    pub fn for_active(&mut self, cx: &mut Cx, mut act: impl FnMut(&mut Transfer, &mut Cx)) {
        for id in cx.agenda.active() {
            if let Some(transfer) = self.get_mut(&id) {
                act(transfer, cx);
            }
        }
    }

    pub fn replan_active(&mut self, cx: &mut Cx, links: &mut Links) {
        self.for_active(cx, |transfer, cx| transfer.replan(cx, links));
    }

    /// A job was announced for the first time, or again.
    pub fn on_announced(&mut self, cx: &mut Cx, links: &mut Links, jobs: &mut Jobs, announced: Announced) {
        let Announced { arrival, announcement, inline } = announced;
        let (id, content) = (announcement.job, announcement.content);
        if let Some(known) = jobs.get(&id) {
            if known.ours
                && !inline
                && let Some(transfer) = self.get_mut(&content)
            {
                transfer.add_manifest_source(cx, links, arrival.from, arrival.via);
            }
            return;
        }
        let ours = is_for_us(cx, &announcement);
        if let Some(forgotten) = jobs.add(Job { announcement, ours }) {
            self.forget_job(&forgotten);
        }
        if ours {
            self.take_job(cx, links, jobs, id, arrival, inline);
        }
    }

    /// A job for this host: makes its content known, tells the children, and searches the manifest.
    pub fn take_job(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        job: JobId,
        arrival: Arrival,
        inline: bool,
    ) {
        let Some(announcement) = jobs.get(&job).map(|job| job.announcement.clone()) else { return };
        let id = announcement.content;
        if self.by_id.len() >= bounds::CONTENTS_MAX && !self.by_id.contains_key(&id) {
            return;
        }
        let origin = cx.membership.by_node(&announcement.origin);
        self.turned_away.retain(|refused| *refused != id);
        let transfer = self.by_id.entry(id).or_insert_with(|| Box::new(Transfer::new(&announcement, origin)));
        transfer.jobs.insert(job);
        let demoted = jobs.demotion_of(&transfer.jobs).is_some();
        if !demoted {
            self.abandon_older(cx, links, &announcement);
        }
        let Some(transfer) = self.get_mut(&id) else { return };
        if !demoted {
            // Where a rack holds rack shares of it, those come first.
            transfer.late = arrival.via == Via::AntiEntropy || announcement.order == Some(Order::Promote);
            (transfer.refused, transfer.rack_gave_up) = (false, false);
        }
        transfer.follow_order(cx, links, jobs);
        if !demoted {
            cx.agenda.active.insert(id);
        }
        transfer.retarget(cx, jobs);
        transfer.replan(cx, links);
        // An older order is passed on, too: the children may not know the newer one.
        if let Some(plan) = transfer.plan.clone() {
            let offset = transfer.facts.announce_offset;
            pass_on(cx, links, &plan, offset, job, arrival, inline && !demoted);
        }
        if demoted {
            return;
        }
        if origin != Some(cx.me) && !inline {
            transfer.add_manifest_source(cx, links, arrival.from, arrival.via);
        }
        // It may be here already, from another job. Then it is complete for this one too.
        transfer.finish_if_whole(cx, links);
    }

    /// GSLB decisions age fast: an older version that is still on its way is abandoned.
    fn abandon_older(&mut self, cx: &mut Cx, links: &mut Links, announcement: &Announcement) {
        if announcement.kind != Kind::Gslb || announcement.feed.is_some() {
            return;
        }
        let is_older = |facts: &Facts| {
            facts.kind == Kind::Gslb
                && !facts.is_feed
                && facts.name == announcement.name
                && facts.sequence < announcement.sequence
                && facts.id != announcement.content
                && cx.agenda.active.contains(&facts.id)
        };
        let known = self.by_id.values().map(|transfer| &transfer.facts);
        let older: Vec<ContentId> = known.filter(|facts| is_older(facts)).map(|facts| facts.id).collect();
        for content in older {
            self.remove(cx, links, content);
            cx.push(Output::Abandon { content });
        }
    }

    /// Removes a content, and tells every host that waits for something of it.
    pub fn remove(&mut self, cx: &mut Cx, links: &mut Links, id: ContentId) {
        let Some(mut transfer) = self.by_id.remove(&id) else { return };
        cx.agenda.forget(&id);
        for host in transfer.manifest.take_waiters() {
            links.send(cx, host, Message::NotServed { content: id });
        }
        let Some(mut body) = transfer.body.take() else { return };
        for host in body.children.hosts() {
            links.send(cx, host, Message::NotServed { content: id });
            if let Some(link) = links.get_mut(host) {
                link.unmark_ready(transfer.facts.class, id);
                link.drop_manifest(id);
            }
        }
        let lanes = LaneSet::first(body.geometry().lanes());
        for parent in body.lanes.leave_all().into_keys() {
            links.send(cx, parent, Message::Unsubscribe { content: id, lanes });
        }
    }

    pub fn forget_job(&mut self, job: &Job) {
        if let Some(transfer) = self.get_mut(&job.announcement.content) {
            transfer.jobs.remove(&job.id());
        }
    }

    /// The driver is ready to take the content's pieces.
    pub fn on_content_ready(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        id: ContentId,
        geometry: Geometry,
        have: Bitmap,
    ) {
        let Some(transfer) = self.by_id.get_mut(&id) else { return };
        if transfer.body.is_some() || have.len() != geometry.piece_count() {
            return;
        }
        transfer.refused = false;
        let mut body = Body::new(geometry, have, &cx.tuning, cx.now);
        if transfer.late {
            let orders = transfer.jobs.iter().filter_map(|job| jobs.get(job)?.announcement.order);
            let promoted = orders.into_iter().any(|order| order == Order::Promote);
            let patience = if promoted { cx.tuning.promote_patience } else { cx.tuning.rack_peers_patience };
            body.lanes.delay_imports(cx.now + patience);
        }
        transfer.body = Some(body);
        transfer.end_manifest_search(links);
        for subscription in self.parked.take(id) {
            if let Some(again) = transfer.on_subscribe(cx, links, subscription) {
                self.parked.park(cx, links, id, again);
            }
        }
        transfer.replan(cx, links);
        transfer.finish_if_whole(cx, links);
        transfer.follow_order(cx, links, jobs);
        // A refused content is on no agenda, and may be here in part after all.
        if transfer.is_running() {
            cx.agenda.active.insert(id);
        }
    }

    /// The driver cannot take the content. Hosts that wait for it here must look elsewhere.
    pub fn on_content_refused(&mut self, cx: &mut Cx, links: &mut Links, id: ContentId) {
        let Some(transfer) = self.by_id.get_mut(&id) else { return self.turn_away(cx, links, id) };
        transfer.refused = true;
        (transfer.body, transfer.demotion, transfer.promotion) = (None, None, None);
        cx.agenda.forget(&id);
        transfer.manifest.on_refused();
        links.drop_manifest(id);
        let waiters = transfer.manifest.take_waiters();
        let parked = self.parked.take(id).into_iter().map(|subscription| subscription.from);
        for host in waiters.into_iter().chain(parked) {
            links.send(cx, host, Message::NotServed { content: id });
        }
    }

    /// The driver refused a content before the core knew it. Hosts that wait for it here look elsewhere, also those
    /// that ask later.
    fn turn_away(&mut self, cx: &mut Cx, links: &mut Links, id: ContentId) {
        if !self.turned_away.contains(&id) {
            self.turned_away.push_back(id);
        }
        if self.turned_away.len() > bounds::TURNED_AWAY_MAX {
            self.turned_away.pop_front();
        }
        for subscription in self.parked.take(id) {
            links.send(cx, subscription.from, Message::NotServed { content: id });
        }
    }

    /// What depended on the link to `host` is looked for elsewhere. Returns whether a lane was to come from it.
    pub fn on_link_lost(&mut self, cx: &mut Cx, links: &mut Links, host: HostIndex) -> bool {
        let mut was_parent = false;
        for transfer in self.by_id.values_mut() {
            transfer.manifest.forget_waiter(host);
            if let Some(body) = &mut transfer.body {
                body.children.forget(host);
                body.wants.on_link_lost(host);
                was_parent |= body.lanes.on_link_lost(host);
            }
            transfer.on_manifest_source_failed(cx, links, host);
        }
        was_parent
    }

    /// Hosts are back that one cause took away. Requests that failed meanwhile say nothing about which host has what,
    /// and deliveries that did not come say nothing about which host is slow.
    pub fn forget_failures(&mut self, cx: &mut Cx) {
        let restart = cx.now + cx.tuning.slow_lag;
        self.for_active(cx, |transfer, _| {
            if let Some(body) = &mut transfer.body {
                body.wants.forget_failures();
                body.deliveries.restart_at(restart);
            }
        });
    }

    /// Whether there is a reason for a link to `host`.
    pub fn need(&self, active: &[ContentId], links: &Links, host: HostIndex) -> bool {
        // A host that may become a parent again must be found when it is back.
        let avoided = links.avoidance.contains(host);
        let needs = |transfer: &Transfer| transfer.has_neighbour(host) || avoided && transfer.targets.get(host.0);
        links.is_kept_open(host)
            || links.get(host).is_some_and(Link::has_waiting)
            || active.iter().filter_map(|id| self.get(id)).any(needs)
    }

    pub fn on_subscribe(&mut self, cx: &mut Cx, links: &mut Links, id: ContentId, subscription: Subscription) {
        let refused = match self.by_id.get_mut(&id) {
            Some(transfer) => transfer.on_subscribe(cx, links, subscription),
            None if self.turned_away.contains(&id) => {
                return links.send(cx, subscription.from, Message::NotServed { content: id });
            }
            None => Some(subscription),
        };
        if let Some(subscription) = refused {
            self.parked.park(cx, links, id, subscription);
        }
    }

    pub fn on_want(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        from: HostIndex,
        content: ContentId,
        shards: Vec<ShardIndex>,
    ) {
        let shards = match self.get_mut(&content) {
            Some(transfer) => transfer.on_want(links, from, shards),
            None => shards,
        };
        if !shards.is_empty() {
            links.send(cx, from, Message::Unavailable { content, shards });
        }
    }

    /// A neighbour does not serve the content: it is no source of the manifest, and no parent for a while.
    pub fn on_not_served(&mut self, cx: &mut Cx, links: &mut Links, from: HostIndex, id: ContentId) {
        let Some(transfer) = self.get_mut(&id) else { return };
        let Some(body) = transfer.body.as_mut() else {
            transfer.on_manifest_source_failed(cx, links, from);
            return;
        };
        body.wants.forget_host(from);
        if transfer.promotion.is_some() {
            transfer.on_share_lost(from);
        } else if body.lanes.drop_parent(from) {
            transfer.bypass.add_useless(from, cx.now + cx.tuning.avoid);
            transfer.replan(cx, links);
        }
    }

    /// A rack peer says how far it is with a demotion, and may ask how far we are.
    pub fn on_demotion(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        from: HostIndex,
        id: ContentId,
        report: DemotionReport,
    ) {
        if !is_rack_peer(cx, from) {
            return;
        }
        let (job, ask) = (report.job, report.ask);
        let knows_job = jobs.contains(&job);
        if !knows_job && job != UNKNOWN_JOB {
            links.send(cx, from, Message::WantAnnounce { jobs: vec![job] });
        }
        let mut was_demoted = false;
        if let Some(transfer) = self.get_mut(&id) {
            was_demoted = transfer.demotion.is_some();
            transfer.note_demotion_report(cx, from, &report);
        }
        if report.stage == DemotionStage::NotParticipating {
            self.renew_placements(cx, links, jobs);
            if let Some(transfer) = self.get_mut(&id) {
                transfer.on_share_lost(from);
            }
        } else if let Some(transfer) = self.get_mut(&id) {
            transfer.on_rack_peer_ready(cx, links, jobs, from, report.placement);
        }
        let answered = ask && self.get(&id).is_some_and(|transfer| transfer.answer_rack_peer(cx, links, from));
        if ask && !answered && !was_demoted && knows_job {
            // We follow no such order: the content is whole here, or nothing of it is.
            let (stage, placement) = (DemotionStage::NotParticipating, RackPlacement::default());
            links.send(cx, from, Message::Demotion { content: id, job, stage, placement, ask: false });
        }
    }

    /// Rack peers came or went: contents whose demotion is not agreed on get new placements.
    pub fn renew_placements(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        let demoting: Vec<ContentId> = cx.agenda.demoting.iter().copied().collect();
        for id in demoting {
            if let Some(transfer) = self.get_mut(&id) {
                transfer.renew_placement(cx, links, jobs);
            }
        }
    }

    /// A rack peer's link is up: it hears of demotions and promotions under way.
    pub fn greet_rack_peer(&self, cx: &mut Cx, links: &mut Links, host: HostIndex) {
        if !is_rack_peer(cx, host) {
            return;
        }
        let ids: Vec<ContentId> = cx.agenda.demoting.iter().chain(&cx.agenda.promoting).copied().collect();
        for transfer in ids.iter().filter_map(|id| self.get(id)) {
            transfer.greet_rack_peer(cx, links, host);
        }
    }

    /// At start, rack shares of a content were found on the disk.
    pub fn on_share_found(
        &mut self,
        cx: &mut Cx,
        links: &mut Links,
        jobs: &Jobs,
        id: ContentId,
        found: FoundShare,
        share_only: bool,
    ) {
        if share_only {
            if let Some(transfer) = self.get_mut(&id) {
                transfer.on_share_only_found(cx, links, jobs, found);
            }
            return;
        }
        self.on_content_ready(cx, links, jobs, id, found.geometry, found.have);
        if let Some(transfer) = self.get_mut(&id) {
            transfer.on_share_beside_whole_found(cx, links, found.placements);
        }
    }

    /// The periodic check of everything that is under way.
    pub fn check(&mut self, cx: &mut Cx, links: &mut Links, jobs: &Jobs) {
        for id in cx.agenda.active() {
            if cx.agenda.promoting.contains(&id) {
                if let Some(transfer) = self.get_mut(&id) {
                    transfer.promote(cx, links, jobs);
                }
                continue;
            }
            let Some(transfer) = self.get_mut(&id) else { continue };
            transfer.search_manifest(cx, links);
            let stragglers = transfer.find_stragglers(cx);
            self.avoid_stragglers(cx, links, id, stragglers);
            let Some(transfer) = self.get_mut(&id) else { continue };
            transfer.reroute_silent_lanes(cx, links);
            transfer.repair(cx, links);
            transfer.balance_lanes(cx, links);
        }
    }

    /// Checks demotions that are not agreed on yet.
    pub fn check_demotions(&mut self, cx: &mut Cx, links: &mut Links) {
        let demoting: Vec<ContentId> = cx.agenda.demoting.iter().copied().collect();
        for id in demoting {
            match self.get_mut(&id) {
                Some(transfer) => transfer.check_demotion(cx, links),
                None => {
                    cx.agenda.demoting.remove(&id);
                }
            }
        }
    }

    /// A host that is slow for one content is slow for all: every plan changes.
    fn avoid_stragglers(&mut self, cx: &mut Cx, links: &mut Links, id: ContentId, stragglers: Vec<HostIndex>) {
        for host in stragglers {
            let may = self.get(&id).is_some_and(|transfer| transfer.may_avoid_as_slow(cx, links, host));
            if may && links.avoid(cx, host, AvoidReason::Slow) {
                self.replan_active(cx, links);
            }
        }
    }

    pub fn check_invariants(&self, cx: &Cx) {
        self.parked.check_invariants();
        for transfer in self.by_id.values() {
            transfer.check_invariants();
            let wants = transfer.is_running() || (transfer.body.is_none() && !transfer.refused);
            let active = cx.agenda.active.contains(&transfer.id());
            assert!(!wants || active, "a content that wants something is active");
        }
    }
}

impl Transfer {
    /// Computes the content's targets and origin from its jobs and the membership.
    pub fn retarget(&mut self, cx: &Cx, jobs: &Jobs) {
        let mut targets = Bitmap::new(cx.membership.index_space());
        for job in self.jobs.iter().filter_map(|job| jobs.get(job)) {
            targets.union(&cx.membership.select(&job.announcement.selector));
            self.origin = cx.membership.by_node(&job.announcement.origin).or(self.origin);
        }
        self.targets = targets;
    }
}
