//! The seeder role: takes contents in, signs their announcements, roots the lanes, owns the jobs.
//!
//! Owns: the publisher key, the jobs and their progress. Distribution itself is the node driver's, the same as a peer's.
//! Invariant: an announcement is signed only for a content that is whole and durable here.
//!
//! Where to look: configuration in [`config`]; which jobs there are in [`jobs`], what is told of them in [`status`]; a push
//! from path to announcement in [`ingest`], of an image in [`images`], from a [`registry`]; images hosts were asked for in
//! [`fetch_through`]; demotion and promotion of what was pushed in [`demotion`]; how far the hosts are in [`progress`]; versions of
//! feeds in [`feeds`]; versions switched in batch by batch in [`rollout`]; the HTTP API in [`api`].

pub mod api;
pub mod backup;
pub mod config;
pub mod demotion;
pub mod feeds;
mod fetch_through;
pub mod images;
mod ingest;
pub mod jobs;
mod progress;
pub mod registry;
mod role;
pub mod rollout;
pub mod status;

pub use config::SeederConfig;
pub use role::{RunError, Started, run, start};
