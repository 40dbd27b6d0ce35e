//! Our records against rustls's own, key changes, and streams that somebody spoils.

use super::records::TlsStream;
use super::{Tls, accept, connect, server_name};
use crate::identity::Identity;
use crate::testing::keys;
use proptest::prelude::*;
use shoal_proto::ids::NodeId;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// More than a few reads of ours take in.
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

/// Both ends of ours, and who each takes the other for.
async fn pair() -> ((NodeId, TlsStream<DuplexStream>), (NodeId, TlsStream<DuplexStream>)) {
    let (a, b) = duplex(40_000);
    let (client, server) = (tls(1), tls(2));
    let (client, server) = tokio::join!(connect(&client, a), accept(&server, b));
    (client.unwrap(), server.unwrap())
}

/// A client of rustls's own, and us as its server.
async fn rustls_dials() -> (tokio_rustls::client::TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (a, b) = duplex(40_000);
    let (client, server) = (tls(1), tls(2));
    let theirs = TlsConnector::from(client.client.clone()).connect(server_name(), a);
    let (theirs, ours) = tokio::join!(theirs, accept(&server, b));
    (theirs.unwrap(), ours.unwrap().1)
}

/// Sends noise both ways in writes of a length, flushing now and then, and closes.
async fn exchange<A, B>(a: A, b: B, write: usize)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (a, b) = (half(a, 1, write), half(b, 2, write));
    let (a, b) = tokio::join!(a, b);
    assert!(a == noise(BYTES, 2) && b == noise(BYTES, 1));
}

/// Sends its noise and gives what it heard.
async fn half<S: AsyncRead + AsyncWrite + Unpin>(stream: S, seed: u64, write: usize) -> Vec<u8> {
    let (mut read, mut written) = tokio::io::split(stream);
    let sending = async {
        let bytes = noise(BYTES, seed);
        for (turn, part) in bytes.chunks(write).enumerate() {
            written.write_all(part).await.unwrap();
            if turn % 3 == 0 {
                written.flush().await.unwrap();
            }
        }
        written.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, read) = tokio::join!(sending, read.read_to_end(&mut heard));
    read.unwrap();
    heard
}

#[test]
fn both_ends_know_each_other_and_hear_all() {
    for write in [1_000, 16_384, 100_000, BYTES] {
        run(async {
            let ((server_node, client), (client_node, server)) = pair().await;
            assert_eq!((server_node, client_node), (keys(2).node(), keys(1).node()));
            exchange(client, server, write).await;
        });
    }
}

#[test]
fn rustls_understands_us_and_we_it() {
    run(async {
        let (theirs, ours) = rustls_dials().await;
        exchange(theirs, ours, 70_000).await;
        let (a, b) = duplex(40_000);
        let (client, server) = (tls(1), tls(2));
        let theirs = TlsAcceptor::from(server.server.clone()).accept(b);
        let (ours, theirs) = tokio::join!(connect(&client, a), theirs);
        exchange(ours.unwrap().1, theirs.unwrap(), 70_000).await;
    });
}

#[test]
fn keys_change_both_ways() {
    run(async {
        let (mut theirs, mut ours) = rustls_dials().await;
        ours.change_keys_every(3);
        for round in 0..20u8 {
            // It asks us for ours as well.
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.write_all(&[round; 5_000]).await.unwrap();
            theirs.flush().await.unwrap();
            let mut heard = [0; 5_000];
            ours.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, [round; 5_000]);
            for _ in 0..4 {
                ours.write_all(&[round; 3_000]).await.unwrap();
                ours.flush().await.unwrap();
                let mut heard = [0; 3_000];
                theirs.read_exact(&mut heard).await.unwrap();
                assert_eq!(heard, [round; 3_000]);
            }
        }
        let ((_, mut a), (_, mut b)) = pair().await;
        a.change_keys_every(2);
        b.change_keys_every(5);
        exchange(a, b, 9_000).await;
    });
}

/// A stream as another wrote it, and what is read of it.
struct Spoilt {
    wire: Vec<u8>,
    reader: TlsStream<DuplexStream>,
    into: DuplexStream,
}

