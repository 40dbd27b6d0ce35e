//! Links between hosts: bulk links and the libp2p control plane, under one identity.
//!
//! Owns: key files, TLS configurations, admission, the framing of bulk links and the control plane's transport.
//! Invariant: nothing reaches a driver from a connection whose other end has not proven its key, and nothing from a
//! bulk link whose other end has not shown a valid credential for that key.
//!
//! Where to look: keys and peer ids in [`identity`]; who gets in in [`admission`]; host to host in [`links`]; host to
//! tracker in [`control`].

pub mod admission;
pub mod control;
pub mod identity;
pub mod links;
#[cfg(test)]
mod testing;
mod tls;
