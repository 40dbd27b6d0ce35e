//! `shoal backup` and `shoal restore`: writes a role's state to a file, and the reverse.
//!
//! Invariant: a running role writes its backup itself, so that the command never reads a state that changes.

use super::config::{Role, read};
use super::{Outcome, output};
use anyhow::{Context, bail};
use serde_json::json;
use shoal_service::backup::{
    BackupError, Record, Restored, Rows, SavedArchive, SecretFile, Writing, ask, offline, read as read_archive,
    restore as restore_state, save,
};
use shoal_service::units::ByteSize;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The role, and the configuration that names its state folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Role whose state is meant: seeder, tracker or hub
    #[arg(long)]
    role: Role,
    /// TOML configuration file of the role
    #[arg(long)]
    config: Option<PathBuf>,
    /// Set one configuration key. Dots separate tables
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Write the state of a running or stopped role to a file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal backup --role tracker --config /etc/shoal/tracker.toml --out tracker.backup
  shoal backup --role seeder --config /etc/shoal/seeder.toml --out seeder.backup --contents --secrets")]
pub(crate) struct Backup {
    #[command(flatten)]
    target: Target,
    /// File to write, with mode 0600
    #[arg(long)]
    out: PathBuf,
    /// Include the payload of the seeder's contents
    #[arg(long)]
    contents: bool,
    /// Include keys, credentials and the admin token
    #[arg(long)]
    secrets: bool,
}

/// Restore a role's state from a backup
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  shoal restore --role tracker --config /etc/shoal/tracker.toml --from tracker.backup
  shoal restore --role seeder --config /etc/shoal/seeder.toml --from seeder.backup --secrets --force")]
pub(crate) struct Restore {
    #[command(flatten)]
    target: Target,
    /// Backup file to read
    #[arg(long)]
    from: PathBuf,
    /// Move the existing state folder aside, and replace existing secrets
    #[arg(long)]
    force: bool,
    /// Write the keys, credentials and admin token of the backup to the paths in the configuration
    #[arg(long)]
    secrets: bool,
}

/// The paths of a role's state and secrets, from its configuration.
struct Place {
    dir: PathBuf,
    secrets: Vec<(&'static str, PathBuf)>,
}

type Reader = Box<dyn std::io::Read>;

impl Target {
    fn place(&self) -> anyhow::Result<Place> {
        let (file, set) = (self.config.as_ref(), &self.set[..]);
        Ok(match self.role {
            Role::Hub => {
                let config: shoal_hub::HubConfig = read(self.role, file, set)?;
                let mut secrets = vec![("trust", config.trust), ("key", config.key), ("credential", config.credential)];
                secrets.extend(config.admin_token.map(|token| ("admin_token", token)));
                Place { dir: config.dir, secrets }
            }
            Role::Tracker => {
                let config: shoal_tracker::TrackerConfig = read(self.role, file, set)?;
                let secrets = vec![("trust", config.trust), ("key", config.key), ("credential", config.credential)];
                Place { dir: config.dir, secrets }
            }
            Role::Seeder => {
                let config: shoal_seeder::SeederConfig = read(self.role, file, set)?;
                let node = config.node;
                let mut secrets = vec![("trust", node.trust), ("key", node.key), ("credential", node.credential)];
                secrets.extend([("publisher_key", config.publisher_key), ("admin_token", config.admin_token)]);
                Place { dir: config.dir, secrets }
            }
            Role::Peer => {
                bail!("a peer has no backup: after a loss it receives its state from its neighbours and the seeder")
            }
        })
    }

    /// Returns the state as a stream: from the running role, or from its folder with the thread that reads it.
    fn state(&self, contents: bool) -> anyhow::Result<(Reader, Option<Writing>)> {
        let place = self.place()?;
        if let Some(stream) =
            ask(&place.dir, contents).context("the role runs but does not answer; stop the role and try again")?
        {
            return Ok((Box::new(stream), None));
        }
        if !place.dir.is_dir() {
            bail!(
                "{} is not the state folder of a {}; check --config and --set",
                place.dir.display(),
                self.role.name()
            );
        }
        let (file, set) = (self.config.as_ref(), &self.set[..]);
        let name = self.role.name();
        let (stream, thread): (Reader, _) = match self.role {
            Role::Hub => {
                let config: shoal_hub::HubConfig = read(self.role, file, set)?;
                let made = offline(name, contents, move |out| shoal_hub::backup::write_offline(&config, out))?;
                (Box::new(made.0), made.1)
            }
            Role::Tracker => {
                let config: shoal_tracker::TrackerConfig = read(self.role, file, set)?;
                let made = offline(name, contents, move |out| shoal_tracker::backup::write_offline(&config, out))?;
                (Box::new(made.0), made.1)
            }
            Role::Seeder | Role::Peer => {
                let config: shoal_seeder::SeederConfig = read(self.role, file, set)?;
                let write = move |out: &mut _| shoal_seeder::backup::write_offline(&config, contents, out);
                let made = offline(name, contents, write)?;
                (Box::new(made.0), made.1)
            }
        };
        Ok((stream, Some(thread)))
    }

