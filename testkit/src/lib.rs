//! Helpers for tests: regions of real processes, registries, feeds, noise and waits.
//!
//! Owns: the processes, folders and addresses that a test uses, and their removal. The crate depends on no other crate
//! of ours, so every crate may use it in its tests. No shipped crate may depend on it.
//! Invariant: two tests share nothing. Each has its own folders, its own loopback address, and processes that end with
//! it.
//!
//! A helper that fails panics, because the panic fails the test that called it. `docs/GLOSSARY.md` defines the terms.
//!
//! Where to look: the program under test in [`mod@program`]; one role's process in [`process`]; a hub, tracker, seeder
//! and peers together in [`region`]; requests by hand in [`http`]; publishers and readers of feeds in [`feeds`];
//! images in [`oci`]; a real registry in [`registry`] and one that misbehaves in [`fake_registry`]; a network of the
//! test's own in [`network`]; waits in [`wait`].

pub mod disk;
pub mod fake_registry;
pub mod feeds;
pub mod http;
mod loopback;
pub mod network;
mod noise;
pub mod oci;
pub mod process;
pub mod program;
pub mod region;
pub mod registry;
pub mod settings;
pub mod wait;

pub use loopback::own_loopback;
pub use noise::noise;
pub use process::Process;
pub use program::Program;
pub use region::{Region, Setup};
pub use wait::{PATIENCE, until};

/// The `shoal` program that Cargo built for the calling test or benchmark.
///
/// This is a macro because Cargo sets the path only while it compiles a test or benchmark of the program's package.
#[macro_export]
macro_rules! program {
    () => {
        $crate::Program::new(env!("CARGO_BIN_EXE_shoal"))
    };
}
