//! What arrives on a link: headers, slices, messages, announcement frames.

#![no_main]

use shoal_fuzz::{heap, stable};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::frame::{AnnounceFrame, HEADER_BYTES, Header, Part, SLICE_HEADER_BYTES, SliceHeader};
use shoal_proto::limits;
use shoal_proto::message::Message;

fn check_header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else { return };
    if let Ok(header) = Header::from_bytes(bytes) {
        assert_eq!(header.to_bytes(), *bytes, "a header has one form");
        assert!(header.body_len as usize <= header.kind.body_max());
    }
}

fn check_slice(bytes: &[u8]) {
    let Some((head, payload)) = bytes.split_first_chunk::<SLICE_HEADER_BYTES>() else { return };
    if let Ok(slice) = SliceHeader::from_bytes(head, payload.len()) {
        assert_eq!(slice.to_bytes(), *head, "a slice header has one form");
        let total = u64::from(slice.total);
        assert!(!payload.is_empty() && u64::from(slice.offset) + payload.len() as u64 <= total);
        let max = match slice.part {
            Part::Manifest => limits::MANIFEST_BYTES_MAX as u64,
            Part::Shard(_) => u64::from(limits::PIECE_BYTES_MAX),
        };
        assert!(total <= max);
    }
}

fn check_bitmap(map: &Bitmap) {
    assert_eq!(map.iter().count() as u32, map.count());
    assert!(map.ranges().all(|range| range.start < range.end && range.end <= map.len()));
    assert_eq!(map.ranges().map(|range| range.len() as u32).sum::<u32>(), map.count());
}

fn check_message(bytes: &[u8]) {
    let Some(message) = stable::value::<Message>(bytes) else { return };
    if message.validate().is_err() {
        return;
    }
    match &message {
        Message::Subscribe { have: map, .. } | Message::Received { pieces: map, .. } => check_bitmap(map),
        Message::Want { shards, .. } => assert!(shards.len() <= limits::WANT_SHARDS_MAX),
        Message::Demotion { placement, .. } => assert!(placement.hosts().len() <= limits::PLACEMENT_HOSTS_MAX),
        _ => {}
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check_header(bytes);
    check_slice(bytes);
    // A link reads no longer bodies of these kinds.
    if bytes.len() <= limits::CONTROL_FRAME_BYTES_MAX {
        // A set of the largest content has 2^20 bits.
        let heap_max = 64 * bytes.len() + 6 * (limits::PIECES_MAX as usize / 8);
        heap::bounded(heap_max, || check_message(bytes));
        heap::bounded(heap_max, || stable::value::<AnnounceFrame>(bytes));
    }
});
