//! The command line: one file a command.
//!
//! Exit codes: 0 done; 1 an error; 2 wrong usage; 3 the job ended and some hosts failed; 4 the job did not end in time or
//! hosts are away; 130 interrupted.

mod backup;
mod cluster;
mod completions;
mod config;
mod containerd;
mod demo;
mod feed;
mod hosts;
mod limits;
mod ls;
mod order;
mod output;
mod prewarm;
mod progress;
mod push;
mod role;
mod rollout;
mod seeder;
mod sim;
mod status;
mod versions;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Rack-aware peer-to-peer distribution of large files to CDN edges.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole region on this machine: push a file or directory through racks of real processes and verify it
    Demo(demo::Args),
    /// Push a file, a directory or an image to hosts
    Push(push::Args),
    /// Have hosts keep only their shares of an earlier version: a rack then holds it about once, not once a host
    Demote(order::Args),
    /// Have hosts hold a demoted version whole again, from their racks' shares, and switch it in
    Promote(order::Args),
    /// Switch a version in on hosts, batch by batch, and back when it is not well
    Rollout(Box<rollout::Args>),
    /// Show which host is on which version of a name, and on which it should be
    Versions(versions::Args),
    /// Pull images from their registry, once, and push them to hosts
    Prewarm(prewarm::Args),
    /// Show how far jobs are
    Status(status::Args),
    /// Publish and watch feeds: named sequences of small contents, of which the latest counts
    #[command(subcommand)]
    Feed(feed::Command),
    /// List the contents a seeder holds
    Ls(ls::Args),
    /// List the region's hosts
    Hosts(hosts::Args),
    /// Show or set what a node's links may carry
    #[command(subcommand)]
    Limits(limits::Command),
    /// Make a cluster's keys and its nodes' credentials
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Send a host's containerd to the peer's registry mirror
    #[command(subcommand)]
    Containerd(containerd::Command),
    /// Write a role's state to a file, while it runs or while it does not
    Backup(backup::Backup),
    /// Make a role's state from a backup
    Restore(backup::Restore),
    /// Check or show a role's configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Run the hub: keeps completion reports
    Hub(role::Args),
    /// Run a tracker: membership, liveness, folding of reports
    Tracker(role::Args),
    /// Run a seeder: takes contents in and roots the lanes
    Seeder(role::Args),
    /// Run a peer: stores, relays, verifies, activates
    Peer(role::Args),
    /// Simulate a push to a region, of up to 100,000 hosts, with the very code the daemons run
    Sim(sim::Args),
    /// Print a shell's completion script
    Completions(completions::Args),
}

/// What a command ends with, other than an error; of several, the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Ok,
    /// The job did not end in time, or hosts are away.
    Unfinished,
    /// The job ended and some hosts failed.
    HostsFailed,
    Interrupted,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Ok => 0,
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
        Command::Containerd(command) => containerd::run(&command),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Config(command) => config::run(&command),
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
