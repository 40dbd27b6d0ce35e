//! What a node knows of one content: its jobs' targets, its pieces, the lanes it takes and the children it serves.
//!
//! Invariant: `missing` and every lane's `missing` agree with `have`, and what is pending for a child is had.

use super::bounds;
use super::cold::Cold;
use super::level::Level;
use super::toll::Toll;
use super::tuning::Tuning;
use super::warm::Warm;
use crate::plan::Plan;
use crate::time::Instant;
use shoal_proto::announcement::{Announcement, Class, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, HostIndex, JobId, LaneIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::message::LaneSet;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// One content.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) id: ContentId,
    pub(super) class: Class,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) sequence: u64,
    /// It is a version of a feed.
    pub(super) feed: bool,
    /// Length of its manifest, bytes.
    pub(super) manifest_bytes: u64,
    /// Spreads the announcement lanes of different names over the rack's hosts.
    pub(super) announce_offset: u8,
    pub(super) origin: Option<HostIndex>,
    pub(super) jobs: BTreeSet<JobId>,
    /// We heard of it from the disk or by comparing lists: others may have it already.
    pub(super) late: bool,
    /// Hosts of all its jobs.
    pub(super) targets: Bitmap,
    pub(super) plan: Option<Arc<Plan>>,
    /// Hosts that a lane imported in vain from: passed over for that lane for a while.
    pub(super) detours: BTreeMap<LaneIndex, BTreeMap<HostIndex, Instant>>,
    /// Hosts that are no use as parents of this content for a while.
    pub(super) useless: BTreeMap<HostIndex, Instant>,
    /// The shell cannot take it.
    pub(super) refused: bool,
    pub(super) manifest: ManifestHunt,
    pub(super) body: Option<Body>,
    /// Its demotion, if the newest word on it is one, or only a share of it is here.
    pub(super) cold: Option<Cold>,
    /// It comes back from the rack's shares.
    pub(super) warm: Option<Warm>,
    /// The rack's shares do not make it whole: that was tried.
    pub(super) gave_up: bool,
    /// Our mates have turned to others: our lanes come from these as well.
    pub(super) passed_over: bool,
}

/// The search for a manifest.
#[derive(Debug, Default)]
pub(super) struct ManifestHunt {
    /// Who announced the content to us, in order.
    pub(super) sources: VecDeque<HostIndex>,
    /// Whom we asked last, and until when we wait.
    pub(super) asked: Option<(HostIndex, Instant)>,
    /// Whom we asked, and who has not said that it will not come.
    pub(super) tried: BTreeSet<HostIndex>,
    /// When to ask the first of `sources`.
    pub(super) ask_at: Option<Instant>,
    /// It is here, and can be sent on.
    pub(super) found: bool,
    /// Who waits for it from us.
    pub(super) waiters: BTreeSet<HostIndex>,
}

/// What is known once the manifest is.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) geometry: Geometry,
    pub(super) have: Bitmap,
    pub(super) missing: u32,
    pub(super) lanes: Vec<Lane>,
    pub(super) children: BTreeMap<HostIndex, Child>,
    /// By lane, the children that take it, in order: each piece that comes asks for them.
    pub(super) takers: Vec<Vec<HostIndex>>,
    /// Parity shards here, a bit a row, of stripes not yet whole.
    pub(super) parity: BTreeMap<StripeIndex, u32>,
    pub(super) rebuilding: BTreeSet<StripeIndex>,
    /// Parity shards on the disk, a bit a row: a share of a content that was demoted.
    pub(super) kept: BTreeMap<StripeIndex, u32>,
    /// Shards asked for outside their lanes.
    pub(super) wants: BTreeMap<ShardIndex, Want>,
    /// How many may be asked for at a time now.
    pub(super) wants_room: usize,
    /// Hosts that were asked for anything on the links that are up: they hear when nothing more is needed.
    pub(super) asked: BTreeSet<HostIndex>,
    /// Missing pieces that were asked for in vain.
    pub(super) tries: BTreeMap<PieceIndex, Tries>,
    /// Pieces that came otherwise than from their lane's parent, not yet told to it.
    pub(super) got: Vec<PieceIndex>,
    /// Deliveries of all parents since `judged_at`.
    pub(super) delivered: u64,
    pub(super) judged_at: Instant,
    /// Deliveries per lane and second, in thousandths, smoothed.
    pub(super) typical: u64,
    /// Pieces that rack peers have and parents elsewhere were told not to send: they are asked for.
    pub(super) spared: Bitmap,
    /// What each parent delivered, since when.
    pub(super) trials: BTreeMap<HostIndex, Trial>,
    /// Rack peers whose lanes hosts of other racks want from us instead: they find them silent.
    pub(super) doubted: BTreeSet<HostIndex>,
    /// Nothing is imported before this: rack peers may have it.
    pub(super) import_at: Instant,
    pub(super) last_arrival: Instant,
    pub(super) next_repair: Instant,
    /// How evenly its children take it, at its origin.
    pub(super) level: Level,
    /// What it costs that lanes rest, in pieces.
    pub(super) toll: Toll,
}

