//! The top-level help: commands in groups, first steps, exit codes. Also help texts that several commands share.
//!
//! Invariant: every command is in exactly one group.

use super::Cli;
use clap::CommandFactory;
use std::fmt::Write;

/// Help of `--to` wherever the option exists.
pub(crate) const TO: &str = "Hosts to address: `all`, or conditions joined by commas that all must hold, such as \
    site=lon1,service=cache. The keys are region, site, rack, host and labels. Repeat --to to add hosts";

/// Commands by purpose, in the order of the help.
const GROUPS: [(&str, &[&str]); 6] = [
    ("First steps", &["demo", "sim", "completions"]),
    ("Distribute contents", &["push", "prewarm", "demote", "promote", "feed"]),
    ("Activate in batches", &["rollout", "versions"]),
    ("Inspect", &["status", "ls", "hosts", "limits", "audit"]),
    ("Set up and maintain", &["cluster", "join", "token", "config", "doctor", "containerd", "backup", "restore"]),
    ("Run a role", &["seeder", "peer", "tracker", "hub"]),
];

const AFTER: &str = "\
Examples:
  shoal demo
  shoal push ./settings --name edge/settings --version 42 --kind config --to site=lon1 --wait
  shoal status --json

Exit codes:
    0  done
    1  error
    2  wrong usage
    3  the job ended and some hosts failed
    4  the job did not end in time, or hosts are away
  130  interrupted

`shoal COMMAND --help` shows the options and examples of a command.";

/// The command line with its grouped help.
pub(crate) fn command() -> clap::Command {
    let command = Cli::command();
    let mut groups = String::new();
    for (title, names) in GROUPS {
        let _ = writeln!(groups, "{title}:"); // a String accepts every write
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(groups, "  {name:<12} {about}"); // a String accepts every write
        }
        groups.push('\n');
    }
    let template =
        format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}Options:\n{{options}}{{after-help}}");
    command.help_template(template).after_help(AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let command = Cli::command();
        let mut all: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
    }

    /// The path, and the command, of every command that does something.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        let path = format!("{path} {}", command.get_name());
        if !command.has_subcommands() || command.get_positionals().next().is_some() {
            found.push((path.clone(), command.clone()));
        }
        command.get_subcommands().for_each(|command| leaves(command, &path, found));
    }

    #[test]
    fn every_command_says_what_it_does_with_an_example_and_every_argument_has_help() {
        command().debug_assert();
        let mut all = Vec::new();
        leaves(&command(), "", &mut all);
        for (path, command) in all {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.len() > 10 && !about.ends_with('.'), "{path}: {about:?}");
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains(path.trim()), "{path} has no example:\n{after}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
        }
    }
}
