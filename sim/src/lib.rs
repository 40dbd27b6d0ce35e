//! A region in virtual time, run by the very brain the daemons run.
//!
//! Owns: the clock, the links and disks with their rates, the tracker's view, the faults, and what is measured of a run.
//! Invariant: a run is a pure function of its scenario and seed; the same one gives the same digest on every machine.
//!
//! Where to look: sites, racks, hosts and rates in [`layout`]; what goes wrong and when in [`faults`]; the events in
//! [`world`]; queues and fair sharing in [`links`]; a whole run from scenario to figures in [`run`]; its curves in
//! [`plot`]; what must hold at every moment in [`check`].

pub mod check;
pub mod faults;
pub mod layout;
mod links;
pub mod plot;
mod rng;
pub mod run;
pub mod world;

pub use rng::Rng;
