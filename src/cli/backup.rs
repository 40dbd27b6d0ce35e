//! `shoal backup` and `shoal restore`: a role's state out of its folder and back.

use super::config::{Role, read};
use super::{Outcome, output};
use anyhow::{Context, bail};
use serde_json::json;
use shoal_service::backup::{
    BackupError, Restored, Rows, SavedArchive, SecretFile, Writing, ask, offline, restore as restore_state, save,
};
use shoal_service::units::ByteSize;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Which role's state, and where its configuration says it is.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The role: seeder, tracker or hub
    #[arg(long)]
    role: Role,
    /// Its TOML configuration file
    #[arg(long)]
    config: Option<PathBuf>,
    /// Set a key of it, as KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write a role's state to a file, while it runs or while it does not
#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    #[command(flatten)]
    target: Target,
    /// The file to write, of mode 0600
    #[arg(long)]
    out: PathBuf,
    /// With the payload of a seeder's contents
    #[arg(long)]
    contents: bool,
    /// With keys, credentials and the admin token
    #[arg(long)]
    secrets: bool,
}

/// Make a role's state from a backup
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    target: Target,
    /// The backup
    #[arg(long)]
    from: PathBuf,
    /// Put aside what is in the state folder, and replace secrets that are there
    #[arg(long)]
    force: bool,
    /// Write the keys, credentials and the admin token of the backup where the configuration has them
    #[arg(long)]
    secrets: bool,
}

/// What a role's configuration says of its state.
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
                Place { dir: config.dir, secrets: vec![("trust", config.trust)] }
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
            Role::Peer => bail!("a peer's state is not backed up: it has all of it again from its neighbours"),
        })
    }

    /// The state as a stream, from the role if it runs, else from its folder.
    fn state(&self, contents: bool) -> anyhow::Result<(Reader, Option<Writing>)> {
        let place = self.place()?;
        if let Some(stream) = ask(&place.dir, contents).context("the role runs and does not answer")? {
            return Ok((Box::new(stream), None));
        }
        if !place.dir.is_dir() {
            bail!("{} is no state folder of a {}", place.dir.display(), self.role.name());
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
    let place = args.target.place()?;
    let secrets = if args.secrets { place.secrets } else { Vec::new() };
    let (stream, writing) = args.target.state(args.contents)?;
    let running = writing.is_none();
    let secrets: Vec<_> = secrets.into_iter().map(|(name, path)| SecretFile { name, path }).collect();
    let saved = save(stream, &args.out, &secrets);
    if let Some(Ok(Err(error))) = writing.map(std::thread::JoinHandle::join) {
        // The reason why the stream ended early.
        return Err(error).context("cannot read the state");
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
    let place = args.target.place()?;
    if args.secrets && !args.force {
        // Before anything is made.
        if let Some((_, path)) = place.secrets.iter().find(|(_, path)| path.exists()) {
            bail!("{} is there already; say --force to replace it", path.display());
        }
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
    if args.secrets && written.is_empty() {
        bail!("the state is restored, but no secrets are in {}", args.from.display());
    }
    if args.target.json {
        output::json(&json!({ "role": head.role, "dir": place.dir, "created_at": head.created_at,
            "contents": head.contents, "secrets": written }))?;
    } else {
        output::line(&format!("{}: state of {} in {}", head.role, output::ago(head.created_at), place.dir.display()));
    }
    Ok(Outcome::Ok)
}

/// In one step, for the owner's eyes.
fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension("new");
    let _left = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
