//! Rollouts at the seeder: what is asked for, what they do, and how far they are.
//!
//! The seeder also stores [`RolloutPhase`], [`RolloutEvent`], [`HostFailure`] and [`HostTally`] on its disk, so their
//! CBOR indices never change.
//! Invariant: what an [`Amount`] prints parses back to the same amount.

use crate::units::Span;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use shoal_proto::announcement::Kind;
use shoal_proto::ids::JobId;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A text that is not an [`Amount`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid amount `{0}`: write a number of hosts, or a percentage from `0%` to `100%`")]
pub struct ParseAmountError(String);

/// A number of hosts, or a percentage of the hosts. In JSON: a number, or a text such as `25%`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the type says it")]
pub enum Amount {
    Hosts(u32),
    Percent(f64),
}

impl Amount {
    /// Returns the number of hosts among `total`, rounded up, at most `total`.
    pub fn of(self, total: u32) -> u32 {
        match self {
            Self::Hosts(hosts) => hosts.min(total),
            Self::Percent(percent) => ((f64::from(total) * percent / 100.0).ceil() as u32).min(total),
        }
    }

    /// Returns the number of hosts among `total`, rounded down.
    pub fn at_most(self, total: u32) -> u32 {
        match self {
            Self::Hosts(hosts) => hosts,
            Self::Percent(percent) => (f64::from(total) * percent / 100.0).floor() as u32,
        }
    }
}

impl FromStr for Amount {
    type Err = ParseAmountError;
    fn from_str(text: &str) -> Result<Self, ParseAmountError> {
        let invalid = || ParseAmountError(text.to_string());
        match text.trim().strip_suffix('%') {
            Some(number) => {
                let percent: f64 = number.trim().parse().map_err(|_| invalid())?;
                (0.0..=100.0).contains(&percent).then_some(Self::Percent(percent)).ok_or_else(invalid)
            }
            None => text.trim().parse().map(Self::Hosts).map_err(|_| invalid()),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hosts(hosts) => write!(f, "{hosts}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(hosts) => Ok(Self::Hosts(hosts)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Amount {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Amount".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A number of hosts, or a percentage of the hosts.",
            "anyOf": [
                { "type": "string", "pattern": "^[0-9.]+%?$" },
                { "type": "integer", "minimum": 0 },
            ],
            "examples": ["25%"],
        })
    }
}

/// A text that is not a [`RollbackMode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid rollback mode `{0}`: write `auto` or `manual`")]
pub struct ParseRollbackModeError(String);

/// What happens when a gate fails or too many hosts fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RollbackMode {
    /// Hosts that switched return to their former version.
    #[default]
    Auto,
    /// The rollout stops until an operator sends a command.
    Manual,
}

impl FromStr for RollbackMode {
    type Err = ParseRollbackModeError;
    fn from_str(text: &str) -> Result<Self, ParseRollbackModeError> {
        match text {
            "auto" => Ok(Self::Auto),
            "manual" => Ok(Self::Manual),
            _ => Err(ParseRollbackModeError(text.to_string())),
        }
    }
}

/// A rollout, as an operator asks for it. Job files have the same keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RolloutSpec {
    /// Name of the content.
    pub name: String,
    /// Version that hosts switch to.
    pub version: String,
    /// Absolute path of a file or directory on the seeder's machine. Absent when the version was pushed before.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub path: Option<PathBuf>,
    /// How hosts treat the content. Default `config`.
    #[serde(default = "config")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::Kind", default = "config"))]
    pub kind: Kind,
    /// Selectors. A host is selected if one of them matches.
    pub to: Vec<String>,
    /// Hosts that have switched after each batch, cumulative. The last entry is also the size of every further batch.
    /// Default: one host, then all.
    #[serde(default = "batch")]
    pub batch: Vec<Amount>,
    /// Hosts of one rack that may switch at the same time. Default 1.
    #[serde(default = "per_rack")]
    pub per_rack: u32,
    /// Number or percentage of failed hosts to tolerate. Default 0.
    #[serde(default = "max_failures")]
    pub max_failures: Amount,
    /// PromQL queries that end with a comparison, e.g. `sum(rate(errors[1m])) < 5`. All must pass after each batch. A
    /// value of NaN counts as no data, so it does not pass.
    #[serde(default)]
    pub verify: Vec<String>,
    /// The Prometheus server that answers the queries, as `http://host:port`.
    #[serde(default)]
    pub prometheus: Option<String>,
    /// How long every host must stay healthy after each batch. Default `10s`.
    #[serde(default = "soak")]
    pub soak: Span,
    /// Wait between the end of a soak time and the next batch. Default `0ms`.
    #[serde(default)]
    pub wait_between: Span,
    /// What happens when a gate fails or too many hosts fail. Default `auto`.
    #[serde(default)]
    pub rollback: RollbackMode,
    /// Versions by rule, e.g. `label=canary:V2,10%:V2,*:V1`. Default: `version` for every host.
    #[serde(default)]
    pub split: Option<String>,
    /// How long a host may take to switch before it counts as failed. Default `5m`.
    #[serde(default = "switch_timeout")]
    pub switch_timeout: Span,
    /// How long the whole rollout may take. Default: no limit.
    #[serde(default)]
    pub deadline: Option<Span>,
    /// The version may replace a version of the same label that has another content. Only with a path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

