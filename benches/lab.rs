//! `cargo bench --bench lab`: the lab with the arguments of the command line.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let files = Path::new(env!("CARGO_TARGET_TMPDIR"));
    shoal_lab::run(shoal_testkit::program!(), files, std::env::args_os())
}
