//! Priorities and back-pressure of links.

use super::*;
use crate::links::FeedKey;
use crate::links::send_queue::{Outgoing, SendQueue};
use proptest::prelude::*;
use shoal_proto::frame::{FrameKind, HEADER_BYTES, Header, SLICE_HEADER_BYTES, SliceHeader};
use shoal_proto::ids::JobId;

fn header(frame: &Outgoing) -> (Header, Option<SliceHeader>) {
    let head = frame.head.as_slice();
    let header = Header::from_bytes(head[..HEADER_BYTES].try_into().unwrap()).unwrap();
    assert_eq!(header.body_len as usize, head.len() - HEADER_BYTES + frame.body.len());
    let slice = (header.kind == FrameKind::Slice).then(|| {
        let bytes: &[u8; SLICE_HEADER_BYTES] = head[HEADER_BYTES..].try_into().unwrap();
        SliceHeader::from_bytes(bytes, frame.body.len()).unwrap()
    });
    (header, slice)
}

#[test]
fn a_more_urgent_frame_goes_between_two_slices() {
    let queue = SendQueue::new(8, 8);
    let three = 3 * limits::SLICE_BYTES_MAX;
    queue.push(part(1, Class::Bulk, pattern(three, 0))).unwrap();
    let mut seen = Vec::new();
    let mut pop = |queue: &SendQueue| seen.push(header(&queue.pop(limits::SLICE_BYTES_MAX, 0).unwrap()));
    pop(&queue);
    queue.push(part(2, Class::Normal, pattern(three, 0))).unwrap();
    pop(&queue);
    queue.push(part(3, Class::Urgent, pattern(10, 0))).unwrap();
    queue.push(OutFrame::Message(done(1))).unwrap();
    queue.ping();
    (0..7).for_each(|_| pop(&queue));
    assert!(queue.pop(limits::SLICE_BYTES_MAX, 0).is_none());
    let order: Vec<_> = seen
        .iter()
        .map(|(header, slice)| match (header.kind, slice.map(|slice| slice.part)) {
            (FrameKind::Slice, Some(Part::Shard(shard))) => format!("{}", shard.0),
            (kind, _) => format!("{kind:?}"),
        })
        .collect();
    assert_eq!(order, ["1", "2", "Ping", "Control", "3", "2", "2", "1", "1"]);
}

#[test]
fn few_versions_of_a_feed_wait_and_always_the_newest() {
    let queue = SendQueue::new(6, 8);
    let latest = |feed: u8, lane: u8, body: &'static [u8]| {
        queue.push(OutFrame::Latest { key: FeedKey { job: JobId([feed; 16]), lane }, body: Bytes::from_static(body) })
    };
    latest(1, 0, b"1").unwrap();
    latest(2, 0, b"other").unwrap();
    for body in [b"2", b"3", b"4", b"5", b"6"] {
        latest(1, 0, body).unwrap();
    }
    latest(1, 1, b"another lane").unwrap();
    // The queue is full, but a newer version still replaces an older one.
    latest(2, 0, b"other, newer").unwrap();
    assert_eq!(latest(3, 0, b"a third"), Err(SendError::Full));
    let bodies: Vec<Bytes> =
        std::iter::from_fn(|| queue.pop(limits::SLICE_BYTES_MAX, 0)).map(|frame| frame.body).collect();
    assert_eq!(bodies, [&b"1"[..], b"other, newer", b"2", b"3", b"6", b"another lane"]);
}

proptest! {
    /// In every interleaving of pushes and pops, no class passes a more urgent one. Slices of a class leave in order
    /// and completely, and nothing is lost.
    #[test]
    fn any_interleaving_keeps_the_order(
        steps in proptest::collection::vec((0..3usize, 1..400_000usize, 0..4usize), 1..30),
    ) {
        let queue = SendQueue::new(8, 64);
        let mut waiting = [0usize; 4];
        let mut open: [Option<(u32, u32)>; 4] = [None; 4];
        let mut next: [u32; 4] = [0; 4];
        let mut number = [0u32; 4];
        let mut take = |waiting: &mut [usize; 4]| {
            let Some(frame) = queue.pop(limits::SLICE_BYTES_MAX, 0) else {
                return waiting.iter().all(|left| *left == 0);
            };
            let (header, slice) = header(&frame);
            let (class, slice) = (header.class as usize, slice.unwrap());
            if waiting[..class].iter().any(|left| *left > 0) {
                return false;
            }
            let (shard, filled) = open[class].unwrap_or((next[class], 0));
            if slice.part != Part::Shard(ShardIndex(shard)) || slice.offset != filled {
                return false;
            }
            let filled = filled + frame.body.len() as u32;
            waiting[class] -= frame.body.len();
            let whole = filled == slice.total;
            open[class] = (!whole).then_some((shard, filled));
            next[class] += u32::from(whole);
            whole == frame.completes.is_some()
        };
        for (class, len, takes) in steps {
            let class = Class::ALL[class + 1];
            let shard = number[class as usize];
            number[class as usize] += 1;
            queue.push(part(shard, class, Bytes::from(vec![0; len]))).unwrap();
            waiting[class as usize] += len;
            for _ in 0..takes {
                prop_assert!(take(&mut waiting));
            }
        }
        while waiting.iter().any(|left| *left > 0) {
            prop_assert!(take(&mut waiting));
        }
        prop_assert!(queue.pop(limits::SLICE_BYTES_MAX, 0).is_none());
    }
}

