//! `shoal hosts`: the region's membership as the seeder knows it.

use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output};
use shoal_api::hosts::Host;
use shoal_proto::membership::Presence;

/// List the region's hosts with role, state, labels and addresses
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal hosts
  shoal hosts --json")]
pub(crate) struct Args {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    let hosts: Vec<Host> = block_on(async { Ok(client.get("/v1/hosts").await?) })?;
    if args.json {
        output::json(&hosts)?;
        return Ok(Outcome::Ok);
    }
    let rows: Vec<Vec<String>> = hosts
        .iter()
        .map(|host| {
            let labels: Vec<String> = host.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let addrs: Vec<String> = host.addrs.iter().map(ToString::to_string).collect();
            let presence = if host.presence == Presence::Up { "up" } else { "away" };
            let duplicate = if host.duplicate { ", duplicate" } else { "" };
            vec![
                host.host.clone(),
                host.role.clone(),
                format!("{presence}{duplicate}"),
                labels.join(","),
                addrs.join(" "),
            ]
        })
        .collect();
    output::table(&["HOST", "ROLE", "STATE", "LABELS", "ADDRESSES"], &rows);
    Ok(Outcome::Ok)
}
