//! What a rack imports comes evenly: lanes that are ahead wait for those behind.
//!
//! A rack's uplink is full either way, and the connections on it share it as they happen to. Left to themselves some lanes,
//! those straight from the seeder first of all, run far ahead; at the end the rest is to come from a few racks, whose
//! uplinks are full while others' have nothing to send any more. So an importer lets a lane rest that is ahead of most, and what
//! it leaves goes to the others. Lanes are compared with all of the content's, for a rack's importers share its uplink.
//! Invariant: at most half of what a host imports rests, and nothing for a while once resting has cost rate.

use super::Node;
use super::content::{Body, Lane, middle};
use super::tuning::Tuning;
use crate::plan::Plan;
use crate::time::Instant;
use shoal_proto::ids::{ContentId, HostIndex, LaneIndex};
use shoal_proto::message::{LaneSet, Message};
use std::collections::BTreeMap;

impl Body {
    /// Pieces a lane may be ahead, and how many a lane lacks that counts as behind. One that brings nothing, or lacks more still,
    /// is slow by itself, and nobody waits for it.
    fn abreast(&self, plan: &Plan, now: Instant, tuning: &Tuning) -> (u32, u32) {
        let usual = (self.typical * tuning.lane_lead_time.as_millis() as u64 / 1_000_000) as u32;
        // Each step down a tree takes the time of a piece: lanes that come from further down are behind by nature.
        let lead = usual.max(tuning.lane_lead_pieces).max(plan.height());
        let moves = |lane: &&Lane| lane.missing == 0 || lane.rests || now.since(lane.brought) < tuning.lane_idle;
        let missing = self.lanes.iter().filter(moves).map(|lane| lane.missing);
        let reach = middle(missing.clone()).saturating_add(lead);
        (lead, missing.filter(|missing| *missing <= reach).max().unwrap_or(0))
    }

    /// How many more imported lanes may rest.
    fn may_rest(&self, plan: &Plan, me: HostIndex) -> usize {
        let imports = |parent: Option<HostIndex>| parent.is_some_and(|parent| !plan.same_rack(parent, me));
        let imported = self.lanes.iter().filter(|lane| lane.missing > 0 && imports(lane.parent));
        let (all, resting) = imported.fold((0, 0), |(all, resting), lane| (all + 1, resting + usize::from(lane.rests)));
        (all / 2usize).saturating_sub(resting)
    }
}

impl Node {
    /// Has lanes rest, and others go on.
    pub(super) fn keep_abreast(&mut self, id: ContentId) {
        let (now, me) = (self.now, self.config.me);
        let Some(content) = self.contents.get_mut(&id) else { return };
        let (Some(plan), Some(body)) = (&content.plan, content.body.as_mut()) else { return };
        body.toll.count(0, body.lanes.iter().any(|lane| lane.rests), now, &self.config.tuning);
        // Who is late takes what its rack has, and all of it is there.
        let free = content.late || body.toll.is_due(now);
        let (lead, behind) = body.abreast(plan, now, &self.config.tuning);
        let mut room = body.may_rest(plan, me);
        let mut rests: BTreeMap<HostIndex, LaneSet> = BTreeMap::new();
        let mut goes_on = false;
        for (number, lane) in body.lanes.iter_mut().enumerate() {
            let ahead = behind.saturating_sub(lane.missing);
            let importer = lane.parent.filter(|parent| !plan.same_rack(*parent, me));
            if lane.rests && (free || importer.is_none() || ahead < lead) {
                lane.rests = false;
                lane.since = now;
                goes_on = true;
            } else if let Some(parent) = importer
                && lane.subscribed
                && lane.missing > 0
                && ahead > lead
                && room > 0
                && !free
            {
                room -= 1;
                lane.rests = true;
                lane.subscribed = false;
                rests.entry(parent).or_default().insert(LaneIndex(number as u8));
            }
        }
        for (parent, lanes) in rests {
            self.send(parent, Message::Unsubscribe { content: id, lanes });
        }
        if goes_on {
            self.subscribe(id);
        }
    }
}
