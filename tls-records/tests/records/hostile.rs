//! Streams that somebody changes, the latch after the first error, and seeded hostile input.

use crate::support::{TestCertificate, noise, own_pair, run};
use proptest::prelude::*;
use shoal_tls_records::fuzzing::open_untrusted;
use shoal_tls_records::handshake::{HandshakeError, accept};
use shoal_tls_records::{RecordError, TlsStream};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// The wire of one stream, to be changed before its reader gets it.
struct Captured {
    wire: Vec<u8>,
    reader: TlsStream<DuplexStream>,
    into_reader: DuplexStream,
}

/// Captures what one end puts on the wire for `plaintext` and its close.
async fn capture(plaintext: &[u8]) -> Captured {
    let (near, mut far) = duplex(1 << 20);
    let (client, reader) = own_pair().await;
    let mut writer = client.with_transport(near);
    writer.write_all(plaintext).await.unwrap();
    writer.shutdown().await.unwrap();
    let mut wire = Vec::new();
    far.read_to_end(&mut wire).await.unwrap();
    let (into_reader, from) = duplex(1 << 20);
    Captured { wire, reader: reader.with_transport(from), into_reader }
}

/// What the reader of a [`Captured`] wire got.
struct Received {
    plaintext: Vec<u8>,
    result: io::Result<usize>,
    reader: TlsStream<DuplexStream>,
}

impl Captured {
    async fn deliver(mut self) -> Received {
        self.into_reader.write_all(&self.wire).await.unwrap();
        self.into_reader.shutdown().await.unwrap();
        let mut plaintext = Vec::new();
        let result = self.reader.read_to_end(&mut plaintext).await;
        Received { plaintext, result, reader: self.reader }
    }
}

/// Returns the record error at the root of an error, if there is one.
fn record_error(error: &io::Error) -> Option<&RecordError> {
    error.get_ref()?.downcast_ref()
}

