//! Silent links, on connections in memory and with paused time.

use super::hostile::{frame, hello, slice};
use super::*;
use crate::links::connect::start_session;
use crate::links::error::Refusal;
use crate::links::hello::{HelloError, exchange_hello};
use crate::testing::keys;
use shoal_proto::frame::{FrameKind, HEADER_BYTES, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

const WIRE: usize = 256 * 1024;

async fn node_without_listener(number: u8) -> Node {
    let mut config = config(number);
    config.listen = vec![];
    Node::start(config).await
}

/// Exchanges `Hello` with node `other` at the far end of `io`, and makes the connection a link.
async fn adopt(node: &Node, other: u8, mut io: DuplexStream) -> Result<(), HelloError> {
    let other = keys(other).node();
    let hello = exchange_hello(&node.endpoint.context, &mut io, other).await?;
    start_session(&node.endpoint.context, io, other, hello, "192.0.2.1:1".parse().unwrap(), false);
    Ok(())
}

async fn read_frame(io: &mut DuplexStream) -> std::io::Result<(FrameKind, Vec<u8>)> {
    let mut head = [0; HEADER_BYTES];
    io.read_exact(&mut head).await?;
    let header = Header::from_bytes(&head).unwrap();
    let mut body = vec![0; header.body_len as usize];
    io.read_exact(&mut body).await?;
    Ok((header.kind, body))
}

/// Exchanges `Hello` as node `number`, frame by frame.
async fn hello_by_hand(io: &mut DuplexStream, number: u8, node: &Node) {
    io.write_all(&hello(number)).await.unwrap();
    if keys(number).node() > node.id {
        assert_eq!(read_frame(io).await.unwrap().0, FrameKind::Hello);
        io.write_all(&frame(FrameKind::Pong, Class::Control, &[])).await.unwrap();
    } else {
        assert_eq!(read_frame(io).await.unwrap().0, FrameKind::Hello);
        assert_eq!(read_frame(io).await.unwrap().0, FrameKind::Pong);
    }
}

/// Returns the far end of a link that the test serves itself.
async fn link_by_hand(node: &mut Node, number: u8) -> DuplexStream {
    let (near, mut far) = duplex(WIRE);
    let (adopted, ()) = tokio::join!(adopt(node, number, near), hello_by_hand(&mut far, number, node));
    adopted.unwrap();
    node.expect_up(keys(number).node()).await;
    assert_eq!(read_frame(&mut far).await.unwrap().0, FrameKind::TrustVersion);
    far
}

fn error_of(event: LinkEvent) -> String {
    match event {
        LinkEvent::LinkDown { reason: None, error: Some(error), .. } => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Two nodes with a link between them.
async fn linked_in_memory() -> (Node, Node) {
    let (mut a, mut b) = (node_without_listener(1).await, node_without_listener(2).await);
    let (near, far) = duplex(WIRE);
    let (one, two) = tokio::join!(adopt(&a, 2, near), adopt(&b, 1, far));
    one.unwrap();
    two.unwrap();
    let (a_id, b_id) = (a.id, b.id);
    tokio::join!(a.expect_up(b_id), b.expect_up(a_id));
    (a, b)
}

/// Sends nothing until the link is dead. Returns the number of pings that arrived, and the time.
async fn dies_silent(node: &mut Node, far: &mut DuplexStream) -> (u32, Duration) {
    let begin = Instant::now();
    let listening = async {
        let mut pings = 0;
        while let Ok((kind, _)) = read_frame(far).await {
            assert_eq!(kind, FrameKind::Ping);
            pings += 1;
        }
        pings
    };
    let dying = async {
        let event = node.events.recv().await.unwrap();
        (error_of(event), begin.elapsed())
    };
    let (pings, (error, after)) = tokio::join!(listening, dying);
    assert!(error.contains("nothing heard"), "{error}");
    (pings, after)
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_lives_on_pings() {
    let (a, mut b) = linked_in_memory().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    a.endpoint.send(b.id, OutFrame::Message(done(1))).unwrap();
    assert!(matches!(b.next().await, LinkEvent::Message { .. }));
    let frames = a.endpoint.link_stats(b.id).unwrap().bytes_in / HEADER_BYTES as u64;
    // About one ping or pong every 10 s, at most in both directions.
    assert!((55..=125).contains(&frames), "{frames}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_link_is_asked_then_dead() {
    let mut node = node_without_listener(1).await;
    let mut far = link_by_hand(&mut node, 2).await;
    let (pings, after) = dies_silent(&mut node, &mut far).await;
    assert!((Duration::from_secs(30)..Duration::from_secs(41)).contains(&after), "{after:?}");
    assert!((2..=4).contains(&pings), "{pings}");
}

#[tokio::test(start_paused = true)]
async fn a_busy_link_that_falls_silent_is_dead_soon() {
    let mut node = node_without_listener(1).await;
    let mut far = link_by_hand(&mut node, 2).await;
    // The link was quiet for longer than a busy link may be. That does not count against it.
    tokio::time::sleep(Duration::from_secs(8)).await;
    far.write_all(&slice(Class::Bulk, 1, 0, 1 << 20, 1000)).await.unwrap();
    let (pings, after) = dies_silent(&mut node, &mut far).await;
    assert!((Duration::from_secs(5)..Duration::from_secs(7)).contains(&after), "{after:?}");
    assert!((4..=7).contains(&pings), "{pings}");
}

#[tokio::test(start_paused = true)]
async fn both_ends_of_a_busy_link_send_something_each_second() {
    let (a, b) = linked_in_memory().await;
    a.endpoint.send(b.id, part(1, Class::Bulk, pattern(1000, 1))).unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    for (node, other) in [(&a, b.id), (&b, a.id)] {
        let frames = node.endpoint.link_stats(other).unwrap().bytes_in / HEADER_BYTES as u64;
        assert!(frames >= 8, "{frames}");
    }
    // Then the link is idle.
    let before = a.endpoint.link_stats(b.id).unwrap().bytes_in;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let frames = (a.endpoint.link_stats(b.id).unwrap().bytes_in - before) / HEADER_BYTES as u64;
    assert!(frames <= 14, "{frames}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_driver_is_not_counted_as_the_other_ends_silence() {
    let mut narrow = config(1);
    narrow.listen = vec![];
    narrow.events_max = 1;
    let mut node = Node::start(narrow).await;
    let mut far = link_by_hand(&mut node, 2).await;
    let said = frame(FrameKind::Control, Class::Control, &shoal_proto::codec::encode(&done(1)));
    for _ in 0..5 {
        far.write_all(&said).await.unwrap();
    }
    // The driver sleeps. Meanwhile the pings show the other end that this end lives.
    let mut pings = 0;
    let count_pings = async {
        while let Ok((kind, _)) = read_frame(&mut far).await {
            assert_eq!(kind, FrameKind::Ping);
            pings += 1;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(300), count_pings).await; // the link does not end by itself
    assert!((25..=31).contains(&pings), "{pings}");
    for _ in 0..5 {
        assert!(matches!(node.next().await, LinkEvent::Message { .. }));
    }
    // Now the other end is silent.
    let begin = Instant::now();
    let event = node.events.recv().await.unwrap();
    assert!(error_of(event).contains("nothing heard"));
    assert!(begin.elapsed() >= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_part_that_stalls_ends_the_link() {
    let mut node = node_without_listener(1).await;
    let mut far = link_by_hand(&mut node, 2).await;
    far.write_all(&slice(Class::Bulk, 1, 0, 1 << 20, 1000)).await.unwrap();
    let answering = async {
        while let Ok((kind, _)) = read_frame(&mut far).await {
            if kind == FrameKind::Ping && far.write_all(&frame(FrameKind::Pong, Class::Control, &[])).await.is_err() {
                break;
            }
        }
    };
    let dying = async { error_of(node.events.recv().await.unwrap()) };
    let ((), error) = tokio::join!(answering, dying);
    assert!(error.contains("stalled"), "{error}");
    assert_eq!(node.endpoint.stats().payload_held, 0);
}

/// Returns a key whose id is greater than that of key 1, so that node 1 picks the connection.
fn greater() -> u8 {
    (2..100).find(|number| keys(*number).node() > keys(1).node()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_dead_link_makes_way_for_a_restarted_host() {
    let mut node = node_without_listener(1).await;
    let other = greater();
    let _dead = link_by_hand(&mut node, other).await;
    let (near, mut far) = duplex(WIRE);
    let begin = Instant::now();
    let (adopted, ()) = tokio::join!(adopt(&node, other, near), hello_by_hand(&mut far, other, &node));
    adopted.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(error_of(node.next().await).contains("dialled again"));
    node.expect_up(keys(other).node()).await;
}

#[tokio::test(start_paused = true)]
async fn a_living_link_does_not_make_way() {
    let mut node = node_without_listener(1).await;
    let other = greater();
    let mut living = link_by_hand(&mut node, other).await;
    let (near, mut far) = duplex(WIRE);
    let second = async {
        far.write_all(&hello(other)).await.unwrap();
        let answer = read_frame(&mut far).await.unwrap();
        assert_eq!(answer, (FrameKind::Bye, vec![CloseReason::Duplicate as u8]));
    };
    let first = async {
        assert_eq!(read_frame(&mut living).await.unwrap().0, FrameKind::Ping);
        living.write_all(&frame(FrameKind::Pong, Class::Control, &[])).await.unwrap();
    };
    let (refused, (), ()) = tokio::join!(adopt(&node, other, near), second, first);
    assert!(matches!(refused, Err(HelloError::Refused(Refusal::LinkExists))));
    assert_eq!(node.endpoint.stats().links, 1);
}

#[tokio::test(start_paused = true)]
async fn the_greater_id_follows_the_choice_of_the_smaller_one() {
    let other = (2..100).find(|number| keys(*number).node() < keys(1).node()).unwrap();
    let mut node = node_without_listener(1).await;
    let _old = link_by_hand(&mut node, other).await;
    let (near, mut far) = duplex(WIRE);
    let (adopted, ()) = tokio::join!(adopt(&node, other, near), hello_by_hand(&mut far, other, &node));
    adopted.unwrap();
    assert!(error_of(node.next().await).contains("replaced"));
    node.expect_up(keys(other).node()).await;
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_an_end_that_does_not_read() {
    let mut node = node_without_listener(1).await;
    let far = link_by_hand(&mut node, 2).await;
    // The wire takes less than this and the far end does not read. So the writer stalls in the middle of a slice.
    let other = keys(2).node();
    node.endpoint.send(other, part(1, Class::Bulk, pattern(4 << 20, 1))).unwrap();
    node.endpoint.close(other, CloseReason::Idle);
    assert!(matches!(node.next().await, LinkEvent::LinkDown { reason: None, error: None, .. }));
    node.endpoint.shutdown(Duration::from_secs(5)).await;
    assert!(node.endpoint.context.tasks().is_empty());
    drop(far);
}
