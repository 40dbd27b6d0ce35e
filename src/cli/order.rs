//! `shoal demote` and `shoal promote`: orders for a content that hosts already have.
//!
//! Invariant: both commands differ only in the order that the seeder announces.

use super::progress::{Waiting, begun};
use super::seeder::{SeederArgs, block_on};
use super::{Outcome, help};
use shoal_api::jobs::{JobAccepted, OrderRequest};

pub(crate) const DEMOTE_EXAMPLES: &str = "\
Examples:
  shoal demote edge/settings@41 --wait
  shoal demote edge/settings@41 --to site=lon1";
pub(crate) const PROMOTE_EXAMPLES: &str = "\
Examples:
  shoal promote edge/settings@41 --wait
  shoal promote edge/settings@41 --to rack=rack3 --wait --timeout 10m";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pushed version as NAME@VERSION, or the id of its content
    #[arg(value_name = "NAME@VERSION|CONTENT")]
    target: String,
    #[arg(long = "to", value_name = "SELECTOR", help = format!("{} [default: the hosts of the push]", help::TO))]
    to: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
    /// Print JSON lines: the job, and with --wait the status at every change
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(order: &str, args: &Args) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    let request = OrderRequest { target: args.target.clone(), to: args.to.clone() };
    block_on(async {
        let pushed: JobAccepted = client.post(&format!("/v1/{order}"), &request).await?;
        begun(&client, &pushed, &args.waiting, args.json).await
    })
}
