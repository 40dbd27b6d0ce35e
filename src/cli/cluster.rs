//! `shoal cluster`: creates the keys and the trust document of a cluster, and issues credentials. The commands that
//! change the document are in `cluster_trust`.
//!
//! Invariant: no command replaces an existing key, token or credential.

use super::cluster_files::{self, Signer, fresh_key, note_issued, write_new};
use super::{Outcome, cluster_issuer, cluster_show, cluster_tls, cluster_token, cluster_trust, output};
use anyhow::{Context, bail};
use serde_json::json;
use shoal_net::admission::system_clock;
use shoal_net::identity::save_key;
use shoal_proto::codec::Document;
use shoal_proto::ids::NodeId;
use shoal_proto::limits::CLOCK_SKEW_MAX_S;
use shoal_proto::locality::Locality;
use shoal_proto::trust::{AddressRange, Credential, Envelope, Role, TrustDocument};
use shoal_service::units::Span;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a cluster: root key, publisher key, trust document and admin token
    #[command(after_help = "\
Examples:
  shoal cluster init --dir cluster

Keep cluster/root.key offline. Only `shoal cluster` commands need the file.")]
    Init {
        /// Folder for the files. The command creates the folder
        #[arg(long)]
        dir: PathBuf,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    Issue(Issue),
    Renew(cluster_trust::Renew),
    Revoke(cluster_trust::Revoke),
    AddPublisher(cluster_trust::AddPublisher),
    RotatePublisher(cluster_trust::RotatePublisher),
    RotateRoot(cluster_trust::RotateRoot),
    Publish(cluster_trust::Publish),
    Tls(cluster_tls::Tls),
    AddIssuer(cluster_issuer::AddIssuer),
    RemoveIssuer(cluster_trust::RemoveIssuer),
    /// Create tokens with which hosts join
    #[command(subcommand)]
    Token(cluster_token::Command),
    Show(cluster_show::Show),
}

/// Create a node's key and issue its credential
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster issue --dir cluster --role peer --locality north/site1/rack3/host17 --out host17
  shoal cluster issue --dir cluster --role hub --locality core/core/core/hub --out hub --valid 90d
  shoal cluster issue --dir cluster --role peer --locality north/site1/rack3/host18 --out host18 \\
      --label service=cache --address 10.1.0.0/16")]
pub(crate) struct Issue {
    /// Folder of the cluster, which contains root.key
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Role of the node: peer, seeder, tracker or hub
    #[arg(long)]
    pub(crate) role: Role,
    /// Locality of the node as region/site/rack/host
    #[arg(long)]
    pub(crate) locality: Locality,
    /// Folder for node.key, node.cred and a copy of the trust document. The command creates the folder
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Time for which the credential is valid
    #[arg(long, default_value = "30d")]
    pub(crate) valid: Span,
    /// Label of the node as key=value; repeat the option for several labels
    #[arg(long, value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    /// Greatest weight that the node may announce
    #[arg(long, default_value_t = Credential::WEIGHT_DEFAULT)]
    pub(crate) weight_max: u16,
    /// Address range that the node may announce, as in 10.1.0.0/16; repeat the option for several ranges. Without it
    /// the node may announce all addresses but loopback, link-local and multicast ones
    #[arg(long)]
    pub(crate) address: Vec<AddressRange>,
    /// Issue the credential even if another key has a valid credential for this locality
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Init { dir, json } => {
            let trust = init(dir)?;
            let cluster = trust.cluster;
            if *json {
                output::json(&json!({ "cluster": cluster, "dir": dir, "root": trust.root,
                    "publishers": keys(&trust) }))?;
            } else {
                output::line(&format!("cluster {}", cluster.short()));
                output::line(&format!("created {}: root.key publisher.key trust admin.token", dir.display()));
                output::line("keep root.key offline: only `shoal cluster` commands need it");
            }
        }
        Command::Issue(args) => {
            let credential = issue(args)?;
            if args.json {
                output::json(&json!({ "node": credential.node, "role": credential.role,
                    "locality": credential.locality, "not_after": credential.not_after, "out": args.out }))?;
            } else {
                let (role, at) = (credential.role, &credential.locality);
                output::line(&format!(
                    "{role} {at}: node {}, files in {}",
                    credential.node.short(),
                    args.out.display()
                ));
            }
        }
        Command::Tls(args) => cluster_tls::run(args)?,
        Command::Renew(args) => cluster_trust::renew(args)?,
        Command::Revoke(args) => cluster_trust::revoke(args)?,
        Command::AddPublisher(args) => cluster_trust::add_publisher(args)?,
        Command::RotatePublisher(args) => cluster_trust::rotate_publisher(args)?,
        Command::RotateRoot(args) => cluster_trust::rotate_root(args)?,
        Command::Publish(args) => cluster_trust::publish(args)?,
        Command::Show(args) => cluster_show::run(args)?,
        Command::AddIssuer(args) => cluster_issuer::run(args)?,
        Command::RemoveIssuer(args) => cluster_trust::remove_issuer(args)?,
        Command::Token(command) => cluster_token::run(command)?,
    }
    Ok(Outcome::Ok)
}

