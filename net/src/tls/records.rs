//! TLS 1.3 records (RFC 8446, section 5) after the handshake: sealed into one buffer and opened in the buffer they came in.
//!
//! rustls reads a connection in steps of four kilobytes and copies a payload byte twice on its way in, into memory made for
//! each record. On links that carry little else than payload that is a tenth of all processor time; here it is read in larger
//! steps, and copied once. Keys and their successors still come from rustls.
//! Invariant: no two records are sealed with one key and number, and nothing is given out before its tag was checked.

use super::handshake::Rekey;
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes before a record's ciphertext: type, version, length.
const HEADER: usize = 5;
/// Plaintext bytes in a record, at most.
const PLAIN_MAX: usize = 1 << 14;
/// Ciphertext bytes in a record, at most.
const CIPHER_MAX: usize = PLAIN_MAX + 256;
/// A record, at most.
pub(super) const RECORD_MAX: usize = HEADER + CIPHER_MAX;
/// What sealing adds to a record's plaintext.
const OVERHEAD: usize = HEADER + 1 + MAX_TAG_LEN;
/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;
/// Bytes sealed before the kernel has taken those before: they cannot be overtaken.
const SEALED_BYTES: usize = 32 * 1024;
/// Bytes opened before others have their turn: the task that reads a link also writes it, and a fast sender never ends.
const TURN_BYTES: usize = 256 * 1024;
/// Records sealed with one key. AES-GCM may be used for 2^24.5 full ones (RFC 8446, section 5.5).
const KEY_RECORDS: u64 = 1 << 23;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// Closes one direction: a warning, and its number.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];
/// A message that says that the sender's next records have its next key, but for its last byte: whether it asks for the same.
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];

/// Length of the record that some bytes begin with, once its header is here.
pub(super) fn record_len(bytes: &[u8]) -> Option<usize> {
    let len = u16::from_be_bytes([*bytes.get(3)?, *bytes.get(4)?]);
    Some(HEADER + usize::from(len))
}

fn header(cipher_len: usize) -> [u8; HEADER] {
    let [high, low] = (cipher_len as u16).to_be_bytes();
    [DATA, 3, 3, high, low]
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One direction's key, and the number of its next record.
struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
    records: u64,
}

impl Key {
    fn new(records: u64, secrets: &ConnectionTrafficSecrets) -> io::Result<Self> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(broken("a cipher that was not offered")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| broken("a key of the wrong length"))?;
        let iv = iv.as_ref().try_into().map_err(|_| broken("a nonce of the wrong length"))?;
        Ok(Self { key: LessSafeKey::new(key), iv, records })
    }

    /// Each record's own: its number, mixed with what the key came with.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.records.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.records += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What is sealed and not yet written.
struct Sealer {
    key: Key,
    buffer: Vec<u8>,
    written: usize,
    /// Records to seal with one key.
    key_records: u64,
    /// The other end asked for our next key.
    asked: bool,
    closed: bool,
}

impl Sealer {
    fn seal(&mut self, kind: u8, plain: &mut Plain<'_, '_>) -> io::Result<()> {
        let len = plain.len().min(PLAIN_MAX);
        let header = header(len + OVERHEAD - HEADER);
        self.buffer.extend_from_slice(&header);
        let start = self.buffer.len();
        plain.take(len, &mut self.buffer);
        self.buffer.push(kind);
        let nonce = self.key.nonce();
        let sealed = self.key.key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut self.buffer[start..]);
        let tag = sealed.map_err(|_| broken("a record cannot be sealed"))?;
        self.buffer.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn seal_message(&mut self, kind: u8, message: &[u8]) -> io::Result<()> {
        self.seal(kind, &mut Plain { slices: &[IoSlice::new(message)], at: 0 })
    }

    /// Seals what fits of some plaintext, with the next key if it is time for that; gives how much.
    fn seal_data(&mut self, slices: &[IoSlice<'_>], rekey: &mut dyn Rekey) -> io::Result<usize> {
        if self.asked || self.key.records >= self.key_records {
            self.asked = false;
            let [a, b, c, d] = KEY_UPDATE;
            self.seal_message(HANDSHAKE, &[a, b, c, d, 0])?;
            self.key = Key::new(0, &rekey.sending().map_err(io::Error::other)?)?;
        }
        let mut plain = Plain { slices, at: 0 };
        let all = plain.len();
        // Once, for all that is sealed below.
        let sealed = all + (all / PLAIN_MAX + 1) * OVERHEAD;
        self.buffer.reserve_exact(sealed.min(SEALED_BYTES + RECORD_MAX));
        while plain.len() > 0 && self.buffer.len() < SEALED_BYTES {
            self.seal(DATA, &mut plain)?;
        }
        Ok(all - plain.len())
    }
}

/// Plaintext in several places, not yet sealed.
struct Plain<'a, 'b> {
    slices: &'a [IoSlice<'b>],
    /// Where it begins in the first.
    at: usize,
}

impl Plain<'_, '_> {
    fn len(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum::<usize>() - self.at
    }

    fn take(&mut self, mut len: usize, into: &mut Vec<u8>) {
        while let Some(first) = self.slices.first() {
            let rest = &first[self.at..];
            if len < rest.len() {
                into.extend_from_slice(&rest[..len]);
                self.at += len;
                return;
            }
            into.extend_from_slice(rest);
            len -= rest.len();
            (self.slices, self.at) = (&self.slices[1..], 0);
        }
    }
}

/// What came and was not yet given out.
struct Opener {
    key: Key,
    buffer: Vec<u8>,
    /// Where the next record begins in it.
    next: usize,
    /// Opened plaintext in it.
    plain: Range<usize>,
    /// Bytes opened since others had their turn.
    turn: usize,
    /// The other end sends nothing more.
    closed: bool,
}

