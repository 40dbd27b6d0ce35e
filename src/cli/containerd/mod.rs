//! `shoal containerd setup`: writes the `hosts.toml` files that make containerd pull from the mirror first.
//!
//! Invariant: the command changes no file of others without a backup, and `--undo` restores each file exactly.
//!
//! Where to look: containerd's own configuration in [`config`], with its `imports` in [`imports`], and what to do about
//! it in [`advice`]; folders and their order in [`folders`]; the text of files in [`hosts_toml`]; the two directions in
//! [`setup`] and [`undo`].

mod advice;
mod config;
mod files;
mod folders;
mod hosts_toml;
mod imports;
mod release;
mod setup;
mod toml_text;
mod undo;

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod setup_tests;

pub(crate) use advice::{Note, notes};
pub(crate) use config::{ContainerdConfig, Reading};
pub(crate) use folders::{hidden_by, leading_to};
pub(crate) use release::installed;

use super::{Outcome, output};
use anyhow::bail;
use serde_json::json;
use setup::{Change, Changed, Wanted, set_up};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Setup(Setup),
}

/// Write or remove the hosts.toml files that make containerd pull from the mirror first
///
/// Files that are there stay: the mirror comes before their hosts, and certificates in the folder keep working. A copy
/// of each changed file is kept, and --undo restores it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal containerd setup registry.example:5000
  shoal containerd setup _default --dry-run
  shoal containerd setup --undo")]
pub(crate) struct Setup {
    /// Registries as image references name them, such as registry.example:5000 or docker.io. `_default` means every
    /// registry without a folder of its own
    #[arg(required_unless_present = "undo")]
    registry: Vec<String>,
    /// Folder of the files [default: the first folder of containerd's `config_path`, or /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
    /// Address of the peer's mirror
    #[arg(long, default_value = "127.0.0.1:7703", value_name = "ADDR")]
    mirror: SocketAddr,
    /// Registry that containerd asks when the mirror lacks an image [default: derived from the name]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Resolve tags at the registry. The mirror then serves digests only
    #[arg(long)]
    digests_only: bool,
    /// Replace files that shoal did not write, and repeat nothing of `_default`
    #[arg(long)]
    force: bool,
    /// Remove what setup wrote, for the given registries or for all, and restore the files that were there
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
    let config = ContainerdConfig::read(&args.containerd_config);
    let reading = config.reading(args.hosts_dir.as_deref(), release::installed());
    let dir = &reading.roots.dir;
    let changes = if args.undo {
        undo::undo(dir, &args.registry, args.dry_run)?
    } else {
        set_up(&reading.roots, &args.registry, &wanted(args)?, args.dry_run)?
    };
    let notes = if args.undo { Vec::new() } else { advice::notes(&config, &reading) };
    if args.json {
        output::json(&json!({
            "hosts_dir": dir,
            "files": changes,
            "dry_run": args.dry_run,
            "config_path_set": reading.is_read,
            "notes": notes.iter().map(text_of).collect::<Vec<_>>(),
        }))?;
    } else {
        print(args, &reading, &changes);
        notes.iter().for_each(|note| output::note(&text_of(note)));
    }
    let kept = changes.iter().filter(|changed| changed.change == Change::Kept).count();
    if kept > 0 {
        bail!("{kept} file(s) stay as they are: do what their notes say and run the command again");
    }
    Ok(Outcome::Ok)
}

fn wanted(args: &Setup) -> anyhow::Result<Wanted> {
    if !args.mirror.ip().is_loopback() {
        bail!("--mirror {} is not a loopback address; the mirror listens on loopback only", args.mirror);
    }
    Ok(Wanted {
        mirror: format!("http://{}", args.mirror),
        server: args.server.clone(),
        resolves_tags: !args.digests_only,
        force: args.force,
    })
}

fn text_of(note: &Note) -> String {
    format!("{}: {}", note.found, note.remedy)
}

fn print(args: &Setup, reading: &Reading, changes: &[Changed]) {
    let dir = reading.roots.dir.display();
    for Changed { file, change, notes } in changes {
        let file = file.display();
        output::line(&format!("{file} {}", word(*change, args.dry_run)));
        notes.iter().for_each(|note| output::note(&format!("{file}: {note}")));
    }
    if changes.is_empty() {
        output::line(&format!("no files of shoal in {dir}"));
    }
    if let (false, Some(true), Some(line)) = (args.undo, reading.is_read, reading.line()) {
        output::note(&format!("containerd reads {dir}, as {line} says"));
    }
}

fn word(change: Change, is_dry_run: bool) -> &'static str {
    match (change, is_dry_run) {
        (Change::Written, false) => "written",
        (Change::Written, true) => "would be written",
        (Change::Unchanged, _) => "is unchanged",
        (Change::Removed, false) => "removed",
        (Change::Removed, true) => "would be removed",
        (Change::Restored, false) => "restored",
        (Change::Restored, true) => "would be restored",
        (Change::LinesRemoved, false) => "without the lines of shoal",
        (Change::LinesRemoved, true) => "would be without the lines of shoal",
        (Change::Kept, _) => "stays as it is",
    }
}
