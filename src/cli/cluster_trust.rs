//! Commands that change a cluster's trust document: they sign the next version, and send it to a seeder on request.
//!
//! Invariant: a document is on the disk before it is sent. A command that is repeated after a failure does no harm.

use super::cluster_files::{self, Signer, fresh_key, note_issued};
use super::seeder::{AuthorityArgs, TOKEN_HINT, block_on};
use super::{help, output};
use anyhow::{Context, bail};
use serde_json::json;
use shoal_api::trust::{NextPublisher, TrustInForce};
use shoal_net::admission::system_clock;
use shoal_net::identity::save_key;
use shoal_proto::codec::Document;
use shoal_proto::ids::NodeId;
use shoal_proto::limits::CLOCK_SKEW_MAX_S;
use shoal_proto::locality::{Locality, Selector};
use shoal_proto::trust::{Credential, Envelope, Issuer, Keypair, Publisher, Revocation, Role, Succession, Trust};
use shoal_service::http_client::Client;
use shoal_service::http_server::AdminToken;
use shoal_service::units::Span;
use std::path::{Path, PathBuf};

/// How long a node whose credentials are unknown here stays in the list of revoked nodes.
const UNKNOWN_CREDENTIAL_S: u64 = 366 * 86_400;

/// The folder of the cluster, and where the new document goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Folder of the cluster, which contains root.key
    #[arg(long)]
    dir: PathBuf,
    /// HTTP API of a seeder that puts the document in force everywhere. Without it, run `shoal cluster publish` later
    #[arg(long, env = "SHOAL_SEEDER", value_name = "URL")]
    seeder: Option<String>,
    /// File with an admin token of the seeder
    #[arg(long, env = "SHOAL_TOKEN_FILE", default_value = "/etc/shoal/admin.token", value_name = "FILE")]
    token_file: PathBuf,
    #[command(flatten)]
    authority: AuthorityArgs,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

impl Target {
    fn client(&self) -> anyhow::Result<Option<Client>> {
        let Some(url) = &self.seeder else { return Ok(None) };
        let token = AdminToken::load(&self.token_file).context(TOKEN_HINT)?;
        Ok(Some(Client::trusting(url, Some(token.secret().to_string()), self.authority.ca.as_deref())?))
    }

    /// Sends a document to the seeder, if there is one, and prints what was done.
    fn finish(&self, trust: &Trust, done: &str) -> anyhow::Result<()> {
        let sent = match self.client()? {
            Some(client) => Some(send(&client, trust).with_context(|| {
                let path = self.dir.join("trust");
                format!("the new document is in {}; run `shoal cluster publish` to send it again", path.display())
            })?),
            None => None,
        };
        if self.json {
            return output::json(&json!({ "version": trust.version(), "epoch": trust.epoch(), "done": done,
                "published": sent.is_some() }));
        }
        output::line(&format!("{done}: trust document version {}, epoch {}", trust.version(), trust.epoch()));
        match (&self.seeder, sent) {
            (Some(url), Some(_)) => output::line(&format!("published through {url}")),
            _ => output::note("the document is not published yet: run `shoal cluster publish`"),
        }
        Ok(())
    }
}

fn send(client: &Client, trust: &Trust) -> anyhow::Result<TrustInForce> {
    block_on(async { Ok(client.post_bytes("/v1/trust", trust.bytes().to_vec()).await?) })
}

/// Put a cluster's trust document in force on every host
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster publish --dir cluster --seeder http://seeder:7721 --token-file admin.token

One seeder of one region suffices, because trackers and the hub pass the document on.")]
pub(crate) struct Publish {
    #[command(flatten)]
    target: Target,
}

/// Revoke a node: its links and sessions end everywhere
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster revoke north/site1/rack3/host17 --dir cluster --seeder http://seeder:7721 --token-file admin.token
  shoal cluster revoke 6f1c...e2 --dir cluster")]
pub(crate) struct Revoke {
    /// Locality of the host, or the 64 digits of its key
    host: String,
    #[command(flatten)]
    target: Target,
}

/// Issue new credentials for keys that have one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster renew north/site1/rack3/host17 --dir cluster --out host17
  shoal cluster renew --expiring 10d --dir cluster --out renewed")]
