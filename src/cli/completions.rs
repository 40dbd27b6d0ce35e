//! `shoal completions`: the completion script of a shell.
//!
//! Invariant: the script is generated from the same definition that parses the command line.

use super::{Cli, Outcome};
use clap::CommandFactory;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal completions bash > /etc/bash_completion.d/shoal
  shoal completions zsh > '${fpath[1]}/_shoal'")]
pub(crate) struct Args {
    /// Shell for which to print the script
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "shoal", &mut script);
    super::output::line(String::from_utf8_lossy(&script).trim_end());
    Ok(Outcome::Ok)
}
