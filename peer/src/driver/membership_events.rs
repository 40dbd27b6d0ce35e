//! Dispatches changes of the membership: starts the core, keeps it informed, and admits links that waited.

use super::Driver;
use super::accounting::Level;
use crate::tracker_client::TrackerEvent;
use shoal_proto::announcement::Announcement;
use shoal_proto::ids::NodeId;
use shoal_proto::membership::{Member, MembershipUpdate};
use shoal_swarm::io::{Input, Via};
use shoal_swarm::membership::Membership;
use shoal_swarm::node::{CachingPlanner, Node, NodeConfig, Tuning};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Lanes of plans for contents without a manifest.
const LANES: u8 = 64;

impl Driver {
    pub fn on_tracker_event(&mut self, event: TrackerEvent) {
        match event {
            TrackerEvent::Joined { index } => {
                if self.cx.region.set_index(index, &self.cx.store) {
                    // All of the core's state depends on the index.
                    self.cx.core = None;
                }
                self.start_core();
            }
            TrackerEvent::Update(update) => self.on_update(update),
        }
    }

    /// Applies the tracker's membership and tells the core.
    fn on_update(&mut self, update: MembershipUpdate) {
        if let Err(error) = update.validate() {
            tracing::warn!(%error, "the tracker sent an invalid membership");
            return;
        }
        let addrs: Vec<IpAddr> = update.upserts.iter().flat_map(|member| &member.addrs).map(SocketAddr::ip).collect();
        let former = match self.cx.region.apply(update) {
            Ok(former) => former,
            Err(error) => {
                // Without an epoch, the tracker answers the next heartbeat with a whole membership.
                tracing::debug!(%error, "a membership update does not fit");
                self.cx.reporter.set_epoch(None);
                return;
            }
        };
        let cx = &mut self.cx;
        cx.endpoint.know(addrs);
        let membership = cx.region.membership().clone();
        cx.accounting.set(Level::Members(membership.len()));
        cx.reporter.set_epoch(Some(membership.epoch()));
        if cx.core.is_none() {
            self.start_core();
        } else {
            cx.tell(Input::Membership(membership.clone()));
            self.reassign_links(&former, &membership);
            let me = self.cx.region.me();
            if me.is_some_and(|me| former.get(me) != membership.get(me)) {
                self.reconsider_jobs();
            }
        }
        self.admit_known_links();
    }

    /// Moves links to their hosts' new roster indexes.
    ///
    /// After a tracker's restore a host can have another index, or none for a while.
    fn reassign_links(&mut self, former: &Membership, membership: &Membership) {
        for node in self.cx.region.linked() {
            let (old, new) = (former.by_node(&node), membership.by_node(&node));
            if old == new {
                continue;
            }
            if let Some(host) = old {
                self.cx.tell(Input::LinkDown { host, reason: None });
            }
            // `admit_known_links` admits an unknown link together with its events.
            if let Some(host) = new.filter(|_| !self.cx.region.is_unknown(&node)) {
                self.cx.tell(Input::LinkUp { host });
            }
        }
    }

    /// Our own row changed, so other jobs and rules may select this host.
    fn reconsider_jobs(&mut self) {
        for announcement in self.cx.jobs.announcements() {
            self.cx.open_report(announcement);
        }
        self.activations.evaluate_all(&mut self.cx);
    }

    /// Handles a rack peer's list of members.
    pub fn on_rack_list(&mut self, from: NodeId, rows: Vec<Member>) {
        match self.cx.region.apply_rack_list(&from, rows) {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => {
                tracing::warn!(from = %from.short(), %error, "a rack peer sent an unusable list of members");
                return;
            }
        }
        let hosts = self.cx.region.membership().len();
        tracing::info!(hosts, from = %from.short(), "without a tracker: a rack peer sent the members of the rack");
        self.cx.accounting.set(Level::Members(hosts));
        self.start_core();
        self.admit_known_links();
    }

    /// Admits links whose other ends the membership names by now, and handles their events.
    fn admit_known_links(&mut self) {
        if self.cx.core.is_none() {
            return;
        }
        for (node, events) in self.cx.region.take_known_links() {
            self.admit_link(node);
            for event in events {
                self.on_frame(node, event);
            }
        }
    }

    /// Starts the core once the membership confirms our roster index, and tells it what the disk has.
    pub fn start_core(&mut self) {
        if self.cx.core.is_some() {
            return;
        }
        let Some(me) = self.cx.region.confirmed_index() else { return };
        let config = NodeConfig { me, lanes: LANES, tuning: Tuning::default() };
        self.cx.core = Some(Node::new(config, Box::new(CachingPlanner::default())));
        self.cx.tell(Input::Membership(self.cx.region.membership().clone()));
        self.tell_stored_jobs();
        self.tell_stored_contents();
        self.activations.evaluate_all(&mut self.cx);
        for node in self.cx.region.linked() {
            self.admit_link(node);
        }
    }

    fn tell_stored_jobs(&mut self) {
        let cx = &mut self.cx;
        let mut jobs: Vec<Arc<Announcement>> = cx.jobs.announcements().cloned().collect();
        jobs.sort_by_key(|announcement| announcement.sequence);
        for announcement in jobs {
            if announcement.feed.is_some() {
                self.feeds.tell_again(cx, announcement);
                continue;
            }
            // A stored content needs no manifest from other hosts. `ContentReady` follows.
            let inline = cx.store.manifest(&announcement.content).is_some();
            cx.open_report(&announcement);
            cx.tell(Input::Announced { from: None, via: Via::AntiEntropy, announcement, inline });
        }
    }

    fn tell_stored_contents(&mut self) {
        let cx = &mut self.cx;
        for stored in cx.store.contents() {
            let content = stored.content;
            if cx.tell_rack_share(&stored) {
                cx.restore_demotion(&stored);
            } else if !stored.complete && !cx.jobs.is_named(&content) {
                // Its job is over, so nothing would complete or evict it.
                cx.drop_content(content);
                continue;
            } else {
                cx.tell(Input::ContentReady { content, geometry: stored.geometry, have: stored.have });
            }
            cx.report_progress(&content);
        }
    }
}