fn keys(document: &TrustDocument) -> Vec<NodeId> {
    document.publishers.iter().map(|publisher| publisher.key).collect()
}

pub(crate) fn parse_label(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text.split_once('=').with_context(|| format!("invalid label `{text}`: use key=value"))?;
    Ok((key.into(), value.into()))
}

/// Creates a cluster's files.
///
/// # Errors
///
/// A file of a cluster exists in the folder, or a file cannot be written.
pub(crate) fn init(dir: &Path) -> anyhow::Result<TrustDocument> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for name in ["root.key", "publisher.key", "trust", "admin.token"] {
        if dir.join(name).exists() {
            bail!("{} already exists; name a new folder with --dir", dir.join(name).display());
        }
    }
    let (root, publisher) = (fresh_key()?, fresh_key()?);
    let trust = TrustDocument::first(root.node(), [publisher.node()]);
    save_key(&dir.join("root.key"), &root)?;
    save_key(&dir.join("publisher.key"), &publisher)?;
    write_new(&dir.join("trust"), &Envelope::seal(&trust, &root).to_bytes(), 0o644)?;
    let token = NodeId(fresh_key()?.seed());
    write_new(&dir.join("admin.token"), format!("{token}\n").as_bytes(), 0o600)?;
    Ok(trust)
}

/// Creates a node's key and credential, and copies the trust document.
///
/// # Errors
///
/// The root key is unreadable, the locality is taken, or a file exists or cannot be written.
pub(crate) fn issue(args: &Issue) -> anyhow::Result<Credential> {
    let _lock = cluster_files::lock(&args.dir)?;
    let signer = Signer::open(&args.dir)?;
    let trust = &signer.trust;
    if !args.replace {
        cluster_files::check_free(&cluster_files::issued(&args.dir)?, &args.locality, trust)
            .context("no credential was issued; add --replace to issue one all the same")?;
    }
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let keys = fresh_key()?;
    let now = system_clock();
    let credential = Credential {
        cluster: trust.cluster(),
        node: keys.node(),
        role: args.role,
        locality: args.locality.clone(),
        // Clocks of hosts differ by seconds, so the credential is valid from five minutes ago.
        not_before: now.saturating_sub(CLOCK_SKEW_MAX_S),
        not_after: now.saturating_add(args.valid.0.as_secs()),
        labels: args.label.iter().cloned().collect(),
        weight_max: args.weight_max,
        addresses: args.address.clone(),
    };
    credential.validate()?;
    save_key(&args.out.join("node.key"), &keys)?;
    let signed = Envelope::seal(&credential, &signer.root).to_bytes();
    note_issued(&args.dir, &signed)?;
    write_new(&args.out.join("node.cred"), &signed, 0o644)?;
    if fs::canonicalize(&args.out).ok() != fs::canonicalize(&args.dir).ok() {
        fs::write(args.out.join("trust"), trust.bytes())
            .with_context(|| format!("cannot copy the trust document to {}", args.out.display()))?;
    }
    Ok(credential)
}
