//! A TLS 1.3 connection after its handshake, as an asynchronous byte stream.
//!
//! Invariant: the first error is kept. Every later call fails with it, and nothing is sealed or opened any more.

use crate::error::RecordError;
use crate::opener::{Opened, Opener};
use crate::record_key::RecordKey;
use crate::rekey::Rekey;
use crate::sealer::Sealer;
use rustls::ExtractedSecrets;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// The traffic keys of a connection when its handshake ends, with the means to derive later ones.
pub struct TrafficKeys {
    /// The key of the first record that this end seals.
    pub sealing: RecordKey,
    /// The key of the first record that this end opens.
    pub opening: RecordKey,
    /// Derives the keys after these.
    pub rekey: Box<dyn Rekey>,
}

impl TrafficKeys {
    /// Returns the keys that rustls hands out at the end of a handshake.
    ///
    /// # Errors
    ///
    /// Fails if rustls agreed on a cipher suite outside [`crate::Cipher`].
    pub fn from_rustls(secrets: &ExtractedSecrets, rekey: Box<dyn Rekey>) -> Result<Self, RecordError> {
        let (sealing_sequence, sealing) = &secrets.tx;
        let (opening_sequence, opening) = &secrets.rx;
        Ok(Self {
            sealing: RecordKey::from_rustls(sealing, *sealing_sequence)?,
            opening: RecordKey::from_rustls(opening, *opening_sequence)?,
            rekey,
        })
    }
}

/// The state of both directions, apart from the transport.
struct Records {
    sealer: Sealer,
    opener: Opener,
    rekey: Box<dyn Rekey>,
    /// The first error of the stream. See the module's invariant.
    failed: Option<Arc<io::Error>>,
}

impl Records {
    fn check(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(first) => Err(RecordError::Latched(first.clone()).into()),
        }
    }

    /// Keeps the first error. The caller gets an error of the same kind that has the kept one as its source.
    fn latch<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Poll::Ready(Err(error)) = polled else { return polled };
        let (kind, error) = (error.kind(), Arc::new(error));
        self.failed = Some(error.clone());
        Poll::Ready(Err(io::Error::new(kind, FirstFailure(error))))
    }
}

/// The error that the failing call itself returns. It reads like the error that the stream keeps.
#[derive(Debug)]
struct FirstFailure(Arc<io::Error>);

impl std::fmt::Display for FirstFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for FirstFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.get_ref().and_then(|inner| inner.source())
    }
}

/// A connection whose handshake is complete. `S` is the transport below it.
///
/// An end of the transport without a TLS close is [`io::ErrorKind::UnexpectedEof`]: somebody may have cut the
/// connection. Dropping the stream closes the transport without a TLS close.
pub struct TlsStream<S> {
    io: S,
    records: Records,
}

impl<S> TlsStream<S> {
    /// Continues `io` after a handshake. `received` holds the bytes that were read beyond the handshake.
    pub fn new(io: S, received: Vec<u8>, keys: TrafficKeys) -> Self {
        let TrafficKeys { sealing, opening, rekey } = keys;
        let records =
            Records { sealer: Sealer::new(sealing), opener: Opener::new(opening, received), rekey, failed: None };
        Self { io, records }
    }

    /// Limits the records sealed with one key to `records`, and to the crate's own limit of 2^23.
    pub fn set_records_per_key(&mut self, records: u64) {
        self.records.sealer.set_records_per_key(records);
    }

    /// Replaces the transport and keeps keys and buffered bytes. Tests use it to capture and to change the wire.
    pub fn with_transport<T>(self, io: T) -> TlsStream<T> {
        TlsStream { io, records: self.records }
    }
}

impl<S: AsyncRead + Unpin> TlsStream<S> {
    fn poll_read_plaintext(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Records { sealer, opener, rekey, .. } = &mut self.records;
        loop {
            let plaintext = opener.take_plaintext(out.remaining());
            if !plaintext.is_empty() {
                out.put_slice(plaintext);
                return Poll::Ready(Ok(()));
            }
            if opener.is_closed() || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if opener.turn_is_over() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match opener.open_next()? {
                Some(Opened::Data | Opened::Close) => {}
                Some(Opened::KeyUpdate { update_requested }) => {
                    opener.set_key(rekey.next_opening_key()?);
                    if update_requested {
                        sealer.request_update();
                    }
                }
                None => match poll_read_buf(Pin::new(&mut self.io), cx, opener.read_buffer()) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        opener.on_idle();
                        return Poll::Pending;
                    }
                },
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> TlsStream<S> {
    /// Hands sealed bytes to the transport until it has taken all of them.
    fn poll_write_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, records: Records { sealer, .. } } = self;
        while !sealer.unwritten().is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, sealer.unwritten()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => sealer.note_written(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_seal(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_sealed(cx))?;
        let Records { sealer, rekey, .. } = &mut self.records;
        let taken = sealer.seal_data(slices, &mut **rekey)?;
        // The transport may take only a part now. The rest goes with the next write or flush.
        if let Poll::Ready(Err(error)) = self.poll_write_sealed(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_sealed(cx))?;
        self.records.sealer.release_memory();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.records.sealer.seal_close()?;
        ready!(self.poll_write_sealed(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.records.check()?;
        let polled = this.poll_read_plaintext(cx, out);
        this.records.latch(polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, plaintext: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(plaintext)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.records.check()?;
        let polled = this.poll_seal(cx, slices);
        this.records.latch(polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.records.check()?;
        let polled = this.poll_flush_sealed(cx);
        this.records.latch(polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.records.check()?;
        let polled = this.poll_close(cx);
        this.records.latch(polled)
    }
}
