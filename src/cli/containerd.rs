//! `shoal containerd setup`: writes the `hosts.toml` files that make containerd pull from the mirror first.
//!
//! Invariant: the command changes and removes only files that shoal wrote, unless `--force` is given.

use super::{Outcome, output};
use anyhow::bail;
use serde_json::json;
use shoal_peer::mirror::hosts_toml::{Change, HostsToml, undo};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Setup(Setup),
}

/// Write or remove the hosts.toml files that make containerd pull from the mirror first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal containerd setup registry.example:5000
  shoal containerd setup _default --dry-run
  shoal containerd setup --undo")]
pub(crate) struct Setup {
    /// Registries as image references name them, such as registry.example:5000 or docker.io. `_default` means every
    /// other registry
    #[arg(required_unless_present = "undo")]
    registry: Vec<String>,
    /// Folder in which containerd reads the files: its `config_path`
    #[arg(long, default_value = "/etc/containerd/certs.d", value_name = "DIR")]
    hosts_dir: PathBuf,
    /// Address of the peer's mirror
    #[arg(long, default_value = "127.0.0.1:7703", value_name = "ADDR")]
    mirror: SocketAddr,
    /// Registry that containerd asks when the mirror lacks an image [default: derived from the name]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Resolve tags at the registry. The mirror then serves digests only
    #[arg(long)]
    digests_only: bool,
    /// Overwrite files that shoal did not write
    #[arg(long)]
    force: bool,
    /// Remove the files that shoal wrote, for the given registries or for all
    #[arg(long, conflicts_with_all = ["server", "digests_only", "force"])]
    undo: bool,
    /// Print the changes and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Configuration of containerd, in which the command looks for `config_path`
    #[arg(long, default_value = "/etc/containerd/config.toml", value_name = "FILE")]
    containerd_config: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    let Command::Setup(args) = command;
    let changes = if args.undo { undo(&args.hosts_dir, &args.registry, args.dry_run)? } else { write_all(args)? };
    let looked_at = is_looked_at(&args.containerd_config, &args.hosts_dir);
    if args.json {
        let files: Vec<_> = changes.iter().map(|(path, change)| json!({ "file": path, "change": change })).collect();
        output::json(&json!({ "files": files, "dry_run": args.dry_run, "config_path_set": looked_at }))?;
        return Ok(Outcome::Ok);
    }
    for (path, change) in &changes {
        let word = match (change, args.dry_run) {
            (Change::Written, false) => "written",
            (Change::Written, true) => "would be written",
            (Change::Unchanged, _) => "is unchanged",
            (Change::Removed, false) => "removed",
            (Change::Removed, true) => "would be removed",
        };
        output::line(&format!("{} {word}", path.display()));
    }
    if changes.is_empty() {
        output::line(&format!("no files of shoal in {}", args.hosts_dir.display()));
    }
    if !args.undo && looked_at != Some(true) {
        output::note(&advice(args, looked_at));
    }
    Ok(Outcome::Ok)
}

/// Writes all files or none: a dry pass finds every refusal before the first write.
fn write_all(args: &Setup) -> anyhow::Result<Vec<(PathBuf, Change)>> {
    if !args.mirror.ip().is_loopback() {
        bail!("--mirror {} is not a loopback address; the mirror listens on loopback only", args.mirror);
    }
    let hosts = HostsToml {
        mirror: format!("http://{}", args.mirror),
        server: args.server.clone(),
        resolve: !args.digests_only,
    };
    let mut changes = Vec::new();
    for dry in [true, args.dry_run] {
        changes.clear();
        for registry in &args.registry {
            changes.push(hosts.setup(&args.hosts_dir, registry, args.force, dry)?);
        }
    }
    Ok(changes)
}

/// Whether containerd's configuration names the folder. `None` if the file is unreadable.
pub(crate) fn is_looked_at(config: &Path, dir: &Path) -> Option<bool> {
    let table: toml::Table = fs::read_to_string(config).ok()?.parse().ok()?;
    Some(names(&toml::Value::Table(table), dir))
}

fn names(value: &toml::Value, dir: &Path) -> bool {
    let toml::Value::Table(table) = value else { return false };
    table.iter().any(|(key, value)| match value {
        toml::Value::String(text) => key == "config_path" && text.split(':').any(|part| Path::new(part) == dir),
        other => names(other, dir),
    })
}

fn advice(args: &Setup, looked_at: Option<bool>) -> String {
    let (config, dir) = (args.containerd_config.display(), args.hosts_dir.display());
    let seen = match looked_at {
        Some(_) => format!("{config} does not name {dir}"),
        None => format!("cannot read {config}"),
    };
    format!(
        "{seen}. The CRI plugin (kubelet) reads the files only with this setting and a restart of containerd:\n  \
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\n    config_path = \"{dir}\"\n\
         containerd 2 names the section [plugins.\"io.containerd.cri.v1.images\".registry]. \
         Changed files need no restart."
    )
}
