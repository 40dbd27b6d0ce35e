//! The images in this host's store, as the mirror and the prewarm task read them.
//!
//! Owns: look-ups by name and digest, verified reads of blobs, lists of referrers, the list of recent pulls.
//! Invariant: this folder imports no other part of the peer.

mod catalog;
mod recent_pulls;
mod referrers;

pub use catalog::Images;
pub(crate) use catalog::{Blob, PieceError, RepositoryName};
pub(crate) use recent_pulls::RecentPulls;
