//! `shoal cluster token create`: tokens with which hosts join without carrying keys.
//!
//! Invariant: a token's secret leaves the command once, in the output or in a file of mode 0600.

use super::cluster::parse_label;
use super::cluster_files::{self, fresh_key, open_trust};
use super::output;
use anyhow::{Context, bail};
use serde_json::json;
use shoal_net::admission::system_clock;
use shoal_net::identity::load_key;
use shoal_net::replace_file::replace_file;
use shoal_proto::host_list::{LIST_BYTES_MAX, ListedHost, parse_hosts};
use shoal_proto::ids::NodeId;
use shoal_proto::limits::JOIN_TOKEN_USES_MAX;
use shoal_proto::locality::{Labels, Locality};
use shoal_proto::trust::{AddressRange, Credential, JoinToken, Keypair, Role, TokenSecret, Trust};
use shoal_service::units::Span;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Create(Box<Create>),
}

/// Create join tokens for hosts, which make their keys themselves
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal cluster token create --dir cluster --role peer --locality north/site1/rack3/ --uses 40 --ttl 1h --out rack3.token
  shoal cluster token create --dir cluster --role peer --from hosts.csv --ttl 24h --out hosts.tokens

hosts.csv has one host per line: name,locality,labels,addresses, for example
  host17,north/site1/rack3,service=cache;tier=1,10.1.0.0/16
Only these hosts may join. The output has one token per host. On the host run
  shoal join --token-file hosts.tokens --tracker tracker.north.example:7710")]
pub(crate) struct Create {
    /// Folder of the cluster, which contains the trust document
    #[arg(long)]
    dir: PathBuf,
    /// Key that signs, of the root or of an issuer. Default: issuer.key of the folder if it exists, else root.key
    #[arg(long, value_name = "FILE")]
    issuer_key: Option<PathBuf>,
    /// Role of the hosts: peer, seeder, tracker or hub
    #[arg(long)]
    role: Role,
    /// Rack of the hosts as region/site/rack/, or one host as region/site/rack/host
    #[arg(long, required_unless_present = "from", conflicts_with = "from")]
    locality: Option<String>,
    /// CSV file with the hosts that may join: name,locality,labels,addresses
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uses", "label", "address"])]
    from: Option<PathBuf>,
    /// Number of hosts that may join with the token
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// Time in which hosts may join
    #[arg(long, default_value = "1h")]
    ttl: Span,
    /// Time for which the hosts' credentials are valid
    #[arg(long, default_value = "30d")]
    valid: Span,
    /// Label of the hosts as key=value; repeat the option for several labels
    #[arg(long, value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Greatest weight that the hosts may announce
    #[arg(long, default_value_t = Credential::WEIGHT_DEFAULT)]
    weight_max: u16,
    /// Address range that the hosts may announce, as in 10.1.0.0/16; repeat the option for several ranges
    #[arg(long)]
    address: Vec<AddressRange>,
    /// Write the tokens to a file of mode 0600 instead of printing them
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Hosts that may join with one token.
struct Hosts {
    place: String,
    uses: u32,
    labels: Labels,
    addresses: Vec<AddressRange>,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let Command::Create(args) = command;
    let trust = open_trust(&args.dir)?;
    let signer = signer(args)?;
    let hosts = match &args.from {
        Some(file) => read_hosts(file)?,
        None => vec![Hosts {
            place: args.locality.as_deref().unwrap_or_default().trim_end_matches('/').to_string(),
            uses: args.uses,
            labels: args.label.iter().cloned().collect(),
            addresses: args.address.clone(),
        }],
    };
    let now = system_clock();
    let issued = cluster_files::issued(&args.dir)?;
    let mut tokens = Vec::new();
    for hosts in hosts {
        if let Ok(place) = hosts.place.parse::<Locality>() {
            cluster_files::check_free(&issued, &place, &trust)?;
        }
        tokens.push(seal(args, &trust, &signer, hosts, now)?);
    }
    print(args, &tokens)
}

/// Reads the key that signs.
fn signer(args: &Create) -> anyhow::Result<Keypair> {
    let issuer = args.dir.join("issuer.key");
    let default = if issuer.exists() { issuer } else { args.dir.join("root.key") };
    let path = args.issuer_key.as_ref().unwrap_or(&default);
    Ok(load_key(path)?)
}

/// Makes a token, after a check that trackers will accept it.
fn seal(
    args: &Create,
    trust: &Trust,
    signer: &Keypair,
    hosts: Hosts,
    now: u64,
) -> anyhow::Result<(JoinToken, TokenSecret)> {
    use shoal_proto::codec::Document;
    let token = JoinToken {
        cluster: trust.cluster(),
        key: NodeId([0; 32]),
        role: args.role,
        place: hosts.place,
        uses: hosts.uses,
        not_after: now.saturating_add(args.ttl.0.as_secs()),
        valid_s: args.valid.0.as_secs(),
        labels: hosts.labels,
        weight_max: args.weight_max,
        addresses: hosts.addresses,
        trust_version: trust.version(),
    };
    token.validate()?;
    if token.uses > JOIN_TOKEN_USES_MAX {
        bail!("a token has at most {JOIN_TOKEN_USES_MAX} uses");
    }
    let sample = token.locality_of(None, &signer.node())?;
    trust
        .check_mandate(signer.node(), &token.credential(signer.node(), sample, now), now)
        .context("the key may not sign such tokens; see `shoal cluster add-issuer`")?;
    let secret = TokenSecret::seal(&token, fresh_key()?, signer);
    Ok((token, secret))
}

fn print(args: &Create, tokens: &[(JoinToken, TokenSecret)]) -> anyhow::Result<()> {
    // One token needs no place beside it. Several are told apart by their places.
    let line = |(token, secret): &(JoinToken, TokenSecret)| match &args.from {
        Some(_) => format!("{} {secret}", token.place),
        None => secret.to_string(),
    };
    let lines: Vec<String> = tokens.iter().map(line).collect();
    if let Some(out) = &args.out {
        let text = format!("{}\n", lines.join("\n"));
        replace_file(out, text.as_bytes(), 0o600).with_context(|| format!("cannot write {}", out.display()))?;
    }
    if args.json {
        let rows = tokens.iter().map(|(token, secret)| {
            let text = args.out.is_none().then(|| secret.to_string());
            json!({ "place": token.place, "uses": token.uses, "not_after": token.not_after, "token": text })
        });
        return output::json(&json!({ "tokens": rows.collect::<Vec<_>>(), "out": args.out }));
    }
    match &args.out {
        Some(out) => output::line(&format!("{} tokens in {}, valid for {}", tokens.len(), out.display(), args.ttl)),
        None => lines.iter().for_each(|line| output::line(line)),
    }
    Ok(())
}

/// Reads the file of hosts.
fn read_hosts(path: &Path) -> anyhow::Result<Vec<Hosts>> {
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if size > LIST_BYTES_MAX {
        bail!("{} has more than {LIST_BYTES_MAX} bytes", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let hosts = parse_hosts(&text).with_context(|| format!("{} is not a list of hosts", path.display()))?;
    if hosts.is_empty() {
        bail!("{} has no host", path.display());
    }
    let one = |host: ListedHost| Hosts {
        place: host.locality.to_string(),
        uses: 1,
        labels: host.labels,
        addresses: host.addresses,
    };
    Ok(hosts.into_iter().map(one).collect())
}
