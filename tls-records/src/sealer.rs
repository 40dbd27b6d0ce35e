//! Plaintext in, sealed records out: the sending direction of a stream.
//!
//! Invariant: the next key is in use only after the key update that announces it is sealed with the former key.

use crate::error::RecordError;
use crate::record_key::{ContentType, RecordKey};
use crate::rekey::Rekey;
use crate::sizes::{OVERHEAD_BYTES, PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX, RECORDS_PER_KEY_MAX};
use std::io::IoSlice;

/// Bytes sealed before the transport has taken earlier ones. Sealed bytes cannot be overtaken by more urgent ones.
const SEALED_BYTES_MAX: usize = 32 * 1024;

/// The alert `close_notify` with level `warning`. It ends one direction.
pub(crate) const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// The handshake message `key_update` without its last byte, which says whether the other end must update too.
pub(crate) const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];

/// The sealed bytes that the transport has not taken yet, and the key for the next ones.
pub(crate) struct Sealer {
    key: RecordKey,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that the transport has taken.
    written: usize,
    records_per_key: u64,
    /// Set when the other end asks for our next key.
    update_requested: bool,
    closed: bool,
}

impl Sealer {
    pub(crate) fn new(key: RecordKey) -> Self {
        Self {
            key,
            buffer: Vec::new(),
            written: 0,
            records_per_key: RECORDS_PER_KEY_MAX,
            update_requested: false,
            closed: false,
        }
    }

    pub(crate) fn set_records_per_key(&mut self, records: u64) {
        self.records_per_key = records.min(RECORDS_PER_KEY_MAX);
    }

    /// Notes that the other end asked for our next key. Several requests before the next record count as one.
    pub(crate) fn request_update(&mut self) {
        self.update_requested = true;
    }

    /// Seals as much of `slices` as fits the buffer and returns the number of bytes taken.
    pub(crate) fn seal_data(&mut self, slices: &[IoSlice<'_>], rekey: &mut dyn Rekey) -> Result<usize, RecordError> {
        if self.closed {
            return Err(RecordError::WriteAfterClose);
        }
        if self.update_requested || self.key.sequence() >= self.records_per_key {
            self.update_requested = false;
            let [a, b, c, d] = KEY_UPDATE;
            self.key.seal(ContentType::Handshake, &[a, b, c, d, 0], &mut self.buffer)?;
            self.key = rekey.next_sealing_key()?;
        }
        let mut plaintext = Plaintext { slices, offset: 0 };
        let total = plaintext.len();
        // One reservation for all records below. An exact one, because idle links are many.
        let sealed = total + (total / PLAINTEXT_BYTES_MAX + 1) * OVERHEAD_BYTES;
        self.buffer.reserve_exact(sealed.min(SEALED_BYTES_MAX + RECORD_BYTES_MAX));
        while plaintext.len() > 0 && self.buffer.len() < SEALED_BYTES_MAX {
            let len = plaintext.len().min(PLAINTEXT_BYTES_MAX);
            self.key.seal_with(ContentType::ApplicationData, len, &mut self.buffer, |out| {
                plaintext.take(len, out);
            })?;
        }
        Ok(total - plaintext.len())
    }

    /// Seals the close of this direction, once.
    pub(crate) fn seal_close(&mut self) -> Result<(), RecordError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.key.seal(ContentType::Alert, &CLOSE_NOTIFY, &mut self.buffer)
    }

    /// Returns the sealed bytes that the transport has not taken.
    pub(crate) fn unwritten(&self) -> &[u8] {
        &self.buffer[self.written..]
    }

    /// Notes that the transport took `bytes` of [`Sealer::unwritten`].
    pub(crate) fn note_written(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.buffer.len() {
            self.buffer.clear();
            self.written = 0;
        }
    }

    /// Frees the buffer if nothing is in it.
    pub(crate) fn release_memory(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
    }
}

/// Plaintext in several slices, of which the first `offset` bytes are sealed.
struct Plaintext<'a, 'b> {
    slices: &'a [IoSlice<'b>],
    offset: usize,
}

impl Plaintext<'_, '_> {
    fn len(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum::<usize>() - self.offset
    }

    /// Moves the next `len` bytes to the end of `out`.
    fn take(&mut self, mut len: usize, out: &mut Vec<u8>) {
        while let Some(first) = self.slices.first() {
            let rest = &first[self.offset..];
            if len < rest.len() {
                out.extend_from_slice(&rest[..len]);
                self.offset += len;
                return;
            }
            out.extend_from_slice(rest);
            len -= rest.len();
            (self.slices, self.offset) = (&self.slices[1..], 0);
        }
    }
}
