//! A content leaves its origin evenly: links that have got ahead wait for those behind.
//!
//! Where the origin's own link is the narrowest, its kernel shares it between connections, and by what was measured one
//! can get twenty times what another gets for as long as a push lasts. Hosts then hear nothing for seconds on the lanes of
//! the unlucky, take ways around them, and the origin sends pieces twice. Holding the lucky back costs nothing there: the
//! others get what they leave. Where a link is slow by itself it would cost, so links that are behind a quarter of all count
//! for nothing nor do those that take nothing at all, and as soon as the origin sends less for it than before, nobody waits for a while.
//! Invariant: whoever waits is looked at again whenever the origin has sent something, and at every check.

use super::Node;
use super::content::{Body, Child, above, middle};
use super::toll::Toll;
use super::tuning::Tuning;
use crate::time::Instant;
use shoal_proto::ids::{ContentId, HostIndex};
use std::collections::BTreeSet;
use std::time::Duration;

/// What an origin knows of how evenly a content leaves it.
#[derive(Debug, Default)]
pub(super) struct Level {
    /// Children that are ahead and wait.
    held: BTreeSet<HostIndex>,
    /// In bytes sent.
    toll: Toll,
}

impl Body {
    /// The place in the content up to which its origin may send now; `None` when there is no limit.
    fn level(&self, now: Instant, tuning: &Tuning, is_up: impl Fn(HostIndex) -> bool) -> Option<u32> {
        if self.level.toll.is_due(now) {
            return None;
        }
        let stuck = self.stuck_after(now, tuning);
        // Who lacks nothing that is here is not behind.
        let place = |child: &Child| match child.place() {
            Some(_) if now.since(child.took) >= stuck => None,
            place => Some(place.unwrap_or(u32::MAX)),
        };
        let up = self.children.iter().filter(|(host, _)| is_up(**host));
        let places: Vec<u32> = up.filter_map(|(_, child)| place(child)).collect();
        if places.len() < tuning.send_children_min {
            return None;
        }
        let ahead = (places.len() as u32).saturating_mul(tuning.send_lead_pieces);
        Some(above(places.into_iter(), tuning.send_slow_one_in).saturating_add(ahead))
    }

    /// A child has taken something, or is held back: it is not stuck.
    fn took(&mut self, host: HostIndex, now: Instant) {
        if let Some(child) = self.children.get_mut(&host) {
            child.took = now;
        }
    }

    /// How long a child with something to take must have taken nothing to be stuck.
    fn stuck_after(&self, now: Instant, tuning: &Tuning) -> Duration {
        let takes = self.children.values().filter(|child| child.place().is_some());
        let usual = middle(takes.map(|child| now.since(child.took).as_millis() as u32));
        tuning.send_stuck.max(Duration::from_millis(u64::from(usual)) * tuning.send_stuck_factor)
    }

    /// Whether a child's next piece is beyond the level; what it asked for goes to it at any time.
    fn is_ahead(&self, host: HostIndex, level: Option<u32>) -> bool {
        let place = self.children.get(&host).filter(|child| child.wants.is_empty()).and_then(Child::place);
        place.zip(level).is_some_and(|(place, level)| place > level)
    }
}

impl Node {
    /// Whether a child is to wait until others have come as far; notes it if so.
    pub(super) fn holds_back(&mut self, id: ContentId, host: HostIndex) -> bool {
        let (now, me, links) = (self.now, self.config.me, &self.links);
        let content = self.contents.get_mut(&id).filter(|content| content.origin == Some(me));
        let Some(body) = content.and_then(|content| content.body.as_mut()) else { return false };
        let level = body.level(now, &self.config.tuning, |host| links.get(&host).is_some_and(|link| link.is_up()));
        let ahead = body.is_ahead(host, level);
        if ahead {
            body.level.held.insert(host);
            body.took(host, now);
            body.level.toll.count(0, true, now, &self.config.tuning);
            self.uneven.insert(id);
        }
        ahead
    }

    /// The shell has sent a shard.
    pub(super) fn count_sent(&mut self, id: ContentId, to: HostIndex, bytes: u32) {
        let (now, me) = (self.now, self.config.me);
        let content = self.contents.get_mut(&id).filter(|content| content.origin == Some(me));
        if let Some(body) = content.and_then(|content| content.body.as_mut()) {
            body.level.toll.count(u64::from(bytes), !body.level.held.is_empty(), now, &self.config.tuning);
            body.took(to, now);
        }
    }

    /// Lets those go on whom the others have caught up with; they are dirty then.
    pub(super) fn level(&mut self) {
        let now = self.now;
        for id in std::mem::take(&mut self.uneven) {
            let Some(content) = self.contents.get_mut(&id) else { continue };
            let Some(body) = content.body.as_mut() else { continue };
            body.level.toll.count(0, true, now, &self.config.tuning);
            let level =
                body.level(now, &self.config.tuning, |host| self.links.get(&host).is_some_and(|link| link.is_up()));
            let held = std::mem::take(&mut body.level.held);
            let (held, freed): (BTreeSet<_>, BTreeSet<_>) =
                held.into_iter().partition(|host| body.is_ahead(*host, level));
            if !held.is_empty() {
                self.uneven.insert(id);
            }
            held.iter().for_each(|host| body.took(*host, now));
            body.level.held = held;
            for host in freed {
                if let Some(link) = self.links.get_mut(&host) {
                    link.ready.insert((content.class, id));
                    self.dirty.insert(host);
                }
            }
        }
    }
}
