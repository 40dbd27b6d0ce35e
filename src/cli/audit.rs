//! `shoal audit`: who did what at the seeder or the hub, from where, and how it ended.

use super::seeder::{SeederOrHubArgs, block_on};
use super::{Outcome, output};
use shoal_api::access::AuditEntry;
use shoal_service::units::Span;

/// Show who changed what, from where, and which requests were refused
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal audit
  shoal audit --since 1h --who ci --verb push
  shoal audit --since 7d --json
  shoal audit --hub https://hub.example:7740")]
pub(crate) struct Args {
    /// Show only entries that are not older, such as 1h
    #[arg(long)]
    since: Option<Span>,
    /// Show only the entries of the token with this name
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Show only entries with this verb, such as push, demote, rollout, publish or `token create`
    #[arg(long)]
    verb: Option<String>,
    /// Show the newest entries up to this number, at most 10,000
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
    /// Print JSON lines instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: SeederOrHubArgs,
}

/// Returns a text as it stands in a query.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let client = args.server.client()?;
    let mut path = format!("/v1/audit?limit={}", args.limit);
    let since = args.since.map(|since| since.to_string());
    for (key, value) in [("since", &since), ("who", &args.who), ("verb", &args.verb)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", encoded(value)));
        }
    }
    let entries: Vec<AuditEntry> = block_on(async { Ok(client.get(&path).await?) })?;
    if args.json {
        entries.iter().try_for_each(output::json_line)?;
        return Ok(Outcome::Ok);
    }
    let row = |entry: &AuditEntry| {
        let who = if entry.who.is_empty() { "-" } else { &entry.who };
        let more = if entry.unlogged > 0 { format!(" (+{} not logged)", entry.unlogged) } else { String::new() };
        let result = format!("{} {}{more}", entry.result.name(), entry.status);
        let about = if entry.detail.is_empty() { String::new() } else { format!(": {}", entry.detail) };
        let object = format!("{}{about}", entry.object);
        vec![output::ago(entry.time_ms / 1000), who.into(), entry.from.clone(), entry.verb.clone(), result, object]
    };
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    output::table(&["TIME", "WHO", "FROM", "VERB", "RESULT", "OBJECT"], &rows);
    Ok(Outcome::Ok)
}
