//! `shoal cluster`: the root key, the publisher key, the trust document, nodes' credentials.

use super::{Outcome, output};
use anyhow::{Context, bail};
use serde_json::json;
use shoal_net::admission::system_clock;
use shoal_net::identity::{load_key, save_key};
use shoal_proto::codec::Document;
use shoal_proto::locality::Locality;
use shoal_proto::trust::{Credential, Envelope, Keypair, Role, Trust, TrustDocument, cluster_of};
use shoal_service::units::Span;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a new cluster: root key, publisher key, trust document, admin token
    Init {
        /// Folder for the files; made if it is not there
        #[arg(long)]
        dir: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a node's key and credential
    Issue(Issue),
    /// Show a cluster's trust document
    Show {
        /// The cluster's folder
        #[arg(long)]
        dir: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Issue {
    /// The cluster's folder, with its root key
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// What the node is: peer, seeder, tracker or hub
    #[arg(long)]
    pub(crate) role: Role,
    /// Where the node is: region/site/rack/host
    #[arg(long)]
    pub(crate) locality: Locality,
    /// Folder for node.key, node.cred and a copy of the trust document; made if it is not there
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// How long the credential is valid
    #[arg(long, default_value = "365d")]
    pub(crate) valid: Span,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Init { dir, json } => {
            let trust = init(dir)?;
            let cluster = cluster_of(&trust.root);
            if *json {
                output::json(&json!({ "cluster": cluster, "dir": dir, "root": trust.root,
                    "publishers": trust.publishers }))?;
            } else {
                output::line(&format!("cluster {}", cluster.short()));
                output::line(&format!("made {}: root.key publisher.key trust admin.token", dir.display()));
                output::line("keep root.key offline; it is needed only to issue credentials");
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
        Command::Show { dir, json } => {
            let trust = Trust::open(&read(&dir.join("trust"))?, None).context("the trust document")?;
            let document = trust.document();
            if *json {
                output::json(&json!({ "cluster": trust.cluster(), "root": document.root, "version": document.version,
                    "publishers": document.publishers, "revoked": document.revoked }))?;
            } else {
                output::line(&format!("cluster    {}", trust.cluster()));
                output::line(&format!("version    {}", document.version));
                document.publishers.iter().for_each(|key| output::line(&format!("publisher  {key}")));
                document.revoked.iter().for_each(|key| output::line(&format!("revoked    {key}")));
            }
        }
    }
    Ok(Outcome::Ok)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn fresh_key() -> anyhow::Result<Keypair> {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).context("the system gives no randomness")?;
    Ok(Keypair::from_seed(seed))
}

/// Writes a new file; refuses to replace one.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(bytes)).with_context(|| format!("cannot make {}", path.display()))
}

/// Makes a cluster's files.
pub(crate) fn init(dir: &Path) -> anyhow::Result<TrustDocument> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for name in ["root.key", "publisher.key", "trust", "admin.token"] {
        if dir.join(name).exists() {
            bail!("{} is there already; a cluster is made once, in a folder of its own", dir.join(name).display());
        }
    }
    let (root, publisher) = (fresh_key()?, fresh_key()?);
    let trust =
        TrustDocument { root: root.node(), version: 1, publishers: vec![publisher.node()], revoked: Vec::new() };
    save_key(&dir.join("root.key"), &root)?;
    save_key(&dir.join("publisher.key"), &publisher)?;
    write_new(&dir.join("trust"), &Envelope::seal(&trust, &root).to_bytes(), 0o644)?;
    let token = shoal_proto::ids::NodeId(fresh_key()?.seed());
    write_new(&dir.join("admin.token"), format!("{token}\n").as_bytes(), 0o600)?;
    Ok(trust)
}

/// Makes a node's files.
pub(crate) fn issue(args: &Issue) -> anyhow::Result<Credential> {
    let root = load_key(&args.dir.join("root.key"))?;
    let trust = read(&args.dir.join("trust"))?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let keys = fresh_key()?;
    let now = system_clock();
    let credential = Credential {
        cluster: cluster_of(&root.node()),
        node: keys.node(),
        role: args.role,
        locality: args.locality.clone(),
        // Clocks of hosts differ a little.
        not_before: now.saturating_sub(300),
        not_after: now + args.valid.0.as_secs(),
    };
    credential.validate()?;
    save_key(&args.out.join("node.key"), &keys)?;
    write_new(&args.out.join("node.cred"), &Envelope::seal(&credential, &root).to_bytes(), 0o644)?;
    if fs::canonicalize(&args.out).ok() != fs::canonicalize(&args.dir).ok() {
        fs::write(args.out.join("trust"), trust).context("cannot copy the trust document")?;
    }
    Ok(credential)
}
