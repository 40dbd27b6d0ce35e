//! Feeds hostile bytes to the TLS record layer: `cargo +nightly fuzz run records`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shoal_tls_records::fuzzing::open_untrusted(data));
