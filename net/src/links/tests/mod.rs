//! Two endpoints on loopback. Tests of single modules are in those modules and in the files beside this one.

mod admission;
mod hostile;
mod priorities;
mod silence;
mod trust;

use crate::links::{ExpectError, LinkEvent, OutFrame, RecordLayer, SendError, encode_announce};
use crate::testing::{CONTENT, Node, config, linked, pair};
use bytes::Bytes;
use shoal_proto::announcement::Class;
use shoal_proto::frame::{AnnounceFrame, CloseReason, Part};
use shoal_proto::ids::{ContentId, ShardIndex};
use shoal_proto::limits;
use shoal_proto::message::Message;
use std::time::Duration;

fn done(number: u8) -> Message {
    Message::Done { content: ContentId([number; 32]) }
}

fn pattern(len: usize, seed: usize) -> Bytes {
    (0..len).map(|at| ((at * 31 + at / 251 + seed) % 251) as u8).collect::<Vec<_>>().into()
}

fn part(number: u32, class: Class, payload: Bytes) -> OutFrame {
    OutFrame::Part { content: CONTENT, part: Part::Shard(ShardIndex(number)), class, payload }
}

#[tokio::test]
async fn messages_and_announcements_go_both_ways_in_order() {
    let (mut a, mut b) = linked().await;
    let frame = AnnounceFrame { envelope: vec![1; 300], lane: 1, manifest: Some(vec![2; 9000]), data: None };
    for number in 0..50 {
        a.endpoint.send(b.id, OutFrame::Message(done(number))).unwrap();
        b.endpoint.send(a.id, OutFrame::Message(done(number + 100))).unwrap();
    }
    a.endpoint.send(b.id, OutFrame::Announce(encode_announce(&frame))).unwrap();
    for number in 0..50 {
        match (a.next().await, b.next().await) {
            (
                LinkEvent::Message { node: from_b, message: to_a },
                LinkEvent::Message { node: from_a, message: to_b },
            ) => {
                assert_eq!((from_a, from_b), (a.id, b.id));
                assert_eq!((to_a, to_b), (done(number + 100), done(number)));
            }
            other => panic!("{other:?}"),
        }
    }
    match b.next().await {
        LinkEvent::Announce { node, frame: got } => assert_eq!((node, got), (a.id, frame)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn parts_of_all_boundary_lengths_arrive_whole() {
    let (mut a, mut b) = linked().await;
    let slice = limits::SLICE_BYTES_MAX;
    let lengths = [1, 2, 16 * 1024 - 1, slice - 1, slice, slice + 1, 3 * slice + 5, limits::PIECE_BYTES_MAX as usize];
    for (number, len) in lengths.into_iter().enumerate() {
        a.endpoint.send(b.id, part(number as u32, Class::Bulk, pattern(len, number))).unwrap();
    }
    for (number, len) in lengths.into_iter().enumerate() {
        match b.next().await {
            LinkEvent::Part { node, content, part, class, payload } => {
                assert_eq!((node, content, class), (a.id, CONTENT, Class::Bulk));
                assert_eq!(part, Part::Shard(ShardIndex(number as u32)));
                assert!(payload == pattern(len, number), "part {number} of {len} bytes");
            }
            other => panic!("{other:?}"),
        }
        match a.next().await {
            LinkEvent::Sent { node, part, .. } => {
                assert_eq!((node, part), (b.id, Part::Shard(ShardIndex(number as u32))))
            }
            other => panic!("{other:?}"),
        }
    }
    let total: usize = lengths.iter().sum();
    let (sent, got) = (a.endpoint.link_stats(b.id).unwrap(), b.endpoint.stats());
    assert_eq!((sent.payload_out, got.payload_in), (total as u64, total as u64));
    assert_eq!(sent.bytes_out, got.bytes_in);
    assert_eq!(got.payload_held, 0, "every payload was dropped");
}

#[tokio::test]
async fn a_manifest_arrives_only_if_it_is_expected() {
    let (mut a, mut b) = linked().await;
    let manifest = pattern(3 << 20, 5);
    let send = |content: ContentId| OutFrame::Part {
        content,
        part: Part::Manifest,
        class: Class::Normal,
        payload: manifest.clone(),
    };
    let (unasked, wrong_length, right) = (ContentId([1; 32]), ContentId([2; 32]), ContentId([3; 32]));
    b.endpoint.expect_manifest(a.id, wrong_length, 77).unwrap();
    b.endpoint.expect_manifest(a.id, right, manifest.len() as u64).unwrap();
    for content in [unasked, wrong_length, right] {
        a.endpoint.send(b.id, send(content)).unwrap();
    }
    match b.next().await {
        LinkEvent::Part { content, part: Part::Manifest, payload, .. } => {
            assert_eq!(content, right);
            assert!(payload == manifest);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(b.endpoint.stats().unexpected_bytes, 2 * manifest.len() as u64);
    assert!(matches!(a.next().await, LinkEvent::Sent { part: Part::Manifest, .. }));
    assert_eq!(b.endpoint.expect_manifest(a.id, right, 1 << 40), Err(ExpectError::Invalid));
    assert_eq!(b.endpoint.expect_manifest(b.id, right, 9), Err(ExpectError::Gone));
}

#[tokio::test]
async fn both_dial_at_once_and_get_one_link() {
    for _ in 0..20 {
        let (mut a, mut b) = pair().await;
        a.dial(&b);
        b.dial(&a);
        let (a_id, b_id) = (a.id, b.id);
        tokio::join!(a.expect_up(b_id), b.expect_up(a_id));
        // Another event of the race would arrive before these messages.
        a.endpoint.send(b.id, OutFrame::Message(done(1))).unwrap();
        b.endpoint.send(a.id, OutFrame::Message(done(2))).unwrap();
        assert!(matches!(a.next().await, LinkEvent::Message { .. }));
        assert!(matches!(b.next().await, LinkEvent::Message { .. }));
        tokio::join!(a.endpoint.shutdown(Duration::from_secs(5)), b.endpoint.shutdown(Duration::from_secs(5)));
        for node in [&mut a, &mut b] {
            let rest: Vec<_> = std::iter::from_fn(|| node.events.try_recv().ok()).collect();
            assert!(matches!(rest.as_slice(), [LinkEvent::LinkDown { .. }]), "{rest:?}");
        }
    }
}

#[tokio::test]
async fn closing_tells_the_other_end_why() {
    let (mut a, mut b) = linked().await;
    a.endpoint.close(b.id, CloseReason::Banned);
    assert_eq!(a.endpoint.send(b.id, OutFrame::Message(done(1))), Err(SendError::Gone));
    match b.next().await {
        LinkEvent::LinkDown { node, reason: Some(CloseReason::Banned), error: None } => assert_eq!(node, a.id),
        other => panic!("{other:?}"),
    }
    match a.next().await {
        LinkEvent::LinkDown { node, reason: None, error: None } => assert_eq!(node, b.id),
        other => panic!("{other:?}"),
    }
    // The slot is free again.
    b.dial(&a);
    let (a_id, b_id) = (a.id, b.id);
    tokio::join!(a.expect_up(b_id), b.expect_up(a_id));
}

#[tokio::test]
async fn shutdown_sends_queued_messages_and_leaves_no_task() {
    let (mut a, mut b) = linked().await;
    for number in 0..20 {
        a.endpoint.send(b.id, OutFrame::Message(done(number))).unwrap();
    }
    a.endpoint.shutdown(Duration::from_secs(5)).await;
    assert!(a.endpoint.context.tasks().is_empty());
    assert!(a.endpoint.context.tasks().is_closed());
    for _ in 0..20 {
        assert!(matches!(b.next().await, LinkEvent::Message { .. }));
    }
    assert!(matches!(b.next().await, LinkEvent::LinkDown { reason: Some(CloseReason::Shutdown), .. }));
    assert!(matches!(a.next().await, LinkEvent::LinkDown { reason: None, error: None, .. }));
    // The listener is gone, so the dial fails.
    b.dial(&a);
    let event = b.next().await;
    assert!(matches!(event, LinkEvent::DialFailed { .. }), "{event:?}");
    // A closed endpoint does not dial.
    a.dial(&b);
    drop(a.endpoint);
    assert!(a.events.recv().await.is_none());
}

#[tokio::test]
async fn dropping_the_endpoint_ends_its_tasks() {
    let (a, mut b) = linked().await;
    let context = a.endpoint.context.clone();
    context.tasks().close();
    drop(a);
    context.tasks().wait().await;
    assert!(matches!(b.next().await, LinkEvent::LinkDown { reason: None, error: Some(_), .. }));
}

#[tokio::test]
async fn a_dial_tries_all_addresses_and_ipv6_works() {
    let mut wide = config(1);
    wide.listen = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
    let mut a = Node::start(wide).await;
    let mut b = Node::start(config(2)).await;
    let v6 = a.endpoint.local_addrs()[1];
    assert!(v6.is_ipv6() && v6.port() != 0);
    // The first address refuses, the second is that of another node, the third is right.
    let c = Node::start(config(3)).await;
    let closed = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    b.endpoint.dial(a.id, vec![closed, c.addr(), v6]);
    a.expect_up(b.id).await;
    match b.next().await {
        LinkEvent::LinkUp { node, remote, dialled: true, credential } => {
            assert_eq!((node, remote, credential.node), (a.id, v6, a.id));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn frames_that_every_receiver_would_refuse_are_not_queued() {
    let (a, b) = linked().await;
    let empty = part(0, Class::Bulk, Bytes::new());
    let long = part(0, Class::Bulk, Bytes::from(vec![0; limits::PIECE_BYTES_MAX as usize + 1]));
    let announce = OutFrame::Announce(Bytes::from(vec![0; limits::ANNOUNCE_FRAME_BYTES_MAX + 1]));
    for frame in [empty, long, announce] {
        assert_eq!(a.endpoint.send(b.id, frame), Err(SendError::Invalid));
    }
    assert_eq!(a.endpoint.send(a.id, OutFrame::Message(done(1))), Err(SendError::Gone));
}

#[tokio::test]
async fn hosts_with_different_record_layers_have_links() {
    for (at_a, at_b) in [(RecordLayer::Own, RecordLayer::Rustls), (RecordLayer::Rustls, RecordLayer::Own)] {
        let (mut config_a, mut config_b) = (config(1), config(2));
        (config_a.records, config_b.records) = (at_a, at_b);
        let (mut a, mut b) = (Node::start(config_a).await, Node::start(config_b).await);
        a.dial(&b);
        let (a_id, b_id) = (a.id, b.id);
        tokio::join!(a.expect_up(b_id), b.expect_up(a_id));
        let payload = pattern(3 << 20, 1);
        a.endpoint.send(b.id, part(1, Class::Bulk, payload.clone())).unwrap();
        b.endpoint.send(a.id, part(2, Class::Urgent, payload.clone())).unwrap();
        for node in [&mut a, &mut b] {
            let mut received = false;
            while !received {
                match node.next().await {
                    LinkEvent::Part { payload: at_node, .. } => {
                        assert!(at_node == payload);
                        received = true;
                    }
                    LinkEvent::Sent { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
