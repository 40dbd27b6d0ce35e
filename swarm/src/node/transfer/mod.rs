//! One content while its pieces arrive and leave: what is here, its lanes, its children, its wants.
//!
//! Owns: [`Transfer`] and its parts. Each part has private fields, and only its own methods write them.
//! Invariant: every lane's count of missing pieces agrees with the pieces that are here.

mod child;
mod lane;
mod pieces;
mod table;
mod want;

pub use child::{Child, Children};
pub use lane::{Lane, Lanes, median, quantile};
pub use pieces::{ParityRows, Pieces};
pub use table::Transfers;
pub use want::{Want, Wants};

use super::Tuning;
use super::demote::Demotion;
use super::fairness::{SendSkew, ThroughputGuard};
use super::jobs::spread::announce_offset;
use super::manifest_search::ManifestSearch;
use super::promote::Promotion;
use super::stragglers::{Bypass, Deliveries};
use crate::plan::Plan;
use crate::time::Instant;
use shoal_proto::announcement::{Announcement, Class, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, HostIndex, JobId, PieceIndex};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the announcement says of a content. It never changes.
#[derive(Debug)]
pub struct Facts {
    pub id: ContentId,
    pub class: Class,
    pub kind: Kind,
    pub name: String,
    pub sequence: u64,
    /// The content is a version of a feed.
    pub is_feed: bool,
    pub manifest_bytes: u64,
    /// Where its announcement lanes begin.
    pub announce_offset: u8,
}

#[derive(Debug)]
pub struct Transfer {
    pub facts: Facts,
    pub origin: Option<HostIndex>,
    pub jobs: BTreeSet<JobId>,
    /// This host heard of it from the disk or by anti-entropy, so others may have it already.
    pub late: bool,
    /// Hosts of all its jobs.
    pub targets: Bitmap,
    pub plan: Option<Arc<Plan>>,
    pub bypass: Bypass,
    /// The driver cannot take it. It is neither fetched nor served.
    pub refused: bool,
    pub manifest: ManifestSearch,
    /// `None` until the manifest is here.
    pub body: Option<Body>,
    /// Its demotion, if that is the newest order, or if only a rack share is here.
    pub demotion: Option<Demotion>,
    pub promotion: Option<Promotion>,
    /// The rack shares could not make it whole. They are not tried a second time.
    pub rack_gave_up: bool,
    /// All rack peers left this host, so its lanes come from them.
    pub abandoned_by_rack: bool,
}

/// What is known once the manifest is here.
#[derive(Debug)]
pub struct Body {
    pub pieces: Pieces,
    pub lanes: Lanes,
    pub children: Children,
    pub wants: Wants,
    /// What each parent delivers.
    pub deliveries: Deliveries,
    /// Fairness among the children, at the origin.
    pub send_skew: SendSkew,
    /// What pauses of lanes cost, in pieces.
    pub receive_guard: ThroughputGuard,
    /// Pieces that rack peers have and that far parents must not send. They are wanted from rack peers.
    pub available_in_rack: Bitmap,
    /// Pieces that did not come from their lane's parent. The parent has not heard of them yet.
    pub received_elsewhere: Vec<PieceIndex>,
}

impl Transfer {
    pub fn new(announcement: &Announcement, origin: Option<HostIndex>) -> Self {
        Self {
            facts: Facts {
                id: announcement.content,
                class: Class::from(announcement.kind),
                kind: announcement.kind,
                name: announcement.name.clone(),
                sequence: announcement.sequence,
                is_feed: announcement.feed.is_some(),
                manifest_bytes: announcement.manifest_bytes,
                announce_offset: announce_offset(&announcement.name),
            },
            origin,
            jobs: BTreeSet::new(),
            late: false,
            targets: Bitmap::default(),
            plan: None,
            bypass: Bypass::default(),
            refused: false,
            manifest: ManifestSearch::default(),
            body: None,
            demotion: None,
            promotion: None,
            rack_gave_up: false,
            abandoned_by_rack: false,
        }
    }

    pub fn id(&self) -> ContentId {
        self.facts.id
    }

    /// Whether pieces are still to come.
    pub fn is_running(&self) -> bool {
        let demoted = self.demotion.as_ref().is_some_and(Demotion::is_share_only) && self.promotion.is_none();
        !demoted && self.body.as_ref().is_some_and(|body| !body.pieces.is_whole())
    }

    pub fn is_whole(&self) -> bool {
        self.body.as_ref().is_some_and(|body| body.pieces.is_whole())
    }

    /// Whether both hosts are in one rack, as far as the plan is known.
    pub fn same_rack(&self, a: HostIndex, b: HostIndex) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.same_rack(a, b))
    }

    /// Whether `host` sends to us or takes from us, so that its link is needed.
    pub fn has_neighbour(&self, host: HostIndex) -> bool {
        self.body.as_ref().is_some_and(|body| {
            body.children.contains(host) || body.lanes.iter().any(|(_, lane)| lane.parent() == Some(host))
        })
    }

    pub fn check_invariants(&self) {
        let Some(body) = &self.body else { return };
        body.pieces.check_invariants();
        body.children.check_invariants(&body.pieces);
        let by_lane: u32 = body.lanes.iter().map(|(_, lane)| lane.missing()).sum();
        assert_eq!(body.pieces.missing(), by_lane, "missing pieces by lane");
        assert!(body.wants.len() <= super::bounds::WANTS_MAX, "wants are bounded");
    }
}

impl Body {
    pub fn new(geometry: Geometry, have: Bitmap, tuning: &Tuning, now: Instant) -> Self {
        let mut lanes = Lanes::new(&geometry, now);
        let mut at = 0;
        while let Some(piece) = have.next_unset(at) {
            lanes.count_out(geometry.lane_of_piece(PieceIndex(piece)));
            at = piece + 1;
        }
        Self {
            lanes,
            children: Children::new(geometry.lanes()),
            wants: Wants::new(tuning, now),
            deliveries: Deliveries::new(now),
            send_skew: SendSkew::default(),
            receive_guard: ThroughputGuard::default(),
            available_in_rack: geometry.no_pieces(),
            received_elsewhere: Vec::new(),
            pieces: Pieces::new(geometry, have, now),
        }
    }

    pub fn geometry(&self) -> &Geometry {
        self.pieces.geometry()
    }

    /// Counts a piece in. Returns false when it was here.
    pub fn take(&mut self, piece: PieceIndex) -> bool {
        if !self.pieces.take(piece) {
            return false;
        }
        let geometry = self.pieces.geometry();
        self.lanes.count_in(geometry.lane_of_piece(piece));
        self.wants.remove(geometry.shard_of(piece));
        self.wants.forget_failures_of(piece);
        true
    }

    /// Counts a piece out, which no child can get from here any more. Returns false when it was not here.
    pub fn lose(&mut self, piece: PieceIndex) -> bool {
        if !self.pieces.lose(piece) {
            return false;
        }
        self.lanes.count_out(self.pieces.geometry().lane_of_piece(piece));
        self.children.cancel_piece(piece);
        true
    }
}
