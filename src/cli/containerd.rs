//! `shoal containerd setup`: sends a host's containerd to the peer's mirror first.

use super::{Outcome, output};
use anyhow::bail;
use serde_json::json;
use shoal_peer::mirror::hosts_toml::{Change, HostsToml, undo};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Write the hosts.toml files that send containerd to the mirror first, or remove them
    Setup(Setup),
}

/// Write the hosts.toml files that send containerd to the mirror first, or remove them
#[derive(Debug, clap::Args)]
pub(crate) struct Setup {
    /// Registries as images name them, e.g. registry.example:5000 or docker.io; _default for all others
    #[arg(required_unless_present = "undo")]
    registry: Vec<String>,
    /// Where containerd looks for the files: its `config_path`
    #[arg(long, default_value = "/etc/containerd/certs.d", value_name = "DIR")]
    hosts_dir: PathBuf,
    /// Where the peer's mirror listens
    #[arg(long, default_value = "127.0.0.1:7703", value_name = "ADDR")]
    mirror: SocketAddr,
    /// Where the registry is reached when the mirror cannot help, if containerd cannot tell from its name
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Ask the registry what a tag leads to, and the mirror only for what it leads to
    #[arg(long)]
    digests_only: bool,
    /// Overwrite files that shoal did not write
    #[arg(long)]
    force: bool,
    /// Remove the files that shoal wrote: of the registries given, or all
    #[arg(long, conflicts_with_all = ["server", "digests_only", "force"])]
    undo: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// containerd's configuration, to see whether it looks there
    #[arg(long, default_value = "/etc/containerd/config.toml", value_name = "FILE")]
    containerd_config: PathBuf,
    /// Print JSON
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
            (Change::Unchanged, _) => "is so already",
            (Change::Removed, false) => "removed",
            (Change::Removed, true) => "would be removed",
        };
        output::line(&format!("{} {word}", path.display()));
    }
    if changes.is_empty() {
        output::line(&format!("no file of shoal's below {}", args.hosts_dir.display()));
    }
    if !args.undo && looked_at != Some(true) {
        output::note(&advice(args, looked_at));
    }
    Ok(Outcome::Ok)
}

/// All files or none: what would be refused is found before the first is written.
fn write_all(args: &Setup) -> anyhow::Result<Vec<(PathBuf, Change)>> {
    if !args.mirror.ip().is_loopback() {
        bail!("{} is no loopback address, and the mirror listens on nothing else", args.mirror);
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

/// Whether containerd's configuration names the folder; `None` when it cannot be read.
fn is_looked_at(config: &Path, dir: &Path) -> Option<bool> {
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
        None => format!("{config} cannot be read"),
    };
    format!(
        "{seen}. For CRI (kubelet) containerd needs, and a restart after it:\n  \
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\n    config_path = \"{dir}\"\n\
         (from containerd 2 on: [plugins.\"io.containerd.cri.v1.images\".registry]). The files themselves are read at each pull."
    )
}
