//! A rollout as asked for: which version, for whom, in which steps, and which gates must pass.
//!
//! Invariant: a specification that passed [`RolloutSpec::validate`] can be carried out, or it is said which host cannot.

use serde::{Deserialize, Serialize};
use shoal_proto::announcement::{Kind, is_version};
use shoal_proto::desired::{HASH_BUCKETS, Hosts, feed_of};
use shoal_proto::limits;
use shoal_proto::locality::Selector;
use shoal_service::units::Span;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Steps of a batch list.
const BATCH_MAX: usize = 64;

/// A number of hosts, or a part of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So many.
    Hosts(u32),
    /// So many in a hundred.
    Percent(f64),
}

impl Amount {
    /// How many of `total` that is, rounded up, at most `total`.
    pub fn of(self, total: u32) -> u32 {
        match self {
            Self::Hosts(hosts) => hosts.min(total),
            Self::Percent(percent) => ((f64::from(total) * percent / 100.0).ceil() as u32).min(total),
        }
    }

    /// How many of `total` that is, rounded down.
    pub fn at_most(self, total: u32) -> u32 {
        match self {
            Self::Hosts(hosts) => hosts,
            Self::Percent(percent) => (f64::from(total) * percent / 100.0).floor() as u32,
        }
    }
}

impl FromStr for Amount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is neither a number of hosts nor a percentage such as `25%`");
        match text.trim().strip_suffix('%') {
            Some(number) => {
                let percent: f64 = number.trim().parse().map_err(|_| bad())?;
                (0.0..=100.0).contains(&percent).then_some(Self::Percent(percent)).ok_or_else(bad)
            }
            None => text.trim().parse().map(Self::Hosts).map_err(|_| bad()),
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

/// What happens when a gate fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RollbackMode {
    /// Hosts that switched go back at once.
    #[default]
    Auto,
    /// The rollout stops and waits for a person.
    Manual,
}

impl FromStr for RollbackMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "manual" => Ok(Self::Manual),
            _ => Err(format!("`{text}` is neither auto nor manual")),
        }
    }
}

