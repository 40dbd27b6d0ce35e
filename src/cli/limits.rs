//! `shoal limits`: shows and sets the rate limits of a running node.
//!
//! Invariant: `set` changes the named limits only. The other limits keep their values, unless `--reset` is given.

use super::seeder::{AuthorityArgs, TOKEN_HINT, block_on};
use super::{Outcome, output};
use anyhow::Context;
use serde_json::{Map, Value};
use shoal_service::http_client::Client;
use shoal_service::http_server::AdminToken;
use shoal_service::units::Rate;
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Show(Show),
    Set(Set),
}

/// The address of the node and the form of the output.
#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// HTTP API of the peer or seeder
    #[arg(long, env = "SHOAL_NODE", default_value = "http://127.0.0.1:7701", value_name = "URL")]
    node: String,
    #[command(flatten)]
    authority: AuthorityArgs,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

impl NodeArgs {
    fn client(&self, token: Option<String>) -> anyhow::Result<Client> {
        Ok(Client::trusting(&self.node, token, self.authority.ca.as_deref())?)
    }
}

/// Show the rate limits of a peer or seeder and their origin
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal limits show
  shoal limits show --node http://10.0.0.7:7701 --json")]
pub(crate) struct Show {
    #[command(flatten)]
    node: NodeArgs,
}

/// Set rate limits of a running peer or seeder until its restart
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal limits set --uplink-in '200 Mbit/s'
  shoal limits set --uplink-in configured --rack-out unlimited
  shoal limits set --reset")]
pub(crate) struct Set {
    /// Rate sent to other racks and seeders: such as `200 Mbit/s`, `unlimited`, or `configured` for the rate of the
    /// configuration
    #[arg(long, value_name = "RATE")]
    uplink_out: Option<String>,
    /// Rate received from other racks and seeders, with values as for --uplink-out
    #[arg(long, value_name = "RATE")]
    uplink_in: Option<String>,
    /// Rate sent to rack peers, with values as for --uplink-out
    #[arg(long, value_name = "RATE")]
    rack_out: Option<String>,
    /// Rate received from rack peers, with values as for --uplink-out
    #[arg(long, value_name = "RATE")]
    rack_in: Option<String>,
    /// Clear every rate that was set before, then apply the given rates
    #[arg(long)]
    reset: bool,
    /// File with the admin token of the node
    #[arg(long, env = "SHOAL_TOKEN_FILE", default_value = "/etc/shoal/admin.token", value_name = "FILE")]
    token_file: PathBuf,
    #[command(flatten)]
    node: NodeArgs,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Show(args) => {
            let client = args.node.client(None)?;
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
        anyhow::bail!("no limit is given; add --uplink-out, --uplink-in, --rack-out, --rack-in or --reset");
    }
    let token = AdminToken::load(&args.token_file).context(TOKEN_HINT)?;
    let client = args.node.client(Some(token.secret().to_string()))?;
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
        output::line(&format!("time window {} of the configuration is in effect", window + 1));
    }
    if let Some(yielding) = view["yield"].as_object() {
        output::line(&format!(
            "NIC yield limits bulk traffic to {} out and {} in (the network card sent {}, received {})",
            text(&yielding["bulk_out"]),
            text(&yielding["bulk_in"]),
            text(&yielding["nic_out"]),
            text(&yielding["nic_in"]),
        ));
    }
    Ok(Outcome::Ok)
}