/// What a record was.
enum Opened {
    Data,
    KeyUpdate { asks: bool },
    Close,
}

impl Opener {
    /// Length of the record that comes next, as far as that is known.
    fn next_len(&self) -> io::Result<usize> {
        let rest = &self.buffer[self.next..];
        let Some(len) = record_len(rest) else { return Ok(HEADER) };
        if rest[..3] != [DATA, 3, 3] || !(OVERHEAD..=RECORD_MAX).contains(&len) {
            return Err(broken("not a record"));
        }
        Ok(len)
    }

    /// Opens the next record if it is here whole.
    fn open(&mut self) -> io::Result<Option<Opened>> {
        let end = self.next + self.next_len()?;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let start = self.next + HEADER;
        let nonce = self.key.nonce();
        let record = &mut self.buffer[start..end];
        let opened = self.key.key.open_in_place(nonce, Aad::from(header(record.len())), record);
        let opened = opened.map_err(|_| broken("a record's tag is wrong"))?;
        self.next = end;
        self.turn += end - start;
        // Zeros after it are padding.
        let last = opened.iter().rposition(|byte| *byte != 0).ok_or_else(|| broken("a record without a type"))?;
        if last > PLAIN_MAX {
            return Err(broken("a record that is too long"));
        }
        match (opened[last], &opened[..last]) {
            (DATA, _) => {
                self.plain = start..start + last;
                Ok(Some(Opened::Data))
            }
            (ALERT, alert) if alert == CLOSE_NOTIFY => Ok(Some(Opened::Close)),
            (ALERT, [_, number]) => Err(io::Error::other(format!("the other end gave TLS alert {number}"))),
            (HANDSHAKE, [message @ .., asks @ (0 | 1)]) if message == KEY_UPDATE => {
                Ok(Some(Opened::KeyUpdate { asks: *asks == 1 }))
            }
            _ => Err(broken("a record of a type that has no place here")),
        }
    }

    /// Makes room for as much as is read at a time, and for the rest of a record.
    fn make_room(&mut self) {
        if self.next == self.buffer.len() {
            self.buffer.clear();
            self.next = 0;
        }
        if self.buffer.capacity() < READ_BYTES {
            self.buffer.reserve_exact(READ_BYTES);
        } else if self.next > 0 && self.buffer.capacity() - self.buffer.len() < RECORD_MAX {
            self.buffer.drain(..self.next);
            self.next = 0;
        }
    }

    /// Nothing is on its way: idle links are many, and their memory is better used elsewhere.
    fn rest(&mut self) {
        if self.next == self.buffer.len() {
            (self.buffer, self.next) = (Vec::new(), 0);
        }
    }
}

/// A connection after its handshake.
pub(crate) struct TlsStream<S> {
    io: S,
    sealer: Sealer,
    opener: Opener,
    rekey: Box<dyn Rekey>,
}

impl<S> TlsStream<S> {
    /// `came`: what was read beyond the handshake.
    pub(super) fn new(io: S, came: Vec<u8>, secrets: &ExtractedSecrets, rekey: Box<dyn Rekey>) -> io::Result<Self> {
        let (tx, rx) = (Key::new(secrets.tx.0, &secrets.tx.1)?, Key::new(secrets.rx.0, &secrets.rx.1)?);
        let key_records = KEY_RECORDS;
        let sealer = Sealer { key: tx, buffer: Vec::new(), written: 0, key_records, asked: false, closed: false };
        let opener = Opener { key: rx, buffer: came, next: 0, plain: 0..0, turn: 0, closed: false };
        Ok(Self { io, sealer, opener, rekey })
    }

    #[cfg(test)]
    pub(super) fn change_keys_every(&mut self, records: u64) {
        self.sealer.key_records = records;
    }

    /// The same on another connection.
    #[cfg(test)]
    pub(super) fn over(self, io: S) -> Self {
        Self { io, ..self }
    }
}

impl<S: AsyncWrite + Unpin> TlsStream<S> {
    /// Writes out what is sealed.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, sealer, .. } = self;
        while sealer.written < sealer.buffer.len() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &sealer.buffer[sealer.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => sealer.written += written,
            }
        }
        sealer.buffer.clear();
        sealer.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, sealer, opener, rekey } = self.get_mut();
        loop {
            if !opener.plain.is_empty() {
                let len = opener.plain.len().min(into.remaining());
                let end = opener.plain.start + len;
                into.put_slice(&opener.buffer[opener.plain.start..end]);
                opener.plain.start = end;
                return Poll::Ready(Ok(()));
            }
            if opener.closed || into.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if opener.turn >= TURN_BYTES {
                opener.turn = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match opener.open()? {
                Some(Opened::Data) => {}
                Some(Opened::Close) => opener.closed = true,
                Some(Opened::KeyUpdate { asks }) => {
                    opener.key = Key::new(0, &rekey.receiving().map_err(io::Error::other)?)?;
                    sealer.asked |= asks;
                }
                None => {
                    opener.make_room();
                    match poll_read_buf(Pin::new(&mut *io), cx, &mut opener.buffer) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        Poll::Ready(Ok(_)) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {
                            opener.turn = 0;
                            opener.rest();
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(plain)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let taken = this.sealer.seal_data(slices, &mut *this.rekey)?;
        // What the kernel does not take now goes with the next write, or a flush.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        this.sealer.buffer = Vec::new();
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.sealer.closed, true) {
            this.sealer.seal_message(ALERT, &CLOSE_NOTIFY)?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
