//! Reroutes: imported lanes that are silent take a path around the host, or the rack, that brings nothing.
//!
//! Owns: the hosts that each lane bypasses, and those that are no parents of the content at all for a while.
//! Invariant: a lane from a rack peer is never rerouted, because its rack peers would import it twice. See [`super`].

use crate::io::Notice;
use crate::node::Tuning;
use crate::node::cx::Cx;
use crate::node::links::Links;
use crate::node::transfer::{Body, Lane, Transfer};
use crate::time::Instant;
use shoal_proto::ids::{HostIndex, LaneIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Hosts that a content's lanes do not come from, each until a time.
#[derive(Debug, Default)]
pub struct Bypass {
    by_lane: BTreeMap<LaneIndex, BTreeMap<HostIndex, Instant>>,
    /// Hosts that serve no lane of the content.
    useless: BTreeMap<HostIndex, Instant>,
}

impl Bypass {
    pub fn useless_hosts(&self) -> impl Iterator<Item = HostIndex> {
        self.useless.keys().copied()
    }

    pub fn add_useless(&mut self, host: HostIndex, until: Instant) {
        self.useless.insert(host, until);
    }

    /// The hosts that this lane bypasses, if it does.
    pub fn of_lane(&self, lane: LaneIndex) -> Option<impl Iterator<Item = HostIndex>> {
        self.by_lane.get(&lane).map(|hosts| hosts.keys().copied())
    }
}

/// What is imported from one rack.
#[derive(Default)]
struct Imports {
    /// Something came from there recently.
    alive: bool,
    lanes: Vec<Import>,
    silent: Vec<Import>,
}

#[derive(Clone, Copy)]
struct Import {
    lane: LaneIndex,
    parent: HostIndex,
}

/// What the check for silence looked at, once for all lanes.
struct Silence {
    now: Instant,
    span: Duration,
    /// The end of the content is near: three lanes in four are whole.
    ending: bool,
    /// When each parent last showed life on any lane.
    last_sign: BTreeMap<HostIndex, Instant>,
}

impl Silence {
    fn is_silent(&self, parent: HostIndex, times: u32) -> bool {
        self.last_sign.get(&parent).is_some_and(|last| self.now.since(*last) >= self.span * times)
    }

    /// How long a single lane may be silent while its parent brings others. Such a parent lacks the lane itself and
    /// reroutes it, so the lane waits for that.
    fn of_single_lane(&self, body: &Body, lane: &Lane, tuning: &Tuning) -> Duration {
        if self.ending && body.is_behind(lane, tuning) { self.span } else { self.span * tuning.silence_single_lane }
    }
}

impl Body {
    /// Whether a lane lacks much when the others lack little. See [`Tuning::ending_behind`].
    fn is_behind(&self, lane: &Lane, tuning: &Tuning) -> bool {
        lane.missing() * self.lanes.len() as u32 * tuning.ending_behind >= self.geometry().piece_count()
    }

    /// Looks whether any lane may be silent at all. Returns `None` if none is, or if no parent is to blame.
    fn look_for_silence(&self, cx: &Cx) -> Option<Silence> {
        let (now, tuning) = (cx.now, &cx.tuning);
        let span = self.silence(tuning);
        let mut awaited = self.lanes.awaited();
        let ending = awaited.clone().count().saturating_mul(tuning.ending_one_in) <= self.lanes.len();
        // Before the end, where nothing comes from any parent, the cause is our own.
        let all_silent = !ending && awaited.all(|(_, _, lane)| lane.is_paused() || lane.is_silent(now, span));
        if self.deliveries.usual_rate_milli() == 0 || all_silent {
            return None;
        }
        let mut last_sign: BTreeMap<HostIndex, Instant> = BTreeMap::new();
        for (_, parent, lane) in self.lanes.awaited().filter(|(_, _, lane)| !lane.is_paused()) {
            let last = last_sign.entry(parent).or_default();
            *last = (*last).max(lane.last_sign());
        }
        let silence = Silence { now, span, ending, last_sign };
        let any_parent = silence.last_sign.keys().any(|parent| silence.is_silent(*parent, 1));
        let single_lane = |lane: &Lane| lane.is_silent(now, silence.of_single_lane(self, lane, tuning));
        let any = any_parent || self.lanes.awaited().any(|(_, _, lane)| single_lane(lane));
        any.then_some(silence)
    }
}

impl Transfer {
    /// Reroutes imported lanes that are silent.
    pub fn reroute_silent_lanes(&mut self, cx: &mut Cx, links: &mut Links) {
        let Some(silence) = self.body.as_ref().and_then(|body| body.look_for_silence(cx)) else { return };
        let until = cx.now + cx.tuning.avoid;
        // Hosts that other lanes bypass are suspects: a reroute must not lead to them.
        let suspects: BTreeMap<HostIndex, Instant> =
            self.bypass.by_lane.values().flatten().map(|(host, until)| (*host, *until)).collect();
        let mut found = Vec::new();
        for (rack, imports) in self.imports_by_rack(cx, &silence) {
            let hosts: BTreeSet<HostIndex> = imports.lanes.iter().map(|import| import.parent).collect();
            if hosts.len() >= cx.tuning.silent_rack_hosts && !imports.alive {
                found.push((None, imports.lanes[0].parent));
                rack.into_iter().for_each(|host| self.bypass.add_useless(host, until));
                continue;
            }
            for Import { lane, parent } in imports.silent {
                let bypassed = self.bypass.by_lane.entry(lane).or_default();
                // A second silent host of one rack: the rack is the cause, not the host.
                let again = rack.iter().any(|host| bypassed.contains_key(host));
                let around = if again { &rack[..] } else { &[parent] };
                bypassed.extend(&suspects);
                bypassed.extend(around.iter().map(|host| (*host, until)));
                found.push((Some(lane), parent));
            }
        }
        let content = self.id();
        let any = !found.is_empty();
        for (lane, around) in found {
            cx.notice(Notice::Reroute { content, lane, around });
        }
        if any {
            self.replan(cx, links);
        }
    }

    /// The imported lanes by the rack they come from, with those that are silent.
    fn imports_by_rack(&self, cx: &Cx, silence: &Silence) -> BTreeMap<Vec<HostIndex>, Imports> {
        let mut by_rack: BTreeMap<Vec<HostIndex>, Imports> = BTreeMap::new();
        let (Some(plan), Some(body)) = (&self.plan, &self.body) else { return by_rack };
        for (number, parent, lane) in body.lanes.awaited().filter(|(_, _, lane)| !lane.is_paused()) {
            if self.origin == Some(parent) || plan.same_rack(parent, cx.me) {
                continue;
            }
            let mut rack = cx.membership.rack_peers(parent);
            rack.push(parent);
            rack.sort_unstable();
            let imports = by_rack.entry(rack).or_default();
            let import = Import { lane: number, parent };
            imports.lanes.push(import);
            imports.alive |= !silence.is_silent(parent, 1);
            // The host nearest to the fault reroutes first. Those below it then receive as before.
            let depth = if silence.ending { 1 } else { plan.depth(number, parent).unwrap_or(1) };
            let times = depth.clamp(1, cx.tuning.silence_depth);
            let single = silence.of_single_lane(body, lane, &cx.tuning) * times;
            if silence.is_silent(parent, times) || lane.is_silent(cx.now, single) {
                imports.silent.push(import);
            }
        }
        by_rack
    }

    /// Whether a bypassed host may be used again.
    pub fn has_expired_bypass(&self, now: Instant) -> bool {
        self.bypass.useless.values().any(|until| *until <= now)
    }

    /// Uses bypassed hosts again whose time is over.
    pub fn expire_bypasses(&mut self, now: Instant) {
        let bypass = &mut self.bypass;
        bypass.useless.retain(|_, until| *until > now);
        bypass.by_lane.values_mut().for_each(|hosts| hosts.retain(|_, until| *until > now));
        bypass.by_lane.retain(|_, hosts| !hosts.is_empty());
    }
}