/// A rollout, as asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutSpec {
    /// The content's name.
    pub name: String,
    /// The version.
    pub version: String,
    /// File or directory on the seeder's machine, absolute; absent when that version was pushed before.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// What it is for. Default `config`.
    #[serde(default = "config")]
    pub kind: Kind,
    /// Selectors, each an alternative.
    pub to: Vec<String>,
    /// Hosts that have switched after each batch, in all; the last entry is also the step of the batches after it. Default: one
    /// host, then all.
    #[serde(default = "batch")]
    pub batch: Vec<Amount>,
    /// Hosts of a rack that may be switching at a time. Default 1.
    #[serde(default = "per_rack")]
    pub per_rack: u32,
    /// Number or percentage of failed hosts to tolerate. Default 0.
    #[serde(default = "max_failures")]
    pub max_failures: Amount,
    /// PromQL queries that end with a comparison, e.g. `sum(rate(errors[1m])) < 5`. All must pass after each batch.
    #[serde(default)]
    pub verify: Vec<String>,
    /// Who answers them: `http://host:port`.
    #[serde(default)]
    pub prometheus: Option<String>,
    /// How long all must be well after each batch. Default `10s`.
    #[serde(default = "soak")]
    pub soak: Span,
    /// Wait between two batches, after that. Default none.
    #[serde(default)]
    pub wait_between: Span,
    /// What happens when something is not well. Default `auto`.
    #[serde(default)]
    pub rollback: RollbackMode,
    /// Versions by rule, e.g. `label=canary:V2,10%:V2,*:V1`. Default: the version for every host.
    #[serde(default)]
    pub split: Option<String>,
    /// How long a host may take to switch before it counts as failed. Default `5m`.
    #[serde(default = "switch_timeout")]
    pub switch_timeout: Span,
    /// How long all of it may take. Default: as long as it takes.
    #[serde(default)]
    pub deadline: Option<Span>,
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
    /// With the defaults.
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
        }
    }

    /// Checks what the types cannot; an error says what to change.
    pub fn validate(&self) -> Result<(), String> {
        let check = |ok: bool, why: &str| if ok { Ok(()) } else { Err(why.to_string()) };
        check(feed_of(&self.name).is_some(), "the name is no content's name, or too long")?;
        let image_path = self.kind == Kind::Image && self.path.is_some();
        check(!image_path, "push an image first, with `shoal push --stage` or `shoal prewarm --batch`")?;
        check(is_version(&self.version), "the version is none: letters, digits, `.`, `_`, `-`")?;
        Selector::parse(&self.to).map_err(|error| error.to_string())?;
        check((1..=BATCH_MAX).contains(&self.batch.len()), "batch has between 1 and 64 entries")?;
        let nothing = |amount: &Amount| matches!(amount, Amount::Hosts(0)) || *amount == Amount::Percent(0.0);
        check(!self.batch.iter().any(nothing), "a batch of nobody")?;
        check(self.per_rack > 0, "per-rack is at least 1")?;
        check(!self.switch_timeout.0.is_zero(), "switch-timeout is more than 0")?;
        if !self.verify.is_empty() {
            let url = self.prometheus.as_deref().ok_or("verify needs prometheus, as http://host:port")?;
            shoal_service::http_client::Client::new(url, None).map_err(|error| error.to_string())?;
        }
        check(self.verify.len() <= 16, "at most 16 queries")?;
        for query in &self.verify {
            super::gate::Threshold::parse(query)?;
        }
        self.rules().map(|_| ())
    }

    /// Which hosts get which version; the first rule that has a host counts.
    pub fn rules(&self) -> Result<Vec<(Hosts, String)>, String> {
        let Some(split) = &self.split else { return Ok(vec![(Hosts::All, self.version.clone())]) };
        let mut rules = Vec::new();
        let mut shared = 0;
        for part in split.split(',') {
            let bad = || format!("`{part}` is no rule: write label=value:VERSION, 10%:VERSION or *:VERSION");
            let (who, version) = part.trim().rsplit_once(':').ok_or_else(bad)?;
            if !is_version(version) {
                return Err(bad());
            }
            let hosts = if who == "*" {
                Hosts::All
            } else if let Some(percent) = who.strip_suffix('%') {
                let percent: f64 = percent.parse().map_err(|_| bad())?;
                let from = shared;
                shared += (percent * f64::from(HASH_BUCKETS) / 100.0).round() as u32;
                if !(0.0..=100.0).contains(&percent) || shared > HASH_BUCKETS {
                    return Err(format!("`{part}`: the percentages are more than 100 in all"));
                }
                Hosts::HashRange { from, to: shared }
            } else {
                Hosts::Selector(Selector::parse(&[who]).map_err(|_| bad())?)
            };
            rules.push((hosts, version.to_string()));
        }
        if rules.len() > limits::DESIRED_RULES_MAX {
            return Err(format!("at most {} rules", limits::DESIRED_RULES_MAX));
        }
        if !rules.iter().any(|(_, version)| *version == self.version) {
            return Err(format!("no rule of the split names {}", self.version));
        }
        Ok(rules)
    }

    /// Hosts that have switched after the batch, of `total`; batches count from 0.
    pub fn goal(&self, batch: u32, total: u32) -> u32 {
        let last = self.batch.len().saturating_sub(1);
        let Some(step) = self.batch.get(last).map(|amount| amount.of(total)) else { return total };
        let before = self.batch.iter().take((batch as usize).min(last) + 1).map(|amount| amount.of(total));
        let more = u64::from(batch).saturating_sub(last as u64) * u64::from(step);
        let goal = u64::from(before.max().unwrap_or(total)) + more;
        u32::try_from(goal).unwrap_or(total).min(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(batch: &[&str]) -> RolloutSpec {
        let mut spec = RolloutSpec::new("edge/a", "2", vec!["all".into()]);
        spec.batch = batch.iter().map(|text| text.parse().unwrap()).collect();
        spec.validate().unwrap();
        spec
    }

    #[test]
    fn waves_reach_everyone() {
        let goals = |batch: &[&str], total| {
            let spec = spec(batch);
            let mut goals = Vec::new();
            for batch in 0.. {
                goals.push(spec.goal(batch, total));
                if goals.last() == Some(&total) {
                    return goals;
                }
            }
            unreachable!()
        };
        assert_eq!(goals(&["1", "25%", "100%"], 16), [1, 4, 16]);
        assert_eq!(goals(&["25%"], 16), [4, 8, 12, 16]);
        assert_eq!(goals(&["1", "30%"], 10), [1, 3, 6, 9, 10]);
        assert_eq!(goals(&["5"], 12), [5, 10, 12]);
        assert_eq!(goals(&["5%"], 3), [1, 2, 3]);
        assert_eq!(goals(&["50%", "10%", "100%"], 10), [5, 5, 10], "it never goes back");
        assert_eq!(spec(&["1"]).goal(0, 0), 0);
    }

    #[test]
    fn splits_are_read() {
        let mut spec = spec(&["1"]);
        spec.split = Some("label=canary:2,10%:2,20%:3,*:1".into());
        let rules = spec.rules().unwrap();
        assert_eq!(rules[1], (Hosts::HashRange { from: 0, to: 100_000 }, "2".into()));
        assert_eq!(rules[2], (Hosts::HashRange { from: 100_000, to: 300_000 }, "3".into()));
        assert_eq!(rules[3], (Hosts::All, "1".into()));
        for bad in ["", "2", "*:", "60%:2,50%:3", "-1%:2", "*:1", "a=b=c:2", "x%:2"] {
            spec.split = Some(bad.into());
            assert!(spec.validate().is_err(), "{bad}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |change: fn(&mut RolloutSpec)| {
            let mut spec = spec(&["1"]);
            change(&mut spec);
            spec.validate().unwrap_err()
        };
        assert!(wrong(|spec| spec.batch = vec![Amount::Percent(0.0)]).contains("batch"));
        assert!(wrong(|spec| spec.per_rack = 0).contains("per-rack"));
        assert!(wrong(|spec| spec.verify = vec!["up".into()]).contains("prometheus"));
        assert!(wrong(|spec| spec.name = "../x".into()).contains("name"));
        assert!(wrong(|spec| spec.to.clear()).contains("selector") || !wrong(|spec| spec.to.clear()).is_empty());
        for bad in ["", "x", "101%", "-5%", "1.5"] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
    }
}
