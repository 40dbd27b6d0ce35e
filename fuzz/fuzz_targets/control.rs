//! The streams of the control plane: a length, then a document.

#![no_main]

use shoal_fuzz::heap;
use shoal_net::control::fuzzing::{read_request, read_response, write_request, write_response};
use shoal_proto::limits;

/// The limit of requests before a `Join`, so that the bound of a reader is small enough to be met.
const REQUEST_BYTES_MAX: usize = 4096;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let heap_max = (1 << 20) + 1000 * bytes.len();
    heap::bounded(heap_max, || {
        if let Ok(request) = read_request(bytes, REQUEST_BYTES_MAX) {
            let written = write_request(request.clone()).expect("what was read can be written");
            assert!(written.len() <= 4 + REQUEST_BYTES_MAX);
            assert_eq!(read_request(&written, REQUEST_BYTES_MAX).expect("what was written can be read"), request);
        }
        if let Ok(response) = read_response(bytes, limits::CONTROL_PLANE_BYTES_MAX) {
            let written = write_response(response.clone()).expect("what was read can be written");
            let again = read_response(&written, limits::CONTROL_PLANE_BYTES_MAX).expect("what was written can be read");
            assert_eq!(again, response);
        }
        let claimed = bytes.first_chunk::<4>().map(|len| u32::from_le_bytes(*len) as usize);
        if claimed.is_some_and(|len| len > REQUEST_BYTES_MAX) {
            assert!(read_request(bytes, REQUEST_BYTES_MAX).is_err(), "a length over the limit was accepted");
        }
    });
});
