//! The tracker role: membership, liveness and the folding of hosts' reports.
//!
//! Owns: admission on the control plane, the roster, who is up, what hosts said of each job, and the spool of flushes
//! to the hub. Invariant: a host's index, the membership epoch and the flush sequence never go back, whatever is killed
//! when.

mod config;
mod server;

pub use config::{Limits, TrackerConfig};
pub use server::{RunError, Started, run, start};