fn config() -> Kind {
    Kind::Config
}

fn batch() -> Vec<Amount> {
    vec![Amount::Hosts(1), Amount::Percent(100.0)]
}

fn per_rack() -> u32 {
    1
}

fn max_failures() -> Amount {
    Amount::Hosts(0)
}

fn soak() -> Span {
    Span::seconds(10)
}

fn switch_timeout() -> Span {
    Span::seconds(300)
}

impl RolloutSpec {
    /// Returns a rollout of this version with every default.
    pub fn new(name: &str, version: &str, to: Vec<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            path: None,
            kind: config(),
            to,
            batch: batch(),
            per_rack: per_rack(),
            max_failures: max_failures(),
            verify: Vec::new(),
            prometheus: None,
            soak: soak(),
            wait_between: Span::default(),
            rollback: RollbackMode::Auto,
            split: None,
            switch_timeout: switch_timeout(),
            deadline: None,
            replace: false,
        }
    }
}

/// The answer to a new rollout: the rollout exists and survives a restart of the seeder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the type says it")]
pub struct RolloutAccepted {
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::JobId"))]
    pub rollout: JobId,
}

/// A command to a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RolloutCommand {
    /// No further host starts to switch. Hosts that are switching finish.
    Pause,
    /// Continues. After an automatic stop it also tolerates the failures so far.
    Resume,
    /// Ends the rollout. Every host stays on its present version.
    Cancel,
    /// Hosts that switched return to their former version.
    Rollback,
    /// Begins a new attempt for hosts that failed.
    RetryFailed,
    /// Opens the next batch without further waiting.
    Promote,
    /// Opens all batches without further waiting.
    PromoteAll,
}

impl RolloutCommand {
    /// Returns the command as it is written in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::Rollback => "rollback",
            Self::RetryFailed => "retry-failed",
            Self::Promote => "promote",
            Self::PromoteAll => "promote-all",
        }
    }
}

/// A command to one rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CommandRequest {
    /// The rollout's id, or a name, which means its newest rollout.
    pub of: String,
    #[allow(missing_docs, reason = "the type says it")]
    pub command: RolloutCommand,
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RolloutPhase {
    /// The seeder ingests the content.
    #[n(0)]
    Preparing,
    /// Hosts fetch the content.
    #[n(1)]
    Staging,
    /// The hosts of a batch switch.
    #[n(2)]
    Switching,
    /// The batch has switched. Every host must stay healthy for the soak time.
    #[n(3)]
    Soaking,
    /// The wait before the next batch.
    #[n(4)]
    Waiting,
    /// A gate failed or too many hosts failed. An operator decides.
    #[n(5)]
    Stopped,
    /// Hosts that switched return to their former version.
    #[n(6)]
    RollingBack,
    /// Every host that is up has switched, or is a tolerated failure.
    #[n(7)]
    Done,
    /// Every host that is up has its former version.
    #[n(8)]
    RolledBack,
    /// An operator ended the rollout. Hosts stay on their present version.
    #[n(9)]
    Cancelled,
    /// The content never reached the hosts.
    #[n(10)]
    Failed,
}

impl RolloutPhase {
    /// Whether the rollout has ended. Hosts that were away may still follow.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack | Self::Cancelled | Self::Failed)
    }

    /// Returns the phase as it is written in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Staging => "staging",
            Self::Switching => "switching",
            Self::Soaking => "soaking",
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
            Self::RollingBack => "rolling-back",
            Self::Done => "done",
            Self::RolledBack => "rolled-back",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// Something that happened in a rollout, in words.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the names say it")]
pub struct RolloutEvent {
    /// Unix milliseconds.
    #[n(0)]
    pub at_ms: u64,
    #[n(1)]
    pub what: String,
}

/// A host that failed in a rollout, and why. A later rollback does not remove it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostFailure {
    /// The host's locality.
    #[n(0)]
    pub host: String,
    /// The attempt in which the host failed. 0 if the push of the version failed on the host.
    #[n(1)]
    pub attempt: u16,
    /// The reason in one word, such as `activation`.
    #[n(2)]
    pub reason: String,
    /// The step that failed and the end of its output. May be empty.
    #[n(3)]
    pub detail: String,
    /// When the seeder learned of it, Unix milliseconds.
    #[n(4)]
    pub at_ms: u64,
}

