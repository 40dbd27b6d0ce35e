//! `shoal join`: makes a host's key on the host, and exchanges a join token for the host's credential.
//!
//! Invariant: the key is on the disk before the tracker sees it, so that a host that lost the answer asks again with
//! the same key.

use super::cluster_files::fresh_key;
use super::seeder::block_on;
use super::{Outcome, output};
use anyhow::{Context, bail};
use serde_json::json;
use shoal_net::admission::system_clock;
use shoal_net::control::{ControlConfig, ControlHandle, ControlPlane};
use shoal_net::enrolment::{EnrolError, Enrolment, enrol, enrol_node};
use shoal_net::identity::{Identity, load_key, save_key};
use shoal_net::node_certificate::NodeCertificate;
use shoal_net::replace_file::replace_file;
use shoal_proto::ids::{ClusterId, NodeId};
use shoal_proto::locality::Locality;
use shoal_proto::trust::{Keypair, TokenSecret, Trust};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest file of tokens, bytes.
const TOKENS_BYTES_MAX: u64 = 64 << 20;
/// Time for the connection to end.
const STOP: Duration = Duration::from_secs(1);

/// Join a cluster: make this host's key here and get its credential for a join token or a node certificate
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal join --token-file rack3.token --tracker tracker.north.example:7710
  shoal join --token-file hosts.tokens --name host17 --tracker tracker.north.example:7710
  shoal join --kubeedge-cert /etc/kubeedge/certs/server.crt --kubeedge-key /etc/kubeedge/certs/server.key \\
      --cluster ID --tracker tracker.north.example:7710

`shoal cluster token create` makes tokens. The command writes node.key, node.cred and trust, which a role then reads.
It can be repeated after a failure: the host keeps its key and counts once.")]
pub(crate) struct Args {
    /// Join token
    #[arg(long, required_unless_present_any = ["token_file", "kubeedge_cert"], conflicts_with = "token_file")]
    token: Option<String>,
    /// File with a join token, or with one `LOCALITY TOKEN` per line of which this host takes its own
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the client certificate of this host's KubeEdge node, instead of a token
    #[arg(long, value_name = "FILE", requires_all = ["kubeedge_key", "cluster"], conflicts_with_all = ["token", "token_file", "name"])]
    kubeedge_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate. The key stays on the host
    #[arg(long, value_name = "FILE", requires = "kubeedge_cert")]
    kubeedge_key: Option<PathBuf>,
    /// Id of the cluster, as `shoal cluster show` prints it. The host believes no tracker of another cluster
    #[arg(long, value_name = "ID", requires = "kubeedge_cert")]
    cluster: Option<ClusterId>,
    /// Least version of the trust document to accept, as `shoal cluster show` prints it. A token has its own
    #[arg(long, value_name = "N", default_value_t = 0, requires = "kubeedge_cert")]
    trust_version: u64,
    /// Control address of a tracker that issues credentials
    #[arg(long, value_name = "HOST:PORT")]
    tracker: String,
    /// Name of the host in its rack, or its whole locality. Default: the host's line in the file of tokens by the
    /// machine's host name, else a name that the tracker chooses
    #[arg(long)]
    name: Option<String>,
    /// Folder for node.key, node.cred and trust. The command creates the folder
    #[arg(long, default_value = "/etc/shoal")]
    dir: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let credential = args.dir.join("node.cred");
    if credential.exists() {
        bail!(
            "{} exists, so this host has joined: remove it to get another credential for this host, and remove node.key \
             too to join as another host",
            credential.display()
        );
    }
    let right = Right::of(args)?;
    let cluster = right.cluster()?;
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot create {}", args.dir.display()))?;
    let known = known_trust(&args.dir, cluster)?.max(args.trust_version);
    let keys = own_key(&args.dir)?;
    let enrolment = block_on(exchange(&args.tracker, &keys, &right, known))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = args.dir.join(name);
        replace_file(&path, bytes, 0o644).with_context(|| format!("cannot write {}", path.display()))
    };
    write("trust", enrolment.trust.bytes())?;
    // The last file, because its presence means that the host has joined.
    write("node.cred", &enrolment.credential_bytes)?;
    let Enrolment { credential, .. } = enrolment;
    if args.json {
        output::json(&json!({ "node": credential.node, "role": credential.role, "locality": credential.locality,
            "cluster": cluster, "not_after": credential.not_after, "dir": args.dir }))?;
    } else {
        let (role, at, node) = (credential.role, &credential.locality, credential.node.short());
        output::line(&format!("{role} {at}: node {node}, files in {}", args.dir.display()));
    }
    Ok(Outcome::Ok)
}

/// By what right the host joins.
enum Right {
    Token { token: Box<TokenSecret>, name: Option<String> },
    Node { certificate: NodeCertificate, cluster: ClusterId },
}

impl Right {
    fn of(args: &Args) -> anyhow::Result<Self> {
        if let (Some(file), Some(key), Some(cluster)) = (&args.kubeedge_cert, &args.kubeedge_key, args.cluster) {
            return Ok(Self::Node { certificate: NodeCertificate::load(file, key)?, cluster });
        }
        let name = args.name.as_deref().map(|name| name.rsplit('/').next().unwrap_or(name).to_string());
        Ok(Self::Token { token: Box::new(token(args)?), name })
    }

    fn cluster(&self) -> anyhow::Result<ClusterId> {
        match self {
            Self::Token { token, .. } => Ok(token.document().context("the token is invalid")?.cluster),
            Self::Node { cluster, .. } => Ok(*cluster),
        }
    }

