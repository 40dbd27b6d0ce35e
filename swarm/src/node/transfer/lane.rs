//! A content's lanes as their child sees them: parents, subscriptions, and what is missing on each.
//!
//! Invariant: a lane is subscribed only while it has a parent, and a paused lane is not subscribed.

use crate::time::Instant;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{HostIndex, LaneIndex, PieceIndex};
use shoal_proto::message::LaneSet;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default)]
pub struct Lane {
    parent: Option<HostIndex>,
    subscribed: bool,
    /// This host broke a circle and imports the lane itself, until the next plan.
    forced: bool,
    /// Fairness: the lane is ahead of the others and waits for them.
    paused: bool,
    missing: u32,
    /// When the parent became the parent, or the lane resumed.
    since: Instant,
    /// When the lane last brought a piece.
    last_progress: Instant,
}

impl Lane {
    pub fn parent(&self) -> Option<HostIndex> {
        self.parent
    }

    pub fn is_subscribed(&self) -> bool {
        self.subscribed
    }

    /// The parent that was sent a subscription on the link that is up.
    pub fn subscribed_parent(&self) -> Option<HostIndex> {
        self.parent.filter(|_| self.subscribed)
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Pieces of this lane that are not here.
    pub fn missing(&self) -> u32 {
        self.missing
    }

    /// The parent that should get a subscription now.
    pub fn unsubscribed_parent(&self) -> Option<HostIndex> {
        self.parent.filter(|_| self.missing > 0 && !self.subscribed && !self.paused)
    }

    /// When the lane last showed life: a piece, a new parent, or the end of a pause.
    pub fn last_sign(&self) -> Instant {
        self.since.max(self.last_progress)
    }

    pub fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// Whether nothing came for `patience`, although the parent had that long.
    pub fn is_silent(&self, now: Instant, patience: Duration) -> bool {
        !self.paused && now.since(self.last_sign()) >= patience
    }

    /// Takes the lane from another parent. Returns the former parent if it needs an `Unsubscribe`.
    pub fn move_to(&mut self, parent: Option<HostIndex>, now: Instant) -> Option<HostIndex> {
        self.forced = false;
        if parent == self.parent {
            return None;
        }
        let former = self.subscribed_parent();
        (self.parent, self.subscribed, self.since) = (parent, false, now);
        former
    }

    /// A rack peer has all of the lane's missing pieces. The time of the last sign of life stays.
    pub fn prefer(&mut self, rack_peer: HostIndex) {
        self.parent = Some(rack_peer);
    }

    pub fn mark_subscribed(&mut self) {
        self.subscribed = true;
    }

    pub fn pause(&mut self) {
        (self.paused, self.subscribed) = (true, false);
    }

    pub fn resume(&mut self, now: Instant) {
        (self.paused, self.since) = (false, now);
    }

    /// Whether this host and `other` take the lane from each other.
    pub fn is_circle_with(&self, other: HostIndex) -> bool {
        self.missing > 0 && self.parent == Some(other) && !self.forced
    }

    /// Imports the lane from `above`, to break a circle.
    pub fn break_circle(&mut self, above: Option<HostIndex>) {
        (self.parent, self.subscribed, self.forced) = (above, false, true);
    }
}

#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    /// Nothing is imported before this: rack peers may have it.
    imports_from: Instant,
}

impl Lanes {
    pub fn new(geometry: &Geometry, now: Instant) -> Self {
        Self { lanes: vec![Lane::default(); usize::from(geometry.lanes())], imports_from: now }
    }

    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    pub fn get(&self, lane: LaneIndex) -> &Lane {
        &self.lanes[lane.index()]
    }

    pub fn get_mut(&mut self, lane: LaneIndex) -> &mut Lane {
        &mut self.lanes[lane.index()]
    }

    pub fn iter(&self) -> impl Iterator<Item = (LaneIndex, &Lane)> + Clone {
        self.lanes.iter().enumerate().map(|(number, lane)| (LaneIndex(number as u8), lane))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (LaneIndex, &mut Lane)> {
        self.lanes.iter_mut().enumerate().map(|(number, lane)| (LaneIndex(number as u8), lane))
    }

    /// Lanes that a parent is still to bring something on.
    pub fn awaited(&self) -> impl Iterator<Item = (LaneIndex, HostIndex, &Lane)> + Clone {
        self.iter().filter_map(|(number, lane)| Some((number, lane.parent.filter(|_| lane.missing > 0)?, lane)))
    }

    pub fn imports_from(&self) -> Instant {
        self.imports_from
    }

    pub fn delay_imports(&mut self, until: Instant) {
        self.imports_from = until;
    }

    /// A piece of the lane came in.
    pub fn count_in(&mut self, lane: LaneIndex) {
        self.lanes[lane.index()].missing -= 1;
    }

    /// A piece of the lane is missing.
    pub fn count_out(&mut self, lane: LaneIndex) {
        self.lanes[lane.index()].missing += 1;
    }

    pub fn note_progress(&mut self, geometry: &Geometry, piece: PieceIndex, now: Instant) {
        self.get_mut(geometry.lane_of_piece(piece)).last_progress = now;
    }

    /// The link to `host` is down. Returns whether it was still to bring something.
    pub fn on_link_lost(&mut self, host: HostIndex) -> bool {
        let mut awaited = false;
        for lane in self.lanes.iter_mut().filter(|lane| lane.parent == Some(host)) {
            lane.subscribed = false;
            awaited |= lane.missing > 0;
        }
        awaited
    }

    /// Takes nothing from `host` any more. Returns whether any lane came from it.
    pub fn drop_parent(&mut self, host: HostIndex) -> bool {
        let mut dropped = false;
        for lane in self.lanes.iter_mut().filter(|lane| lane.parent == Some(host)) {
            (lane.subscribed, lane.parent, dropped) = (false, None, true);
        }
        dropped
    }

    /// Takes nothing from any host. Returns the parents to tell, each with its lanes.
    pub fn leave_all(&mut self) -> BTreeMap<HostIndex, LaneSet> {
        let mut left: BTreeMap<HostIndex, LaneSet> = BTreeMap::new();
        for (number, lane) in self.iter_mut() {
            if let Some(parent) = lane.subscribed_parent() {
                left.entry(parent).or_default().insert(number);
            }
            (lane.parent, lane.subscribed) = (None, false);
        }
        left
    }

    /// Missing pieces of the lane that one in `part` lanes are better than: 2 is the median.
    pub fn missing_quantile(&self, part: usize) -> u32 {
        quantile(self.lanes.iter().map(|lane| lane.missing), part)
    }
}

/// The upper median; 0 of nothing.
pub fn median(values: impl Iterator<Item = u32>) -> u32 {
    quantile(values, 2)
}

/// The value that one in `part` of the values are below; 0 of nothing.
pub fn quantile(values: impl Iterator<Item = u32>, part: usize) -> u32 {
    let mut values: Vec<u32> = values.collect();
    let place = values.len() / part;
    if values.is_empty() { 0 } else { *values.select_nth_unstable(place).1 }
}