/// A lane, as its child.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lane {
    pub(super) parent: Option<HostIndex>,
    /// The parent was sent a `Subscribe` on the link that is up.
    pub(super) subscribed: bool,
    /// We found ourselves in a circle and import the lane ourselves.
    pub(super) forced: bool,
    /// It is ahead of others and waits for them.
    pub(super) rests: bool,
    /// Pieces of this lane not here.
    pub(super) missing: u32,
    /// When its parent became that.
    pub(super) since: Instant,
    /// When it last brought something.
    pub(super) brought: Instant,
}

impl Lane {
    /// Whether something is to come from a parent.
    pub(super) fn is_awaited(&self) -> bool {
        self.missing > 0 && self.parent.is_some()
    }

    /// Whether its parent has had this long and brought nothing for as long.
    pub(super) fn is_silent(&self, now: Instant, patience: Duration) -> bool {
        !self.rests && now.since(self.since.max(self.brought)) >= patience
    }
}

/// A parent under observation: longer the less is expected of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) since: Instant,
    pub(super) delivered: u64,
    /// Times in a row it was found slow.
    pub(super) strikes: u8,
}

/// A missing piece that was asked for in vain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tries {
    /// How often: picks the next host to ask.
    pub(super) count: u32,
    /// When it may be asked for again.
    pub(super) not_before: Instant,
}

/// A shard asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// The piece it is to bring: itself, or one of its stripe when it is parity.
    pub(super) piece: PieceIndex,
    pub(super) from: HostIndex,
    pub(super) asked: Instant,
    pub(super) until: Instant,
}

/// A host we send to.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) lanes: LaneSet,
    /// Pieces it has or that are on their way to it.
    pub(super) has: Bitmap,
    /// Pieces to send.
    pub(super) pending: Bitmap,
    /// No pending piece is below this.
    pub(super) cursor: u32,
    /// Shards it asked for.
    pub(super) wants: VecDeque<ShardIndex>,
    /// When it last took something or asked for it.
    pub(super) took: Instant,
}

impl Child {
    pub(super) fn new(pieces: u32, now: Instant) -> Self {
        Self {
            took: now,
            lanes: LaneSet::NONE,
            has: Bitmap::new(pieces),
            pending: Bitmap::new(pieces),
            cursor: 0,
            wants: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, piece: PieceIndex) {
        if !self.has.get(piece.0) && self.pending.set(piece.0) {
            self.cursor = self.cursor.min(piece.0);
        }
    }

    /// Other pieces than these are not here any more.
    pub(super) fn keep_only(&mut self, have: &Bitmap) {
        let mut gone = self.pending.clone();
        gone.subtract(have);
        self.pending.subtract(&gone);
        self.wants.clear();
    }

    /// The next shard to send, wanted ones first.
    pub(super) fn next(&mut self, geometry: &Geometry) -> Option<ShardIndex> {
        if let Some(shard) = self.wants.pop_front() {
            if let Some(piece) = geometry.piece_of(shard) {
                self.mark(piece);
            }
            return Some(shard);
        }
        let piece = self.place().map(PieceIndex)?;
        self.cursor = piece.0;
        self.mark(piece);
        Some(geometry.shard_of(piece))
    }

    /// Length of what [`Child::next`] would give, bytes.
    pub(super) fn peek_len(&self, geometry: &Geometry) -> Option<u32> {
        match self.wants.front() {
            Some(shard) => geometry.shard_len(*shard),
            None => self.place().map(|piece| geometry.piece_len(PieceIndex(piece))),
        }
    }

    /// How far in the content the next piece for it is.
    pub(super) fn place(&self) -> Option<u32> {
        self.pending.next_set(self.cursor)
    }

    fn mark(&mut self, piece: PieceIndex) {
        self.has.set(piece.0);
        self.pending.unset(piece.0);
    }
}

/// The middle one; 0 of none.
pub(super) fn middle(values: impl Iterator<Item = u32>) -> u32 {
    above(values, 2)
}

/// The one that one in `part` are below; 0 of none.
pub(super) fn above(values: impl Iterator<Item = u32>, part: usize) -> u32 {
    let mut values: Vec<u32> = values.collect();
    let place = values.len() / part;
    if values.is_empty() { 0 } else { *values.select_nth_unstable(place).1 }
}

/// Where the announcement lanes of a name begin: spreads names over a rack's hosts.
pub(super) fn announce_offset(name: &str) -> u8 {
    (shoal_proto::ids::Hash::of(name.as_bytes()).prefix() % 256) as u8
}

impl Content {
    pub(super) fn new(announcement: &Announcement, origin: Option<HostIndex>) -> Self {
        Self {
            id: announcement.content,
            class: Class::from(announcement.kind),
            kind: announcement.kind,
            name: announcement.name.clone(),
            sequence: announcement.sequence,
            feed: announcement.feed.is_some(),
            manifest_bytes: announcement.manifest_bytes,
            announce_offset: announce_offset(&announcement.name),
            origin,
            jobs: BTreeSet::new(),
            late: false,
            targets: Bitmap::default(),
            plan: None,
            detours: BTreeMap::new(),
            useless: BTreeMap::new(),
            refused: false,
            manifest: ManifestHunt::default(),
            body: None,
            cold: None,
            warm: None,
            gave_up: false,
            passed_over: false,
        }
    }

