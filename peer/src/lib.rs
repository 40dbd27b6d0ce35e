//! The peer role, and the driver that connects the core to network, disk and containers. Seeders use the same driver.
//!
//! Terms are in `docs/GLOSSARY.md`.
//!
//! Owns: the driver's task, the connection to the tracker, activation on disk, the local API, the registry mirror.
//! Invariant: only the driver's task touches the core. Slow work runs elsewhere and comes back as an input.
//!
//! Where to look: configuration in [`config`]; the driver in [`driver`], and how other tasks reach it in [`handle`];
//! rate limits of links in [`rate_limits`]; the check of membership rows in [`row_check`]; feeds for local readers in
//! [`feeds`]; versions, switches and hooks in [`activation`]; this host's reports in [`reports`]; the tracker's client
//! in [`tracker_client`]; the HTTP API in [`api`]; the registry mirror in [`mirror`]; images in the store in
//! [`images`]; prewarm of images in [`prewarm`].

pub mod activation;
pub mod api;
pub mod arrivals;
pub mod clock;
mod clone_file;
pub mod config;
pub mod driver;
mod error_chain;
pub mod feeds;
pub mod handle;
pub mod images;
pub mod mirror;
pub mod prewarm;
pub mod rate_limits;
pub mod reports;
mod role;
mod row_check;
pub mod tracker_client;

pub use config::PeerConfig;
pub use role::{RunError, Started, run, start};
