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
//! - sessions and duplicates in [`sessions`], rates in [`pace`], unannounced things in [`aside`]
//! - the roster in [`roster`], reports by job in [`jobs`], the versions that hosts run in [`versions`]
//! - requests for credentials in [`credential_answers`]; the issuer in [`issuing`], nodes of KubeEdge in [`kubeedge`];
//!   the tracker's own renewal in [`own_renewal`]
//! - reports to the hub in [`hub_flush`], [`spool`], [`hub_sender`]
//! - the tables on disk in [`tables`], backups in [`backup`]
//! - the HTTP API in [`api`], metrics in [`metrics`]
//!
//! Terms are in `docs/GLOSSARY.md`.

pub mod api;
mod aside;
pub mod backup;
mod config;
mod credential_answers;
mod hub_flush;
mod hub_sender;
mod hub_trust;
mod issuing;
pub mod jobs;
mod kubeedge;
mod metrics;
mod own_renewal;
mod pace;
mod requests;
mod role;
pub mod roster;
mod sessions;
pub mod spool;
mod state;
mod tables;
mod upkeep;
mod versions;

pub use config::{TrackerBounds, TrackerConfig};
pub use kubeedge::KubeEdgeConfig;
pub use role::{RunError, Started, check_files, run, start};
pub use state::StateError;
