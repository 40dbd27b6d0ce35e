//! Shoal's brain: who is in the region, which host sends what to whom, and what to do when that goes wrong.
//!
//! Owns: membership, the lane plan, and the state machine that every peer and seeder runs ([`node::Node`]).
//! Invariant: sans-IO and deterministic. No clock, randomness, IO, async or payload byte is in here; the same inputs at
//! the same times give the same outputs, in the daemon and in the simulator.
//!
//! Where to look: time in [`time`]; who is where in [`membership`]; the trees in [`plan`]; what goes in and comes out
//! in [`io`]; the decisions in [`node`].

pub mod io;
pub mod membership;
pub mod node;
pub mod plan;
pub mod time;
