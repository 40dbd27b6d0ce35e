//! The tracker's configuration, one setting per field.
//!
//! Invariant: a configuration that passed [`TrackerConfig::validate`] can be run.

use crate::kubeedge::KubeEdgeConfig;
use serde::{Deserialize, Serialize};
use shoal_proto::ids::ClusterId;
use shoal_service::config::{ConfigError, check_folders};
use shoal_service::http_client::transport::HttpUrl;
use shoal_service::http_server::HttpAccess;
use shoal_service::units::Span;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How to run a tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrackerConfig {
    /// Addresses on which hosts reach the control plane. Default `[::]:7710` and `0.0.0.0:7710`. IPv6 and IPv4 have a
    /// socket each, so that a host's remote address is never an IPv4 address mapped into IPv6.
    pub listen: Vec<SocketAddr>,
    /// Address of `/healthz`, `/metrics` and `/v1`. Default `127.0.0.1:7711`. Requests need no token, so the default
    /// serves the machine itself only.
    pub http: SocketAddr,
    /// Names and TLS of the HTTP API. A port that other machines reach needs TLS. Default: no TLS.
    pub http_access: HttpAccess,
    /// Folder of the roster, the jobs and the spool. Default `/var/lib/shoal/tracker`. In a new folder every host gets
    /// a new index, which does not match the reports that the hub already has.
    pub dir: PathBuf,
    /// The cluster's signed trust document. Default `/etc/shoal/trust`. The tracker reads it at its start: restart the
    /// tracker after a change.
    pub trust: PathBuf,
    /// The cluster's id. If it is set, the tracker refuses a trust document of any other cluster. Default: none, the
    /// file is the anchor.
    pub cluster: Option<ClusterId>,
    /// This node's key, mode 0600. Default `/etc/shoal/node.key`.
    pub key: PathBuf,
    /// This node's credential, of role tracker. The tracker serves the region of the credential. Default
    /// `/etc/shoal/node.cred`.
    pub credential: PathBuf,
    /// Key of an issuer of the trust document, mode 0600. With it, the tracker issues credentials to hosts that have a
    /// join token, and renews credentials. Default: none.
    pub issuer_key: Option<PathBuf>,
    /// Hosts that join with the certificate of a KubeEdge node. It needs `issuer_key`. Default: none.
    pub kubeedge: Option<KubeEdgeConfig>,
    /// The hub, `https://host:port` or `http://host:port`. Default: none, and reports stay in the region.
    pub hub: Option<String>,
    /// PEM file with the authority of an `https` hub, beside the system's authorities. Default: none.
    pub hub_ca: Option<PathBuf>,
    /// Interval between two beats of a host, 100 ms to 1 min. Default `2s`. A host is away after three missed beats.
    /// Each beat costs the tracker one request per host.
    pub beat: Span,
    /// How long an away host keeps its place in the membership, at least three beats. Default `10m`, so that a reboot
    /// does not move lanes twice.
    pub grace: Span,
    /// Shortest time between two flushes to the hub that finish no job, 50 ms to 1 min. Default `2s`. A job costs the
    /// hub about its duration divided by this time, in messages.
    pub flush: Span,
    /// Limits on what hosts may cost the tracker.
    pub bounds: TrackerBounds,
}

/// Limits on what hosts may cost the tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrackerBounds {
    /// Connections of admitted hosts, at least 1. Each takes about 16 KiB of memory. The tracker refuses more. Default:
    /// as many as the limit of open files allows, and at most 65,536.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Jobs kept, 1 to 4,096. Default 1,024. A new job replaces the oldest finished one.
    pub jobs: usize,
    /// Flushes that wait for the hub, 1 to 65,536. Default 1,024. Beyond that, one new flush of all jobs replaces them.
    pub spooled_flushes: usize,
    /// Membership updates on their way to hosts, at least 1. Default 64. If this many hosts are slow, the others wait.
    pub membership_updates: usize,
}

impl Default for TrackerBounds {
    fn default() -> Self {
        Self { connections: None, jobs: 1024, spooled_flushes: 1024, membership_updates: 64 }
    }
}

impl Default for TrackerConfig {
    fn default() -> Self {
        Self {
            listen: vec![(Ipv6Addr::UNSPECIFIED, 7710).into(), (Ipv4Addr::UNSPECIFIED, 7710).into()],
            http: (Ipv4Addr::LOCALHOST, 7711).into(),
            http_access: HttpAccess::default(),
            dir: "/var/lib/shoal/tracker".into(),
            trust: "/etc/shoal/trust".into(),
            cluster: None,
            key: "/etc/shoal/node.key".into(),
            credential: "/etc/shoal/node.cred".into(),
            issuer_key: None,
            kubeedge: None,
            hub: None,
            hub_ca: None,
            beat: Span::seconds(2),
            grace: Span::seconds(600),
            flush: Span::seconds(2),
            bounds: TrackerBounds::default(),
        }
    }
}

impl TrackerConfig {
    /// Checks what the field types cannot express.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the first key that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.http_access.check(self.http)?;
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        let within = |span: Span, low_ms: u64, high_s: u64| {
            (Duration::from_millis(low_ms)..=Duration::from_secs(high_s)).contains(&span.0)
        };
        check_folders(&[("dir", &self.dir)])?;
        let has_issuer = self.kubeedge.is_none() || self.issuer_key.is_some();
        check(has_issuer, "kubeedge", "set issuer_key too")?;
        check(!self.listen.is_empty(), "listen", "at least one address is needed")?;
        check(within(self.beat, 100, 60), "beat", "must be between 100ms and 1m")?;
        check(self.grace.0 >= self.beat.0 * 3, "grace", "must be at least three beats")?;
        check(within(self.flush, 50, 60), "flush", "must be between 50ms and 1m")?;
        let bounds = &self.bounds;
        check(bounds.connections != Some(0), "bounds.connections", "must be at least 1")?;
        check((1..=4096).contains(&bounds.jobs), "bounds.jobs", "must be between 1 and 4096")?;
        let spool = (1..=65_536).contains(&bounds.spooled_flushes);
        check(spool, "bounds.spooled_flushes", "must be between 1 and 65536")?;
        check(bounds.membership_updates > 0, "bounds.membership_updates", "must be at least 1")?;
        if let Some(hub) = &self.hub {
            let url = HttpUrl::parse(hub.trim_end_matches('/')).filter(|url| url.path == "/" && url.has_port());
            check(url.is_some(), "hub", "must be https://host:port or http://host:port")?;
        }
        Ok(())
    }
}
