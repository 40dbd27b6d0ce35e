//! The seeder role: takes contents in, signs their announcements, roots the lanes, owns the jobs.
//!
//! Owns: the publisher key, the jobs and their progress. Distribution itself is the node driver's, the same as a peer's.
//! Invariant: an announcement is signed only for a content that is whole and durable here.
//!
//! Where to look: configuration in [`config`]; which jobs there are in [`jobs`], what is told of them in [`status`]; a push
//! from path to announcement in [`take_in`], of an image in [`images`], from a [`registry`]; images hosts were asked for in
//! [`wanted`]; demotion and promotion of what was pushed in [`orders`]; how far the hosts are in [`progress`]; versions of
//! feeds in [`feeds`]; versions switched in wave by wave in [`rollout`]; the HTTP API in [`api`].

pub mod api;
pub mod backup;
pub mod config;
pub mod feeds;
pub mod images;
pub mod jobs;
pub mod orders;
mod progress;
pub mod registry;
mod role;
pub mod rollout;
pub mod status;
mod take_in;
mod wanted;

pub use config::SeederConfig;
pub use role::{RunError, Started, run, start};
