//! `shoal cluster show`: the trust document, and the credentials that end soon.
//!
//! Invariant: the command only reads.

use super::cluster_files::{issued, open_trust};
use super::output;
use serde_json::{Value, json};
use shoal_net::admission::system_clock;
use shoal_proto::trust::{Credential, Issuer, Publisher, Trust};
use shoal_service::units::Span;
use std::path::PathBuf;

/// Show a cluster's trust document, and the credentials that end soon
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster show --dir cluster
  shoal cluster show --dir cluster --expiring 30d
  shoal cluster show --dir cluster --json")]
pub(crate) struct Show {
    /// Folder of the cluster
    #[arg(long)]
    dir: PathBuf,
    /// List the credentials that were issued from this folder and end within this time
    #[arg(long)]
    expiring: Option<Span>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Show) -> anyhow::Result<()> {
    let trust = open_trust(&args.dir)?;
    let expiring = match args.expiring {
        Some(within) => Some(expiring(args, &trust, within)?),
        None => None,
    };
    if args.json {
        return output::json(&as_json(&trust, expiring.as_deref()));
    }
    let document = trust.document();
    output::line(&format!("cluster    {}", trust.cluster()));
    output::line(&format!("version    {}", document.version));
    output::line(&format!("epoch      {}", document.epoch));
    output::line(&format!("root       {}", document.root));
    document.publishers.iter().for_each(|row| output::line(&format!("publisher  {}{}", row.key, scope(row))));
    document.issuers.iter().for_each(|row| output::line(&format!("issuer     {}{}", row.key, mandate(row))));
    document.revoked.iter().for_each(|row| output::line(&format!("revoked    {}", row.node)));
    if let Some(rows) = expiring {
        let now = system_clock();
        let row = |row: &Credential| {
            let ends = if row.not_after > now { in_days(row.not_after - now) } else { "ended".into() };
            vec![row.locality.to_string(), row.role.to_string(), row.node.short(), ends]
        };
        output::line("");
        output::table(&["LOCALITY", "ROLE", "NODE", "ENDS"], &rows.iter().map(row).collect::<Vec<_>>());
    }
    Ok(())
}

/// Credentials of nodes that are not revoked and end within a time, the first to end first.
fn expiring(args: &Show, trust: &Trust, within: Span) -> anyhow::Result<Vec<Credential>> {
    let until = system_clock().saturating_add(within.0.as_secs());
    let mut rows = issued(&args.dir)?;
    rows.retain(|row| row.not_after <= until && !trust.is_revoked(&row.node));
    rows.sort_by_key(|row| row.not_after);
    Ok(rows)
}

fn as_json(trust: &Trust, expiring: Option<&[Credential]>) -> Value {
    let document = trust.document();
    let publishers = document.publishers.iter().map(
        |row| json!({ "key": row.key, "names": row.names, "selector": row.selector.as_ref().map(ToString::to_string) }),
    );
    let issuers = document.issuers.iter().map(
        |row| json!({ "key": row.key, "roles": row.roles, "localities": row.localities, "not_after": row.not_after }),
    );
    let mut shown = json!({
        "cluster": trust.cluster(), "root": document.root, "version": document.version, "epoch": document.epoch,
        "publishers": publishers.collect::<Vec<_>>(), "issuers": issuers.collect::<Vec<_>>(),
        "revoked": document.revoked.iter().map(|row| row.node).collect::<Vec<_>>(),
    });
    if let Some(rows) = expiring {
        let row = |row: &Credential| json!({ "locality": row.locality, "role": row.role, "node": row.node, "not_after": row.not_after });
        shown["expiring"] = rows.iter().map(row).collect();
    }
    shown
}

fn scope(publisher: &Publisher) -> String {
    let names =
        if publisher.names.is_empty() { String::new() } else { format!(" names {}", publisher.names.join(",")) };
    match &publisher.selector {
        Some(selector) => format!("{names} to {selector}"),
        None => names,
    }
}

fn mandate(issuer: &Issuer) -> String {
    let places = if issuer.localities.is_empty() { "all places".into() } else { issuer.localities.join(",") };
    let roles: Vec<String> = issuer.roles.iter().map(ToString::to_string).collect();
    let now = system_clock();
    let ends = if issuer.not_after > now { in_days(issuer.not_after - now) } else { "ended".into() };
    format!(" {} of {places}, {ends}", roles.join(","))
}

fn in_days(seconds: u64) -> String {
    if seconds < 2 * 86_400 { format!("in {} h", seconds / 3600) } else { format!("in {} d", seconds / 86_400) }
}
