//! The options of a new rollout, and the file that can contain them.
//!
//! Invariant: an option of the command line takes precedence over the file.

use crate::cli::help;
use crate::cli::seeder::SeederArgs;
use anyhow::{Context, bail};
use shoal_api::rollouts::{Amount, RollbackMode, RolloutSpec};
use shoal_proto::announcement::Kind;
use shoal_service::units::Span;
use std::path::{Path, PathBuf};

/// The options of a new rollout. An option that is absent has the value of the file, else the default.
#[derive(Debug, clap::Args)]
pub(crate) struct Begin {
    /// Version to activate, as NAME@VERSION. Required without --file
    #[arg(value_name = "NAME@VERSION")]
    what: Option<String>,
    /// File or directory on the seeder's machine. Without a path the version must be distributed already
    path: Option<PathBuf>,
    #[arg(long, value_name = "SELECTOR", help = help::TO)]
    to: Vec<String>,
    /// TOML or YAML file with the rollout. Options on the command line take precedence
    #[arg(long)]
    file: Option<PathBuf>,
    /// Total hosts that have switched after each batch, as numbers or percentages. The last value is also the step of
    /// further batches [default: 1,100%]
    #[arg(long, value_delimiter = ',', value_name = "N|N%,...")]
    batch: Vec<Amount>,
    /// Number of hosts of one rack that may switch at the same time [default: 1]
    #[arg(long)]
    per_rack: Option<u32>,
    /// Number or percentage of failed hosts at which the rollout still continues [default: 0]
    #[arg(long, value_name = "N|N%")]
    max_failures: Option<Amount>,
    /// Gate after each batch: a PromQL query with a comparison, such as `sum(rate(errors[1m])) < 5`. Repeat for more
    #[arg(long, value_name = "QUERY")]
    verify: Vec<String>,
    /// Prometheus that answers the queries, such as `http://prometheus.example:9090`
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// Soak time: all hosts must stay healthy for this time after each batch [default: 10s]
    #[arg(long)]
    soak: Option<Span>,
    /// Wait between the soak time and the next batch [default: none]
    #[arg(long)]
    wait_between: Option<Span>,
    /// Reaction to a failure: auto rolls back, manual stops [default: auto]
    #[arg(long, value_name = "auto|manual")]
    rollback: Option<RollbackMode>,
    /// Versions by rule, such as label=canary:V2,10%:V2,*:V1
    #[arg(long)]
    split: Option<String>,
    /// Time after which a switching host has failed [default: 5m]
    #[arg(long)]
    switch_timeout: Option<Span>,
    /// Time after which the rollout fails [default: none]
    #[arg(long)]
    deadline: Option<Span>,
    /// With a path: let the version replace a version of the same label that has another content
    #[arg(long)]
    replace: bool,
    /// Kind: gslb, config, image or blob [default: config]
    #[arg(long)]
    kind: Option<Kind>,
    /// Print the batches and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until the rollout has ended
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    /// Time after which --wait ends with exit code 4
    #[arg(long, default_value = "1d", requires = "wait")]
    pub(crate) timeout: Span,
    /// Print JSON instead of text. With --wait: JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) seeder: SeederArgs,
}

/// Reads a rollout from a file. A relative path in the file is relative to the folder of the file.
fn read(file: &Path) -> anyhow::Result<RolloutSpec> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let mut spec: RolloutSpec = match ending {
        "toml" => toml::from_str(&text).with_context(|| format!("{} is invalid", file.display()))?,
        "yaml" | "yml" => serde_saphyr::from_str(&text).with_context(|| format!("{} is invalid", file.display()))?,
        _ => bail!("{} is neither TOML nor YAML; its name must end in .toml, .yaml or .yml", file.display()),
    };
    if let Some(path) = &spec.path {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        spec.path = Some(std::path::absolute(folder.join(path))?);
    }
    Ok(spec)
}

/// Sets the field if the command line has a value.
fn set<T: Clone>(field: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}

impl Begin {
    /// Returns the rollout of the file or of NAME@VERSION, with the options of the command line in place.
    ///
    /// # Errors
    ///
    /// The file is unreadable or invalid, the name or the version is missing, or no host is selected.
    pub(crate) fn spec(&self) -> anyhow::Result<RolloutSpec> {
        let named = match &self.what {
            Some(what) => {
                Some(what.rsplit_once('@').with_context(|| format!("`{what}` has no version; write NAME@VERSION"))?)
            }
            None => None,
        };
        let mut spec = match (&self.file, named) {
            (Some(file), _) => read(file)?,
            (None, Some((name, version))) => RolloutSpec::new(name, version, Vec::new()),
            (None, None) => bail!("no version is given; add NAME@VERSION or --file"),
        };
        if let Some((name, version)) = named {
            (spec.name, spec.version) = (name.into(), version.into());
        }
        if let Some(path) = &self.path {
            // The seeder does not share our working directory.
            spec.path = Some(std::path::absolute(path)?);
        }
        set(&mut spec.to, Some(&self.to).filter(|to| !to.is_empty()));
        set(&mut spec.batch, Some(&self.batch).filter(|batch| !batch.is_empty()));
        set(&mut spec.verify, Some(&self.verify).filter(|verify| !verify.is_empty()));
        set(&mut spec.per_rack, self.per_rack.as_ref());
        set(&mut spec.max_failures, self.max_failures.as_ref());
        set(&mut spec.soak, self.soak.as_ref());
        set(&mut spec.wait_between, self.wait_between.as_ref());
        set(&mut spec.rollback, self.rollback.as_ref());
        set(&mut spec.switch_timeout, self.switch_timeout.as_ref());
        set(&mut spec.kind, self.kind.as_ref());
        set(&mut spec.prometheus, self.prometheus.is_some().then_some(&self.prometheus));
        set(&mut spec.split, self.split.is_some().then_some(&self.split));
        spec.replace |= self.replace;
        set(&mut spec.deadline, self.deadline.is_some().then_some(&self.deadline));
        if spec.to.is_empty() {
            bail!("no host is selected; add --to, such as --to all");
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollout_files_are_read_as_toml_and_yaml() {
        let dir = tempfile::tempdir().unwrap();
        let toml =
            "name = 'edge/a'\nversion = '2'\npath = 'settings'\nto = ['site=x']\nbatch = [1, '25%']\nsoak = '1m'\n";
        let yaml = "name: edge/a\nversion: '2'\npath: settings\nto: [site=x]\nbatch: [1, 25%]\nsoak: 1m\n";
        let read_as = |ending: &str, text: &str| {
            let file = dir.path().join(format!("rollout.{ending}"));
            std::fs::write(&file, text).unwrap();
            read(&file)
        };
        let (first, second) = (read_as("toml", toml).unwrap(), read_as("yaml", yaml).unwrap());
        assert_eq!(first, second);
        assert_eq!(first.path, Some(dir.path().join("settings")));
        assert_eq!(first.batch, [Amount::Hosts(1), Amount::Percent(25.0)]);
        assert!(read_as("json", "{}").is_err());
        let wrong = format!("{:#}", read_as("yaml", "name: a\nversions: 2\n").unwrap_err());
        assert!(wrong.contains("versions"), "{wrong}");
    }
}
