//! `shoal cluster add-issuer`: a key that issues credentials within a mandate, while the root stays offline.
//!
//! Invariant: the trust document changes only after the issuer's key is on the disk.

use super::cluster_files::{Signer, fresh_key};
use super::output;
use serde_json::json;
use shoal_net::admission::system_clock;
use shoal_net::identity::save_key;
use shoal_proto::trust::{Issuer, Role};
use shoal_service::units::Span;
use std::path::PathBuf;

/// Create the key of an issuer and add it to the trust document
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster add-issuer --dir cluster --role peer --locality north --out tracker/issuer.key
  shoal cluster add-issuer --dir cluster --role peer --role seeder --valid-max 90d --until 180d --out issuer.key

Name the key in issuer_key of a tracker. The tracker then gives credentials to hosts with a join token, and renews them.
Put the new trust document in force with `shoal cluster publish`.")]
pub(crate) struct AddIssuer {
    /// Folder of the cluster, which contains root.key
    #[arg(long)]
    dir: PathBuf,
    /// Role of the nodes: peer, seeder, tracker or hub; repeat the option for several roles
    #[arg(long = "role", required = true)]
    roles: Vec<Role>,
    /// Localities of the nodes, such as north or north/site1; repeat the option for more. Without it, all places
    #[arg(long = "locality")]
    localities: Vec<String>,
    /// Longest validity of a credential
    #[arg(long, default_value = "30d")]
    valid_max: Span,
    /// Time after which the mandate ends. Credentials of the issuer end with it
    #[arg(long, default_value = "365d")]
    until: Span,
    /// New file of mode 0600 for the key
    #[arg(long)]
    out: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &AddIssuer) -> anyhow::Result<()> {
    let signer = Signer::open(&args.dir)?;
    let keys = fresh_key()?;
    let issuer = Issuer {
        key: keys.node(),
        roles: args.roles.clone(),
        localities: args.localities.iter().map(|place| place.trim_end_matches('/').to_string()).collect(),
        // A credential begins five minutes before its making.
        valid_max_s: args.valid_max.0.as_secs().saturating_add(shoal_proto::limits::CLOCK_SKEW_MAX_S),
        not_after: system_clock().saturating_add(args.until.0.as_secs()),
    };
    save_key(&args.out, &keys)?;
    let trust = signer.sign(|document| document.issuers.push(issuer))?;
    if args.json {
        return output::json(&json!({ "issuer": keys.node(), "version": trust.version(), "out": args.out }));
    }
    output::line(&format!("issuer {}: key in {}", keys.node().short(), args.out.display()));
    output::line(&format!("trust document version {}: put it in force with `shoal cluster publish`", trust.version()));
    Ok(())
}
