//! The seeder role: it ingests contents, signs their announcements, is the root of their lanes, and runs the jobs.
//!
//! Owns: the publisher key, the jobs and their progress, and the rollouts. The node driver, the same as a peer's,
//! distributes the contents.
//! Invariant: the seeder signs an announcement only for a content that is whole and durable here.
//!
//! Terms are those of `docs/GLOSSARY.md`.
//!
//! Where to look: configuration in [`config`]; the table of jobs in `jobs`; a push from path to announcement in
//! `ingest` and `publisher`, the keys in `publisher_keys`, the trust document in `trust`, and the folders that a push
//! may read in `push_roots`; images in `images`, their documents in `oci_documents`, registries in `registry`; images
//! that hosts' mirrors lack in `fetch_through`; demotion and promotion in `demotion`; the hosts' progress in
//! `progress` and `tracker`; feeds in `feeds`; staged activation in `rollout`; the HTTP API in `api`; state for
//! backups in [`backup`].

mod api;
pub mod backup;
pub mod config;
mod demotion;
mod errors;
mod feeds;
mod fetch_through;
#[doc(hidden)]
pub mod fuzzing;
mod images;
mod ingest;
mod jobs;
mod oci_documents;
mod progress;
mod publisher;
mod publisher_keys;
mod push_roots;
mod registry;
mod role;
mod rollout;
mod tracker;
mod trust;

pub use config::SeederConfig;
pub use role::{RunError, Started, check_publisher, run, start};