#[test]
fn queues_are_bounded_and_closing_drops_what_waits() {
    let queue = SendQueue::new(2, 2);
    for number in 0..2 {
        queue.push(OutFrame::Message(done(number))).unwrap();
        queue.push(part(1, Class::Bulk, pattern(9, 0))).unwrap();
        queue.push(part(1, Class::Urgent, pattern(9, 0))).unwrap();
    }
    assert_eq!(queue.push(OutFrame::Message(done(9))), Err(SendError::Full));
    assert_eq!(queue.push(part(1, Class::Bulk, pattern(9, 0))), Err(SendError::Full));
    assert_eq!(queue.push(part(1, Class::Urgent, pattern(9, 0))), Err(SendError::Full));
    queue.push(part(1, Class::Normal, pattern(9, 0))).unwrap();
    assert!(queue.close(CloseReason::Shutdown));
    assert!(!queue.close(CloseReason::Banned), "the first reason stands");
    assert_eq!(queue.push(OutFrame::Message(done(9))), Err(SendError::Gone));
    let kinds: Vec<_> = std::iter::from_fn(|| queue.pop(limits::SLICE_BYTES_MAX, 0))
        .map(|frame| (header(&frame).0.kind, frame.last))
        .collect();
    // On shutdown queued messages leave, and payload does not.
    assert_eq!(kinds, [(FrameKind::Control, false), (FrameKind::Control, false), (FrameKind::Bye, true)]);
}

#[tokio::test]
async fn an_urgent_part_overtakes_bulk_on_the_wire() {
    let mut slow = config(2);
    // The receiver has memory for one bulk part at a time. So the sender's bulk queue is not empty when the urgent part
    // is sent.
    slow.receive_bytes = limits::PIECE_BYTES_MAX as usize;
    let (mut a, mut b) = (Node::start(config(1)).await, Node::start(slow).await);
    a.dial(&b);
    let (a_id, b_id) = (a.id, b.id);
    tokio::join!(a.expect_up(b_id), b.expect_up(a_id));
    let bulk = pattern(limits::PIECE_BYTES_MAX as usize, 1);
    for number in 0..40 {
        a.endpoint.send(b.id, part(number, Class::Bulk, bulk.clone())).unwrap();
    }
    let LinkEvent::Part { payload: first, .. } = b.next().await else { panic!("expected a part") };
    a.endpoint.send(b.id, part(100, Class::Urgent, pattern(1000, 2))).unwrap();
    drop(first);
    let mut before = 0;
    while let LinkEvent::Part { class: Class::Bulk, .. } = b.next().await {
        before += 1;
    }
    // Socket buffers may hold a few MiB, but never the 312 MiB that are queued.
    assert!(before <= 3, "{before} bulk parts came first");
}

#[tokio::test]
async fn a_slow_driver_stops_the_link_and_memory_stays_bounded() {
    let mut narrow = config(2);
    narrow.receive_bytes = limits::PIECE_BYTES_MAX as usize;
    narrow.events_max = 4;
    let (mut a, mut b) = (Node::start(config(1)).await, Node::start(narrow).await);
    a.dial(&b);
    let (a_id, b_id) = (a.id, b.id);
    tokio::join!(a.expect_up(b_id), b.expect_up(a_id));
    let payload = pattern(1 << 20, 1);
    let mut held = Vec::new();
    let mut sent = 0u32;
    for number in 0..64 {
        a.endpoint.send(b.id, part(number, Class::Bulk, payload.clone())).unwrap();
    }
    // Eight parts of 1 MiB use up the budget.
    for _ in 0..8 {
        match b.next().await {
            LinkEvent::Part { payload, .. } => held.push(payload),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(b.endpoint.stats().payload_held, 8 << 20);
    // No more parts arrive while the eight are held.
    assert!(tokio::time::timeout(Duration::from_millis(50), b.events.recv()).await.is_err());
    assert_eq!(b.endpoint.stats().payload_held, 8 << 20);
    assert_eq!(b.endpoint.link_stats(a.id).unwrap().payload_in, 8 << 20);
    // Urgent parts have a budget of their own. They wait only for the slice that is being read.
    a.endpoint.send(b.id, part(99, Class::Urgent, payload.clone())).unwrap();
    held.clear();
    let mut rest = 0;
    while rest < 57 {
        tokio::select! {
            event = b.next() => match event {
                LinkEvent::Part { .. } => rest += 1,
                other => panic!("{other:?}"),
            },
            event = a.next() => {
                assert!(matches!(event, LinkEvent::Sent { .. }));
                sent += 1;
            }
        }
    }
    assert!(b.endpoint.stats().payload_held <= 16 << 20);
    while sent < 65 {
        assert!(matches!(a.next().await, LinkEvent::Sent { .. }));
        sent += 1;
    }
}

#[tokio::test]
async fn a_full_queue_refuses_frames() {
    let (a, b) = linked().await;
    // The driver of `b` takes no events. So `b` stops to read the link, and the queue of `a` fills up.
    let payload = pattern(1 << 20, 1);
    let mut queued = 0;
    let refused = loop {
        match a.endpoint.send(b.id, part(0, Class::Bulk, payload.clone())) {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
        assert!(queued < 100_000);
        tokio::task::yield_now().await;
    };
    assert_eq!(refused, SendError::Full);
    // Messages have a queue of their own.
    a.endpoint.send(b.id, OutFrame::Message(done(1))).unwrap();
}
