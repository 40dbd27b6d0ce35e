//! The entry function of the fuzz target and of the seeded test in `tests/records/hostile.rs`.
//!
//! Invariant: [`open_untrusted`] panics only if the record layer breaks one of its promises.

use crate::error::RecordError;
use crate::record_key::{Cipher, RecordKey};
use crate::rekey::Rekey;
use crate::sizes::{PLAINTEXT_BYTES_MAX, RECORDS_WITHOUT_DATA_MAX};
use crate::stream::{TlsStream, TrafficKeys};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, ReadBuf};

/// Zeros for each step of the padding byte of a list. The last steps lead over the bound of a record.
const PADDING_STEP: usize = 67;

const CIPHERS: [Cipher; 3] = [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::Chacha20Poly1305];

/// Keys that both ends of the test derive alike: the generation is in the key and in the initialization vector.
struct TestKeys {
    cipher: Cipher,
    generation: u8,
}

impl TestKeys {
    fn next(&mut self) -> Result<RecordKey, RecordError> {
        self.generation = self.generation.wrapping_add(1);
        RecordKey::new(self.cipher, &vec![self.generation; self.cipher.key_bytes()], &[self.generation; 12], 0)
    }
}

impl Rekey for TestKeys {
    fn next_sealing_key(&mut self) -> Result<RecordKey, RecordError> {
        self.next()
    }

    fn next_opening_key(&mut self) -> Result<RecordKey, RecordError> {
        self.next()
    }
}

/// A transport that delivers `bytes` in steps of `step` bytes.
struct Wire<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let len = self.step.min(self.bytes.len()).min(out.remaining());
        let (now, later) = self.bytes.split_at(len);
        out.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

/// Opens hostile input.
///
/// `data[0]` picks the cipher and the kind of input, `data[1]` the step in which the transport delivers. The rest is
/// either a wire as it is, or a list of plaintext records. Those are sealed here with the right keys, so that the code
/// behind the tag check meets hostile input as well.
///
/// # Panics
///
/// Panics if the stream returns plaintext that was not sealed, skips sealed plaintext, or works after an error.
pub fn open_untrusted(data: &[u8]) {
    let [choice, step, rest @ ..] = data else { return };
    let cipher = CIPHERS[usize::from(choice >> 1) % CIPHERS.len()];
    let step = usize::from(*step).saturating_mul(97) + 1;
    if choice & 1 == 0 {
        let (plaintext, _) = open(cipher, rest, step);
        assert!(plaintext.is_empty(), "plaintext came from a wire without a valid tag");
        return;
    }
    let sealed = seal_list(cipher, rest);
    let (plaintext, error) = open(cipher, &sealed.wire, step);
    assert_eq!(plaintext, sealed.expected, "plaintext differs from what was sealed");
    // `None`: the stream was closed properly.
    assert_eq!(error.is_none(), sealed.closed, "close and error are mixed up: {error:?}");
}

struct SealedList {
    wire: Vec<u8>,
    /// Application data up to the close or the first record that is not allowed.
    expected: Vec<u8>,
    closed: bool,
}

/// Seals a list of records: content type, length, padding in steps of [`PADDING_STEP`], then the plaintext of each.
fn seal_list(cipher: Cipher, mut list: &[u8]) -> SealedList {
    let mut keys = TestKeys { cipher, generation: 0 };
    let Ok(mut key) = keys.next() else { unreachable!("the test's keys have the right length") };
    let mut sealed = SealedList { wire: Vec::new(), expected: Vec::new(), closed: false };
    let (mut valid, mut without_data) = (true, 0);
    while let [content, len, padding, rest @ ..] = list {
        let len = usize::from(*len).min(rest.len());
        let (plaintext, later) = rest.split_at(len);
        list = later;
        let padding = usize::from(*padding) * PADDING_STEP;
        let inner = |out: &mut Vec<u8>| out.extend_from_slice(plaintext);
        let content = content % 31 + 1;
        let start = sealed.wire.len();
        if key.seal_padded(content, len, padding, &mut sealed.wire, inner).is_err() {
            sealed.wire.truncate(start);
            break;
        }
        without_data = if content == 23 && len > 0 { 0 } else { without_data + 1 };
        valid &= len + padding <= PLAINTEXT_BYTES_MAX && without_data <= RECORDS_WITHOUT_DATA_MAX;
        if !valid || sealed.closed {
            continue;
        }
        match (content, plaintext) {
            (23, data) => sealed.expected.extend_from_slice(data),
            (21, [1, 0]) => sealed.closed = true,
            (22, [24, 0, 0, 1, 0 | 1]) => match keys.next() {
                Ok(next) => key = next,
                Err(error) => unreachable!("the test's keys have the right length: {error}"),
            },
            _ => valid = false,
        }
    }
    sealed
}

/// Reads a stream to its end. Returns its plaintext and the error that ended it.
fn open(cipher: Cipher, wire: &[u8], step: usize) -> (Vec<u8>, Option<io::Error>) {
    let (mut opening, mut sealing) = (TestKeys { cipher, generation: 0 }, TestKeys { cipher, generation: 100 });
    let (Ok(first), Ok(unused)) = (opening.next(), sealing.next()) else {
        unreachable!("the test's keys have the right length")
    };
    let keys = TrafficKeys { sealing: unused, opening: first, rekey: Box::new(opening) };
    let mut stream = TlsStream::new(Wire { bytes: wire, step }, Vec::new(), keys);
    let mut context = Context::from_waker(Waker::noop());
    let mut plaintext = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let mut out = ReadBuf::new(&mut buffer);
        match Pin::new(&mut stream).poll_read(&mut context, &mut out) {
            // The transport is always ready, so a pending stream only gives others their turn.
            Poll::Pending => {}
            Poll::Ready(Ok(())) if out.filled().is_empty() => return (plaintext, None),
            Poll::Ready(Ok(())) => plaintext.extend_from_slice(out.filled()),
            Poll::Ready(Err(error)) => {
                let again = Pin::new(&mut stream).poll_read(&mut context, &mut ReadBuf::new(&mut [0; 16]));
                assert!(matches!(again, Poll::Ready(Err(_))), "the stream works after an error");
                return (plaintext, Some(error));
            }
        }
    }
}