impl fmt::Display for HostFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.host, self.reason)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// A rollout's hosts, counted by their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostTally {
    /// Hosts that the rollout targets.
    #[n(0)]
    pub hosts: u32,
    /// Hosts that have the content.
    #[n(1)]
    pub staged: u32,
    /// Hosts that may be switching.
    #[n(2)]
    pub switching: u32,
    /// Hosts on the new version.
    #[n(3)]
    pub active: u32,
    /// Hosts that failed. During and after a rollback also those that failed before it.
    #[n(4)]
    pub failed: u32,
    /// Hosts that did not fail and returned to their former version.
    #[n(5)]
    pub rolled_back: u32,
    /// Hosts that the tracker does not see.
    #[n(6)]
    pub away: u32,
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "some names say it")]
pub struct RolloutView {
    /// Hosts report on it as on a job.
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::JobId"))]
    pub id: JobId,
    pub spec: RolloutSpec,
    pub phase: RolloutPhase,
    /// No further host starts to switch until the rollout is resumed.
    pub paused: bool,
    /// The present batch, counted from 1.
    pub batch: u32,
    /// Hosts that have switched at the end of the present batch, cumulative.
    pub goal: u32,
    /// The present attempt.
    pub attempt: u16,
    pub tally: HostTally,
    /// Why the rollout does not continue as planned. Empty otherwise.
    pub why: String,
    /// When the rollout was created, Unix milliseconds.
    pub began_ms: u64,
    /// Oldest first.
    pub events: Vec<RolloutEvent>,
    /// The first hosts that failed, at most 32, also after a rollback.
    #[serde(default)]
    pub failures: Vec<HostFailure>,
    /// A newer rollout, push or promotion of the name has replaced this one.
    pub superseded: bool,
}

/// A batch of a dry run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DryRunBatch {
    /// Number of hosts that switch in the batch.
    pub hosts: u32,
    /// Localities of some of these hosts.
    pub named: Vec<String>,
}

/// What a rollout would do if every host were up and healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DryRun {
    /// Hosts that the rollout targets.
    pub hosts: u32,
    /// Racks of these hosts.
    pub racks: u32,
    /// Hosts that the tracker does not see now.
    pub away: u32,
    /// Number of hosts by version.
    pub versions: BTreeMap<String, u32>,
    /// At most 100 batches.
    pub batches: Vec<DryRunBatch>,
}

/// One host's version of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostVersion {
    /// The host's locality.
    pub host: String,
    /// The version that the host should have. Absent when no push or rollout names one, and after a rollback.
    pub desired: Option<String>,
    /// The version that the host has. Absent when the host has none or has not reported it.
    pub actual: Option<String>,
    /// The host's last report about the rollout, in words.
    pub state: String,
    /// The tracker does not see the host.
    pub away: bool,
}

/// A name's rollout on one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PeerRollout {
    /// Name of the content.
    pub name: String,
    #[allow(missing_docs, reason = "the type says it")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schemas::JobId"))]
    pub rollout: JobId,
    /// The attempt that the desired state asks for.
    pub attempt: u16,
    /// The version that this host should have. Absent when no rule of the rollout matches the host.
    pub desired: Option<String>,
    /// The version that this host has.
    pub current: Option<String>,
    /// A switch is under way.
    pub switching: bool,
    /// How the last switch ended.
    pub state: String,
    /// Why it ended so. May be empty.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_numbers_or_percentages() {
        for good in ["0", "7", "25%", "0.5%", "100%"] {
            let amount: Amount = good.parse().unwrap();
            assert_eq!(amount.to_string(), good);
        }
        for bad in ["", "x", "101%", "-5%", "1.5", "NaN", "NaN%", "inf%", "1e400%"] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
        assert_eq!((Amount::Percent(25.0).of(10), Amount::Percent(25.0).at_most(10)), (3, 2));
    }

    #[test]
    fn a_failure_in_words_names_host_reason_and_output() {
        let failure = |detail: &str| HostFailure {
            host: "r/s/k/h".into(),
            attempt: 1,
            reason: "activation".into(),
            detail: detail.into(),
            at_ms: 1,
        };
        assert_eq!(failure("check failed").to_string(), "r/s/k/h: activation: check failed");
        assert_eq!(failure("").to_string(), "r/s/k/h: activation");
    }

    #[test]
    fn names_are_those_of_the_json() {
        let phases =
            [RolloutPhase::Preparing, RolloutPhase::RollingBack, RolloutPhase::RolledBack, RolloutPhase::Soaking];
        for phase in phases {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
        for command in [RolloutCommand::RetryFailed, RolloutCommand::PromoteAll, RolloutCommand::Pause] {
            assert_eq!(serde_json::to_value(command).unwrap(), command.name());
        }
    }
}
