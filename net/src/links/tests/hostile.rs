//! Unknown clients on the port, and admitted hosts that break the protocol.

use super::*;
use crate::identity::Identity;
use crate::testing::{NOW, credential, keys};
use crate::tls::{Tls, server_name};
use shoal_proto::frame::{FrameKind, HEADER_BYTES, Header, PROTOCOL_VERSION, SliceHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(20);

async fn until_closed(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut received = Vec::new();
    let read = io.read_to_end(&mut received);
    let _ = tokio::time::timeout(PATIENCE, read).await.expect("dropped in time"); // a reset will do as well
    received
}

#[tokio::test]
async fn unknown_clients_are_dropped_and_counted() {
    let mut quick = config(1);
    quick.handshake_timeout = Duration::from_millis(200);
    let mut node = Node::start(quick).await;
    let garbage: Vec<u8> = (0..5000u32).map(|at| (at * 7 % 256) as u8).collect();
    // The start of a TLS record that never ends.
    let slow = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01];
    let visits: [&[u8]; 4] = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &garbage, &[], &slow];
    for visit in visits {
        let mut client = TcpStream::connect(node.addr()).await.unwrap();
        let _ = client.write_all(visit).await; // the node may reset the connection
        let received = until_closed(&mut client).await;
        assert!(received.len() < 64, "an alert at most, not {} bytes", received.len());
    }
    // This client leaves at once.
    drop(TcpStream::connect(node.addr()).await.unwrap());
    node.endpoint.shutdown(Duration::from_secs(5)).await;
    assert!(node.endpoint.stats().dropped_connections >= 4);
    assert!(node.events.try_recv().is_err());
}

