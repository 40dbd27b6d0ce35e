//! `shoal`: the one binary. Parses the command line and hands over; no logic lives here.

mod cli;

use clap::Parser;
use std::process::ExitCode;

// The system allocator gives large buffers back to the kernel at every free and faults them in again at the next use,
// which costs a relay a third of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
