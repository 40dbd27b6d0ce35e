//! `shoal config`: checks a role's configuration, or shows it with all defaults.
//!
//! Invariant: a configuration that `check` accepts is one that the role accepts, because both call the same functions.

use super::config_check::CheckedHere;
use super::findings::{Findings, Severity};
use super::role_facts::{Examined, Facts};
use super::{Outcome, output};
use anyhow::bail;
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
    /// Check a configuration, its files and its folders on this machine
    ///
    /// The check refuses what the role would refuse at its start, and warns of what is risky. Warnings leave the exit
    /// code at 0. Run it as the user of the role or as root.
    #[command(after_help = "\
Examples:
  shoal config check --role peer /etc/shoal/peer.toml
  shoal config check --role seeder /etc/shoal/seeder.toml --json
  shoal config check --role peer --values-only ./peer-of-another-machine.toml")]
    Check {
        #[command(flatten)]
        target: Target,
        /// Check only the values, for a configuration of another machine
        #[arg(long)]
        values_only: bool,
    },
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

impl Target {
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn json(&self) -> bool {
        self.json
    }
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
    let config: T = read_unchecked(role, file, set)?;
    config.check()?;
    Ok(config)
}

fn read_unchecked<T: Checked>(role: Role, file: Option<&PathBuf>, set: &[String]) -> Result<T, ConfigError> {
    // Variables of other programs need not be UTF-8. Shoal's are.
    let vars =
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    load(&sources(role, file, set), vars)
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
    match command {
        Command::Show(target) => match target.role {
            Role::Hub => show::<HubConfig>(target),
            Role::Tracker => show::<TrackerConfig>(target),
            Role::Seeder => show::<SeederConfig>(target),
            Role::Peer => show::<PeerConfig>(target),
        },
        Command::Check { target, values_only } => match target.role {
            Role::Hub => check::<HubConfig>(target, *values_only),
            Role::Tracker => check::<TrackerConfig>(target, *values_only),
            Role::Seeder => check::<SeederConfig>(target, *values_only),
            Role::Peer => check::<PeerConfig>(target, *values_only),
        },
    }
}

fn show<T: Checked>(target: &Target) -> anyhow::Result<Outcome> {
    let config: T = read(target.role, target.file.as_ref(), &target.set)?;
    match target.json {
        true => output::json(&config)?,
        false => output::line(render(&config)?.trim_end()),
    }
    Ok(Outcome::Ok)
}

/// What is known of a role on this machine.
pub(crate) struct Examination {
    pub(crate) findings: Findings,
    /// `None` if the configuration cannot be read.
    pub(crate) facts: Option<Facts>,
}

/// Returns what is found. A configuration that cannot be read has one finding.
fn find<T: Checked + CheckedHere + Examined>(target: &Target, values_only: bool) -> Examination {
    let mut findings = Findings::default();
    let config: Result<T, _> = read_unchecked(target.role, target.file.as_ref(), &target.set);
    let config = findings.check("configuration", config);
    if let Some(config) = &config {
        findings.check("configuration", config.check());
    }
    if let Some(config) = config.as_ref().filter(|_| !values_only) {
        config.check_here(&mut findings);
    }
    Examination { findings, facts: config.map(|config| config.facts()) }
}

/// Checks a configuration on this machine, for the doctor.
pub(crate) fn examine(target: &Target) -> Examination {
    match target.role {
        Role::Hub => find::<HubConfig>(target, false),
        Role::Tracker => find::<TrackerConfig>(target, false),
        Role::Seeder => find::<SeederConfig>(target, false),
        Role::Peer => find::<PeerConfig>(target, false),
    }
}

fn check<T: Checked + CheckedHere + Examined>(target: &Target, values_only: bool) -> anyhow::Result<Outcome> {
    let role = target.role.name();
    let found = find::<T>(target, values_only).findings;
    let (refused, warnings) = (found.count(Severity::Refused), found.count(Severity::Warning));
    if target.json {
        output::json(&serde_json::json!({ "ok": refused == 0, "role": role, "findings": found.rows() }))?;
    } else {
        found.print();
    }
    if refused > 0 {
        bail!("the {role} configuration is refused: mend {refused} finding(s) and check again");
    }
    if !target.json {
        let noted = if warnings > 0 { format!(", with {warnings} warning(s)") } else { String::new() };
        output::line(&format!("the {role} configuration is valid{noted}"));
    }
    Ok(Outcome::Ok)
}
