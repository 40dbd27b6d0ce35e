//! `shoal push`: hands a path to the seeder, and shows how it goes.

use super::progress::{Display, follow};
use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output};
use shoal_ops::units::Span;
use shoal_proto::announcement::Kind;
use shoal_seeder::api::Pushed;
use shoal_seeder::jobs::PushRequest;
use std::path::PathBuf;

/// Push a file or directory to hosts
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File or directory on the seeder's machine
    path: PathBuf,
    /// Name of the content, e.g. edge-config or gslb/main
    #[arg(long)]
    name: String,
    /// Its version
    #[arg(long)]
    version: String,
    /// What it is for: gslb, config, image or blob
    #[arg(long, default_value = "blob")]
    kind: Kind,
    /// For which hosts: all, or region=, site=, rack=, host= and labels joined by commas (and); repeat for or
    #[arg(long = "to", required = true, value_name = "SELECTOR")]
    to: Vec<String>,
    /// Only put the data on the hosts: a rollout switches it in
    #[arg(long)]
    stage: bool,
    /// Wait until every host has it or has failed
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "1h", requires = "wait")]
    timeout: Span,
    /// Print JSON: the job, then with --wait a line at each change
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    // The seeder does not share our working directory.
    let path = std::path::absolute(&args.path)?;
    let request = PushRequest {
        path,
        name: args.name.clone(),
        version: args.version.clone(),
        kind: args.kind,
        to: args.to.clone(),
        staged: args.stage,
    };
    block_on(async {
        let pushed: Pushed = client.post("/v1/push", &request).await?;
        if args.json {
            output::json_line(&pushed)?;
        } else {
            output::line(&format!("job {}", pushed.job));
        }
        if !args.wait {
            return Ok(Outcome::Ok);
        }
        let display = if args.json { Display::JsonLines } else { Display::for_terminal() };
        follow(&client, &pushed.job, display, args.timeout.0).await.map(|(outcome, _)| outcome)
    })
}