    /// Whether whom we asked for the manifest last takes so long that another is asked as well.
    pub(super) fn asked_in_vain(&self, now: Instant, tuning: &Tuning) -> bool {
        let patience =
            tuning.manifest_patience + Duration::from_millis(self.manifest_bytes / tuning.manifest_bytes_per_ms);
        let hunt = &self.manifest;
        hunt.tried.len() <= tuning.manifest_extra_sources
            && hunt.asked.is_some_and(|(_, until)| now + tuning.manifest_timeout >= until + patience)
    }

    /// Whether there is somebody to try again, as the time is over for which the content went around them.
    pub(super) fn tries_again(&self, now: Instant, tuning: &Tuning) -> bool {
        self.useless.values().any(|until| *until <= now) && !self.is_late_for_trials(tuning)
    }

    /// Tries those again for whom that time is over, but nobody near the end.
    pub(super) fn try_again(&mut self, now: Instant, tuning: &Tuning) {
        if self.is_late_for_trials(tuning) {
            return;
        }
        self.useless.retain(|_, until| *until > now);
        self.detours.values_mut().for_each(|hosts| hosts.retain(|_, until| *until > now));
        self.detours.retain(|_, hosts| !hosts.is_empty());
    }

    fn is_late_for_trials(&self, tuning: &Tuning) -> bool {
        self.body.as_ref().is_some_and(|body| body.is_late_for_trials(tuning))
    }

    /// Whether pieces are still to come.
    pub(super) fn is_running(&self) -> bool {
        let at_rest = self.cold.as_ref().is_some_and(Cold::is_shed) && self.warm.is_none();
        !at_rest && self.body.as_ref().is_some_and(|body| body.missing > 0)
    }
}

impl Body {
    pub(super) fn new(geometry: Geometry, have: Bitmap, now: Instant, tuning: &Tuning) -> Self {
        let mut lanes = vec![Lane::default(); usize::from(geometry.lanes())];
        let takers = vec![Vec::new(); usize::from(geometry.lanes())];
        let mut missing = 0;
        let mut at = 0;
        while let Some(piece) = have.next_unset(at) {
            lanes[geometry.lane_of_piece(PieceIndex(piece)).index()].missing += 1;
            missing += 1;
            at = piece + 1;
        }
        let spared = geometry.no_pieces();
        Self {
            geometry,
            have,
            missing,
            lanes,
            children: BTreeMap::new(),
            takers,
            parity: BTreeMap::new(),
            rebuilding: BTreeSet::new(),
            kept: BTreeMap::new(),
            wants: BTreeMap::new(),
            wants_room: tuning.wants_first,
            asked: BTreeSet::new(),
            tries: BTreeMap::new(),
            got: Vec::new(),
            delivered: 0,
            judged_at: now,
            typical: 0,
            spared,
            import_at: now,
            trials: BTreeMap::new(),
            doubted: BTreeSet::new(),
            last_arrival: now,
            next_repair: now,
            level: Level::default(),
            toll: Toll::default(),
        }
    }

    /// These parity shards are on the disk.
    pub(super) fn keep(&mut self, parity: BTreeMap<StripeIndex, u32>) {
        self.kept = parity;
    }

    /// A child takes these lanes and no others.
    pub(super) fn set_lanes(&mut self, host: HostIndex, lanes: LaneSet) {
        let Some(child) = self.children.get_mut(&host) else { return };
        let changed = LaneSet(child.lanes.0 ^ lanes.0);
        child.lanes = lanes;
        for lane in changed.iter() {
            let takers = &mut self.takers[lane.index()];
            match takers.binary_search(&host) {
                Ok(place) => drop(takers.remove(place)),
                Err(place) => takers.insert(place, host),
            }
        }
    }

    /// A child is gone.
    pub(super) fn forget_child(&mut self, host: HostIndex) {
        self.set_lanes(host, LaneSet::NONE);
        self.children.remove(&host);
    }

