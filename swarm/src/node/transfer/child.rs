//! A content's children: what each takes, has, and is still to be sent.
//!
//! Invariant: the takers of a lane are the children that subscribed it, in order, and only pieces that are here are
//! pending for a child.

use super::Pieces;
use crate::node::bounds;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{HostIndex, LaneIndex, PieceIndex, ShardIndex};
use shoal_proto::message::LaneSet;
use std::collections::{BTreeMap, VecDeque};

/// A host that takes shards from this host, or has said which pieces it has.
#[derive(Debug)]
pub struct Child {
    lanes: LaneSet,
    /// Pieces that it has or that are on their way to it.
    has: Bitmap,
    pending: Bitmap,
    /// No pending piece is below this.
    cursor: u32,
    /// Shards it wants outside its lanes, which go first.
    wants: VecDeque<ShardIndex>,
}

impl Child {
    fn new(pieces: u32) -> Self {
        Self {
            lanes: LaneSet::NONE,
            has: Bitmap::new(pieces),
            pending: Bitmap::new(pieces),
            cursor: 0,
            wants: VecDeque::new(),
        }
    }

    pub fn has(&self) -> &Bitmap {
        &self.has
    }

    pub fn takes_lanes(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// The child says what it has. Pieces on their way to it count as its own.
    pub fn start(&mut self, has: Bitmap, under_way: impl Iterator<Item = PieceIndex>) {
        self.has = has;
        for piece in under_way {
            self.has.set(piece.0);
        }
        self.pending.subtract(&self.has);
    }

    /// Makes a piece pending if the child lacks it.
    pub fn add(&mut self, piece: PieceIndex) {
        if !self.has.get(piece.0) && self.pending.set(piece.0) {
            self.cursor = self.cursor.min(piece.0);
        }
    }

    /// The piece is not to be sent, because it came from the child, left this host, or its lane was left.
    pub fn cancel(&mut self, piece: PieceIndex) {
        self.pending.unset(piece.0);
    }

    pub fn note_has(&mut self, piece: PieceIndex) {
        self.has.set(piece.0);
        self.pending.unset(piece.0);
    }

    pub fn note_lacks(&mut self, piece: PieceIndex) {
        self.has.unset(piece.0);
    }

    /// The child got these pieces from other hosts.
    pub fn note_received(&mut self, pieces: &Bitmap) {
        self.has.union(pieces);
        self.pending.subtract(pieces);
    }

    /// The child has everything.
    pub fn note_whole(&mut self, pieces: u32) {
        self.has = Bitmap::full(pieces);
        self.pending = Bitmap::new(pieces);
        self.wants.clear();
    }

    /// Only these pieces are here now.
    fn keep_only(&mut self, have: &Bitmap) {
        let mut gone = self.pending.clone();
        gone.subtract(have);
        self.pending.subtract(&gone);
        self.wants.clear();
    }

    pub fn want_count(&self) -> usize {
        self.wants.len()
    }

    pub fn want(&mut self, shard: ShardIndex) {
        if !self.wants.contains(&shard) {
            self.wants.push_back(shard);
        }
    }

    /// The next shard to send: wants first, then pending pieces in order.
    pub fn next(&mut self, geometry: &Geometry) -> Option<ShardIndex> {
        if let Some(shard) = self.wants.pop_front() {
            if let Some(piece) = geometry.piece_of(shard) {
                self.note_has(piece);
            }
            return Some(shard);
        }
        let piece = PieceIndex(self.place()?);
        self.cursor = piece.0;
        self.note_has(piece);
        Some(geometry.shard_of(piece))
    }

    /// Length of what [`Child::next`] would return, bytes.
    pub fn peek_len(&self, geometry: &Geometry) -> Option<u32> {
        match self.wants.front() {
            Some(shard) => geometry.shard_len(*shard),
            None => self.place().map(|piece| geometry.piece_len(PieceIndex(piece))),
        }
    }

    /// The child's next pending piece: how far in the content it is.
    pub fn place(&self) -> Option<u32> {
        self.pending.next_set(self.cursor)
    }

    /// Whether this shard is still to be sent to the child.
    pub fn needs(&self, piece: Option<PieceIndex>, shard: ShardIndex) -> bool {
        piece.is_some_and(|piece| self.pending.get(piece.0)) || self.wants.contains(&shard)
    }
}

#[derive(Debug)]
pub struct Children {
    by_host: BTreeMap<HostIndex, Child>,
    /// By lane: each piece that comes in looks for these.
    takers: Vec<Vec<HostIndex>>,
}

impl Children {
    pub fn new(lanes: u8) -> Self {
        Self { by_host: BTreeMap::new(), takers: vec![Vec::new(); usize::from(lanes)] }
    }

