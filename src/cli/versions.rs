//! `shoal versions`: the desired and the actual version of a name on every host.

use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output};
use shoal_api::rollouts::HostVersion;
use std::collections::BTreeMap;

/// Show the desired and the active version of a name on every host
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal versions edge/settings
  shoal versions edge/settings --json")]
pub(crate) struct Args {
    /// Name of the content, such as edge/settings
    name: String,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    let path = format!("/v1/versions?name={}", args.name);
    let hosts: Vec<HostVersion> = block_on(async { Ok(client.get(&path).await?) })?;
    if args.json {
        output::json(&hosts)?;
        return Ok(Outcome::Ok);
    }
    let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".into());
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let rows: Vec<Vec<String>> = hosts
        .iter()
        .map(|host| {
            *counts.entry(shown(&host.actual)).or_default() += 1;
            let away = if host.away { "away" } else { "up" };
            vec![host.host.clone(), shown(&host.desired), shown(&host.actual), away.into(), host.state.clone()]
        })
        .collect();
    output::table(&["HOST", "DESIRED", "ACTIVE", "STATE", "ROLLOUT"], &rows);
    for (version, hosts) in counts {
        output::line(&format!("{version}: {hosts} hosts"));
    }
    Ok(Outcome::Ok)
}
