//! The sending side of fairness: at a content's origin, children that are ahead wait for those behind.
//!
//! Owns: which children are paused, and what pauses cost at the origin.
//! Invariant: a paused child is looked at again whenever the origin has sent something, and at every check. What a
//! child wants outside its lanes is never paused.

use super::{SkewLimit, ThroughputGuard};
use crate::node::Tuning;
use crate::node::cx::Cx;
use crate::node::links::Links;
use crate::node::transfer::{Body, Child, Transfer, Transfers, median, quantile};
use crate::time::Instant;
use shoal_proto::ids::HostIndex;
use std::collections::BTreeSet;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct SendSkew {
    paused: BTreeSet<HostIndex>,
    /// Counts bytes that were sent.
    guard: ThroughputGuard,
}

impl Body {
    /// The place in the content up to which the origin may send now.
    fn send_limit(&self, cx: &Cx, links: &Links) -> SkewLimit {
        let (now, tuning) = (cx.now, &cx.tuning);
        if self.send_skew.guard.is_suspended(now) {
            return SkewLimit::NONE;
        }
        let stuck = self.stuck_after(tuning, now);
        // A child that lacks nothing that is here is not behind.
        let place = |child: &Child| match child.place() {
            Some(_) if now.since(child.last_progress()) >= stuck => None,
            place => Some(place.unwrap_or(u32::MAX)),
        };
        let linked = self.children.iter().filter(|(host, _)| links.is_linked(*host));
        let places: Vec<u32> = linked.filter_map(|(_, child)| place(child)).collect();
        if places.len() < tuning.send_children_min {
            return SkewLimit::NONE;
        }
        // Each of n children takes every nth piece, so a lead of its own pieces is n times as long in the content.
        let lead = (places.len() as u32).saturating_mul(tuning.send_lead_pieces);
        SkewLimit { reference: quantile(places.into_iter(), tuning.send_slow_one_in), lead }
    }

    /// How long a child with pending pieces must have taken nothing to be stuck.
    fn stuck_after(&self, tuning: &Tuning, now: Instant) -> Duration {
        let takes = self.children.iter().filter(|(_, child)| child.place().is_some());
        let usual_ms = median(takes.map(|(_, child)| now.since(child.last_progress()).as_millis() as u32));
        tuning.send_stuck.max(Duration::from_millis(u64::from(usual_ms)) * tuning.send_stuck_factor)
    }

    fn is_ahead(&self, host: HostIndex, limit: SkewLimit) -> bool {
        let child = self.children.get(host).filter(|child| child.want_count() == 0);
        child.and_then(Child::place).is_some_and(|place| limit.is_ahead(place))
    }

    /// A child took something, or is paused, which is not its fault: it is not stuck.
    fn note_child_progress(&mut self, host: HostIndex, now: Instant) {
        if let Some(child) = self.children.get_mut(host) {
            child.note_progress(now);
        }
    }
}

impl Transfer {
    /// Pauses a child that is ahead of the others. Returns whether it is.
    pub fn pause_if_ahead(&mut self, cx: &mut Cx, links: &Links, host: HostIndex) -> bool {
        if self.origin != Some(cx.me) {
            return false;
        }
        let Some(body) = self.body.as_mut() else { return false };
        let ahead = body.is_ahead(host, body.send_limit(cx, links));
        if ahead {
            body.send_skew.paused.insert(host);
            body.note_child_progress(host, cx.now);
            body.send_skew.guard.count(0, true, cx.now, &cx.tuning);
            cx.agenda.uneven.insert(self.facts.id);
        }
        ahead
    }

    /// The driver has sent a shard or a manifest of `bytes`.
    pub fn on_sent(&mut self, cx: &Cx, to: HostIndex, bytes: u32) {
        if self.origin != Some(cx.me) {
            return;
        }
        if let Some(body) = self.body.as_mut() {
            let paused = !body.send_skew.paused.is_empty();
            body.send_skew.guard.count(u64::from(bytes), paused, cx.now, &cx.tuning);
            body.note_child_progress(to, cx.now);
        }
    }

    /// Resumes children that the others have caught up with. Returns whether any are still paused.
    fn resume_children(&mut self, cx: &Cx, links: &mut Links) -> bool {
        let Some(body) = self.body.as_mut() else { return false };
        body.send_skew.guard.count(0, true, cx.now, &cx.tuning);
        let limit = body.send_limit(cx, links);
        for host in std::mem::take(&mut body.send_skew.paused) {
            if body.is_ahead(host, limit) {
                body.note_child_progress(host, cx.now);
                body.send_skew.paused.insert(host);
            } else {
                links.mark_ready(host, self.facts.class, self.facts.id);
            }
        }
        !body.send_skew.paused.is_empty()
    }
}

impl Transfers {
    /// Resumes paused children of all contents where others have caught up. Their links are dirty then.
    pub fn resume_children(&mut self, cx: &mut Cx, links: &mut Links) {
        for id in std::mem::take(&mut cx.agenda.uneven) {
            if self.get_mut(&id).is_some_and(|transfer| transfer.resume_children(cx, links)) {
                cx.agenda.uneven.insert(id);
            }
        }
    }
}
