//! `shoal ls`: the contents in the seeder's store.

use super::seeder::{SeederArgs, block_on};
use super::{Outcome, output};
use serde_json::Value;
use shoal_service::units::ByteSize;

/// List the contents in the seeder's store
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal ls
  shoal ls --json")]
pub(crate) struct Args {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    seeder: SeederArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let client = args.seeder.client()?;
    let contents: Vec<Value> = block_on(async { Ok(client.get("/v1/contents").await?) })?;
    if args.json {
        output::json(&contents)?;
        return Ok(Outcome::Ok);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let rows: Vec<Vec<String>> = contents
        .iter()
        .flat_map(|content| {
            let names = content["names"].as_array().cloned().unwrap_or_default();
            names.into_iter().map(|name| {
                vec![
                    text(&name["name"]),
                    text(&name["version"]),
                    text(&name["kind"]),
                    ByteSize(content["size"].as_u64().unwrap_or(0)).rounded(),
                    content["total"].to_string(),
                    text(&content["content"]).chars().take(10).collect(),
                ]
            })
        })
        .collect();
    output::table(&["NAME", "VERSION", "KIND", "SIZE", "PIECES", "CONTENT"], &rows);
    Ok(Outcome::Ok)
}
