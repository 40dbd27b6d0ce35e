//! The search for a content's manifest: which hosts may have it, and which is asked next.
//!
//! Owns: one content's sources and the hosts that wait for its manifest here.
//! Invariant: no host is asked twice while another source is left.

use super::bounds;
use super::cx::Cx;
use super::jobs::spread::announce_lanes;
use super::links::Links;
use super::transfer::Transfer;
use crate::io::Via;
use crate::time::Instant;
use shoal_proto::ids::HostIndex;
use shoal_proto::message::Message;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Rack peers that are asked when every host that announced the content has been.
const RACK_PEERS_ASKED: usize = 8;

/// A request for the manifest.
#[derive(Clone, Copy, Debug)]
struct Request {
    to: HostIndex,
    until: Instant,
}

#[derive(Debug, Default)]
pub struct ManifestSearch {
    /// Hosts that announced the content to us, best first.
    sources: VecDeque<HostIndex>,
    /// The latest request.
    request: Option<Request>,
    /// Hosts that were asked and have not refused.
    asked: BTreeSet<HostIndex>,
    /// When to ask the first of `sources`.
    ask_at: Option<Instant>,
    /// The manifest is here, and can be sent on.
    found: bool,
    /// Hosts that want the manifest from us.
    waiters: BTreeSet<HostIndex>,
}

impl ManifestSearch {
    pub fn forget_waiter(&mut self, host: HostIndex) {
        self.waiters.remove(&host);
    }

    pub fn take_waiters(&mut self) -> BTreeSet<HostIndex> {
        std::mem::take(&mut self.waiters)
    }

    /// The driver refused the content. Its manifest counts as not found.
    pub fn on_refused(&mut self) {
        (self.request, self.found) = (None, false);
    }

    /// Whether the latest source takes so long that another one is asked as well.
    fn is_late(&self, cx: &Cx, manifest_bytes: u64) -> bool {
        let tuning = &cx.tuning;
        let patience = tuning.manifest_patience + Duration::from_millis(manifest_bytes / bounds::MANIFEST_BYTES_PER_MS);
        self.asked.len() <= tuning.manifest_extra_sources
            && self.request.is_some_and(|request| cx.now + bounds::MANIFEST_TIMEOUT >= request.until + patience)
    }
}

impl Transfer {
    /// Notes a host that may have the manifest. It is asked at once if the announcement came on lane 0, which the
    /// manifest follows.
    pub fn add_manifest_source(&mut self, cx: &mut Cx, links: &mut Links, from: Option<HostIndex>, via: Via) {
        if self.body.is_some() || self.refused {
            return;
        }
        let search = &mut self.manifest;
        let first_lane = via == Via::Lane(0);
        if let Some(from) = from
            && !search.asked.contains(&from)
            && !search.sources.contains(&from)
            && search.sources.len() < bounds::MANIFEST_HOSTS_MAX
        {
            if first_lane { search.sources.push_front(from) } else { search.sources.push_back(from) }
        }
        let at = if first_lane { cx.now } else { cx.now + cx.tuning.manifest_patience };
        search.ask_at = Some(search.ask_at.map_or(at, |former| former.min(at)));
        self.search_manifest(cx, links);
    }

    /// Asks the next source if it is time.
    pub fn search_manifest(&mut self, cx: &mut Cx, links: &mut Links) {
        let now = cx.now;
        if self.body.is_some() || self.manifest.found || self.refused || self.origin == Some(cx.me) {
            return;
        }
        if let Some(request) = self.manifest.request.filter(|request| request.until <= now) {
            self.on_manifest_source_failed(cx, links, request.to);
            return;
        }
        let late = self.manifest.is_late(cx, self.facts.manifest_bytes);
        if self.manifest.request.is_some() && !late || self.manifest.ask_at.is_some_and(|at| at > now) {
            return;
        }
        if self.manifest.sources.is_empty() {
            if !late {
                self.manifest.asked.clear();
            }
            self.add_other_sources(cx, links);
        }
        let search = &mut self.manifest;
        if search.sources.is_empty() {
            if !late {
                search.ask_at = Some(now + cx.tuning.want_timeout);
            }
            return;
        }
        // The first source with a link; without any, dial one after the other.
        match search.sources.iter().copied().find(|host| links.is_linked(*host)) {
            Some(host) => {
                search.sources.retain(|source| *source != host);
                search.asked.insert(host);
                search.request = Some(Request { to: host, until: now + bounds::MANIFEST_TIMEOUT });
                search.ask_at = None;
                links.send(cx, host, Message::WantManifest { content: self.facts.id });
            }
            None => {
                search.ask_at = Some(now + cx.tuning.redial_first);
                search.sources.rotate_left(1);
                if let Some(dialled) = search.sources.back() {
                    links.connect(cx, *dialled);
                }
            }
        }
    }

    /// Every host that announced the content was asked. Adds the parents of a plan without the hosts that failed, some
    /// rack peers, and the origin.
    fn add_other_sources(&mut self, cx: &Cx, links: &Links) {
        let me = cx.me;
        let mut others: Vec<HostIndex> = Vec::new();
        if let Some(plan) = &self.plan {
            let around = links.avoidance.hosts().chain(self.manifest.asked.iter().copied()).collect();
            let plan = plan.avoiding(&around);
            let lanes = announce_lanes(self.facts.announce_offset, plan.lanes());
            others.extend(lanes.filter_map(|lane| plan.parent(lane.tree, me)));
            others.extend(plan.rack_peers(me).take(RACK_PEERS_ASKED));
        }
        others.extend(self.origin);
        let search = &mut self.manifest;
        for host in others {
            if host != me && !search.asked.contains(&host) && !search.sources.contains(&host) {
                search.sources.push_back(host);
            }
        }
    }

    /// `host` will not send the manifest. Asks another source if it was the latest one.
    pub fn on_manifest_source_failed(&mut self, cx: &mut Cx, links: &mut Links, host: HostIndex) {
        if self.body.is_some() || self.manifest.found {
            return;
        }
        let search = &mut self.manifest;
        search.sources.retain(|source| *source != host);
        search.asked.remove(&host);
        if search.request.is_some_and(|request| request.to == host) {
            search.request = None;
            // With no other source left, asking the same ones again at once would only fill the link.
            let wait = if search.sources.is_empty() { cx.tuning.redial_first } else { Duration::ZERO };
            search.ask_at = Some(cx.now + wait);
            self.search_manifest(cx, links);
        }
    }

    /// A neighbour wants the manifest. It waits if the manifest is not here yet.
    pub fn on_want_manifest(&mut self, cx: &mut Cx, links: &mut Links, from: HostIndex) {
        let content = self.facts.id;
        if self.refused {
            links.send(cx, from, Message::NotServed { content });
        } else if self.body.is_some() || self.manifest.found {
            links.queue_manifest(from, content);
        } else if self.manifest.waiters.len() < bounds::MANIFEST_HOSTS_MAX {
            self.manifest.waiters.insert(from);
        } else {
            links.send(cx, from, Message::NotServed { content });
        }
    }

    /// The manifest is here and can be sent on, although its content is not begun yet.
    pub fn on_manifest_verified(&mut self, links: &mut Links) {
        if !self.refused {
            self.manifest.found = true;
            self.end_manifest_search(links);
        }
    }

    /// Asks no more hosts, and sends the manifest to the hosts that waited for it.
    pub fn end_manifest_search(&mut self, links: &mut Links) {
        let search = &mut self.manifest;
        (search.request, search.ask_at) = (None, None);
        search.sources.clear();
        for host in search.take_waiters() {
            links.queue_manifest(host, self.facts.id);
        }
    }
}
