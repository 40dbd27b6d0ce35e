//! `shoal`: the one binary of all commands and roles.
//!
//! Invariant: no logic lives here, only the allocator and the call of `cli`.

mod cli;

use std::process::ExitCode;

// The system allocator returns large buffers to the kernel at every free. The next use faults their pages in again,
// which costs a forwarding host a third of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse_or_exit())
}
