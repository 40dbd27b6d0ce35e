//! A region in virtual time that runs the same core as the daemons.
//!
//! Owns: the clock, links and disks with their rates, the tracker's view, the faults, and the figures of a run.
//! Invariant: a run is a pure function of its scenario and seed. The same run has the same digest on every machine.
//! `docs/GLOSSARY.md` defines the terms.
//!
//! Where to look: sites, racks, hosts and rates in [`layout`]; what goes wrong and when in [`faults`]; events and hosts
//! in [`world`]; queues and fair sharing in [`ports`]; a run from scenario to figures in [`run`]; what each rule of the
//! core is worth in [`ablation`]; a run's picture in [`plot`]; what must hold at every moment in [`check`].

pub mod ablation;
pub mod check;
pub mod faults;
pub mod layout;
pub mod plot;
mod ports;
mod rng;
pub mod run;
pub mod world;

pub use rng::Rng;
