//! Connections between hosts: links for payload and announcements, and the libp2p control plane, under one identity.
//!
//! Owns: key files, TLS configurations, admission, the framing of links, and the transport of the control plane.
//! Invariant: a driver gets nothing from a connection whose other end has not proven its key. It gets nothing from a
//! link whose other end has not shown a valid credential for that key.
//!
//! Where to look:
//!
//! - keys and peer ids in [`identity`]
//! - who is admitted in [`admission`], the trust document on disk in [`trust_file`]
//! - host to host in [`links`], host to tracker in [`control`]
//! - from a join token to a credential in [`enrolment`], its renewal in [`own_credential`]
//! - files replaced in one step in [`mod@replace_file`]
//! - log lines that others cause in [`log_limit`]
//!
//! The TLS record layer is the crate `shoal-tls-records`.
//!
//! Terms are in `docs/GLOSSARY.md`.

pub mod admission;
pub mod control;
pub mod enrolment;
pub mod identity;
pub mod links;
pub mod log_limit;
pub mod node_certificate;
pub mod own_credential;
mod places;
mod range;
pub mod replace_file;
#[cfg(test)]
mod testing;
mod tls;
pub mod trust_file;

pub use tls::{TlsError, TlsSetupError};
