//! A seeder's configuration, one knob a field.
//!
//! Invariant: a configuration that passed [`SeederConfig::validate`] can be run.

use serde::{Deserialize, Serialize};
use shoal_ops::config::ConfigError;
use shoal_ops::units::Span;
use shoal_peer::config::NodeSettings;
use shoal_proto::limits;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// How to run a seeder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SeederConfig {
    /// What it shares with peers.
    pub node: NodeSettings,
    /// Folder of the store. Default `/var/lib/shoal/seeder`.
    pub dir: PathBuf,
    /// The key announcements are signed with, mode 0600. Default `/etc/shoal/publisher.key`.
    pub publisher_key: PathBuf,
    /// Where the API is served. Default `127.0.0.1:7721`. Requests must show the admin token.
    pub http: SocketAddr,
    /// The admin token, mode 0600. Default `/etc/shoal/admin.token`.
    pub admin_token: PathBuf,
    /// Data shards in a stripe (k). Default 16.
    pub data_shards: u8,
    /// Parity shards in a stripe (m). Default 4; 0 switches coding off.
    pub parity_shards: u8,
    /// Distribution trees (L), 1 to 64. Default 64.
    pub lanes: u8,
    /// How long hosts remember a job. Default `7d`.
    pub job_lifetime: Span,
}

impl Default for SeederConfig {
    fn default() -> Self {
        Self {
            node: NodeSettings::default(),
            dir: "/var/lib/shoal/seeder".into(),
            publisher_key: "/etc/shoal/publisher.key".into(),
            http: (Ipv4Addr::LOCALHOST, 7721).into(),
            admin_token: "/etc/shoal/admin.token".into(),
            data_shards: 16,
            parity_shards: 4,
            lanes: 64,
            job_lifetime: Span::seconds(7 * 86_400),
        }
    }
}

impl SeederConfig {
    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.node.validate()?;
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        check((1..=limits::STRIPE_DATA_MAX).contains(&self.data_shards), "data_shards", "between 1 and 64")?;
        check(self.parity_shards <= limits::STRIPE_PARITY_MAX, "parity_shards", "at most 32")?;
        check((1..=limits::LANES_MAX).contains(&self.lanes), "lanes", "between 1 and 64")?;
        check(self.job_lifetime.0.as_secs() >= 60, "job_lifetime", "at least 1m")
    }
}