#[tokio::test]
async fn one_address_cannot_use_up_all_pending_connections() {
    let mut strict = config(1);
    strict.pending_per_range_max = 2;
    let node = Node::start(strict).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(node.addr()).await.unwrap());
    }
    // The oldest one makes room.
    assert!(until_closed(&mut silent[0]).await.is_empty());
    assert_eq!(node.endpoint.stats().dropped_connections, 1);
    // So does the next one for a host that is admitted.
    let mut friend = Node::start(config(2)).await;
    friend.dial(&node);
    match friend.next().await {
        LinkEvent::LinkUp { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Returns a TLS connection to `node` with the key `number`, before its `Hello`.
async fn connect(node: &Node, number: u8) -> TlsStream<TcpStream> {
    let tls = Tls::new(&Identity::new(&keys(number))).unwrap();
    let stream = TcpStream::connect(node.addr()).await.unwrap();
    TlsConnector::from(tls.client()).connect(server_name(), stream).await.unwrap()
}

pub(super) fn frame(kind: FrameKind, class: Class, body: &[u8]) -> Vec<u8> {
    let mut out = Header { kind, class, body_len: body.len() as u32, stamp: 0 }.to_bytes().to_vec();
    out.extend_from_slice(body);
    out
}

pub(super) fn hello(number: u8) -> Vec<u8> {
    let mut body = vec![PROTOCOL_VERSION];
    body.extend(credential(0, keys(number).node(), NOW + 100));
    frame(FrameKind::Hello, Class::Control, &body)
}

async fn read_frame(io: &mut TlsStream<TcpStream>) -> (FrameKind, Vec<u8>) {
    let mut head = [0; HEADER_BYTES];
    io.read_exact(&mut head).await.unwrap();
    let header = Header::from_bytes(&head).unwrap();
    let mut body = vec![0; header.body_len as usize];
    io.read_exact(&mut body).await.unwrap();
    (header.kind, body)
}

/// Returns the connection of an admitted host. `node` has a link on it.
async fn admitted(node: &mut Node, number: u8) -> TlsStream<TcpStream> {
    let mut io = connect(node, number).await;
    if keys(number).node() > node.id {
        io.write_all(&hello(number)).await.unwrap();
        assert_eq!(read_frame(&mut io).await.0, FrameKind::Hello);
        io.write_all(&frame(FrameKind::Pong, Class::Control, &[])).await.unwrap();
    } else {
        assert_eq!(read_frame(&mut io).await.0, FrameKind::Hello);
        io.write_all(&hello(number)).await.unwrap();
        assert_eq!(read_frame(&mut io).await.0, FrameKind::Pong);
    }
    node.expect_up(keys(number).node()).await;
    io
}

pub(super) fn slice(class: Class, number: u32, offset: u32, total: u32, len: usize) -> Vec<u8> {
    let header = SliceHeader { content: CONTENT, part: Part::Shard(ShardIndex(number)), offset, total };
    let mut body = header.to_bytes().to_vec();
    body.resize(body.len() + len, 5);
    frame(FrameKind::Slice, class, &body)
}

/// Returns what a rogue host sends, each with a text of the error that the driver gets.
fn violations() -> Vec<(&'static str, Vec<u8>)> {
    let mut oversized = frame(FrameKind::Control, Class::Control, &[]);
    oversized[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut unknown = frame(FrameKind::Ping, Class::Control, &[]);
    unknown[0] = 99;
    let mut reserved = frame(FrameKind::Control, Class::Control, &[]);
    reserved[9] = 1;
    let started = slice(Class::Bulk, 1, 0, 100, 10);
    vec![
        ("limit", oversized),
        ("frame kind", unknown),
        ("reserved", reserved),
        ("hello twice", hello(2)),
        ("malformed", frame(FrameKind::Control, Class::Control, &[0xff; 40])),
        ("after the end", frame(FrameKind::Control, Class::Control, &[&valid_message()[..], &[0]].concat())),
        ("malformed", frame(FrameKind::Announce, Class::Control, &[1, 2, 3])),
        ("shorter than its header", frame(FrameKind::Slice, Class::Bulk, &[0; 20])),
        ("limit", slice(Class::Bulk, 1, 0, limits::PIECE_BYTES_MAX + 1, 10)),
        ("outside its part", slice(Class::Bulk, 1, 95, 100, 10)),
        ("outside its part", slice(Class::Bulk, 1, 0, 100, 0)),
        ("begins in its middle", slice(Class::Bulk, 1, 10, 100, 10)),
        ("does not continue", [started.clone(), slice(Class::Bulk, 2, 10, 100, 10)].concat()),
        ("does not continue", [started.clone(), slice(Class::Bulk, 1, 0, 100, 10)].concat()),
        ("does not continue", [started.clone(), slice(Class::Bulk, 1, 10, 101, 10)].concat()),
        ("less urgent", [slice(Class::Urgent, 1, 0, 100, 10), slice(Class::Bulk, 2, 0, 100, 10)].concat()),
        ("without a reason", frame(FrameKind::Bye, Class::Control, &[77])),
    ]
}

fn valid_message() -> Vec<u8> {
    shoal_proto::codec::encode(&done(1))
}

#[tokio::test]
async fn every_violation_ends_the_link_with_a_bye() {
    let mut node = Node::start(config(1)).await;
    for (why, bytes) in violations() {
        let mut rogue = admitted(&mut node, 2).await;
        rogue.write_all(&bytes).await.unwrap();
        match node.next().await {
            LinkEvent::LinkDown { reason: None, error: Some(error), .. } => {
                assert!(error.to_string().contains(why), "`{why}` is not in `{error}`");
            }
            other => panic!("{why}: {other:?}"),
        }
        loop {
            let (kind, body) = read_frame(&mut rogue).await;
            if kind == FrameKind::Bye {
                assert_eq!(body, [CloseReason::Protocol as u8]);
                break;
            }
        }
        until_closed(&mut rogue).await;
        assert_eq!(node.endpoint.stats().payload_held, 0, "{why}");
    }
}

#[tokio::test]
async fn a_truncated_frame_is_a_lost_link() {
    let mut node = Node::start(config(1)).await;
    for bytes in [&slice(Class::Bulk, 1, 0, 100_000, 50_000)[..30_000], &hello(2)[..7], b""] {
        let mut rogue = admitted(&mut node, 2).await;
        rogue.write_all(bytes).await.unwrap();
        rogue.shutdown().await.unwrap();
        match node.next().await {
            LinkEvent::LinkDown { reason: None, error: Some(error), .. } => {
                assert!(error.to_string().contains("closed"), "{error}")
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(node.endpoint.stats().payload_held, 0);
    }
}

#[tokio::test]
async fn nothing_counts_before_hello() {
    // Both orders of ids occur over these keys.
    let mut node = Node::start(config(1)).await;
    for number in 2..8 {
        for early in [frame(FrameKind::Control, Class::Control, &valid_message()), slice(Class::Bulk, 1, 0, 9, 9)] {
            let mut rogue = connect(&node, number).await;
            rogue.write_all(&early).await.unwrap();
            loop {
                let (kind, body) = read_frame(&mut rogue).await;
                if kind == FrameKind::Bye {
                    assert_eq!(body, [CloseReason::Protocol as u8]);
                    break;
                }
                assert_eq!(kind, FrameKind::Hello);
            }
        }
    }
    node.endpoint.shutdown(Duration::from_secs(5)).await;
    assert!(node.events.try_recv().is_err());
    assert_eq!(node.endpoint.stats().bytes_in, 0);
}

#[tokio::test]
async fn another_protocol_version_gets_a_bye() {
    let node = Node::start(config(1)).await;
    let mut rogue = connect(&node, 2).await;
    let mut other = hello(2);
    other[HEADER_BYTES] = PROTOCOL_VERSION + 1;
    rogue.write_all(&other).await.unwrap();
    loop {
        let (kind, body) = read_frame(&mut rogue).await;
        if kind == FrameKind::Bye {
            assert_eq!(body, [CloseReason::Protocol as u8]);
            break;
        }
    }
}

#[tokio::test]
async fn shards_that_nobody_asked_for_take_no_memory() {
    let mut node = Node::start(config(1)).await;
    let mut rogue = admitted(&mut node, 2).await;
    let mut unasked = slice(Class::Bulk, 1, 0, 100, 10);
    unasked[HEADER_BYTES] ^= 1; // another content
    rogue.write_all(&[unasked, valid_frame()].concat()).await.unwrap();
    assert!(matches!(node.next().await, LinkEvent::Message { .. }));
    let stats = node.endpoint.stats();
    assert_eq!((stats.payload_held, stats.unexpected_bytes), (0, 10));
    // One that was asked for.
    let asked = slice(Class::Normal, 1, 0, 100, 10);
    rogue.write_all(&[asked, valid_frame()].concat()).await.unwrap();
    assert!(matches!(node.next().await, LinkEvent::Message { .. }));
    assert_eq!(node.endpoint.stats().payload_held, 100);
}

fn valid_frame() -> Vec<u8> {
    frame(FrameKind::Control, Class::Control, &valid_message())
}

#[tokio::test]
async fn a_part_that_hardly_grows_ends_its_link_while_another_waits_for_memory() {
    let mut small = config(1);
    small.receive_bytes = limits::PIECE_BYTES_MAX as usize;
    let mut node = Node::start(small).await;
    let (slow_id, quick_id) = (keys(2).node(), keys(3).node());
    let mut slow = admitted(&mut node, 2).await;
    slow.write_all(&slice(Class::Bulk, 1, 0, limits::PIECE_BYTES_MAX, 10)).await.unwrap();
    slow.write_all(&valid_frame()).await.unwrap();
    assert!(matches!(node.next().await, LinkEvent::Message { .. }));
    let mut quick = admitted(&mut node, 3).await;
    quick.write_all(&slice(Class::Bulk, 2, 0, 100_000, 100_000)).await.unwrap();
    match node.next().await {
        LinkEvent::LinkDown { node, error: Some(error), .. } => {
            assert_eq!(node, slow_id);
            assert!(error.to_string().contains("too slowly"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(node.next().await, LinkEvent::Part { node, .. } if node == quick_id));
}
