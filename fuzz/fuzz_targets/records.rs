//! Hostile bytes for the TLS record layer, as they are and sealed with the right keys.

#![no_main]

use shoal_fuzz as _;

libfuzzer_sys::fuzz_target!(|data: &[u8]| shoal_tls_records::fuzzing::open_untrusted(data));
