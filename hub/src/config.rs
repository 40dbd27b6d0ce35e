//! The hub's configuration, one setting per field.
//!
//! Invariant: a configuration that passed [`HubConfig::validate`] can be run.

use serde::{Deserialize, Serialize};
use shoal_service::config::{ConfigError, check_folders};
use shoal_service::http_server::HttpAccess;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// How to run a hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubConfig {
    /// Address on which trackers report and people query. Default `127.0.0.1:7740`. Trackers sign their reports. Anyone
    /// who can reach the port may query.
    pub http: SocketAddr,
    /// Names and TLS of the HTTP API. A port that other machines reach needs TLS. Default: no TLS.
    pub http_access: HttpAccess,
    /// Folder of the reports. Default `/var/lib/shoal/hub`.
    pub dir: PathBuf,
    /// The cluster's signed trust document. Default `/etc/shoal/trust`.
    pub trust: PathBuf,
    /// Job reports kept, one per job, region and tracker. The hub drops the oldest first. Default 10,000.
    pub jobs_max: usize,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            http: (Ipv4Addr::LOCALHOST, 7740).into(),
            http_access: HttpAccess::default(),
            dir: "/var/lib/shoal/hub".into(),
            trust: "/etc/shoal/trust".into(),
            jobs_max: 10_000,
        }
    }
}

impl HubConfig {
    /// Checks what the field types cannot express.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the first key that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.http_access.check(self.http)?;
        if self.jobs_max == 0 {
            return Err(ConfigError::invalid("jobs_max", "must be at least 1"));
        }
        check_folders(&[("dir", &self.dir)])
    }
}