    /// How long an imported lane may bring nothing.
    pub(super) fn patience(&self, tuning: &Tuning) -> Duration {
        tuning.silence.max(Duration::from_millis(tuning.silence_pieces * 1_000_000 / self.typical.max(1)))
    }

    /// Pieces that half of the lanes lack, or fewer.
    pub(super) fn usually_missing(&self) -> u32 {
        middle(self.lanes.iter().map(|lane| lane.missing))
    }

    /// Pieces that the best quarter of the lanes lack, or fewer.
    pub(super) fn least_missing(&self) -> u32 {
        above(self.lanes.iter().map(|lane| lane.missing), 4)
    }

    /// Whether too little is left to try again whom nothing came from: if that is in vain again, the rest comes later.
    fn is_late_for_trials(&self, tuning: &Tuning) -> bool {
        let rest = u64::from(self.usually_missing()) * 1_000_000 / self.typical.max(1);
        self.typical > 0 && Duration::from_millis(rest) < self.patience(tuning) * tuning.late_for_retry
    }

    /// Whether a lane has come no further than others are when they have come far; see [`Tuning::ending_behind`].
    pub(super) fn is_behind(&self, lane: &Lane, tuning: &Tuning) -> bool {
        lane.missing * self.lanes.len() as u32 * tuning.ending_behind >= self.geometry.piece_count()
    }

    /// Counts a piece in; false when it was here.
    pub(super) fn take(&mut self, piece: PieceIndex) -> bool {
        if !self.have.set(piece.0) {
            return false;
        }
        self.missing -= 1;
        self.lanes[self.geometry.lane_of_piece(piece).index()].missing -= 1;
        self.tries.remove(&piece);
        self.wants.remove(&self.geometry.shard_of(piece));
        true
    }

    /// A piece was asked for in vain. The longer that goes on, the longer the waits.
    pub(super) fn failed(&mut self, piece: PieceIndex, now: Instant, tuning: &Tuning) {
        let tries = self.tries.entry(piece).or_default();
        tries.count = tries.count.saturating_add(1);
        let doublings = (tries.count / tuning.tries_without_wait).min(tuning.tries_doublings);
        let wait = if doublings == 0 { Duration::ZERO } else { tuning.check_every * 2u32.pow(doublings) };
        tries.not_before = now + wait;
    }

    /// Counts a piece out; false when it was not here.
    pub(super) fn lose(&mut self, piece: PieceIndex) -> bool {
        if !self.have.unset(piece.0) {
            return false;
        }
        self.missing += 1;
        self.lanes[self.geometry.lane_of_piece(piece).index()].missing += 1;
        for child in self.children.values_mut() {
            child.pending.unset(piece.0);
        }
        true
    }

    /// Pieces of the stripe that are here.
    pub(super) fn stripe_have(&self, stripe: StripeIndex) -> u32 {
        self.geometry.stripe_pieces(stripe).filter(|piece| self.have.get(*piece)).count() as u32
    }

    /// Whether all pieces of the stripe are here.
    pub(super) fn stripe_whole(&self, stripe: StripeIndex) -> bool {
        self.stripe_have(stripe) == self.geometry.stripe_data(stripe)
    }

    /// Whether we could send this shard.
    pub(super) fn can_serve(&self, shard: ShardIndex) -> bool {
        match (self.geometry.piece_of(shard), self.geometry.split(shard)) {
            (Some(piece), _) => self.have.get(piece.0),
            (None, Some((stripe, place))) => {
                let row = place - u32::from(self.geometry.data());
                self.stripe_whole(stripe) || self.kept.get(&stripe).is_some_and(|rows| rows >> row & 1 == 1)
            }
            (None, None) => false,
        }
    }

    /// Panics when the books do not balance.
    pub(super) fn check(&self) {
        assert_eq!(self.missing, self.geometry.piece_count() - self.have.count(), "missing pieces");
        let by_lane: u32 = self.lanes.iter().map(|lane| lane.missing).sum();
        assert_eq!(self.missing, by_lane, "missing pieces by lane");
        assert!(self.wants.len() <= bounds::WANTS_MAX, "wants are bounded");
        for (number, takers) in self.takers.iter().enumerate() {
            let takes = |child: &Child| child.lanes.contains(LaneIndex(number as u8));
            let taking = self.children.iter().filter(|(_, child)| takes(child)).map(|(host, _)| host);
            assert!(taking.eq(takers), "who takes lane {number}");
        }
        for child in self.children.values() {
            let mut unheld = child.pending.clone();
            unheld.subtract(&self.have);
            assert!(unheld.none(), "only pieces we have are pending");
            assert!(child.wants.len() <= bounds::CHILD_WANTS_MAX, "a child's wants are bounded");
        }
    }
}
