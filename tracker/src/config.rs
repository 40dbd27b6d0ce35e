//! The tracker's configuration, one knob a field.
//!
//! Invariant: a configuration that passed [`TrackerConfig::validate`] can be run.

use serde::{Deserialize, Serialize};
use shoal_proto::ids::ClusterId;
use shoal_service::config::ConfigError;
use shoal_service::units::Span;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How to run a tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrackerConfig {
    /// Where hosts reach the control plane. Default `[::]:7710` and `0.0.0.0:7710`: IPv6 and IPv4 are listened on
    /// apart, so that a host's remote address is never an IPv4 address in IPv6 dress.
    pub listen: Vec<SocketAddr>,
    /// Where `/healthz`, `/metrics` and `/v1` are served. Default `127.0.0.1:7711`: it needs no token, so it is for the
    /// machine itself unless told otherwise.
    pub http: SocketAddr,
    /// Folder of the roster, the jobs and the spool. Default `/var/lib/shoal/tracker`. Losing it costs every host its
    /// index: old reports at the hub then speak of a roster that is no more.
    pub dir: PathBuf,
    /// The cluster's signed trust document. Default `/etc/shoal/trust`. Read at start: a restart makes a new one count.
    pub trust: PathBuf,
    /// The cluster's id, when the trust document itself is not to be taken at its word. Default: none, the file is the
    /// anchor.
    pub cluster: Option<ClusterId>,
    /// This node's key, mode 0600. Default `/etc/shoal/node.key`.
    pub key: PathBuf,
    /// This node's credential, of role tracker. Its region is the region served. Default `/etc/shoal/node.cred`.
    pub credential: PathBuf,
    /// The hub, `http://host:port`. Default: none, and reports stay in the region.
    pub hub: Option<String>,
    /// How often hosts beat, 100 ms to 1 min. Default `2s`. Three beats missed make a host away; shorter costs the
    /// tracker a request a host each.
    pub beat: Span,
    /// How long an away host keeps its row, at least three beats. Default `10m`: a reboot must not move lanes twice.
    pub grace: Span,
    /// Least time between two flushes to the hub that carry no finished job, 50 ms to 1 min. Default `2s`. What a job costs
    /// the hub in messages is its duration over this.
    pub flush: Span,
    /// Bounds on what hosts may cost.
    pub limits: Limits,
}

/// Bounds on what hosts may cost the tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections held at a time, at least 1. Default 65,536: about 16 KiB of memory each. More are refused.
    pub connections: u32,
    /// Jobs remembered, 1 to 4,096. Default 1,024: the oldest finished one is dropped for a new one.
    pub jobs: usize,
    /// Flushes kept while the hub is away, 1 to 65,536. Default 1,024: beyond it older ones are merged into newer ones,
    /// which say the same.
    pub spool: usize,
    /// Membership updates under way at a time, at least 1. Default 64: with slow hosts, how many may be slow before the
    /// others wait.
    pub pushes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 65_536, jobs: 1024, spool: 1024, pushes: 64 }
    }
}

impl Default for TrackerConfig {
    fn default() -> Self {
        Self {
            listen: vec![(Ipv6Addr::UNSPECIFIED, 7710).into(), (Ipv4Addr::UNSPECIFIED, 7710).into()],
            http: (Ipv4Addr::LOCALHOST, 7711).into(),
            dir: "/var/lib/shoal/tracker".into(),
            trust: "/etc/shoal/trust".into(),
            cluster: None,
            key: "/etc/shoal/node.key".into(),
            credential: "/etc/shoal/node.cred".into(),
            hub: None,
            beat: Span::seconds(2),
            grace: Span::seconds(600),
            flush: Span::seconds(2),
            limits: Limits::default(),
        }
    }
}

impl TrackerConfig {
    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        let within = |span: Span, low_ms: u64, high: u64| {
            (Duration::from_millis(low_ms)..=Duration::from_secs(high)).contains(&span.0)
        };
        check(!self.listen.is_empty(), "listen", "at least one address is needed")?;
        check(within(self.beat, 100, 60), "beat", "between 100ms and 1m")?;
        check(self.grace.0 >= self.beat.0 * 3, "grace", "at least three beats")?;
        check(within(self.flush, 50, 60), "flush", "between 50ms and 1m")?;
        check(self.limits.connections > 0, "limits.connections", "at least 1")?;
        check((1..=4096).contains(&self.limits.jobs), "limits.jobs", "between 1 and 4096")?;
        check((1..=65_536).contains(&self.limits.spool), "limits.spool", "between 1 and 65536")?;
        check(self.limits.pushes > 0, "limits.pushes", "at least 1")?;
        if let Some(hub) = &self.hub {
            shoal_service::http_client::Client::new(hub, None).map_err(|error| ConfigError::invalid("hub", error))?;
        }
        Ok(())
    }
}