#[test]
fn an_end_without_a_close_is_an_error() {
    run(async {
        let plaintext = noise(40_000, 3);
        let whole = capture(&plaintext).await.deliver().await;
        assert!(whole.plaintext == plaintext && whole.result.is_ok());
        let mut cut = capture(&plaintext).await;
        // The close is a record of 5 bytes of header, 2 of alert, 1 of content type and 16 of tag.
        cut.wire.truncate(cut.wire.len() - 24);
        let cut = cut.deliver().await;
        assert!(cut.plaintext == plaintext);
        assert_eq!(cut.result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn after_the_first_error_every_call_fails() {
    run(async {
        let mut changed = capture(&noise(40_000, 3)).await;
        changed.wire[100] ^= 1;
        let Received { plaintext, result, mut reader } = changed.deliver().await;
        assert!(plaintext.is_empty());
        let first = result.unwrap_err();
        assert!(first.to_string().contains("failed authentication"), "{first}");
        for _ in 0..2 {
            let results = [
                reader.read(&mut [0; 100]).await.map(|_| ()),
                reader.write(b"data").await.map(|_| ()),
                reader.flush().await,
                reader.shutdown().await,
            ];
            for result in results {
                let error = result.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                assert!(matches!(record_error(&error), Some(RecordError::Latched(_))), "{error:?}");
            }
        }
    });
}

#[test]
fn nothing_is_sealed_after_an_error() {
    run(async {
        let (mut near, mut far) = duplex(1 << 20);
        let (client, _server) = own_pair().await;
        let mut stream = client.with_transport(&mut near);
        far.write_all(&[23, 3, 3, 0, 1]).await.unwrap();
        assert!(stream.read_u8().await.is_err());
        assert!(stream.write_all(&[0; 1000]).await.is_err() && stream.shutdown().await.is_err());
        drop(near);
        let mut wire = Vec::new();
        far.read_to_end(&mut wire).await.unwrap();
        assert!(wire.is_empty(), "{} bytes were sent", wire.len());
    });
}

#[test]
fn a_handshake_of_any_length_is_refused() {
    run(async {
        let (mut a, b) = duplex(1 << 20);
        let server = TestCertificate::new().server();
        // A ClientHello of 16 MiB announces itself. Its first records come, and then the length is refused.
        let mut record = vec![22, 3, 1, 64, 0];
        record.extend([1, 255, 255, 255]);
        record.resize(5 + 16_384, 7);
        for _ in 0..6 {
            a.write_all(&record).await.unwrap();
        }
        let error = accept(server, b, |_| Ok(())).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, HandshakeError::TooLong | HandshakeError::Tls(_)), "{error}");
    });
}

/// A list for `open_untrusted`. Each of the `rounds` has `before` key updates, `empty` records without a byte, and one
/// byte of data.
fn updates(rounds: usize, before: usize, empty: usize) -> Vec<u8> {
    let update = [21, 5, 0, 24, 0, 0, 1, 0];
    let round = [update.repeat(before), [22, 0, 0].repeat(empty), vec![22, 1, 0, b'x']].concat();
    [vec![1, 255], round.repeat(rounds)].concat()
}

/// `open_untrusted` knows the bound and panics if the stream takes more, or fewer.
#[test]
fn records_without_data_are_bounded() {
    for (rounds, before, empty) in
        [(1, 32, 0), (4, 20, 12), (40, 1, 0), (1, 33, 0), (2, 0, 33), (2, 20, 13), (1, 200, 200)]
    {
        open_untrusted(&updates(rounds, before, empty));
    }
}

#[test]
fn a_write_after_the_close_is_refused_and_sends_nothing() {
    run(async {
        let (mut near, mut far) = duplex(1 << 20);
        let (client, _server) = own_pair().await;
        let mut stream = client.with_transport(&mut near);
        stream.write_all(b"before").await.unwrap();
        stream.shutdown().await.unwrap();
        let error = stream.write_all(b"after").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(stream.flush().await.is_err());
        drop(near);
        let mut wire = Vec::new();
        far.read_to_end(&mut wire).await.unwrap();
        // One record of six bytes, and the alert of two. A record adds 22 bytes.
        assert_eq!(wire.len(), 6 + 22 + 2 + 22);
    });
}

/// The generator of the seeded inputs: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A list of records for `fuzzing::open_untrusted`: mostly data, some updates and closes, some of any kind.
fn plausible_list(random: &mut Random) -> Vec<u8> {
    let mut list = vec![random.next() as u8 | 1, random.next() as u8];
    for _ in 0..random.below(40) {
        let (content, plaintext) = match random.below(10) {
            0 => (20, vec![1, 0]),
            1 => (20 + random.below(5) as u8, random.bytes(4)),
            2 | 3 => (21, vec![24, 0, 0, 1, random.below(3) as u8]),
            _ => {
                let len = random.below(256);
                (22, random.bytes(len))
            }
        };
        // `open_untrusted` maps the byte `n` to the content type `n % 31 + 1`.
        list.extend([content, plaintext.len() as u8, if random.below(3) == 0 { random.next() as u8 } else { 0 }]);
        list.extend(plaintext);
    }
    list
}

#[test]
fn seeded_hostile_input_breaks_no_promise() {
    for seed in 0..3_000 {
        let mut random = Random(seed);
        let len = random.below(600);
        open_untrusted(&random.bytes(len));
        let mut list = plausible_list(&mut random);
        open_untrusted(&list);
        for _ in 0..4 {
            let at = random.below(list.len());
            list[at] = random.next() as u8;
            open_untrusted(&list);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the wire is changed, the reader gets a beginning of what was sent, and then an error.
    #[test]
    fn a_changed_wire_yields_a_prefix_and_an_error(
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
        cut in any::<bool>(),
        rotate in any::<bool>(),
    ) {
        run(async {
            let plaintext = noise(50_000, 4);
            let mut captured = capture(&plaintext).await;
            let at = at.index(captured.wire.len());
            if rotate && at > 100 {
                captured.wire.rotate_left(at);
            } else if cut {
                captured.wire.drain(at..(at + usize::from(flip)).min(captured.wire.len()));
            } else {
                captured.wire[at] ^= flip;
            }
            let Received { plaintext: received, result, .. } = captured.deliver().await;
            assert!(result.is_err() && plaintext.starts_with(&received), "{result:?}, {} bytes", received.len());
        });
    }
}