    async fn exchange(
        &self,
        control: &ControlHandle,
        addr: SocketAddr,
        node: NodeId,
        known: u64,
    ) -> Result<Enrolment, EnrolError> {
        match self {
            Self::Token { token, name } => enrol(control, addr, node, token, name.clone(), system_clock).await,
            Self::Node { certificate, cluster } => {
                enrol_node(control, addr, node, certificate, *cluster, known, system_clock).await
            }
        }
    }
}

/// Returns the version of the trust document in the folder, 0 without one. Refuses a folder of another cluster.
fn known_trust(dir: &Path, cluster: ClusterId) -> anyhow::Result<u64> {
    let path = dir.join("trust");
    let Ok(bytes) = fs::read(&path) else { return Ok(0) };
    let trust = Trust::open(&bytes, Some(cluster))
        .with_context(|| format!("{} is not of the cluster to join: name another --dir", path.display()))?;
    Ok(trust.version())
}

/// Reads the host's key, or makes it.
fn own_key(dir: &Path) -> anyhow::Result<Keypair> {
    let path = dir.join("node.key");
    if path.exists() {
        return Ok(load_key(&path)?);
    }
    let keys = fresh_key()?;
    save_key(&path, &keys)?;
    Ok(keys)
}

/// Asks the tracker at each of its addresses until one answers.
async fn exchange(tracker: &str, keys: &Keypair, right: &Right, known: u64) -> anyhow::Result<Enrolment> {
    let addrs = tokio::net::lookup_host(tracker).await.with_context(|| format!("cannot look up {tracker}"))?;
    let config = ControlConfig::new(Identity::new(keys), Vec::new());
    let (control, mut events) = ControlPlane::start(config).await?;
    // The control plane stops while nobody takes its events.
    let drain = tokio::spawn(async move { while events.recv().await.is_some() {} });
    let mut ended = Err(anyhow::anyhow!("{tracker} has no address"));
    for addr in addrs {
        let answer = right.exchange(&control, addr, keys.node(), known).await;
        let is_unreachable = matches!(answer, Err(EnrolError::Connect(_)));
        ended = answer.with_context(|| format!("cannot join at {addr}"));
        if !is_unreachable {
            break;
        }
    }
    control.shutdown(STOP).await;
    drain.abort();
    ended
}

/// Returns the token of this host.
fn token(args: &Args) -> anyhow::Result<TokenSecret> {
    let Some(path) = &args.token_file else {
        return Ok(args.token.as_deref().unwrap_or_default().parse()?);
    };
    let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if size > TOKENS_BYTES_MAX {
        bail!("{} has more than {TOKENS_BYTES_MAX} bytes", path.display());
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    pick(&text, args.name.as_deref(), machine.trim()).with_context(|| format!("cannot use {}", path.display()))
}

/// Returns the only token of a file, or the token of this host's line.
fn pick(text: &str, name: Option<&str>, machine: &str) -> anyhow::Result<TokenSecret> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows: Vec<(Option<&str>, &str)> = lines
        .map(|line| line.split_once(' ').map_or((None, line), |(place, token)| (Some(place), token.trim())))
        .collect();
    if let [(_, token)] = rows.as_slice() {
        return Ok(token.parse()?);
    }
    // A machine's name may be a whole domain name. The first label is the host's.
    let wanted = name.unwrap_or_else(|| machine.split('.').next().unwrap_or(machine));
    let is_ours = |place: &str| place == wanted || place.parse::<Locality>().is_ok_and(|place| place.host == wanted);
    let mut ours = rows.iter().filter(|(place, _)| place.is_some_and(is_ours));
    match (ours.next(), ours.next()) {
        (Some((_, token)), None) => Ok(token.parse()?),
        (Some(_), Some(_)) => bail!("several hosts are named {wanted}: name the whole locality with --name"),
        (None, _) => bail!("it has no token for {wanted}: name the host with --name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::ids::{ClusterId, NodeId};
    use shoal_proto::trust::{JoinToken, Role};

    fn token(place: &str) -> String {
        let token = JoinToken {
            cluster: ClusterId([1; 32]),
            key: NodeId([0; 32]),
            role: Role::Peer,
            place: place.into(),
            uses: 1,
            not_after: 1,
            valid_s: 60,
            labels: Default::default(),
            weight_max: 100,
            addresses: Vec::new(),
            trust_version: 1,
        };
        TokenSecret::seal(&token, Keypair::from_seed([5; 32]), &Keypair::from_seed([6; 32])).to_string()
    }

    #[test]
    fn a_host_takes_its_own_line_of_a_file() {
        let text = ["n/s/r1/h1", "n/s/r1/h2", "n/s/r2/h1"].map(|place| format!("{place} {}\n", token(place))).concat();
        let place =
            |name: Option<&str>, machine: &str| pick(&text, name, machine).map(|token| token.document().unwrap().place);
        assert_eq!(place(None, "h2.example.net").unwrap(), "n/s/r1/h2");
        assert_eq!(place(Some("h2"), "h1").unwrap(), "n/s/r1/h2");
        assert_eq!(place(Some("n/s/r2/h1"), "x").unwrap(), "n/s/r2/h1");
        assert!(place(Some("h1"), "x").unwrap_err().to_string().contains("whole locality"));
        assert!(place(None, "x").unwrap_err().to_string().contains("no token for x"));
        let only = format!("# rack 1\n\n{}\n", token("n/s/r1"));
        assert_eq!(pick(&only, Some("h7"), "x").unwrap().document().unwrap().place, "n/s/r1");
        assert!(pick("nonsense", None, "x").is_err());
        assert!(pick("", None, "x").is_err());
    }
}
