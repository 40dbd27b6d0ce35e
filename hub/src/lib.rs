//! The hub role: durable completion reports of all regions, and queries of them.
//!
//! Owns: what trackers reported, on disk.
//! Invariant: a flush is on the disk before the hub acknowledges it, and counts once however often it is sent.
//!
//! Where to look: settings in [`config`]; the records in [`ledger`] and their tables in [`tables`]; what an answer contains
//! in [`view`]; the HTTP API in [`api`]; the page for people in [`page`]; backups in [`backup`]; start, stop and errors in
//! [`role`]. Terms are in `docs/GLOSSARY.md`.

pub mod api;
pub mod backup;
pub mod config;
pub mod ledger;
pub mod page;
mod role;
mod tables;
pub mod view;

pub use config::HubConfig;
pub use role::{RunError, Started, run, start};
