//! Links to other hosts: which to bring up, when to dial again, which hosts to avoid, which links to close.
//!
//! Owns: every [`Link`], the avoided hosts, the links kept open, the hosts to dial again, and the links with work.
//! Invariant: at most `bounds::LINKS_MAX` links are known, and none to a banned host is brought up.

mod avoidance;
mod link;

pub use avoidance::Avoidance;
pub use link::Link;

use super::bounds;
use super::cx::Cx;
use crate::io::{AvoidReason, Notice, Output, Via};
use crate::time::Instant;
use link::WaitingAnnouncement;
use shoal_proto::announcement::Class;
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::{ContentId, HostIndex, JobId};
use shoal_proto::message::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A link that came up and is used.
pub struct AcceptedLink {
    /// Since when the host could not be reached, if it could not.
    pub lost_at: Option<Instant>,
}

#[derive(Default)]
pub struct Links {
    by_host: BTreeMap<HostIndex, Link>,
    pub avoidance: Avoidance,
    /// Links that stay up when there is nothing to send.
    keep_open: BTreeSet<HostIndex>,
    redial: BTreeSet<HostIndex>,
    /// Links that may have room or work.
    dirty: BTreeSet<HostIndex>,
}

impl Links {
    /// Wants a link to `host`: dials now, or when the wait after the last failure is over.
    pub fn connect(&mut self, cx: &mut Cx, host: HostIndex) {
        let full = self.by_host.len() >= bounds::LINKS_MAX && !self.by_host.contains_key(&host);
        if host == cx.me || full || self.is_banned(cx, host) {
            return;
        }
        let link = self.by_host.entry(host).or_insert_with(|| Link::new(cx.now));
        if !link.is_down() {
            return;
        }
        if link.may_dial(cx.now) {
            link.on_dialling(cx.now);
            cx.push(Output::Connect { host });
        } else {
            self.redial.insert(host);
        }
    }

    /// Sends a message if the link is up. A message to a host without a link is lost.
    pub fn send(&mut self, cx: &mut Cx, to: HostIndex, message: Message) {
        if let Some(link) = self.up_mut(to) {
            link.touch(cx.now);
            cx.push(Output::Send { to, message });
        }
    }

    /// Sends an announcement, or queues it until the link is up.
    pub fn announce(&mut self, cx: &mut Cx, to: HostIndex, job: JobId, via: Via, inline: bool) {
        if self.is_linked(to) {
            cx.push(Output::SendAnnounce { to, job, via, inline });
            return;
        }
        self.connect(cx, to);
        if let Some(link) = self.by_host.get_mut(&to) {
            link.queue_announcement(WaitingAnnouncement { job, via, inline });
        }
    }

    pub fn is_linked(&self, host: HostIndex) -> bool {
        self.by_host.get(&host).is_some_and(Link::is_up)
    }

    pub fn is_banned(&self, cx: &Cx, host: HostIndex) -> bool {
        self.avoidance.is_banned(host, cx.now)
    }

    /// Hosts with a link up, in order of index.
    pub fn linked(&self) -> impl Iterator<Item = HostIndex> {
        self.by_host.iter().filter(|(_, link)| link.is_up()).map(|(host, _)| *host)
    }

    pub fn get(&self, host: HostIndex) -> Option<&Link> {
        self.by_host.get(&host)
    }

    pub fn get_mut(&mut self, host: HostIndex) -> Option<&mut Link> {
        self.by_host.get_mut(&host)
    }

    pub fn up_mut(&mut self, host: HostIndex) -> Option<&mut Link> {
        self.by_host.get_mut(&host).filter(|link| link.is_up())
    }

    /// Whether the check timer must run for the sake of the links.
    pub fn need_check(&self) -> bool {
        !self.redial.is_empty() || !self.avoidance.is_empty()
    }

    pub fn check_invariants(&self) {
        assert!(self.by_host.len() <= bounds::LINKS_MAX, "links are bounded");
        assert!(self.by_host.values().all(Link::keeps_window), "the window holds");
    }

    /// Notes that a content has something for the host.
    pub fn mark_ready(&mut self, host: HostIndex, class: Class, content: ContentId) {
        if let Some(link) = self.by_host.get_mut(&host) {
            link.mark_ready(class, content);
            self.dirty.insert(host);
        }
    }

    pub fn mark_dirty(&mut self, host: HostIndex) {
        self.dirty.insert(host);
    }

    pub fn pop_dirty(&mut self) -> Option<HostIndex> {
        self.dirty.pop_first()
    }

    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn queue_manifest(&mut self, to: HostIndex, content: ContentId) {
        if self.up_mut(to).is_some_and(|link| link.queue_manifest(content)) {
            self.dirty.insert(to);
        }
    }

    /// The content is gone: no manifest of it is sent any more.
    pub fn drop_manifest(&mut self, content: ContentId) {
        self.by_host.values_mut().for_each(|link| link.drop_manifest(content));
    }

    /// A link is up. Returns `None` if it is refused.
    pub fn on_up(&mut self, cx: &mut Cx, host: HostIndex) -> Option<AcceptedLink> {
        if self.is_banned(cx, host) {
            cx.push(Output::Disconnect { host, reason: CloseReason::Banned });
            return None;
        }
        if self.by_host.len() >= bounds::LINKS_MAX && !self.by_host.contains_key(&host) {
            cx.push(Output::Disconnect { host, reason: CloseReason::Busy });
            return None;
        }
        let link = self.by_host.entry(host).or_insert_with(|| Link::new(cx.now));
        let lost_at = link.take_lost_at();
        let waiting = link.on_up(cx.now);
        self.redial.remove(&host);
        for WaitingAnnouncement { job, via, inline } in waiting {
            cx.push(Output::SendAnnounce { to: host, job, via, inline });
        }
        Some(AcceptedLink { lost_at })
    }

