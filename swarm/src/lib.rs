//! The core of Shoal: which hosts are in the region, which host sends what to which host, and what to do when that
//! fails.
//!
//! Owns: the membership, the lane plan, and the state machine that every peer and seeder runs ([`node::Node`]).
//! Invariant: sans-IO and deterministic. The core has no clock, no randomness, no IO, no async and no payload byte. The
//! same inputs at the same times lead to the same outputs, in the daemon and in the simulator.
//!
//! Where to look: time in [`time`], the region's hosts in [`membership`], the trees in [`plan`], inputs and outputs in
//! [`io`], and the decisions in [`node`]. The terms are in `docs/GLOSSARY.md`.

pub mod io;
pub mod membership;
pub mod node;
pub mod plan;
pub mod time;
