//! The tracker role: membership, liveness and the folding of hosts' reports.
//!
//! Owns: admission on the control plane, the roster, who is up, what hosts said of each job, and the spool of flushes
//! to the hub. Invariant: a host's index, the membership epoch and the flush sequence never go back, whatever is killed
//! when.
//!
//! Where to look: configuration in [`config`]; who is who in [`roster`]; what they said of jobs in [`jobs`], which versions
//! they are on in [`versions`]; what the hub is told in [`spool`]; state in and out in [`backup`]; the tasks in [`server`]; the HTTP API in [`api`].

pub mod api;
pub mod backup;
mod config;
pub mod jobs;
pub mod roster;
mod server;
mod sessions;
pub mod spool;
mod versions;

pub use config::{Limits, TrackerConfig};
pub use server::{RunError, Started, run, start};
