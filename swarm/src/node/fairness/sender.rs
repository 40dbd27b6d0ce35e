//! The sending side of fairness: at a content's origin, children that are ahead wait for those behind.
//!
//! Owns: which children are paused, and what pauses cost at the origin.
//! Invariant: a paused child is looked at again whenever the origin has sent something, and at every check. What a
//! child wants outside its lanes is never paused.

use super::{SkewLimit, ThroughputGuard};
use crate::node::cx::Cx;
use crate::node::links::Links;
use crate::node::transfer::{Body, Child, Transfer, Transfers, quantile};
use shoal_proto::ids::HostIndex;
use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub struct SendSkew {
    paused: BTreeSet<HostIndex>,
    /// Counts bytes that were sent.
    guard: ThroughputGuard,
}

impl Body {
    /// The place in the content up to which the origin may send now.
    fn send_limit(&self, cx: &Cx, links: &Links) -> SkewLimit {
        if self.send_skew.guard.is_suspended(cx.now) {
            return SkewLimit::NONE;
        }
        let linked = self.children.iter().filter(|(host, _)| links.is_linked(*host));
        // A child that lacks nothing that is here is not behind.
        let places: Vec<u32> = linked.map(|(_, child)| child.place().unwrap_or(u32::MAX)).collect();
        // Each of n children takes every nth piece, so a lead of its own pieces is n times as long in the content.
        let lead = (places.len() as u32).saturating_mul(cx.tuning.send_lead_pieces);
        SkewLimit { reference: quantile(places.into_iter(), cx.tuning.send_slow_one_in), lead }
    }

    fn is_ahead(&self, host: HostIndex, limit: SkewLimit) -> bool {
        let child = self.children.get(host).filter(|child| child.want_count() == 0);
        child.and_then(Child::place).is_some_and(|place| limit.is_ahead(place))
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
            body.send_skew.guard.count(0, true, cx.now, &cx.tuning);
            cx.agenda.uneven.insert(self.facts.id);
        }
        ahead
    }

    /// The driver has sent a shard or a manifest of `bytes`.
    pub fn on_sent(&mut self, cx: &Cx, bytes: u32) {
        if self.origin != Some(cx.me) {
            return;
        }
        if let Some(body) = self.body.as_mut() {
            let paused = !body.send_skew.paused.is_empty();
            body.send_skew.guard.count(u64::from(bytes), paused, cx.now, &cx.tuning);
        }
    }

    /// Resumes children that the others have caught up with. Returns whether any are still paused.
    fn resume_children(&mut self, cx: &Cx, links: &mut Links) -> bool {
        let Some(body) = self.body.as_mut() else { return false };
        body.send_skew.guard.count(0, true, cx.now, &cx.tuning);
        let limit = body.send_limit(cx, links);
        for host in std::mem::take(&mut body.send_skew.paused) {
            if body.is_ahead(host, limit) {
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
