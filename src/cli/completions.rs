//! `shoal completions`: a shell's completion script.

use super::{Cli, Outcome};
use clap::CommandFactory;

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "shoal", &mut script);
    super::output::line(String::from_utf8_lossy(&script).trim_end());
    Ok(Outcome::Ok)
}
