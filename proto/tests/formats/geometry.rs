//! Geometry against counting by hand: every small shape, and the largest.

use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, LaneIndex, PieceIndex, ShardIndex, StripeIndex};
use shoal_proto::limits;
use std::collections::BTreeSet;
use std::sync::Arc;

fn make(data: u8, parity: u8, lanes: u8, id: u8, pieces: u32) -> Geometry {
    let lens: Arc<[u32]> = (0..pieces).map(|at| 1 + (at * 7) % 5).collect();
    Geometry::new(data, parity, lanes, &ContentId([id; 32]), lens).unwrap()
}

/// Checks everything derived from one shape against a walk over its stripes.
fn check(geometry: &Geometry) {
    let (data, width) = (u32::from(geometry.data()), geometry.width());
    let pieces = geometry.piece_count();
    let mut shards = BTreeSet::new();
    let mut next_piece = 0;
    for stripe in (0..geometry.stripe_count()).map(StripeIndex) {
        let range = geometry.stripe_pieces(stripe);
        assert_eq!(range.start, next_piece);
        assert!(!range.is_empty() && range.len() as u32 == geometry.stripe_data(stripe));
        next_piece = range.end;
        let longest = range.clone().map(|piece| geometry.piece_len(PieceIndex(piece))).max().unwrap();
        assert_eq!(geometry.parity_len(stripe), longest);
        let mut lanes = BTreeSet::new();
        for place in (0..geometry.stripe_data(stripe)).chain(data..width) {
            let shard = geometry.shard_at(stripe, place);
            assert!(shards.insert(shard) && shard.0 < geometry.shard_space());
            assert_eq!(geometry.split(shard), Some((stripe, place)));
            assert_eq!(geometry.is_parity(shard), place >= data);
            let piece = (place < data).then(|| PieceIndex(range.start + place));
            assert_eq!(geometry.piece_of(shard), piece);
            assert_eq!(geometry.shard_len(shard), Some(piece.map_or(longest, |piece| geometry.piece_len(piece))));
            if let Some(piece) = piece {
                assert_eq!(geometry.shard_of(piece), shard);
                assert_eq!(geometry.lane_of_piece(piece), geometry.lane_of(shard));
            }
            assert!(geometry.lane_of(shard).0 < geometry.lanes());
            lanes.insert(geometry.lane_of(shard));
        }
        if width <= u32::from(geometry.lanes()) {
            let count = geometry.stripe_data(stripe) + u32::from(geometry.parity());
            assert_eq!(lanes.len() as u32, count, "shards of a stripe share a lane");
        }
    }
    assert_eq!(next_piece, pieces);
    for shard in (0..geometry.shard_space() + 2 * width).map(ShardIndex) {
        if !shards.contains(&shard) {
            assert_eq!((geometry.split(shard), geometry.piece_of(shard)), (None, None));
            assert_eq!(geometry.shard_len(shard), None);
        }
    }
    check_lanes(geometry);
}

fn check_lanes(geometry: &Geometry) {
    let mut seen = 0;
    let mut loads = Vec::new();
    for lane in (0..geometry.lanes()).map(LaneIndex) {
        let of_lane: Vec<_> = geometry.pieces_of_lane(lane).collect();
        assert!(of_lane.iter().all(|piece| geometry.lane_of_piece(*piece) == lane));
        seen += of_lane.len();
        loads.push(of_lane.len());
    }
    assert_eq!(seen as u32, geometry.piece_count());
    assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "lanes carry equally many pieces");
    for lane in [geometry.lanes(), u8::MAX] {
        assert_eq!(geometry.pieces_of_lane(LaneIndex(lane)).count(), 0);
    }
}

#[test]
fn every_small_shape() {
    for data in 1..=4 {
        for parity in 0..=3 {
            for lanes in [1, 2, 3, 5, 7, 8] {
                for pieces in 0..=13 {
                    check(&make(data, parity, lanes, 5, pieces));
                }
            }
        }
    }
    for id in 0..=255 {
        check(&make(3, 2, 64, id, 10));
    }
}

#[test]
fn the_largest_shapes() {
    let lens: Arc<[u32]> = vec![limits::PIECE_BYTES_MAX; limits::PIECES_MAX as usize].into();
    let id = ContentId([255; 32]);
    for (data, parity) in [(1, limits::STRIPE_PARITY_MAX), (limits::STRIPE_DATA_MAX, limits::STRIPE_PARITY_MAX), (1, 0)]
    {
        let geometry = Geometry::new(data, parity, limits::LANES_MAX, &id, lens.clone()).unwrap();
        assert_eq!(geometry.bytes(), 1 << 43);
        let space = u64::from(geometry.stripe_count()) * u64::from(geometry.width());
        assert_eq!(u64::from(geometry.shard_space()), space);
        let last = PieceIndex(limits::PIECES_MAX - 1);
        assert_eq!(geometry.piece_of(geometry.shard_of(last)), Some(last));
        // Indices from nowhere give nothing, and do not overflow.
        for stripe in [geometry.stripe_count(), u32::MAX / 2, u32::MAX].map(StripeIndex) {
            assert_eq!((geometry.stripe_data(stripe), geometry.parity_len(stripe)), (0, 0));
            assert!(geometry.stripe_pieces(stripe).is_empty());
        }
        for shard in [geometry.shard_space(), u32::MAX - 1, u32::MAX].map(ShardIndex) {
            assert_eq!((geometry.split(shard), geometry.shard_len(shard)), (None, None));
            assert!(geometry.lane_of(shard).0 < limits::LANES_MAX);
        }
    }
}

#[test]
fn shapes_out_of_bounds_are_refused() {
    let make =
        |data, parity, lanes, lens: Vec<u32>| Geometry::new(data, parity, lanes, &ContentId([0; 32]), lens.into());
    assert!(make(1, 0, 1, vec![]).is_ok());
    let table = [
        (0, 1, 1, vec![1]),
        (limits::STRIPE_DATA_MAX + 1, 1, 1, vec![1]),
        (1, limits::STRIPE_PARITY_MAX + 1, 1, vec![1]),
        (1, 1, 0, vec![1]),
        (1, 1, limits::LANES_MAX + 1, vec![1]),
        (1, 1, 1, vec![0]),
        (1, 1, 1, vec![limits::PIECE_BYTES_MAX + 1]),
        (1, 1, 1, vec![1; limits::PIECES_MAX as usize + 1]),
    ];
    for (data, parity, lanes, lens) in table {
        let count = lens.len();
        assert!(make(data, parity, lanes, lens).is_err(), "k {data}, m {parity}, L {lanes}, {count} pieces");
    }
}
