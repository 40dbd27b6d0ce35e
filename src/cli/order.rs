//! `shoal demote` and `shoal promote`: what becomes of a content that hosts have already.

use super::Outcome;
use super::progress::{Waiting, begun};
use super::seeder::{SeederArgs, block_on};
use shoal_api::jobs::{JobAccepted, OrderRequest};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What was pushed, as NAME@VERSION or a content's id
    #[arg(value_name = "NAME@VERSION|CONTENT")]
    target: String,
    /// On which hosts: all, or region=, site=, rack=, host= and labels joined by commas (and); repeat for or. Default: the
    /// hosts it was pushed to
    #[arg(long = "to", value_name = "SELECTOR")]
    to: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
    /// Print JSON: the job, then with --wait a line at each change
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
