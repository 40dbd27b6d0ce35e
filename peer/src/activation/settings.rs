//! What this host does around a switch, by name: commands, a probe, a check, and how long each may take.
//!
//! Invariant: settings that passed [`validate`] name commands that can be tried and probes that can be asked.

use serde::{Deserialize, Serialize};
use shoal_proto::announcement::is_content_name;
use shoal_service::config::ConfigError;
use shoal_service::units::Span;
use std::collections::BTreeMap;
use std::time::Duration;

/// Settings by name, or by `prefix/*`; `*` is for every name. The most particular one counts.
pub type Activations = BTreeMap<String, ActivationSettings>;

/// What to do around a switch. Commands are a program and its arguments: no shell is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActivationSettings {
    /// Runs before the switch, e.g. drains the service. When it fails, nothing is switched.
    pub pre_stop: Vec<String>,
    /// How long it may take. Default `30s`.
    pub pre_stop_timeout: Span,
    /// Runs after the switch, e.g. reloads the service. When it fails, the host goes back.
    pub post_start: Vec<String>,
    /// How long it may take. Default `30s`.
    pub post_start_timeout: Span,
    /// Asked after that until it answers as it should. When it does not, the host goes back.
    pub probe: Option<Probe>,
    /// Runs last; when it fails, the host goes back.
    pub check: Vec<String>,
    /// How long it may take. Default `30s`.
    pub check_timeout: Span,
}

impl Default for ActivationSettings {
    fn default() -> Self {
        Self {
            pre_stop: Vec::new(),
            pre_stop_timeout: Span::seconds(30),
            post_start: Vec::new(),
            post_start_timeout: Span::seconds(30),
            probe: None,
            check: Vec::new(),
            check_timeout: Span::seconds(30),
        }
    }
}

/// A service's own word on how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// `http://host:port/path`.
    pub url: String,
    /// The status it must answer with. Default 200.
    #[serde(default = "expect")]
    pub expect: u16,
    /// Text its answer must hold. Default: none.
    #[serde(default)]
    pub contains: String,
    /// How long one question may take. Default `2s`.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// Between two questions. Default `1s`.
    #[serde(default = "interval")]
    pub interval: Span,
    /// How long after the switch the first good answer may take. Default `30s`.
    #[serde(default = "within")]
    pub within: Span,
    /// Bad answers in a row, once it was well, that mean it is not. Default 3.
    #[serde(default = "failures")]
    pub failures: u32,
}

fn expect() -> u16 {
    200
}

fn timeout() -> Span {
    Span::seconds(2)
}

fn interval() -> Span {
    Span::seconds(1)
}

fn within() -> Span {
    Span::seconds(30)
}

fn failures() -> u32 {
    3
}

impl Probe {
    /// The server as `http://host:port`, and the path.
    pub(crate) fn parts(&self) -> Option<(String, String)> {
        let rest = self.url.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let ok =
            authority.contains(':') && !authority.contains('@') && path.bytes().all(|byte| byte.is_ascii_graphic());
        ok.then(|| (format!("http://{authority}"), path.to_string()))
    }
}

/// Checks what the types cannot.
pub fn validate(activations: &Activations) -> Result<(), ConfigError> {
    for (name, settings) in activations {
        let key = format!("activation.\"{name}\"");
        let bad = |what: &str, why: &str| ConfigError::invalid(&format!("{key}{what}"), why);
        let stem = name.strip_suffix("/*").unwrap_or(name);
        if name != "*" && !is_content_name(stem) {
            return Err(bad("", "must be a content's name, `prefix/*` or `*`"));
        }
        let commands =
            [(&settings.pre_stop, ".pre_stop"), (&settings.post_start, ".post_start"), (&settings.check, ".check")];
        if let Some((_, what)) = commands.iter().find(|(argv, _)| argv.first().is_some_and(String::is_empty)) {
            return Err(bad(what, "must be a program and its arguments"));
        }
        let most = Duration::from_secs(3600);
        let spans = [settings.pre_stop_timeout, settings.post_start_timeout, settings.check_timeout];
        if spans.iter().any(|span| span.0.is_zero() || span.0 > most) {
            return Err(bad("", "timeouts are more than 0 and at most 1h"));
        }
        let Some(probe) = &settings.probe else { continue };
        if probe.parts().is_none() {
            return Err(bad(".probe.url", "must be http://host:port/path"));
        }
        let spans = [probe.timeout, probe.interval, probe.within];
        if spans.iter().any(|span| span.0.is_zero() || span.0 > most) || probe.failures == 0 {
            return Err(bad(".probe", "spans are more than 0 and at most 1h, failures at least 1"));
        }
    }
    Ok(())
}

/// The settings for a name.
pub(crate) fn settings_for(activations: &Activations, name: &str) -> ActivationSettings {
    if let Some(exact) = activations.get(name) {
        return exact.clone();
    }
    let fits = |pattern: &str| {
        let stem = pattern.strip_suffix('*')?;
        (stem.is_empty() || name.starts_with(stem)).then_some(stem.len())
    };
    let found = activations.iter().filter_map(|(pattern, settings)| Some((fits(pattern)?, settings)));
    found.max_by_key(|(len, _)| *len).map(|(_, settings)| settings.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(program: &str) -> ActivationSettings {
        ActivationSettings { check: vec![program.into()], ..ActivationSettings::default() }
    }

    #[test]
    fn the_most_particular_counts() {
        let all = [("*", "all"), ("edge/*", "edge"), ("edge/web/*", "web"), ("edge/web/main", "main")];
        let all: Activations = all.into_iter().map(|(name, program)| (name.to_string(), named(program))).collect();
        validate(&all).unwrap();
        for (name, program) in
            [("edge/web/main", "main"), ("edge/web/x", "web"), ("edge/x", "edge"), ("edgy", "all"), ("edge", "all")]
        {
            assert_eq!(settings_for(&all, name).check, [program], "{name}");
        }
        assert_eq!(settings_for(&Activations::new(), "x"), ActivationSettings::default());
    }

    #[test]
    fn mistakes_are_named() {
        let probe = |url: &str| ActivationSettings {
            probe: Some(Probe {
                url: url.into(),
                expect: 200,
                contains: String::new(),
                timeout: timeout(),
                interval: interval(),
                within: within(),
                failures: 3,
            }),
            ..ActivationSettings::default()
        };
        let refused = |name: &str, settings: ActivationSettings| {
            validate(&Activations::from([(name.to_string(), settings)])).unwrap_err().to_string()
        };
        assert!(refused("../x", named("a")).contains("../x"));
        assert!(refused("x", named("")).contains("check"));
        for url in ["https://a:1/", "http://a/", "a:1", "http://u@a:1/", "http://a:1/ x"] {
            assert!(refused("x", probe(url)).contains("probe"), "{url}");
        }
        validate(&Activations::from([("x".to_string(), probe("http://127.0.0.1:80"))])).unwrap();
    }
}