pub(crate) struct Renew {
    /// Locality of the host, or the 64 digits of its key
    #[arg(required_unless_present = "expiring")]
    host: Option<String>,
    /// Renew every credential that ends within this time. Each goes to a folder of its own below --out
    #[arg(long, conflicts_with = "host")]
    expiring: Option<Span>,
    /// Folder of the cluster, which contains root.key
    #[arg(long)]
    dir: PathBuf,
    /// Folder for node.cred. The command replaces an older node.cred
    #[arg(long)]
    out: PathBuf,
    /// Time for which the credential is valid
    #[arg(long, default_value = "30d")]
    valid: Span,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Where a new publisher's key comes from, and what the publisher may announce.
#[derive(Debug, clap::Args)]
pub(crate) struct NewPublisher {
    /// Public key of the publisher. Without it, the seeder of --seeder makes a key and keeps it
    #[arg(long, value_name = "KEY")]
    key: Option<NodeId>,
    /// Create the key in this new file, for a seeder that is not reachable from here
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    out: Option<PathBuf>,
    /// Names that the publisher may announce, with all names below them. Repeat the option. Default: all names
    #[arg(long, value_name = "NAME")]
    names: Vec<String>,
    #[arg(long = "to", value_name = "SELECTOR", help = help::TO)]
    to: Vec<String>,
}

/// Add a publisher
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster add-publisher --dir cluster --names edge --seeder http://seeder2:7721 --token-file admin.token
  shoal cluster add-publisher --dir cluster --out publisher2.key --names gslb --to region=north")]
pub(crate) struct AddPublisher {
    #[command(flatten)]
    publisher: NewPublisher,
    #[command(flatten)]
    target: Target,
}

/// Replace a publisher's key, because it may be stolen
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster rotate-publisher --dir cluster --seeder http://seeder:7721 --token-file admin.token

The trust epoch increases. The next version of each name replaces everything that the former key signed, whatever its
sequence. Hosts keep the versions that are active until then. The new publisher has the scope of the former one.")]
pub(crate) struct RotatePublisher {
    /// Public key of the publisher to drop. Without it, the cluster must have one publisher only
    #[arg(long, value_name = "KEY")]
    drop: Option<NodeId>,
    #[command(flatten)]
    publisher: NewPublisher,
    #[command(flatten)]
    target: Target,
}

/// Replace the root key. The former root signs its successor
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster rotate-root --dir cluster --seeder http://seeder:7721 --token-file admin.token
  shoal cluster rotate-root --dir cluster --grace 0s

Credentials of the former root stay valid for --grace. Renew them within that time.")]
pub(crate) struct RotateRoot {
    /// Time for which credentials of the former root stay valid
    #[arg(long, default_value = "30d")]
    grace: Span,
    #[command(flatten)]
    target: Target,
}

/// Sends the document of a cluster's folder.
pub(crate) fn publish(args: &Publish) -> anyhow::Result<()> {
    if args.target.seeder.is_none() {
        bail!("name the seeder with --seeder or SHOAL_SEEDER");
    }
    args.target.finish(&cluster_files::open_trust(&args.target.dir)?, "sent")
}

/// The nodes that a person means, with the end of their last credentials.
fn find_nodes(dir: &Path, trust: &Trust, host: &str) -> anyhow::Result<Vec<Revocation>> {
    let rows = cluster_files::issued(dir)?;
    let now = system_clock();
    // Trackers renew credentials, so the last one ends later than the one that was issued here.
    let longest = trust.document().issuers.iter().map(|issuer| issuer.valid_max_s).max().unwrap_or(0);
    let renewed = now.saturating_add(longest.max(UNKNOWN_CREDENTIAL_S)).saturating_add(CLOCK_SKEW_MAX_S);
    if let Ok(node) = host.parse::<NodeId>() {
        let known = rows.iter().filter(|row| row.node == node).map(|row| row.not_after).max();
        return Ok(vec![Revocation { node, until: known.unwrap_or(0).max(renewed) }]);
    }
    let locality: Locality = host.parse().context("name a host as region/site/rack/host, or a key by its 64 digits")?;
    let rows = rows.into_iter().filter(|row| row.locality == locality);
    let found: Vec<Revocation> =
        rows.map(|row| Revocation { node: row.node, until: row.not_after.max(renewed) }).collect();
    if found.is_empty() {
        bail!(
            "no credential for {host} was issued in {}; name the key, which `shoal hosts --json` shows",
            dir.display()
        );
    }
    Ok(found)
}

pub(crate) fn revoke(args: &Revoke) -> anyhow::Result<()> {
    let signer = Signer::open(&args.target.dir)?;
    let nodes = find_nodes(&args.target.dir, &signer.trust, &args.host)?;
    if nodes.iter().all(|row| signer.trust.is_revoked(&row.node)) {
        return args.target.finish(&signer.trust, &format!("{} was revoked before", args.host));
    }
    let trust = signer.sign(|document| {
        document.revoked.retain(|row| nodes.iter().all(|new| new.node != row.node));
        document.revoked.extend(&nodes);
    })?;
    args.target.finish(&trust, &format!("revoked {}", args.host))
}

pub(crate) fn renew(args: &Renew) -> anyhow::Result<()> {
    let signer = Signer::open(&args.dir)?;
    let now = system_clock();
    let is_meant = |row: &Credential| match (&args.host, args.expiring) {
        (Some(host), _) => *host == row.locality.to_string() || *host == row.node.to_string(),
        (None, Some(within)) => row.not_after > now && row.not_after <= now.saturating_add(within.0.as_secs()),
        (None, None) => false,
    };
    let rows = cluster_files::issued(&args.dir)?;
    let rows: Vec<Credential> =
        rows.into_iter().filter(|row| is_meant(row) && !signer.trust.is_revoked(&row.node)).collect();
    match (&args.host, rows.len()) {
        (Some(host), 0) => bail!("no credential for {host} was issued here, or its key is revoked"),
        (Some(host), 2..) => bail!("{host} has several keys; revoke those that are gone, or name the key"),
        _ => {}
    }
    let mut done = Vec::new();
    for row in rows {
        let not_after = now.saturating_add(args.valid.0.as_secs());
        let credential = Credential { not_before: now.saturating_sub(CLOCK_SKEW_MAX_S), not_after, ..row };
        let out = match args.host {
            Some(_) => args.out.clone(),
            None => args.out.join(credential.locality.to_string().replace('/', "_")),
        };
        std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
        let bytes = Envelope::seal(&credential, &signer.root).to_bytes();
        note_issued(&args.dir, &bytes)?;
        cluster_files::replace(&out.join("node.cred"), &bytes, 0o644)?;
        done.push(
            json!({ "node": credential.node, "locality": credential.locality, "not_after": not_after, "out": out }),
        );
        if !args.json {
            output::line(&format!("renewed {}: {}", credential.locality, out.join("node.cred").display()));
        }
    }
    if args.json {
        output::json(&done)?;
    }
    Ok(())
}

impl NewPublisher {
    /// Returns the key and makes it, where that is wanted.
    fn key(&self, target: &Target) -> anyhow::Result<NodeId> {
        if let Some(key) = self.key {
            return Ok(key);
        }
        if let Some(path) = &self.out {
            let key = fresh_key()?;
            save_key(path, &key)?;
            return Ok(key.node());
        }
        let client = target.client()?.context("name the seeder with --seeder, or a file for the key with --out")?;
        let next: NextPublisher = block_on(async { Ok(client.post("/v1/publisher/next", &json!({})).await?) })?;
        Ok(next.key)
    }