    /// A link is down. Returns whether it was known.
    pub fn on_down(&mut self, cx: &Cx, host: HostIndex) -> bool {
        let Some(link) = self.by_host.get_mut(&host) else { return false };
        link.on_down(cx.now + cx.tuning.redial_first);
        true
    }

    /// A dial failed. Returns false if the host was not being dialled.
    pub fn on_dial_failed(&mut self, cx: &Cx, host: HostIndex) -> bool {
        let Some(link) = self.by_host.get_mut(&host) else { return false };
        let Some(lost_at) = link.on_dial_failed(cx.now) else { return false };
        let tuning = &cx.tuning;
        let wait = cx.now.since(lost_at) / tuning.redial_one_in;
        let wait = wait.clamp(tuning.redial_first, bounds::REDIAL_MAX);
        // Hosts that lost the same neighbour must not all dial it at once. They are up to 255 ms apart, by Knuth's
        // multiplicative hash of the index.
        let jitter = Duration::from_millis(u64::from(cx.me.0.wrapping_mul(2_654_435_761) >> 24));
        link.dial_after(cx.now + wait + jitter);
        true
    }

    pub fn redial(&mut self, host: HostIndex) {
        self.redial.insert(host);
    }

    /// Dials hosts whose wait is over and that are still needed.
    pub fn redial_due(&mut self, cx: &mut Cx, is_needed: impl Fn(&Self, HostIndex) -> bool) {
        let is_due = |host: &HostIndex| self.by_host.get(host).is_none_or(|link| link.may_dial(cx.now));
        let due: Vec<HostIndex> = self.redial.iter().copied().filter(is_due).collect();
        for host in due {
            self.redial.remove(&host);
            if is_needed(self, host) && cx.membership.get(host).is_some() {
                self.connect(cx, host);
            }
        }
    }

    /// Hosts that were lost at about this time. One cause took them away, so they are back together.
    pub fn lost_together(&self, cx: &Cx, at: Instant) -> BTreeSet<HostIndex> {
        let near = |lost: Instant| lost.since(at).max(at.since(lost)) <= cx.tuning.lost_together;
        let lost = self.by_host.iter().filter(|(_, link)| !link.is_up() && link.lost_at().is_some_and(near));
        lost.map(|(host, _)| *host).collect()
    }

    /// Avoids the host as a parent. Returns whether plans must change.
    pub fn avoid(&mut self, cx: &mut Cx, host: HostIndex, why: AvoidReason) -> bool {
        let avoided = self.avoidance.avoid(host, why, cx.now, &cx.tuning);
        if avoided {
            cx.notice(Notice::Avoided { host, why });
        }
        avoided
    }

    /// Uses hosts again that were only unreachable. Returns whether plans must change.
    pub fn forgive_unreachable(&mut self, cx: &Cx, hosts: impl IntoIterator<Item = HostIndex>) -> bool {
        let mut changed = false;
        for host in hosts {
            if self.avoidance.forgive_unreachable(host) {
                if let Some(link) = self.by_host.get_mut(&host) {
                    link.dial_after(cx.now);
                }
                changed = true;
            }
        }
        changed
    }

    /// Counts a bad shard or manifest against its sender. Returns whether that banned it, so that plans must change.
    pub fn count_bad_shard(&mut self, cx: &mut Cx, host: HostIndex) -> bool {
        cx.counters.shards_corrupt += 1;
        let banned = self.by_host.get_mut(&host).is_some_and(Link::count_bad_shard);
        if banned {
            self.avoidance.ban(host, cx.now + bounds::BAN);
            cx.push(Output::Disconnect { host, reason: CloseReason::Banned });
            cx.notice(Notice::Banned { host });
        }
        banned
    }

    pub fn is_kept_open(&self, host: HostIndex) -> bool {
        self.keep_open.contains(&host)
    }

    /// Keeps the links to these hosts open, and no others.
    pub fn keep_open_only(&mut self, cx: &mut Cx, hosts: BTreeSet<HostIndex>) {
        self.keep_open = hosts;
        let hosts: Vec<HostIndex> = self.keep_open.iter().copied().collect();
        hosts.into_iter().for_each(|host| self.connect(cx, host));
    }

    /// Keeps this link open too.
    pub fn keep_open(&mut self, cx: &mut Cx, host: HostIndex) {
        self.keep_open.insert(host);
        self.connect(cx, host);
    }

    /// Closes links that carried nothing for a while, and forgets links that are down for good.
    pub fn close_idle(&mut self, cx: &mut Cx, is_needed: impl Fn(&Self, HostIndex) -> bool) {
        let (now, span) = (cx.now, bounds::IDLE);
        let is_idle = |link: &Link| link.is_up() && now.since(link.last_used()) > span && link.is_idle();
        let idle = self.by_host.iter().filter(|(host, link)| is_idle(link) && !is_needed(self, **host));
        let idle: Vec<HostIndex> = idle.map(|(host, _)| *host).collect();
        for host in idle {
            cx.push(Output::Disconnect { host, reason: CloseReason::Idle });
        }
        let redial = &self.redial;
        self.by_host
            .retain(|host, link| !link.is_down() || redial.contains(host) || now.since(link.last_used()) < span);
    }
}
