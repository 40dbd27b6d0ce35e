//! Links: which to bring up, when to dial again, whom to avoid, what to close.

use super::link::{Link, State};
use super::{Node, bounds};
use crate::io::{AvoidReason, Notice, Output};
use crate::plan::{PlanRequest, Shape};
use crate::time::Instant;
use shoal_proto::frame::CloseReason;
use shoal_proto::ids::{ContentId, HostIndex, JobId};
use std::collections::BTreeSet;
use std::time::Duration;

/// A host that is not used as a parent for a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avoid {
    pub(super) until: Instant,
    pub(super) why: AvoidReason,
    pub(super) strikes: u32,
    pub(super) banned: bool,
}

impl Node {
    /// Wants a link to `host`: dials now, or when its time comes.
    pub(super) fn connect(&mut self, host: HostIndex) {
        let full = self.links.len() >= bounds::LINKS_MAX;
        if host == self.config.me || (full && !self.links.contains_key(&host)) || self.is_banned(host) {
            return;
        }
        let link = self.links.entry(host).or_insert_with(|| Link::new(self.now));
        if link.state != State::Down {
            return;
        }
        if link.retry_at <= self.now {
            link.state = State::Dialling;
            link.last_used = self.now;
            self.outputs.push_back(Output::Connect { host });
        } else {
            self.retry.insert(host);
        }
    }

    pub(super) fn is_linked(&self, host: HostIndex) -> bool {
        self.links.get(&host).is_some_and(Link::is_up)
    }

    pub(super) fn is_banned(&self, host: HostIndex) -> bool {
        self.avoid.get(&host).is_some_and(|avoid| avoid.banned && avoid.until > self.now)
    }

    pub(super) fn on_link_up(&mut self, host: HostIndex) {
        if self.is_banned(host) {
            self.push(Output::Disconnect { host, reason: CloseReason::Banned });
            return;
        }
        if self.links.len() >= bounds::LINKS_MAX && !self.links.contains_key(&host) {
            self.push(Output::Disconnect { host, reason: CloseReason::Busy });
            return;
        }
        let link = self.links.entry(host).or_insert_with(|| Link::new(self.now));
        let announcements = std::mem::take(&mut link.announcements);
        link.reset();
        link.state = State::Up;
        link.last_used = self.now;
        let lost_at = link.lost_at.take();
        self.retry.remove(&host);
        for (job, lane, inline) in announcements {
            self.push(Output::SendAnnounce { to: host, job, lane, inline });
        }
        self.send_digest(host);
        self.greet_mate(host);
        let back = lost_at.map_or(BTreeSet::new(), |at| self.lost_together(at));
        if !back.is_empty() {
            self.begin_anew();
        }
        if !self.forgive_unreachable(back.into_iter().chain([host])) {
            let active: Vec<ContentId> = self.active.iter().copied().collect();
            for content in active {
                self.subscribe(content);
            }
        }
        let hunting: Vec<ContentId> =
            self.active.iter().copied().filter(|id| self.contents[id].body.is_none()).collect();
        for content in hunting {
            self.hunt_manifest(content);
        }
    }

    pub(super) fn on_link_down(&mut self, host: HostIndex) {
        let Some(link) = self.links.get_mut(&host) else { return };
        link.reset();
        link.state = State::Down;
        link.retry_at = self.now + self.config.tuning.redial_first;
        self.parked.retain(|parked| parked.from != host);
        self.lost(host);
    }

    pub(super) fn on_dial_failed(&mut self, host: HostIndex) {
        let Some(link) = self.links.get_mut(&host) else { return };
        if link.state != State::Dialling {
            return;
        }
        link.state = State::Down;
        link.reset();
        let lost_at = *link.lost_at.get_or_insert(self.now);
        let wait = (self.now.since(lost_at) / self.config.tuning.redial_one_in)
            .clamp(self.config.tuning.redial_first, self.config.tuning.redial_max);
        // Hosts that lost the same neighbour do not all dial it at once.
        let jitter = Duration::from_millis(u64::from(self.config.me.0.wrapping_mul(2_654_435_761) >> 24));
        link.retry_at = self.now + wait + jitter;
        self.lost(host);
        if self.is_needed(host) {
            self.retry.insert(host);
        }
    }

