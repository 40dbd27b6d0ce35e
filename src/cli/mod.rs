//! The command line. Each command has a file or folder of its own.
//!
//! Invariant: the exit code of a command is one of those that `help` lists.

mod audit;
mod backup;
mod cluster;
mod cluster_files;
mod cluster_issuer;
mod cluster_show;
mod cluster_tls;
mod cluster_token;
mod cluster_trust;
mod completions;
mod config;
mod config_check;
mod containerd;
mod demo;
mod doctor;
mod feed;
mod findings;
mod help;
mod hosts;
mod join;
mod limits;
mod ls;
mod order;
mod output;
mod prewarm;
mod progress;
mod push;
mod role;
mod role_facts;
mod rollout;
mod seeder;
mod sim;
mod status;
mod token;
mod versions;

use clap::{FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// Rack-aware peer-to-peer distribution of large files to CDN edges.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Parses the command line. Prints help or a usage error and ends the process when there is nothing to run.
    pub(crate) fn parse_or_exit() -> Self {
        let matches = help::command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Push(push::Args),
    /// Reduce an earlier version to about one copy per rack: each host keeps a rack share
    #[command(after_help = order::DEMOTE_EXAMPLES)]
    Demote(order::Args),
    /// Restore a demoted version on every host from its rack's shares, and activate it
    #[command(after_help = order::PROMOTE_EXAMPLES)]
    Promote(order::Args),
    Rollout(Box<rollout::Args>),
    Versions(versions::Args),
    Prewarm(prewarm::Args),
    Status(status::Args),
    /// Publish and watch feeds: named series of small versions of which only the newest counts
    #[command(subcommand)]
    Feed(feed::Command),
    Ls(ls::Args),
    Hosts(hosts::Args),
    /// Show or set the rate limits of a node
    #[command(subcommand)]
    Limits(limits::Command),
    /// Create a cluster's keys and issue credentials to its nodes
    #[command(subcommand)]
    Cluster(cluster::Command),
    Join(join::Args),
    /// Configure a host's containerd to pull from the mirror
    #[command(subcommand)]
    Containerd(containerd::Command),
    /// Create, list and revoke tokens of the API of the seeder or a hub
    #[command(subcommand)]
    Token(token::Command),
    Audit(audit::Args),
    Backup(backup::Backup),
    Restore(backup::Restore),
    /// Check or show a role's configuration
    #[command(subcommand)]
    Config(config::Command),
    Doctor(doctor::Args),
    /// Run the hub, which stores completion reports
    #[command(after_help = role::HUB_EXAMPLES)]
    Hub(role::Args),
    /// Run a tracker, which keeps the membership and folds reports
    #[command(after_help = role::TRACKER_EXAMPLES)]
    Tracker(role::Args),
    /// Run a seeder, which ingests contents, signs announcements and runs jobs and rollouts
    #[command(after_help = role::SEEDER_EXAMPLES)]
    Seeder(role::Args),
    /// Run a peer, which receives, verifies, forwards and activates contents
    #[command(after_help = role::PEER_EXAMPLES)]
    Peer(role::Args),
    Sim(sim::Args),
    Completions(completions::Args),
}

/// How a command ends without an error. The order is by severity, so that several outcomes fold with `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Ok,
    /// The job did not end in time, or hosts are away.
    Unfinished,
    /// The job ended and some hosts failed.
    HostsFailed,
    /// A role ended with an error, which is in its log.
    Failed,
    Interrupted,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Ok => 0,
            Outcome::Failed => 1,
            Outcome::HostsFailed => 3,
            Outcome::Unfinished => 4,
            Outcome::Interrupted => 130,
        })
    }
}

pub(crate) fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Push(args) => push::run(&args),
        Command::Demote(args) => order::run("demote", &args),
        Command::Promote(args) => order::run("promote", &args),
        Command::Rollout(args) => rollout::run(&args),
        Command::Versions(args) => versions::run(&args),
        Command::Prewarm(args) => prewarm::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Feed(command) => feed::run(&command),
        Command::Ls(args) => ls::run(&args),
        Command::Hosts(args) => hosts::run(&args),
        Command::Limits(command) => limits::run(&command),
        Command::Cluster(command) => cluster::run(&command),
        Command::Join(args) => join::run(&args),
        Command::Containerd(command) => containerd::run(&command),
        Command::Token(command) => token::run(&command),
        Command::Audit(args) => audit::run(&args),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Config(command) => config::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Hub(args) => role::run(config::Role::Hub, &args),
        Command::Tracker(args) => role::run(config::Role::Tracker, &args),
        Command::Seeder(args) => role::run(config::Role::Seeder, &args),
        Command::Peer(args) => role::run(config::Role::Peer, &args),
        Command::Sim(args) => sim::run(&args),
        Command::Completions(args) => completions::run(&args),
    };
    done.map_or_else(
        |error| {
            output::error(&error);
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}
