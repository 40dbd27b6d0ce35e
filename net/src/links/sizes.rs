//! Lengths that the writer and the pacing of bulk share.
//!
//! Invariant: a slice of [`RECORD_PAYLOAD_BYTES`] and the headers before it fill exactly one TLS record.

use shoal_proto::frame::{HEADER_BYTES, SLICE_HEADER_BYTES};
use shoal_proto::limits::SLICE_BYTES_MAX;

/// The plaintext of one TLS record in bytes.
pub const RECORD_BYTES: usize = 16 * 1024;

/// Payload bytes of a slice that fits into one TLS record with its headers.
pub const RECORD_PAYLOAD_BYTES: usize = RECORD_BYTES - HEADER_BYTES - SLICE_HEADER_BYTES;

/// Payload bytes of the longest slice. With its headers it fills whole TLS records.
pub const SLICE_PAYLOAD_BYTES_MAX: usize = SLICE_BYTES_MAX - HEADER_BYTES - SLICE_HEADER_BYTES;