    /// Hosts that were lost at about this time: whatever kept one away kept the others away as well, and when it is back so are they.
    fn lost_together(&self, at: Instant) -> BTreeSet<HostIndex> {
        let near = |lost: Instant| lost.since(at).max(at.since(lost)) <= self.config.tuning.lost_together;
        let lost = self.links.iter().filter(|(_, link)| !link.is_up() && link.lost_at.is_some_and(near));
        lost.map(|(host, _)| *host).collect()
    }

    /// What was asked for in vain meanwhile says nothing about who has it, and what did not come nothing about who is slow.
    fn begin_anew(&mut self) {
        for id in &self.active {
            if let Some(body) = self.contents.get_mut(id).and_then(|content| content.body.as_mut()) {
                body.tries.clear();
                body.trials.clear();
                body.judged_at = self.now + self.config.tuning.detect_grace;
            }
        }
    }

    /// What hung on `host` is looked for elsewhere.
    fn lost(&mut self, host: HostIndex) {
        let mut was_parent = self.warm.contains(&host);
        let ids: Vec<ContentId> = self.contents.keys().copied().collect();
        for id in ids {
            let Some(content) = self.contents.get_mut(&id) else { continue };
            content.manifest.waiters.remove(&host);
            if let Some(body) = &mut content.body {
                body.forget_child(host);
                body.wants.retain(|_, want| want.from != host);
                body.asked.remove(&host);
                for lane in body.lanes.iter_mut().filter(|lane| lane.parent == Some(host)) {
                    lane.subscribed = false;
                    was_parent |= lane.missing > 0;
                }
            }
            self.manifest_source_failed(id, host);
        }
        if was_parent {
            self.retry.insert(host);
            self.avoid_host(host, AvoidReason::Unreachable);
        }
    }

    /// Takes `host` out of our trees for a while.
    pub(super) fn avoid_host(&mut self, host: HostIndex, why: AvoidReason) {
        let former = self.avoid.get(&host).copied();
        if former.is_some_and(|avoid| avoid.banned) {
            return;
        }
        let strikes = former.map_or(0, |avoid| avoid.strikes) + 1;
        let span = match why {
            AvoidReason::Unreachable => self.config.tuning.avoid_unreachable,
            AvoidReason::Slow => self.config.tuning.avoid_slow,
            AvoidReason::Useless => self.config.tuning.avoid_useless,
        } * 2u32.pow(strikes.min(6) - 1);
        self.notice(Notice::Avoided { host, why });
        let until = self.now + span;
        // Who is slow often loses links, too, and is no faster when they are back.
        let avoid = match former.filter(|former| former.why == AvoidReason::Slow) {
            Some(former) => Avoid { until: until.max(former.until), strikes, ..former },
            None => Avoid { until, why, strikes, banned: false },
        };
        self.avoid.insert(host, avoid);
        self.replan_all();
    }

    /// Uses hosts again that were only out of reach; true when that changed the plans.
    pub(super) fn forgive_unreachable(&mut self, hosts: impl IntoIterator<Item = HostIndex>) -> bool {
        let mut changed = false;
        for host in hosts {
            if self.avoid.get(&host).is_some_and(|avoid| avoid.why == AvoidReason::Unreachable && !avoid.banned) {
                self.avoid.remove(&host);
                if let Some(link) = self.links.get_mut(&host) {
                    link.retry_at = self.now;
                }
                changed = true;
            }
        }
        if changed {
            self.replan_all();
        }
        changed
    }

    pub(super) fn expire_avoided(&mut self) {
        let now = self.now;
        let before = self.avoid.len();
        self.avoid.retain(|_, avoid| avoid.until > now);
        if self.avoid.len() != before {
            self.replan_all();
        }
    }