    pub fn get(&self, host: HostIndex) -> Option<&Child> {
        self.by_host.get(&host)
    }

    pub fn get_mut(&mut self, host: HostIndex) -> Option<&mut Child> {
        self.by_host.get_mut(&host)
    }

    pub fn get_or_add(&mut self, host: HostIndex, pieces: u32) -> &mut Child {
        self.by_host.entry(host).or_insert_with(|| Child::new(pieces))
    }

    pub fn contains(&self, host: HostIndex) -> bool {
        self.by_host.contains_key(&host)
    }

    pub fn iter(&self) -> impl Iterator<Item = (HostIndex, &Child)> {
        self.by_host.iter().map(|(host, child)| (*host, child))
    }

    pub fn hosts(&self) -> impl Iterator<Item = HostIndex> {
        self.by_host.keys().copied()
    }

    /// Whether a neighbour has said that it has this piece.
    pub fn is_known_to_have(&self, host: HostIndex, piece: PieceIndex) -> bool {
        self.by_host.get(&host).is_some_and(|child| child.has.get(piece.0))
    }

    /// The child takes these lanes, too.
    pub fn add_lanes(&mut self, host: HostIndex, lanes: LaneSet) {
        if let Some(child) = self.by_host.get(&host) {
            self.set_lanes(host, LaneSet(child.lanes.0 | lanes.0));
        }
    }

    /// The child leaves these lanes. Returns false if the host is no child.
    pub fn remove_lanes(&mut self, host: HostIndex, lanes: LaneSet, geometry: &Geometry) -> bool {
        let Some(child) = self.by_host.get_mut(&host) else { return false };
        for lane in lanes.iter().filter(|lane| lane.0 < geometry.lanes()) {
            geometry.pieces_of_lane(lane).for_each(|piece| child.cancel(piece));
        }
        let kept = LaneSet(child.lanes.0 & !lanes.0);
        self.set_lanes(host, kept);
        true
    }

    /// The child takes no lane, and stays known for what it has.
    pub fn leave_lanes(&mut self, host: HostIndex) {
        self.set_lanes(host, LaneSet::NONE);
    }

    fn set_lanes(&mut self, host: HostIndex, lanes: LaneSet) {
        let Some(child) = self.by_host.get_mut(&host) else { return };
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

    pub fn forget(&mut self, host: HostIndex) {
        self.set_lanes(host, LaneSet::NONE);
        self.by_host.remove(&host);
    }

    /// A piece came in: it is pending for the lane's takers that lack it. Calls `ready` for each of these.
    pub fn offer(&mut self, lane: LaneIndex, piece: PieceIndex, mut ready: impl FnMut(HostIndex)) {
        for host in &self.takers[lane.index()] {
            if let Some(child) = self.by_host.get_mut(host).filter(|child| !child.has.get(piece.0)) {
                child.add(piece);
                ready(*host);
            }
        }
    }

    /// The piece is not here any more.
    pub fn cancel_piece(&mut self, piece: PieceIndex) {
        self.by_host.values_mut().for_each(|child| child.cancel(piece));
    }

    /// Only these pieces are here now.
    pub fn keep_only(&mut self, have: &Bitmap) {
        self.by_host.values_mut().for_each(|child| child.keep_only(have));
    }

    pub fn check_invariants(&self, pieces: &Pieces) {
        for (number, takers) in self.takers.iter().enumerate() {
            let takes = |child: &Child| child.lanes.contains(LaneIndex(number as u8));
            let taking = self.by_host.iter().filter(|(_, child)| takes(child)).map(|(host, _)| host);
            assert!(taking.eq(takers), "who takes lane {number}");
        }
        for child in self.by_host.values() {
            let mut absent = child.pending.clone();
            absent.subtract(pieces.have());
            assert!(absent.none(), "only pieces we have are pending");
            assert!(child.wants.len() <= bounds::CHILD_WANTS_MAX, "a child's wants are bounded");
        }
    }
}
