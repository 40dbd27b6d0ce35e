//! The hub role: durable completion reports of all regions, and the questions asked of them.
//!
//! Owns: what trackers flushed, on disk. Invariant: a flush is on the disk before it is acknowledged, and counts once
//! however often it is sent.
//!
//! Where to look: configuration in [`config`]; what is kept in [`ledger`]; state in and out in [`backup`]; the HTTP API in [`api`]; the page for people
//! in [`page`].

pub mod api;
pub mod backup;
pub mod config;
pub mod ledger;
pub mod page;
mod role;

pub use config::HubConfig;
pub use role::{RunError, Started, run, start};
