//! The hub role: durable completion reports of all regions, and queries of them.
//!
//! Owns: what trackers reported, on disk.
//! Invariant: a flush is on the disk before the hub acknowledges it, and counts once however often it is sent.
//!
//! Where to look:
//! - settings in [`config`], start, stop and errors in [`role`]
//! - the records in [`ledger`], their counts in [`folds`], their tables in [`tables`], backups in [`backup`]
//! - the HTTP API in [`api`], signatures of receipts in [`signer`], its answers in [`view`], the page for people in
//!   [`page`]
//! - the warning before the credential ends in [`expiry`]
//!
//! Terms are in `docs/GLOSSARY.md`.

pub mod api;
pub mod backup;
pub mod config;
mod expiry;
mod folds;
pub mod ledger;
pub mod page;
mod role;
mod signer;
mod tables;
pub mod view;

pub use config::HubConfig;
pub use role::{RunError, Started, check_files, run, start};
