//! The configuration of switches by name: hooks, a probe, and their time limits.
//!
//! Invariant: after [`validate`] every command has a program, and every probe has a valid URL.

use serde::{Deserialize, Serialize};
use shoal_proto::announcement::is_content_name;
use shoal_service::config::ConfigError;
use shoal_service::units::Span;
use std::collections::BTreeMap;
use std::time::Duration;

/// Settings by name, by `prefix/*`, or by `*` for every name. The longest match applies.
pub type Activations = BTreeMap<String, ActivationSettings>;

/// The hooks and the probe of a switch. A command is a program and its arguments, without a shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActivationSettings {
    /// Runs before the switch, for example to drain the service. If the hook fails, the host keeps its version.
    pub pre_stop: Vec<String>,
    /// Time limit of `pre_stop`. Default `30s`.
    pub pre_stop_timeout: Span,
    /// Runs after the switch, for example to reload the service. If the hook fails, the host returns to its former
    /// version.
    pub post_start: Vec<String>,
    /// Time limit of `post_start`. Default `30s`.
    pub post_start_timeout: Span,
    /// Repeated after `post_start` until it succeeds. If it does not, the host returns to its former version.
    pub probe: Option<Probe>,
    /// Runs last. If the hook fails, the host returns to its former version.
    pub check: Vec<String>,
    /// Time limit of `check`. Default `30s`.
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

/// An HTTP request that tells whether a service is healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// `http://host:port/path`.
    pub url: String,
    /// The HTTP status of a healthy service. Default 200.
    #[serde(default = "expect")]
    pub expect: u16,
    /// Text that the answer of a healthy service contains. Default: none.
    #[serde(default)]
    pub contains: String,
    /// Time limit of one request. Default `2s`.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// Time between two requests. Default `1s`.
    #[serde(default = "interval")]
    pub interval: Span,
    /// Time after the switch within which the service must become healthy. Default `30s`.
    #[serde(default = "within")]
    pub within: Span,
    /// Failures in a row that make an active version unhealthy. Default 3.
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
    /// Returns the server as `http://host:port`, and the path.
    pub(crate) fn server_and_path(&self) -> Option<(String, String)> {
        let rest = self.url.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let ok =
            authority.contains(':') && !authority.contains('@') && path.bytes().all(|byte| byte.is_ascii_graphic());
        ok.then(|| (format!("http://{authority}"), path.to_string()))
    }
}

/// Checks the bounds that types cannot express.
///
/// # Errors
/// Names the first key with an invalid value.
pub fn validate(activations: &Activations) -> Result<(), ConfigError> {
    for (name, settings) in activations {
        let key = format!("activation.\"{name}\"");
        let bad = |what: &str, why: &str| ConfigError::invalid(&format!("{key}{what}"), why);
        let stem = name.strip_suffix("/*").unwrap_or(name);
        if name != "*" && !is_content_name(stem) {
            return Err(bad("", "use a content name, `prefix/*` or `*`"));
        }
        let commands =
            [(&settings.pre_stop, ".pre_stop"), (&settings.post_start, ".post_start"), (&settings.check, ".check")];
        if let Some((_, what)) = commands.iter().find(|(argv, _)| argv.first().is_some_and(String::is_empty)) {
            return Err(bad(what, "use a program and its arguments, or an empty list for no hook"));
        }
        let is_relative = |program: &String| program.contains('/') && !program.starts_with('/');
        if let Some((_, what)) = commands.iter().find(|(argv, _)| argv.first().is_some_and(is_relative)) {
            return Err(bad(what, "use an absolute path or the name of a program in the fixed PATH of hooks"));
        }
        let longest = Duration::from_secs(3600);
        let spans = [settings.pre_stop_timeout, settings.post_start_timeout, settings.check_timeout];
        if spans.iter().any(|span| span.0.is_zero() || span.0 > longest) {
            return Err(bad("", "use timeouts above 0 and up to 1h"));
        }
        let Some(probe) = &settings.probe else { continue };
        if probe.server_and_path().is_none() {
            return Err(bad(".probe.url", "use http://host:port/path"));
        }
        let spans = [probe.timeout, probe.interval, probe.within];
        if spans.iter().any(|span| span.0.is_zero() || span.0 > longest) || probe.failures == 0 {
            return Err(bad(".probe", "use times above 0 and up to 1h, and at least 1 failure"));
        }
    }
    Ok(())
}

/// Returns the settings for a name.
pub(crate) fn settings_for(activations: &Activations, name: &str) -> ActivationSettings {
    if let Some(exact) = activations.get(name) {
        return exact.clone();
    }
    let match_len = |pattern: &str| {
        let stem = pattern.strip_suffix('*')?;
        (stem.is_empty() || name.starts_with(stem)).then_some(stem.len())
    };
    let found = activations.iter().filter_map(|(pattern, settings)| Some((match_len(pattern)?, settings)));
    found.max_by_key(|(len, _)| *len).map(|(_, settings)| settings.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(program: &str) -> ActivationSettings {
        ActivationSettings { check: vec![program.into()], ..ActivationSettings::default() }
    }

    #[test]
    fn the_longest_match_applies() {
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
    fn an_invalid_value_is_named() {
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
        assert!(refused("x", named("./bin/check")).contains("absolute"));
        assert!(refused("x", named("bin/check")).contains("absolute"));
        for url in ["https://a:1/", "http://a/", "a:1", "http://u@a:1/", "http://a:1/ x"] {
            assert!(refused("x", probe(url)).contains("probe"), "{url}");
        }
        validate(&Activations::from([("x".to_string(), probe("http://127.0.0.1:80"))])).unwrap();
    }
}
