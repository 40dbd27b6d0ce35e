//! The announcement lanes: which trees an announcement takes, and which hosts hear of it on each.
//!
//! Invariant: every host passes an announcement on by the same rule. So each host hears of it on each lane, unless a
//! host on the way is lost.

use crate::io::Via;
use crate::node::bounds::ANNOUNCE_LANES;
use crate::node::cx::Cx;
use crate::node::links::Links;
use crate::plan::Plan;
use shoal_proto::announcement::Announcement;
use shoal_proto::ids::{Hash, HostIndex, JobId, LaneIndex};
use std::sync::Arc;

/// One of the trees that the announcements of a name take.
#[derive(Clone, Copy, Debug)]
pub struct AnnounceLane {
    /// 0 to `ANNOUNCE_LANES - 1`. Manifests and inline data follow lane 0.
    pub number: u8,
    /// The lane of the plan whose tree it takes.
    pub tree: LaneIndex,
}

/// Where the announcement lanes of a name begin. Different names load different hosts of a rack.
pub fn announce_offset(name: &str) -> u8 {
    (Hash::of(name.as_bytes()).prefix() % 256) as u8
}

/// The announcement lanes of a name, evenly spaced over the plan's lanes.
pub fn announce_lanes(offset: u8, lanes: u8) -> impl Iterator<Item = AnnounceLane> {
    (0..ANNOUNCE_LANES.min(lanes)).map(move |number| {
        let spread = u32::from(number) * u32::from(lanes) / u32::from(ANNOUNCE_LANES);
        let tree = LaneIndex(((u32::from(offset) + spread) % u32::from(lanes)) as u8);
        AnnounceLane { number, tree }
    })
}

/// Where an announcement came from.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// `None` for our own publication and for what was on disk.
    pub from: Option<HostIndex>,
    pub via: Via,
}

impl Arrival {
    /// A change of membership shows that a job is ours. Other hosts heard of it before.
    pub const BY_ANTI_ENTROPY: Self = Self { from: None, via: Via::AntiEntropy };
}

/// An announcement that the driver has checked.
#[derive(Clone, Debug)]
pub struct Announced {
    pub arrival: Arrival,
    pub announcement: Arc<Announcement>,
    /// Manifest and data came with it.
    pub inline: bool,
}

/// The hosts to tell on a lane of what arrived so: our children, and linked rack peers that the plan leaves out. Those
/// may be well and hear of it from no other host.
///
/// Hosts may differ on who is live. An announcement from another rack makes this host the lane's owner here, because
/// its sender told no other host of the rack. Where this host owns the lane and a rack peer brought the announcement,
/// that rack peer was the owner before. It has told the whole rack.
pub fn hearers(cx: &Cx, links: &Links, plan: &Plan, lane: AnnounceLane, arrival: Arrival) -> Vec<HostIndex> {
    let me = cx.me;
    let owner = plan.owner(lane.tree, me) == Some(me);
    let down_this_lane = arrival.via == Via::Lane(lane.number) && plan.targets(me);
    let from_rack_peer = arrival.from.filter(|_| down_this_lane).map(|from| plan.same_rack(from, me));
    let mut hearers = match from_rack_peer {
        Some(true) if owner => return Vec::new(),
        Some(false) => plan.children_as_owner(lane.tree, me),
        _ => plan.children(lane.tree, me),
    };
    if owner || from_rack_peer == Some(false) {
        hearers.extend(plan.leaves(me).filter(|host| links.is_linked(*host)));
    }
    hearers
}

/// Tells the children on all announcement lanes of a job. Inline data follows lane 0 only.
pub fn pass_on(cx: &mut Cx, links: &mut Links, plan: &Plan, offset: u8, job: JobId, arrival: Arrival, inline: bool) {
    for lane in announce_lanes(offset, plan.lanes()) {
        for child in hearers(cx, links, plan, lane, arrival) {
            // A child that told us on another lane still waits for lane 0 before it requests the manifest.
            let waits = lane.number == 0 && matches!(arrival.via, Via::Lane(by) if (1..ANNOUNCE_LANES).contains(&by));
            if Some(child) != arrival.from || waits {
                links.announce(cx, child, job, Via::Lane(lane.number), inline && lane.number == 0);
            }
        }
    }
}