/// What one end of ours puts on the wire for some plaintext and its close.
async fn spoilt(plain: &[u8]) -> Spoilt {
    let (near, mut far) = duplex(1 << 20);
    let ((_, client), (_, reader)) = pair().await;
    let mut writer = client.over(near);
    writer.write_all(plain).await.unwrap();
    writer.shutdown().await.unwrap();
    let mut wire = Vec::new();
    far.read_to_end(&mut wire).await.unwrap();
    let (into, from) = duplex(1 << 20);
    Spoilt { wire, reader: reader.over(from), into }
}

impl Spoilt {
    async fn read(mut self) -> (Vec<u8>, io::Result<usize>) {
        self.into.write_all(&self.wire).await.unwrap();
        drop(self.into);
        let mut heard = Vec::new();
        let read = self.reader.read_to_end(&mut heard).await;
        (heard, read)
    }
}

#[test]
fn an_end_that_was_not_said_is_an_error() {
    run(async {
        let plain = noise(40_000, 3);
        let whole = spoilt(&plain).await;
        let (heard, read) = whole.read().await;
        assert!(heard == plain && read.is_ok());
        let mut cut = spoilt(&plain).await;
        // The close is a record of its own: five bytes of header, two of alert, one of type, sixteen of tag.
        cut.wire.truncate(cut.wire.len() - 24);
        let (heard, read) = cut.read().await;
        assert!(heard == plain);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    });
}

/// Passes bytes on, one of them changed; gives how many there were.
async fn relay<R, W>(mut from: R, mut to: W, spoilt: Option<usize>, flip: u8) -> usize
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut buffer, mut passed) = ([0; 1024], 0);
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if let Some(at) = spoilt.and_then(|at| at.checked_sub(passed)).filter(|at| *at < len) {
            buffer[at] ^= flip;
        }
        passed += len;
        if to.write_all(&buffer[..len]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    passed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done to the wire, what is heard is a beginning of what was said.
    #[test]
    fn nothing_spoilt_is_heard(at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<bool>(), swap in any::<bool>()) {
        run(async {
            let plain = noise(50_000, 4);
            let mut spoilt = spoilt(&plain).await;
            let at = at.index(spoilt.wire.len());
            if swap && at > 100 {
                spoilt.wire.rotate_left(at);
            } else if cut {
                spoilt.wire.drain(at..(at + usize::from(flip)).min(spoilt.wire.len()));
            } else {
                spoilt.wire[at] ^= flip;
            }
            let (heard, read) = spoilt.read().await;
            assert!(read.is_err() && plain.starts_with(&heard), "{read:?}, {} bytes", heard.len());
        });
    }

    /// A handshake that somebody changes on its way comes to an end, in time if nobody else ends it, and makes nobody
    /// somebody else.
    #[test]
    fn a_spoilt_handshake_ends(at in 0usize..6_000, flip in 1u8.., from_client in any::<bool>()) {
        run(async {
            let ((a, near), (far, b)) = (duplex(1 << 16), duplex(1 << 16));
            let (client, server) = (tls(1), tls(2));
            let ((near_in, near_out), (far_in, far_out)) = (tokio::io::split(near), tokio::io::split(far));
            let (there, back) = if from_client { (Some(at), None) } else { (None, Some(at)) };
            let patience = Duration::from_secs(5);
            let (client, server, sent, answered) = tokio::join!(
                async { timeout(patience, connect(&client, a)).await.ok().and_then(Result::ok).map(|(node, _)| node) },
                async { timeout(patience, accept(&server, b)).await.ok().and_then(Result::ok).map(|(node, _)| node) },
                relay(near_in, far_out, there, flip),
                relay(far_in, near_out, back, flip),
            );
            assert!(client.is_none_or(|node| node == keys(2).node()) && server.is_none_or(|node| node == keys(1).node()));
            let spoilt = if from_client { sent } else { answered } > at;
            assert!(spoilt || client.is_some() && server.is_some(), "byte {at} of {sent} and {answered}");
        });
    }

    /// Nor does noise instead of a handshake do more than fail.
    #[test]
    fn noise_is_no_handshake(bytes in prop::collection::vec(any::<u8>(), 0..2_000), record in any::<bool>()) {
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
            assert!(accept(&server, b).await.is_err());
        });
    }
}
