//! Bitmaps against the plainest model of a set.

use crate::samples;
use proptest::prelude::*;
use shoal_proto::bitmap::Bitmap;
use shoal_proto::codec::{decode_exact, encode};
use std::collections::BTreeSet;

fn map_and_model() -> impl Strategy<Value = (Bitmap, BTreeSet<u32>)> {
    (0u32..300).prop_flat_map(|len| {
        proptest::collection::btree_set(0..len.max(1), 0..=(len as usize)).prop_map(move |mut model| {
            model.retain(|bit| *bit < len);
            let numbers: Vec<u32> = model.iter().copied().collect();
            (samples::bitmap(len, &numbers), model)
        })
    })
}

proptest! {
    #[test]
    fn agrees_with_a_set((map, model) in map_and_model(), from in 0u32..310) {
        let (len, bits) = (map.len(), model.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(map.iter().collect::<Vec<_>>(), bits.clone());
        prop_assert_eq!(map.count() as usize, bits.len());
        prop_assert_eq!(map.none(), bits.is_empty());
        prop_assert_eq!(map.is_full(), bits.len() == len as usize);
        prop_assert_eq!(map.next_set(from), (from..len).find(|bit| model.contains(bit)));
        prop_assert_eq!(map.next_unset(from), (from..len).find(|bit| !model.contains(bit)));
        prop_assert_eq!(map.get(from), model.contains(&from));
        let ranges: Vec<_> = map.ranges().collect();
        prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        prop_assert_eq!(ranges.into_iter().flatten().collect::<Vec<_>>(), bits.clone());
        let smallest: Bitmap = bits.iter().copied().collect();
        prop_assert_eq!(smallest.len(), bits.last().map_or(0, |bit| bit + 1));
        prop_assert_eq!(smallest.iter().collect::<Vec<_>>(), bits);
    }

    #[test]
    fn unions_and_differences((mut a, x) in map_and_model(), (b, y) in map_and_model()) {
        let before = a.clone();
        a.union(&b);
        let want: Vec<u32> = x.union(&y).copied().filter(|bit| *bit < a.len()).collect();
        prop_assert_eq!(a.iter().collect::<Vec<_>>(), want);
        let mut a = before;
        a.subtract(&b);
        prop_assert_eq!(a.iter().collect::<Vec<_>>(), x.difference(&y).copied().collect::<Vec<_>>());
    }

    #[test]
    fn growing_keeps_the_set((map, _) in map_and_model(), len in 0u32..400) {
        let mut grown = map.clone();
        grown.grow(len);
        prop_assert_eq!(grown.len(), map.len().max(len));
        prop_assert!(grown.iter().eq(map.iter()));
        prop_assert_eq!(grown.next_unset(map.len()), (len > map.len()).then_some(map.len()));
    }

    #[test]
    fn round_trip_and_never_longer_than_raw((map, _) in map_and_model()) {
        let bytes = encode(&map);
        prop_assert_eq!(decode_exact::<Bitmap>(&bytes).unwrap(), map.clone());
        prop_assert!(bytes.len() <= 1 + 5 + 3 + (map.len() as usize).div_ceil(8));
    }
}

#[test]
fn the_edges_of_a_word() {
    for len in [0, 1, 63, 64, 65, 127, 128, 129] {
        let full = Bitmap::full(len);
        assert_eq!((full.count(), full.is_full(), full.next_unset(0)), (len, true, None));
        assert!(!full.get(len) && full.next_set(len).is_none());
        for bit in 0..len {
            let mut map = Bitmap::new(len);
            assert!(map.set(bit) && !map.set(bit) && map.get(bit));
            assert!(map.ranges().eq(std::iter::once(bit..bit + 1)));
            assert!(map.unset(bit) && !map.unset(bit) && map.none());
        }
        let mut map = Bitmap::new(len);
        assert!(!map.set(len) && !map.set(u32::MAX) && !map.unset(u32::MAX));
    }
}

#[test]
fn malformed_ones_are_refused() {
    let pair = |len: u32, bytes: &[u8]| {
        let mut out = Vec::new();
        minicbor::Encoder::new(&mut out).array(2).unwrap().u32(len).unwrap().bytes(bytes).unwrap();
        decode_exact::<Bitmap>(&out).map_err(|error| error.to_string())
    };
    assert_eq!(pair(100, &[3, 2]).unwrap(), samples::bitmap(100, &[3, 4]));
    let table: [(&str, u32, &[u8]); 10] = [
        ("larger than any content", (1 << 20) + 1, &[]),
        ("larger than any content, full", u32::MAX, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("bits past the end", 9, &[0, 2]),
        ("longer than raw", 8, &[0, 0]),
        ("a run past the end", 100, &[99, 2]),
        ("a run that wraps", 100, &[1, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("an empty run", 100, &[1, 0]),
        ("a gap without a run", 100, &[1]),
        ("a number cut short", 100, &[0x80]),
        ("a number without end", 1000, &[0x80; 12]),
    ];
    for (what, len, bytes) in table {
        assert!(pair(len, bytes).is_err(), "{what}");
    }
    // A number of more than 32 bits.
    assert!(pair(1000, &[0xff, 0xff, 0xff, 0xff, 0x7f, 1]).is_err());
}
