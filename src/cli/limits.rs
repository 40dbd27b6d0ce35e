//! `shoal limits`: what a node's links keep to, and other limits while it runs.

use super::seeder::block_on;
use super::{Outcome, output};
use anyhow::Context;
use serde_json::{Map, Value};
use shoal_service::http_client::Client;
use shoal_service::http_server::AdminToken;
use shoal_service::units::Rate;
use std::path::PathBuf;

/// Show or set a node's limits
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show the limits of a peer or seeder, and where they come from
    Show(Show),
    /// Set limits of a peer or seeder while it runs; a restart goes back to its configuration
    Set(Set),
}

/// Which node.
#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// The peer's or seeder's API
    #[arg(long, env = "SHOAL_NODE", default_value = "http://127.0.0.1:7701", value_name = "URL")]
    node: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// Sent to other racks and seeders: a rate such as `200 Mbit/s`, `unlimited`, or `configured` for the configuration's
    #[arg(long, value_name = "RATE")]
    uplink_out: Option<String>,
    /// Received from other racks and seeders
    #[arg(long, value_name = "RATE")]
    uplink_in: Option<String>,
    /// Sent to rack peers
    #[arg(long, value_name = "RATE")]
    rack_out: Option<String>,
    /// Received from rack peers
    #[arg(long, value_name = "RATE")]
    rack_in: Option<String>,
    /// Forget whatever was set before; alone, that is all
    #[arg(long)]
    reset: bool,
    /// The admin token the node checks
    #[arg(long, env = "SHOAL_TOKEN_FILE", default_value = "/etc/shoal/admin.token", value_name = "FILE")]
    token_file: PathBuf,
    #[command(flatten)]
    node: NodeArgs,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Show(args) => {
            let client = Client::new(&args.node.node, None)?;
            print(&block_on(async { Ok(client.get("/v1/limits").await?) })?, args.node.json)
        }
        Command::Set(args) => set(args),
    }
}

fn set(args: &Set) -> anyhow::Result<Outcome> {
    let changes = [
        ("uplink_out", &args.uplink_out),
        ("uplink_in", &args.uplink_in),
        ("rack_out", &args.rack_out),
        ("rack_in", &args.rack_in),
    ];
    if !args.reset && changes.iter().all(|(_, rate)| rate.is_none()) {
        anyhow::bail!("say what to set: --uplink-out, --uplink-in, --rack-out, --rack-in or --reset");
    }
    let token = AdminToken::load(&args.token_file).context("say which with --token-file")?;
    let client = Client::new(&args.node.node, Some(token.secret().to_string()))?;
    let view: Value = block_on(async {
        let mut rates = Map::new();
        if !args.reset {
            let view: Value = client.get("/v1/limits").await?;
            rates = view["set"].as_object().cloned().unwrap_or_default();
        }
        for (name, rate) in changes {
            match rate.as_deref() {
                None => {}
                Some("configured") => drop(rates.remove(name)),
                Some(text) => {
                    let rate: Rate = text.parse()?;
                    rates.insert(name.into(), rate.to_string().into());
                }
            }
        }
        Ok(client.post("/v1/limits", &rates).await?)
    })?;
    print(&view, args.node.json)
}

fn print(view: &Value, json: bool) -> anyhow::Result<Outcome> {
    if json {
        output::json(view)?;
        return Ok(Outcome::Ok);
    }
    let text = |value: &Value| value.as_str().unwrap_or("-").to_string();
    let rows: Vec<Vec<String>> = ["uplink_out", "uplink_in", "rack_out", "rack_in"]
        .iter()
        .map(|name| {
            let effective = view["effective"][name].as_str().unwrap_or("unlimited").to_string();
            vec![name.to_string(), effective, text(&view["set"][name]), text(&view["configured"][name])]
        })
        .collect();
    output::table(&["LIMIT", "NOW", "SET", "CONFIGURED"], &rows);
    if let Some(window) = view["window"].as_u64() {
        output::line(&format!("window {} of the day is open", window + 1));
    }
    if let Some(yielding) = view["yield"].as_object() {
        output::line(&format!(
            "yield: bulk out at most {}, in {}; the card sent {}, received {}",
            text(&yielding["bulk_out"]),
            text(&yielding["bulk_in"]),
            text(&yielding["nic_out"]),
            text(&yielding["nic_in"]),
        ));
    }
    Ok(Outcome::Ok)
}
