//! The receiving side of fairness: imported lanes that are ahead wait for those behind.
//!
//! Lanes are compared with all lanes of the content, because a rack's importers share its uplink. The lanes straight
//! from the seeder pause most, so the seeder's pace becomes the racks' pace.
//! Invariant: at most half of what a host imports is paused, and nothing while the guard suspends fairness.

use super::SkewLimit;
use crate::node::cx::Cx;
use crate::node::links::Links;
use crate::node::transfer::{Body, Lane, Transfer, median};
use crate::plan::Plan;
use shoal_proto::ids::HostIndex;
use shoal_proto::message::{LaneSet, Message};
use std::collections::BTreeMap;

impl Body {
    /// How many pieces a lane may lack less than those behind. A lane's position is the negative of what it lacks, so
    /// positions count down from `u32::MAX`.
    fn receive_limit(&self, cx: &Cx, plan: &Plan) -> SkewLimit {
        let (now, tuning) = (cx.now, &cx.tuning);
        // Each step down a tree takes the time of a piece: lanes that come from further down are behind by nature.
        let lead = tuning.lane_lead_pieces.max(plan.height());
        let moves = |lane: &&Lane| {
            lane.missing() == 0 || lane.is_paused() || now.since(lane.last_progress()) < tuning.lane_idle
        };
        let lanes = self.lanes.iter().map(|(_, lane)| lane).filter(moves);
        let missing = lanes.map(Lane::missing);
        // A lane that lacks more than this is slow by itself.
        let reach = median(missing.clone()).saturating_add(lead);
        let behind = missing.filter(|missing| *missing <= reach).max().unwrap_or(0);
        SkewLimit { reference: position(behind), lead }
    }

    /// How many more imported lanes may pause.
    fn may_pause(&self, plan: &Plan, me: HostIndex) -> usize {
        let imported = self.lanes.awaited().filter(|(_, parent, _)| !plan.same_rack(*parent, me));
        let (all, paused) =
            imported.fold((0, 0), |(all, paused), (.., lane)| (all + 1, paused + usize::from(lane.is_paused())));
        (all / 2usize).saturating_sub(paused)
    }
}

fn position(missing: u32) -> u32 {
    u32::MAX - missing
}

impl Transfer {
    /// Pauses imported lanes that are ahead, and resumes those that the others have caught up with.
    pub fn balance_lanes(&mut self, cx: &mut Cx, links: &mut Links) {
        let (id, now, me) = (self.id(), cx.now, cx.me);
        let (Some(plan), Some(body)) = (&self.plan, self.body.as_mut()) else { return };
        let any_paused = body.lanes.iter().any(|(_, lane)| lane.is_paused());
        body.receive_guard.count(0, any_paused, now, &cx.tuning);
        // A late host takes what its rack has, all of which is there: its lanes need no balance.
        let suspended = self.late || body.receive_guard.is_suspended(now);
        let limit = body.receive_limit(cx, plan);
        let mut room = body.may_pause(plan, me);
        let mut left: BTreeMap<HostIndex, LaneSet> = BTreeMap::new();
        let mut resumed = false;
        for (number, lane) in body.lanes.iter_mut() {
            let importer = lane.parent().filter(|parent| !plan.same_rack(*parent, me));
            let position = position(lane.missing());
            if lane.is_paused() && (suspended || importer.is_none() || limit.is_caught_up(position)) {
                lane.resume(now);
                resumed = true;
            } else if let Some(parent) = importer
                && lane.is_subscribed()
                && lane.missing() > 0
                && limit.is_ahead(position)
                && room > 0
                && !suspended
            {
                room -= 1;
                lane.pause();
                left.entry(parent).or_default().insert(number);
            }
        }
        for (parent, lanes) in left {
            links.send(cx, parent, Message::Unsubscribe { content: id, lanes });
        }
        if resumed {
            self.subscribe(cx, links);
        }
    }
}
