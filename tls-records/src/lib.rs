//! A TLS 1.3 record layer for links that carry little else than payload (RFC 8446, section 5).
//!
//! rustls runs the handshake, checks certificates and derives every key. This crate takes the traffic keys from rustls
//! and protects the records that follow. rustls alone reads 4 KiB at a time and copies each payload byte twice on its
//! way in. This crate reads 64 KiB at a time and copies each payload byte once, which saves about a tenth of the
//! processor time of a swarm without a rate limit. The decision and its measurements are in
//! `docs/adr/0020-own-tls-record-layer.md`.
//!
//! Owns: traffic keys in use, sequence numbers, and the bytes that wait to be sealed or opened.
//! Invariant: no two records are sealed with the same key and sequence number, no plaintext leaves this crate before
//! the tag of its record is checked, and after the first error nothing is sealed or opened.
//!
//! Where to look: one record under one key in [`RecordKey`]; a connection in [`TlsStream`]; the handshake before it in
//! [`handshake`]; key updates in [`Rekey`]; errors in [`RecordError`]; the entry of the fuzz target in [`fuzzing`].
//!
//! Evidence, in `tests/records/`: `rfc8448.rs` compares keys and records with RFC 8448 bit for bit.
//! `openssl_interop.rs` and `rustls_interop.rs` talk to OpenSSL and to rustls. `hostile.rs` and the fuzz target
//! `records` feed hostile bytes. The target `records_rustls` opens and seals the same records with rustls.
//!
//! Terms are in `docs/GLOSSARY.md`.

mod error;
pub mod fuzzing;
pub mod handshake;
mod opener;
mod record_key;
mod rekey;
mod sealer;
mod sizes;
mod stream;

pub use error::RecordError;
pub use record_key::{Cipher, ContentType, OpenedRecord, RecordKey};
pub use rekey::Rekey;
pub use sizes::{PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX};
pub use stream::{TlsStream, TrafficKeys};
