//! The peer role, and the node driver that turns the brain's outputs into effects for peers and seeders alike.
//!
//! Owns: the one task that runs the brain, its connection to the tracker, activation on disk, the local API.
//! Invariant: only the driver's task touches the brain; everything slow happens elsewhere and comes back as an event.
//!
//! Where to look: configuration in [`config`]; the driver in [`driver`], how others reach it in [`handle`]; what its links keep to in [`limits`]; what readers
//! have of feeds in [`feeds`]; switching a version in with [`activate`], as a rollout asks for it and with hooks with
//! [`rollout`]; what a host says of its jobs in [`reports`]; the tracker's client in [`tracker`]; the HTTP API in [`api`];
//! the registry mirror in [`mirror`]; having containerd unpack images in [`warm`].

pub mod activation;
pub mod api;
pub mod config;
pub mod driver;
pub mod feeds;
pub mod handle;
pub mod images;
pub mod mirror;
pub mod prewarm;
pub mod rate_limits;
pub mod reports;
mod role;
pub mod tracker_client;

pub use config::PeerConfig;
pub use role::{RunError, Started, run, start};