    pub(super) fn replan_all(&mut self) {
        let active: Vec<ContentId> = self.active.iter().copied().collect();
        for content in active {
            self.replan(content);
        }
    }

    pub(super) fn dial_again(&mut self) {
        let due: Vec<HostIndex> = self
            .retry
            .iter()
            .copied()
            .filter(|host| self.links.get(host).is_none_or(|link| link.retry_at <= self.now))
            .collect();
        for host in due {
            self.retry.remove(&host);
            if self.is_needed(host) && self.membership.get(host).is_some() {
                self.connect(host);
            }
        }
    }

    /// Whether there is a reason to have a link to `host`.
    fn is_needed(&self, host: HostIndex) -> bool {
        self.warm.contains(&host)
            || self.links.get(&host).is_some_and(|link| !link.announcements.is_empty())
            || self.active.iter().any(|id| {
                self.contents[id].body.as_ref().is_some_and(|body| {
                    body.children.contains_key(&host) || body.lanes.iter().any(|lane| lane.parent == Some(host))
                })
            })
            || self.active.iter().any(|id| self.avoid.contains_key(&host) && self.contents[id].targets.get(host.0))
    }

    /// Links to our parents on the announcement lanes of a plan for everybody, and of each feed, stay up: announcements
    /// need no dialling and lists can be compared.
    pub(super) fn rewarm(&mut self) {
        let avoid = BTreeSet::new();
        let (me, lanes) = (self.config.me, self.config.lanes);
        let targets = self.membership.everyone();
        let request = PlanRequest { targets, root: None, avoid: &avoid, lanes, shape: Shape::NARROW };
        let plan = self.planner.plan(&self.membership, &request);
        let seeder = self
            .membership
            .iter()
            .find(|member| member.role == shoal_proto::trust::Role::Seeder && self.membership.is_up(member.index));
        self.warm = super::announce::lanes_of(0, lanes)
            .filter_map(|(_, lane)| plan.parent(lane, me).or(seeder.map(|member| member.index)))
            .filter(|host| *host != me && plan.targets(me))
            .collect();
        let wanted: Vec<HostIndex> = self.warm.iter().copied().collect();
        for host in wanted {
            self.connect(host);
        }
        let feeds: Vec<JobId> = self.feeds.keys().take(bounds::KEEP_OPEN_FEEDS_MAX).copied().collect();
        for id in feeds {
            self.warm_feed(id);
        }
    }

    pub(super) fn close_idle(&mut self) {
        let idle: Vec<HostIndex> = self
            .links
            .iter()
            .filter(|(host, link)| {
                link.is_up()
                    && self.now.since(link.last_used) > self.config.tuning.idle
                    && link.outstanding.is_empty()
                    && !self.is_needed(**host)
            })
            .map(|(host, _)| *host)
            .collect();
        for host in idle {
            self.push(Output::Disconnect { host, reason: CloseReason::Idle });
        }
        let now = self.now;
        let retry = &self.retry;
        self.links.retain(|host, link| {
            link.state != State::Down || retry.contains(host) || now.since(link.last_used) < self.config.tuning.idle
        });
    }

    /// Counts a broken shard or manifest against its sender.
    pub(super) fn on_bad_shard(&mut self, host: HostIndex) {
        self.counters.shards_corrupt += 1;
        let Some(link) = self.links.get_mut(&host) else { return };
        link.bad = link.bad.saturating_add(1);
        if link.bad < bounds::BAD_SHARDS_MAX {
            return;
        }
        link.bad = 0;
        let until = self.now + bounds::BAN;
        self.avoid.insert(host, Avoid { until, why: AvoidReason::Useless, strikes: 1, banned: true });
        self.push(Output::Disconnect { host, reason: CloseReason::Banned });
        self.notice(Notice::Banned { host });
        self.replan_all();
    }
}
