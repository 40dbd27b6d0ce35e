//! The tracker role: membership, liveness, and the folding of hosts' reports.
//!
//! Owns: admission on the control plane, the roster, which hosts are up, every host's report in each job, and the spool
//! of flushes to the hub.
//! Invariant: a host's roster index, the membership epoch and the flush sequence never go back, whenever the process is
//! killed.
//!
//! Where to look:
//! - settings in [`config`], start, stop and errors in [`role`]
//! - answers to hosts in [`requests`] and [`state`], timers in [`upkeep`]
//! - the roster in [`roster`], reports by job in [`jobs`], the versions that hosts run in [`versions`]
//! - reports to the hub in [`hub_flush`], [`spool`], [`hub_sender`]
//! - the tables on disk in [`tables`], backups in [`backup`]
//! - the HTTP API in [`api`], metrics in [`metrics`]
//!
//! Terms are in `docs/GLOSSARY.md`.

pub mod api;
pub mod backup;
mod config;
mod hub_flush;
mod hub_sender;
mod hub_trust;
pub mod jobs;
mod metrics;
mod requests;
mod role;
pub mod roster;
pub mod spool;
mod state;
mod tables;
mod upkeep;
mod versions;

pub use config::{TrackerBounds, TrackerConfig};
pub use role::{RunError, Started, run, start};
pub use state::StateError;
