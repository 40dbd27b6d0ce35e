//! `shoal config`: checks a role's configuration, or shows it with all defaults.
//!
//! Invariant: a configuration that `check` accepts is one that the role accepts, because both call `read`.

use super::{Outcome, output};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_hub::HubConfig;
use shoal_peer::PeerConfig;
use shoal_seeder::SeederConfig;
use shoal_service::config::{ConfigError, Sources, load, render};
use shoal_tracker::TrackerConfig;
use std::path::PathBuf;

/// A role that has a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Hub,
    Tracker,
    Seeder,
    Peer,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Tracker => "tracker",
            Self::Seeder => "seeder",
            Self::Peer => "peer",
        }
    }
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check a configuration and name the first invalid key
    #[command(after_help = "\
Examples:
  shoal config check --role peer /etc/shoal/peer.toml
  shoal config check --role seeder /etc/shoal/seeder.toml --json")]
    Check(Target),
    /// Show a configuration with all defaults
    #[command(after_help = "\
Examples:
  shoal config show --role tracker
  shoal config show --role peer /etc/shoal/peer.toml --set 'quota=\"50 GiB\"'")]
    Show(Target),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Role of the configuration
    #[arg(long)]
    role: Role,
    /// TOML file. Without a file, only defaults, the environment and --set apply
    file: Option<PathBuf>,
    /// Set one configuration key. Dots separate tables, as in node.min_free=0
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// The sources of a role's configuration, weakest first: file, environment, `--set`.
pub(crate) fn sources(role: Role, file: Option<&PathBuf>, set: &[String]) -> Sources {
    Sources {
        file: file.cloned(),
        env_prefix: format!("SHOAL_{}_", role.name().to_uppercase()),
        overrides: set.to_vec(),
    }
}

/// Reads and checks a configuration.
///
/// # Errors
///
/// A source is unreadable, or a key is unknown or invalid.
pub(crate) fn read<T: Checked>(role: Role, file: Option<&PathBuf>, set: &[String]) -> Result<T, ConfigError> {
    // Variables of other programs need not be UTF-8. Shoal's are.
    let vars =
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let config: T = load(&sources(role, file, set), vars)?;
    config.check()?;
    Ok(config)
}

/// A configuration that can check itself.
pub(crate) trait Checked: DeserializeOwned + Serialize {
    fn check(&self) -> Result<(), ConfigError>;
}

impl Checked for HubConfig {
    fn check(&self) -> Result<(), ConfigError> {
        self.validate()
    }
}

impl Checked for TrackerConfig {
    fn check(&self) -> Result<(), ConfigError> {
        self.validate()
    }
}

impl Checked for SeederConfig {
    fn check(&self) -> Result<(), ConfigError> {
        self.validate()
    }
}

impl Checked for PeerConfig {
    fn check(&self) -> Result<(), ConfigError> {
        self.validate()
    }
}

pub(crate) fn run(command: &Command) -> anyhow::Result<Outcome> {
    let (Command::Check(target) | Command::Show(target)) = command;
    let show = matches!(command, Command::Show(_));
    match target.role {
        Role::Hub => one::<HubConfig>(target, show),
        Role::Tracker => one::<TrackerConfig>(target, show),
        Role::Seeder => one::<SeederConfig>(target, show),
        Role::Peer => one::<PeerConfig>(target, show),
    }
}

fn one<T: Checked>(target: &Target, show: bool) -> anyhow::Result<Outcome> {
    let config: T = read(target.role, target.file.as_ref(), &target.set)?;
    match (show, target.json) {
        (true, true) => output::json(&config)?,
        (true, false) => output::line(render(&config)?.trim_end()),
        (false, true) => output::json(&serde_json::json!({ "ok": true, "role": target.role.name() }))?,
        (false, false) => output::line(&format!("the {} configuration is valid", target.role.name())),
    }
    Ok(Outcome::Ok)
}
