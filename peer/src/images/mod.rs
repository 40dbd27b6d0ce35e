//! The images of this host's store, for whatever reads them: the mirror and the prewarm task.
//!
//! Invariant: nothing here imports another part of the peer.

mod catalog;
mod recent_pulls;

pub use catalog::Images;
pub(crate) use catalog::{Blob, PieceFault, RepositoryName};
pub(crate) use recent_pulls::RecentPulls;
