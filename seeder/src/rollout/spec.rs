//! The checks of a rollout that an operator asks for.
//!
//! Invariant: a specification that passed [`check`] can be carried out on every host that its selectors match.

use super::gate::{Threshold, ThresholdError};
use shoal_api::rollouts::{Amount, RolloutSpec};
use shoal_proto::announcement::{Kind, is_version};
use shoal_proto::desired::{HASH_BUCKETS, Hosts, feed_of};
use shoal_proto::limits;
use shoal_proto::locality::{ParseLocalityError, Selector};
use shoal_service::http_client::{Client, ClientError};

/// Entries of a list of batches.
const BATCHES_MAX: usize = 64;
/// Queries of one rollout.
const QUERIES_MAX: usize = 16;

/// What is wrong with a rollout.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error(
        "invalid name `{0}`: use `/`-separated parts of letters, digits, `.`, `_`, `-`, at most 120 bytes, and no part \
         `current`"
    )]
    Name(String),
    #[error("a rollout cannot ingest an image; push it first with `shoal push --stage` or `shoal prewarm --batch`")]
    ImagePath,
    #[error("invalid version `{0}`: use letters, digits, `.`, `_`, `-`, and not `current`")]
    Version(String),
    #[error(transparent)]
    Selector(#[from] ParseLocalityError),
    #[error("batch has {0} entries; give between 1 and {BATCHES_MAX}")]
    Batches(usize),
    #[error("batch has an entry of no hosts; give at least 1 host or more than 0%")]
    EmptyBatch,
    #[error("per-rack is 0; give at least 1")]
    PerRack,
    #[error("switch-timeout is 0; give a longer one")]
    SwitchTimeout,
    #[error("verify needs the address of Prometheus; give prometheus as http://host:port")]
    NoPrometheus,
    #[error("prometheus has no usable address")]
    Prometheus(#[source] ClientError),
    #[error("verify has {0} queries; give at most {QUERIES_MAX}")]
    Queries(usize),
    #[error(transparent)]
    Query(#[from] ThresholdError),
    #[error("invalid rule `{0}` of the split: write label=value:VERSION, 10%:VERSION or *:VERSION")]
    Rule(String),
    #[error("rule `{0}` of the split raises the sum of the percentages above 100")]
    Percentages(String),
    #[error("the split has {0} rules; give at most {max}", max = limits::DESIRED_RULES_MAX)]
    Rules(usize),
    #[error("no rule of the split has version {0}; name it in a rule, or roll another version out")]
    UnusedVersion(String),
    #[error("replace needs a path: only a version that is pushed again can have another content")]
    ReplaceWithoutPath,
}

/// Hosts and the version that they should have. The first rule that matches a host counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VersionRule {
    pub(crate) hosts: Hosts,
    pub(crate) version: String,
}

/// Checks what the types cannot.
///
/// # Errors
/// Returns the first mistake; its text says what to change.
pub(crate) fn check(spec: &RolloutSpec) -> Result<(), SpecError> {
    let check = |ok: bool, error: SpecError| if ok { Ok(()) } else { Err(error) };
    check(feed_of(&spec.name).is_some(), SpecError::Name(spec.name.clone()))?;
    check(spec.kind != Kind::Image || spec.path.is_none(), SpecError::ImagePath)?;
    check(is_version(&spec.version), SpecError::Version(spec.version.clone()))?;
    check(!spec.replace || spec.path.is_some(), SpecError::ReplaceWithoutPath)?;
    Selector::parse(&spec.to)?;
    check((1..=BATCHES_MAX).contains(&spec.batch.len()), SpecError::Batches(spec.batch.len()))?;
    let is_empty = |amount: &Amount| matches!(amount, Amount::Hosts(0)) || *amount == Amount::Percent(0.0);
    check(!spec.batch.iter().any(is_empty), SpecError::EmptyBatch)?;
    check(spec.per_rack > 0, SpecError::PerRack)?;
    check(!spec.switch_timeout.0.is_zero(), SpecError::SwitchTimeout)?;
    if !spec.verify.is_empty() {
        let url = spec.prometheus.as_deref().ok_or(SpecError::NoPrometheus)?;
        Client::new(url, None).map_err(SpecError::Prometheus)?;
    }
    check(spec.verify.len() <= QUERIES_MAX, SpecError::Queries(spec.verify.len()))?;
    for query in &spec.verify {
        Threshold::parse(query)?;
    }
    rules(spec).map(drop)
}

/// Returns which hosts get which version.
///
/// # Errors
/// Returns an error if the split cannot be read or does not use the rollout's version.
pub(crate) fn rules(spec: &RolloutSpec) -> Result<Vec<VersionRule>, SpecError> {
    let Some(split) = &spec.split else {
        return Ok(vec![VersionRule { hosts: Hosts::All, version: spec.version.clone() }]);
    };
    let mut rules = Vec::new();
    // Percentages take consecutive ranges of hash buckets, so a host keeps its version as hosts come and go.
    let mut buckets_used = 0;
    for part in split.split(',') {
        let invalid = || SpecError::Rule(part.to_string());
        let (which, version) = part.trim().rsplit_once(':').ok_or_else(invalid)?;
        if !is_version(version) {
            return Err(invalid());
        }
        let hosts = if which == "*" {
            Hosts::All
        } else if let Some(percent) = which.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(|_| invalid())?;
            // NaN is in no range.
            if !(0.0..=100.0).contains(&percent) {
                return Err(invalid());
            }
            let from = buckets_used;
            buckets_used += (percent * f64::from(HASH_BUCKETS) / 100.0).round() as u32;
            if buckets_used > HASH_BUCKETS {
                return Err(SpecError::Percentages(part.to_string()));
            }
            Hosts::HashRange { from, to: buckets_used }
        } else {
            Hosts::Selector(Selector::parse(&[which]).map_err(|_| invalid())?)
        };
        rules.push(VersionRule { hosts, version: version.to_string() });
    }
    if rules.len() > limits::DESIRED_RULES_MAX {
        return Err(SpecError::Rules(rules.len()));
    }
    if !rules.iter().any(|rule| rule.version == spec.version) {
        return Err(SpecError::UnusedVersion(spec.version.clone()));
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RolloutSpec {
        let mut spec = RolloutSpec::new("edge/a", "2", vec!["all".into()]);
        spec.batch = vec!["1".parse().unwrap()];
        check(&spec).unwrap();
        spec
    }

    #[test]
    fn splits_are_read() {
        let mut spec = spec();
        spec.split = Some("label=canary:2,10%:2,20%:3,*:1".into());
        let rules = rules(&spec).unwrap();
        let rule = |hosts, version: &str| VersionRule { hosts, version: version.into() };
        assert_eq!(rules[1], rule(Hosts::HashRange { from: 0, to: 100_000 }, "2"));
        assert_eq!(rules[2], rule(Hosts::HashRange { from: 100_000, to: 300_000 }, "3"));
        assert_eq!(rules[3], rule(Hosts::All, "1"));
        let not_numbers = ["NaN%:2", "nan%:1,*:2", "inf%:2", "1%:1,1e30%:2"];
        let wrong = ["", "2", "*:", "60%:2,50%:3", "-1%:2", "*:1", "a=b=c:2", "x%:2"];
        for bad in wrong.into_iter().chain(not_numbers) {
            spec.split = Some(bad.into());
            assert!(check(&spec).is_err(), "{bad}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |change: fn(&mut RolloutSpec)| {
            let mut spec = spec();
            change(&mut spec);
            check(&spec).unwrap_err().to_string()
        };
        assert!(wrong(|spec| spec.batch = vec![Amount::Percent(0.0)]).contains("batch"));
        assert!(wrong(|spec| spec.per_rack = 0).contains("per-rack"));
        assert!(wrong(|spec| spec.verify = vec!["up".into()]).contains("prometheus"));
        assert!(wrong(|spec| spec.name = "../x".into()).contains("name"));
        assert!(wrong(|spec| spec.version = "current".into()).contains("not `current`"));
        assert!(wrong(|spec| spec.replace = true).contains("replace needs a path"));
        assert!(wrong(|spec| spec.to.clear()).contains("selector") || !wrong(|spec| spec.to.clear()).is_empty());
    }
}
