//! Priorities and back-pressure.

use super::*;
use crate::links::send_queue::Queue;
use proptest::prelude::*;
use shoal_proto::frame::{FrameKind, HEADER_BYTES, Header, SLICE_HEADER_BYTES, SliceHeader};
use shoal_proto::ids::JobId;

fn header(frame: &crate::links::send_queue::Outgoing) -> (Header, Option<SliceHeader>) {
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
    let queue = Queue::new(8, 8);
    let three = 3 * limits::SLICE_BYTES_MAX;
    queue.push(part(1, Class::Bulk, pattern(three, 0))).unwrap();
    let mut seen = Vec::new();
    let mut pop = |queue: &Queue| seen.push(header(&queue.pop(limits::SLICE_BYTES_MAX, 0).unwrap()));
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
fn of_a_feed_few_versions_wait_and_always_the_latest() {
    let queue = Queue::new(6, 8);
    let latest = |feed: u8, lane: u8, body: &'static [u8]| {
        queue.push(OutFrame::Latest { key: (JobId([feed; 16]), lane), body: Bytes::from_static(body) })
    };
    latest(1, 0, b"1").unwrap();
    latest(2, 0, b"other").unwrap();
    for body in [b"2", b"3", b"4", b"5", b"6"] {
        latest(1, 0, body).unwrap();
    }
    latest(1, 1, b"another lane").unwrap();
    // Without room for one more, there is still room for a newer one.
    latest(2, 0, b"other, newer").unwrap();
    assert_eq!(latest(3, 0, b"a third"), Err(SendError::Full));
    let bodies: Vec<Bytes> =
        std::iter::from_fn(|| queue.pop(limits::SLICE_BYTES_MAX, 0)).map(|frame| frame.body).collect();
    assert_eq!(bodies, [&b"1"[..], b"other, newer", b"2", b"3", b"6", b"another lane"]);
}

proptest! {
    /// Whatever is queued and taken in whatever order: a class never passes a more urgent one, slices of a class are
    /// in order and complete, and nothing is lost.
    #[test]
    fn any_interleaving_keeps_the_order(
        steps in proptest::collection::vec((0..3usize, 1..400_000usize, 0..4usize), 1..30),
    ) {
        let queue = Queue::new(8, 64);
        let mut waiting = [0usize; 4];
        let mut open: [Option<(u32, u32)>; 4] = [None; 4];
        let mut next: [u32; 4] = [0; 4];
        let mut number = [0u32; 4];
        let mut take = |waiting: &mut [usize; 4]| {
            let Some(frame) = queue.pop(limits::SLICE_BYTES_MAX, 0) else { return waiting.iter().all(|left| *left == 0) };
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
    let queue = Queue::new(2, 2);
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
    // Shutting down, what was said still goes out; payload does not.
    assert_eq!(kinds, [(FrameKind::Control, false), (FrameKind::Control, false), (FrameKind::Bye, true)]);
}

#[tokio::test]
async fn an_urgent_part_overtakes_bulk_on_the_wire() {
    let mut slow = config(2);
    // The receiver holds one bulk part at a time, so the sender's bulk queue cannot run empty before the urgent part
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
    // Socket buffers may hold a few megabytes, never the 312 that are queued.
    assert!(before <= 3, "{before} bulk parts came first");
}

#[tokio::test]
async fn a_slow_driver_stops_the_link_not_the_memory() {
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
    // Take until the budget is used up: eight parts of 1 MiB, held on to.
    for _ in 0..8 {
        match b.next().await {
            LinkEvent::Part { payload, .. } => held.push(payload),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(b.endpoint.stats().held, 8 << 20);
    // Nothing more comes while they are held...
    assert!(tokio::time::timeout(Duration::from_millis(50), b.events.recv()).await.is_err());
    assert_eq!(b.endpoint.stats().held, 8 << 20);
    assert_eq!(b.endpoint.link_stats(a.id).unwrap().payload_in, 8 << 20);
    // ... but what is more urgent has a budget of its own: it is only behind the slice that waits.
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
    assert!(b.endpoint.stats().held <= 16 << 20);
    while sent < 65 {
        assert!(matches!(a.next().await, LinkEvent::Sent { .. }));
        sent += 1;
    }
}

#[tokio::test]
async fn a_full_queue_is_said_so() {
    let (a, b) = linked().await;
    // `b`'s driver takes nothing. Its link ends up unread, and `a`'s queue full.
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
    // The way for messages is still free.
    a.endpoint.send(b.id, OutFrame::Message(done(1))).unwrap();
}
