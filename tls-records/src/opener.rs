//! Received bytes in, checked plaintext out: the receiving direction of a stream.
//!
//! Invariant: `plaintext` names only bytes whose tag was checked.

use crate::error::RecordError;
use crate::record_key::{ContentType, RecordKey, check_header};
use crate::sealer::{CLOSE_NOTIFY, KEY_UPDATE};
use crate::sizes::{HEADER_BYTES, RECORD_BYTES_MAX, RECORDS_WITHOUT_DATA_MAX};
use std::ops::Range;

/// Bytes read from the transport at a time.
const READ_BYTES: usize = 64 * 1024;

/// Bytes opened before other work gets its turn. The task that reads a link also writes it, and a fast sender never
/// pauses.
const TURN_BYTES: usize = 256 * 1024;

/// What a record meant.
pub(crate) enum Opened {
    Data,
    KeyUpdate { update_requested: bool },
    Close,
}

/// The received bytes that the program has not taken yet, and the key for the next record.
pub(crate) struct Opener {
    key: RecordKey,
    buffer: Vec<u8>,
    /// Where the next record starts in `buffer`.
    next: usize,
    /// Plaintext in `buffer` that the program has not taken.
    plaintext: Range<usize>,
    /// Bytes opened since other work had its turn.
    turn_bytes: usize,
    /// Records since the last byte of application data.
    without_data: u32,
    /// Set when the other end closed its direction.
    closed: bool,
}

impl Opener {
    /// `received` holds the bytes that were read beyond the handshake.
    pub(crate) fn new(key: RecordKey, received: Vec<u8>) -> Self {
        Self { key, buffer: received, next: 0, plaintext: 0..0, turn_bytes: 0, without_data: 0, closed: false }
    }

    pub(crate) fn set_key(&mut self, key: RecordKey) {
        self.key = key;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Returns the next `max` bytes of plaintext at most, and counts them as taken. Empty if a record must be opened.
    pub(crate) fn take_plaintext(&mut self, max: usize) -> &[u8] {
        let len = self.plaintext.len().min(max);
        if len == 0 {
            // The range may be stale: the buffer moves when all plaintext was taken.
            return &[];
        }
        let start = self.plaintext.start;
        self.plaintext.start += len;
        &self.buffer[start..start + len]
    }

    /// Opens the next record if it has arrived completely.
    pub(crate) fn open_next(&mut self) -> Result<Option<Opened>, RecordError> {
        let Some(len) = check_header(&self.buffer[self.next..])? else { return Ok(None) };
        let end = self.next + len;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let start = self.next;
        let record = self.key.open(&mut self.buffer[start..end])?;
        self.next = end;
        self.turn_bytes += len - HEADER_BYTES;
        let plaintext = start + record.plaintext.start..start + record.plaintext.end;
        self.count_record(record.content == ContentType::ApplicationData && !plaintext.is_empty())?;
        match (record.content, &self.buffer[plaintext.clone()]) {
            (ContentType::ApplicationData, _) => {
                self.plaintext = plaintext;
                Ok(Some(Opened::Data))
            }
            (ContentType::Alert, alert) if alert == CLOSE_NOTIFY => {
                self.closed = true;
                Ok(Some(Opened::Close))
            }
            (ContentType::Alert, [_, number]) => Err(RecordError::Alert(*number)),
            (ContentType::Handshake, [message @ .., request @ (0 | 1)]) if message == KEY_UPDATE => {
                // A key update must end its flight (RFC 8446, section 5.1). It does, as messages may not share records
                // here.
                Ok(Some(Opened::KeyUpdate { update_requested: *request == 1 }))
            }
            (content, _) => Err(RecordError::UnexpectedContent(content as u8)),
        }
    }

    /// Counts a record towards the bound of records without application data.
    fn count_record(&mut self, has_data: bool) -> Result<(), RecordError> {
        self.without_data = if has_data { 0 } else { self.without_data + 1 };
        if self.without_data > RECORDS_WITHOUT_DATA_MAX { Err(RecordError::TooManyWithoutData) } else { Ok(()) }
    }

    /// Returns whether other work must get its turn now. Resets the count if so.
    pub(crate) fn turn_is_over(&mut self) -> bool {
        let over = self.turn_bytes >= TURN_BYTES;
        if over {
            self.turn_bytes = 0;
        }
        over
    }

    /// Returns the buffer with room for the next read and for the rest of a record.
    pub(crate) fn read_buffer(&mut self) -> &mut Vec<u8> {
        if self.next == self.buffer.len() {
            self.buffer.clear();
            self.next = 0;
        }
        if self.buffer.capacity() < READ_BYTES {
            self.buffer.reserve_exact(READ_BYTES);
        } else if self.next > 0 && self.buffer.capacity() - self.buffer.len() < RECORD_BYTES_MAX {
            self.buffer.drain(..self.next);
            self.next = 0;
        }
        &mut self.buffer
    }

    /// Notes that the transport has no bytes now. Frees an empty buffer, because idle links are many.
    pub(crate) fn on_idle(&mut self) {
        self.turn_bytes = 0;
        if self.next == self.buffer.len() {
            (self.buffer, self.next) = (Vec::new(), 0);
        }
    }
}