    fn selector(&self) -> anyhow::Result<Option<Selector>> {
        Ok(if self.to.is_empty() { None } else { Some(Selector::parse(&self.to)?) })
    }
}

pub(crate) fn add_publisher(args: &AddPublisher) -> anyhow::Result<()> {
    let signer = Signer::open(&args.target.dir)?;
    let selector = args.publisher.selector()?;
    let key = args.publisher.key(&args.target)?;
    if signer.trust.publisher(&key).is_some() {
        bail!("{key} is a publisher already; rotate it to change its scope");
    }
    let publisher = Publisher { key, names: args.publisher.names.clone(), selector };
    let trust = signer.sign(|document| document.publishers.push(publisher))?;
    args.target.finish(&trust, &format!("added publisher {}", key.short()))
}

pub(crate) fn rotate_publisher(args: &RotatePublisher) -> anyhow::Result<()> {
    let signer = Signer::open(&args.target.dir)?;
    let former = former_publisher(&signer.trust, args.drop)?;
    let names = if args.publisher.names.is_empty() { former.names.clone() } else { args.publisher.names.clone() };
    let selector = args.publisher.selector()?.or_else(|| former.selector.clone());
    let key = args.publisher.key(&args.target)?;
    if key == former.key {
        bail!("{} is the key to drop; name another key", key.short());
    }
    let trust = signer.sign(|document| {
        document.epoch += 1;
        document.publishers.retain(|publisher| publisher.key != former.key && publisher.key != key);
        document.publishers.push(Publisher { key, names, selector });
    })?;
    args.target.finish(&trust, &format!("replaced publisher {} by {}", former.key.short(), key.short()))
}

fn former_publisher(trust: &Trust, drop: Option<NodeId>) -> anyhow::Result<Publisher> {
    let publishers = &trust.document().publishers;
    match (drop, publishers.as_slice()) {
        (Some(key), _) => {
            trust.publisher(&key).cloned().with_context(|| format!("{key} is no publisher of this cluster"))
        }
        (None, [only]) => Ok(only.clone()),
        (None, _) => bail!("the cluster has {} publishers: name one with --drop", publishers.len()),
    }
}

pub(crate) fn rotate_root(args: &RotateRoot) -> anyhow::Result<()> {
    let signer = Signer::open(&args.target.dir)?;
    if signer.root.node() != shoal_net::identity::load_key(&args.target.dir.join("root.key"))?.node() {
        // A former run signed the document and was cut off before it renamed the keys.
        signer.promote_next_root()?;
        return args.target.finish(&signer.trust, "completed the rotation of the root");
    }
    let next = signer.next_root()?;
    let cluster = signer.trust.cluster();
    let succession = Envelope::seal(&Succession { cluster, next: next.node() }, &signer.root);
    let trust = signer.sign_as(&next, |document| {
        document.successions.push(succession);
        document.issuers.retain(|issuer| issuer.not_after > system_clock());
        document.issuers.extend(former_root_as_issuer(&signer.root, args.grace));
        document.root = next.node();
    })?;
    let former = signer.promote_next_root()?;
    args.target.finish(&trust, &format!("the root is {}, the former key is {}", next.node().short(), former.display()))
}

/// Remove an issuer from the trust document: every credential and every token that it signed ends at once
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster remove-issuer KEY --dir cluster --seeder https://seeder.north.example:7721 --ca ca.pem

`shoal cluster show` prints the keys of all issuers. Hosts whose credential the issuer signed leave the cluster until
they join again.")]
pub(crate) struct RemoveIssuer {
    /// Key of the issuer, 64 digits
    issuer: NodeId,
    #[command(flatten)]
    target: Target,
}

pub(crate) fn remove_issuer(args: &RemoveIssuer) -> anyhow::Result<()> {
    let signer = Signer::open(&args.target.dir)?;
    if signer.trust.issuer(&args.issuer).is_none() {
        bail!("{} is no issuer of this cluster: `shoal cluster show` prints the keys of all issuers", args.issuer);
    }
    let trust = signer.sign(|document| document.issuers.retain(|issuer| issuer.key != args.issuer))?;
    args.target.finish(&trust, &format!("removed issuer {}", args.issuer.short()))
}

/// The mandate under which the credentials of a former root stay valid for a while.
fn former_root_as_issuer(root: &Keypair, grace: Span) -> Option<Issuer> {
    let issuer = Issuer {
        key: root.node(),
        roles: vec![Role::Peer, Role::Seeder, Role::Tracker, Role::Hub],
        localities: Vec::new(),
        valid_max_s: u64::MAX,
        not_after: system_clock().saturating_add(grace.0.as_secs()),
    };
    (!grace.0.is_zero()).then_some(issuer)
}
