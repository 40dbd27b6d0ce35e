//! `shoal demote` and `shoal promote`: what becomes of a content that hosts have already.

use super::progress::{Display, follow};
use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output};
use shoal_ops::units::Span;
use shoal_seeder::api::Pushed;
use shoal_seeder::orders::OrderRequest;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What was pushed, as NAME@VERSION or a content's id
    #[arg(value_name = "NAME@VERSION|CONTENT")]
    target: String,
    /// On which hosts: all, or region=, site=, rack=, host= and labels joined by commas (and); repeat for or. Default: the
    /// hosts it was pushed to
    #[arg(long = "to", value_name = "SELECTOR")]
    to: Vec<String>,
    /// Wait until every host has done it or has failed
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

pub(crate) fn run(order: &str, args: &Args) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    let request = OrderRequest { target: args.target.clone(), to: args.to.clone() };
    block_on(async {
        let pushed: Pushed = client.post(&format!("/v1/{order}"), &request).await?;
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
