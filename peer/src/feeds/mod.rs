//! Feeds as local readers have them: the newest version of each, told at once, on the disk a moment later.
//!
//! Owns the shelf of newest versions. Split by meaning: [`writer`] writes versions to the disk behind everybody's back,
//! [`files`] lays out what is written, [`api`] serves readers.
//! Invariant: of a feed a reader sees growing sequences only, each with the data that was signed for it.

pub mod api;
mod files;
mod latest;
mod version;
mod writer;

pub use api::routes;
pub(crate) use files::FeedFiles;
pub use latest::{Follower, LatestVersions, unix_ms};
pub use version::{FeedData, FeedVersion};
pub(crate) use writer::{FeedWriter, PendingWrite};
