//! Feeds as local readers get them: the newest version of each, from memory at once and on disk a moment later.
//!
//! Owns: the newest versions, their files, and the HTTP API of readers.
//! Invariant: a reader of a feed sees growing sequences only, each with the data that was signed for it.
//!
//! Where to look: the newest versions and their followers in [`latest`]; a version in [`version`]; the thread that
//! writes versions in [`writer`]; the files in [`files`]; the HTTP API in [`api`].

pub mod api;
mod files;
mod latest;
mod version;
mod writer;

pub use api::routes;
pub(crate) use files::FeedFiles;
pub use latest::{Follower, LatestVersions};
pub use version::{FeedData, FeedVersion};
pub use writer::FeedWriteError;
pub(crate) use writer::{FeedWriter, PendingWrite};