    fn tables(&self, dir: &Path) -> Result<Box<dyn Rows>, BackupError> {
        match self.role {
            Role::Hub => shoal_hub::backup::restoring(dir),
            Role::Tracker => shoal_tracker::backup::restoring(dir),
            Role::Seeder | Role::Peer => shoal_seeder::backup::restoring(dir),
        }
    }
}

pub(crate) fn backup(args: &Backup) -> anyhow::Result<Outcome> {
    shoal_service::folders::restrict_new_files();
    let place = args.target.place()?;
    let secrets = if args.secrets { place.secrets } else { Vec::new() };
    let (stream, writing) = args.target.state(args.contents)?;
    let running = writing.is_none();
    let secrets: Vec<_> = secrets.into_iter().map(|(name, path)| SecretFile { name, path }).collect();
    let saved = save(stream, &args.out, &secrets);
    if let Some(Ok(Err(error))) = writing.map(std::thread::JoinHandle::join) {
        // The thread's error is the cause. The error of `save` is only that the stream ended early.
        return Err(error).context("cannot read the state folder");
    }
    let SavedArchive { head, bytes } = saved.with_context(|| format!("cannot write {}", args.out.display()))?;
    if args.target.json {
        output::json(&json!({ "role": head.role, "bytes": bytes, "contents": head.contents, "running": running,
            "secrets": args.secrets, "out": args.out }))?;
    } else {
        let (size, how) = (ByteSize(bytes).rounded(), if running { "running" } else { "stopped" });
        output::line(&format!("{} ({how}): {size} in {}", head.role, args.out.display()));
    }
    Ok(Outcome::Ok)
}

pub(crate) fn restore(args: &Restore) -> anyhow::Result<Outcome> {
    shoal_service::folders::restrict_new_files();
    let place = args.target.place()?;
    if args.secrets && !args.force {
        // The check comes before the first change.
        if let Some((_, path)) = place.secrets.iter().find(|(_, path)| path.exists()) {
            bail!("{} already exists; add --force to replace it", path.display());
        }
    }
    if args.secrets && !has_secrets(&args.from).with_context(|| format!("cannot restore {}", args.from.display()))? {
        bail!("{} contains no secrets; restore without --secrets", args.from.display());
    }
    let role = args.target.role.name();
    let open = |dir: &Path| args.target.tables(dir);
    let Restored { head, secrets } = restore_state(&args.from, role, &place.dir, args.force, open)
        .with_context(|| format!("cannot restore {}", args.from.display()))?;
    let mut written = Vec::new();
    for (name, path) in place.secrets.iter().filter(|_| args.secrets) {
        if let Some(secret) = secrets.iter().find(|secret| secret.name == *name) {
            write_secret(path, &secret.body).with_context(|| format!("cannot write {}", path.display()))?;
            written.push(*name);
        }
    }
    if args.target.json {
        output::json(&json!({ "role": head.role, "dir": place.dir, "created_at": head.created_at,
            "contents": head.contents, "secrets": written }))?;
    } else {
        output::line(&format!("{}: state of {} in {}", head.role, output::ago(head.created_at), place.dir.display()));
    }
    Ok(Outcome::Ok)
}

/// Whether an archive has any secret.
fn has_secrets(archive: &Path) -> Result<bool, BackupError> {
    let mut found = false;
    read_archive(BufReader::new(File::open(archive)?), |_, record| {
        found |= matches!(record, Record::Secret { .. });
        Ok(())
    })?;
    Ok(found)
}

/// Writes the file with mode 0600 and a rename, so that no reader sees half of it.
fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary); // usually there is none from an interrupted run
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
