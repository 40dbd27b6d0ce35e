//! The hub's configuration, one knob a field.

use serde::{Deserialize, Serialize};
use shoal_service::config::ConfigError;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// How to run a hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubConfig {
    /// Where trackers report and people ask. Default `0.0.0.0:7740`. Reports are signed by the trackers that send them;
    /// answers are for anyone who can reach the port.
    pub http: SocketAddr,
    /// Folder of the reports. Default `/var/lib/shoal/hub`.
    pub dir: PathBuf,
    /// The cluster's signed trust document. Default `/etc/shoal/trust`.
    pub trust: PathBuf,
    /// Jobs kept; the oldest go first. Default 10,000.
    pub jobs_max: usize,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            http: (Ipv4Addr::UNSPECIFIED, 7740).into(),
            dir: "/var/lib/shoal/hub".into(),
            trust: "/etc/shoal/trust".into(),
            jobs_max: 10_000,
        }
    }
}

impl HubConfig {
    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.jobs_max == 0 {
            return Err(ConfigError::invalid("jobs_max", "at least 1"));
        }
        Ok(())
    }
}
