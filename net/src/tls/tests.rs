//! The proof of keys in handshakes, with each pair of record layers, and handshakes that somebody changes.

use super::{LinkStream, RecordLayer, Tls, accept, connect};
use crate::identity::Identity;
use crate::testing::keys;
use proptest::prelude::*;
use shoal_proto::ids::NodeId;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

/// More than several reads of a record layer.
const BYTES: usize = 1_000_000;

fn tls(number: u8) -> Tls {
    Tls::new(&Identity::new(&keys(number))).unwrap()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| (at ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0]).collect()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(work)
}

/// Sends the noise of `seed` and returns what the other end sent until its close.
async fn send_and_receive(stream: LinkStream<DuplexStream>, seed: u64, write: usize) -> Vec<u8> {
    let (mut read, mut written) = tokio::io::split(stream);
    let sending = async {
        for (turn, part) in noise(BYTES, seed).chunks(write).enumerate() {
            written.write_all(part).await.unwrap();
            if turn % 3 == 0 {
                written.flush().await.unwrap();
            }
        }
        written.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let ((), read) = tokio::join!(sending, read.read_to_end(&mut received));
    read.unwrap();
    received
}

#[test]
fn record_layers_mix_and_both_ends_know_each_other() {
    use RecordLayer::{Own, Rustls};
    for (at_client, at_server) in [(Own, Own), (Own, Rustls), (Rustls, Own), (Rustls, Rustls)] {
        for write in [1_000, 16_384, 100_000, BYTES] {
            run(async {
                let (a, b) = duplex(40_000);
                let (client, server) = (tls(1), tls(2));
                let (client, server) = tokio::join!(connect(&client, at_client, a), accept(&server, at_server, b));
                let ((server_node, client), (client_node, server)) = (client.unwrap(), server.unwrap());
                assert_eq!((server_node, client_node), (keys(2).node(), keys(1).node()));
                let exchange = (send_and_receive(client, 1, write), send_and_receive(server, 2, write));
                let (at_client, at_server) = tokio::join!(exchange.0, exchange.1);
                assert!(at_client == noise(BYTES, 2) && at_server == noise(BYTES, 1));
            });
        }
    }
}

/// Passes bytes on and changes one of them. Returns how many bytes passed.
async fn relay<R, W>(mut from: R, mut to: W, changed: Option<usize>, flip: u8) -> usize
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut buffer, mut passed) = ([0; 1024], 0);
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if let Some(at) = changed.and_then(|at| at.checked_sub(passed)).filter(|at| *at < len) {
            buffer[at] ^= flip;
        }
        passed += len;
        if to.write_all(&buffer[..len]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await; // the other end may be gone
    passed
}

/// Returns the node of a handshake that succeeded in time.
async fn node_in_time<S, E>(handshake: impl Future<Output = Result<(NodeId, S), E>>) -> Option<NodeId> {
    timeout(Duration::from_secs(5), handshake).await.ok()?.ok().map(|(node, _)| node)
}

fn any_layer() -> impl Strategy<Value = RecordLayer> {
    any::<bool>().prop_map(|own| if own { RecordLayer::Own } else { RecordLayer::Rustls })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A handshake with a changed byte ends, at the latest by its timeout, and proves no other key.
    #[test]
    fn a_changed_handshake_proves_no_other_key(
        at in 0usize..6_000,
        flip in 1u8..,
        from_client in any::<bool>(),
        layer in any_layer(),
    ) {
        run(async {
            let ((a, near), (far, b)) = (duplex(1 << 16), duplex(1 << 16));
            let (client, server) = (tls(1), tls(2));
            let ((near_in, near_out), (far_in, far_out)) = (tokio::io::split(near), tokio::io::split(far));
            let (there, back) = if from_client { (Some(at), None) } else { (None, Some(at)) };
            let (client, server, sent, answered) = tokio::join!(
                node_in_time(connect(&client, layer, a)),
                node_in_time(accept(&server, layer, b)),
                relay(near_in, far_out, there, flip),
                relay(far_in, near_out, back, flip),
            );
            assert!(client.is_none_or(|node| node == keys(2).node()));
            assert!(server.is_none_or(|node| node == keys(1).node()));
            let changed = if from_client { sent } else { answered } > at;
            assert!(changed || client.is_some() && server.is_some(), "byte {at} of {sent} and {answered}");
        });
    }

    #[test]
    fn noise_is_not_a_handshake(
        bytes in prop::collection::vec(any::<u8>(), 0..2_000),
        record in any::<bool>(),
        layer in any_layer(),
    ) {
        run(async {
            let (mut a, b) = duplex(1 << 20);
            let mut wire = bytes;
            if record {
                let head = [22, 3, 1, (wire.len() >> 8) as u8, wire.len() as u8];
                wire.splice(0..0, head);
            }
            let server = tls(2);
            a.write_all(&wire).await.unwrap();
            a.shutdown().await.unwrap();
            assert!(accept(&server, layer, b).await.is_err());
        });
    }
}
