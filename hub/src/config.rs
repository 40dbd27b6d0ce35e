//! The hub's configuration, one setting per field.
//!
//! Invariant: a configuration that passed [`HubConfig::validate`] can be run.

use serde::{Deserialize, Serialize};
use shoal_service::audit::AuditConfig;
use shoal_service::config::{ConfigError, check_folders};
use shoal_service::http_server::HttpAccess;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Job reports that can be kept.
const JOBS_MAX: usize = 1_000_000;

/// How to run a hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubConfig {
    /// Address on which trackers report and people query. Default `127.0.0.1:7740`. Trackers sign their reports. On an
    /// address that other machines reach, people need a token.
    pub http: SocketAddr,
    /// Names and TLS of the HTTP API. A port that other machines reach needs TLS. Default: no TLS.
    pub http_access: HttpAccess,
    /// File of the admin token, mode 0600. With it every query needs a token. Default: none, which only a loopback
    /// address allows.
    pub admin_token: Option<PathBuf>,
    /// How much the audit log keeps. The log is the folder `audit` in `dir`.
    pub audit: AuditConfig,
    /// Folder of the reports. Default `/var/lib/shoal/hub`.
    pub dir: PathBuf,
    /// The cluster's signed trust document. Default `/etc/shoal/trust`.
    pub trust: PathBuf,
    /// This node's key, mode 0600, which signs receipts. Default `/etc/shoal/node.key`.
    pub key: PathBuf,
    /// This node's credential, of role hub. Default `/etc/shoal/node.cred`. Trackers renew it.
    pub credential: PathBuf,
    /// Job reports kept, one per job, region and tracker. The hub drops the oldest first. Default 10,000.
    pub jobs_max: usize,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            http: (Ipv4Addr::LOCALHOST, 7740).into(),
            http_access: HttpAccess::default(),
            dir: "/var/lib/shoal/hub".into(),
            admin_token: None,
            audit: AuditConfig::default(),
            trust: "/etc/shoal/trust".into(),
            key: "/etc/shoal/node.key".into(),
            credential: "/etc/shoal/node.cred".into(),
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
        if !(1..=JOBS_MAX).contains(&self.jobs_max) {
            return Err(ConfigError::invalid("jobs_max", format!("must be between 1 and {JOBS_MAX}")));
        }
        if !self.http.ip().to_canonical().is_loopback() && self.admin_token.is_none() {
            let why = format!("{} is open to other machines, so people need tokens: name the file of one", self.http);
            return Err(ConfigError::invalid("admin_token", why));
        }
        self.audit.validate()?;
        check_folders(&[("dir", &self.dir)])
    }
}
