//! A seeder's configuration.
//!
//! Invariant: a seeder can run with a configuration that passed [`SeederConfig::validate`].

use crate::push_roots::{DEFAULT_ROOT, PrivateFolder, PushRoots};
use serde::{Deserialize, Serialize};
use shoal_peer::config::NodeSettings;
use shoal_proto::image::{is_host, is_repository_prefix};
use shoal_proto::limits;
use shoal_service::audit::AuditConfig;
use shoal_service::config::{ConfigError, check_folders};
use shoal_service::http_client::transport::HttpUrl;
use shoal_service::http_server::HttpAccess;
use shoal_service::units::Span;
use shoal_store::ingest::IngestOptions;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// A seeder's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SeederConfig {
    /// Settings that the seeder shares with peers.
    pub node: NodeSettings,
    /// Folder of the store. Default `/var/lib/shoal/seeder`.
    pub dir: PathBuf,
    /// File of the key that signs announcements, mode 0600. Default `/etc/shoal/publisher.key`.
    pub publisher_key: PathBuf,
    /// Address of the HTTP API. Default `127.0.0.1:7721`.
    pub http: SocketAddr,
    /// Names and TLS of the HTTP API. A port that other machines reach needs TLS. Default: no TLS.
    pub http_access: HttpAccess,
    /// File of the admin token, mode 0600, which may do everything and create other tokens. Default
    /// `/etc/shoal/admin.token`.
    pub admin_token: PathBuf,
    /// Folders below which pushes take files and directories. Links must not lead out of them. Default
    /// `/var/lib/shoal/drop`.
    pub push_roots: Vec<PathBuf>,
    /// How much the audit log keeps. The log is the folder `audit` in `dir`.
    pub audit: AuditConfig,
    /// Data shards in a stripe (k). Default 16.
    pub data_shards: u8,
    /// Parity shards in a stripe (m). Default 4. With 0 the seeder codes no parity.
    pub parity_shards: u8,
    /// Lanes of a plan, 1 to 64. Default 64.
    pub lanes: u8,
    /// How long hosts remember a job. Default `7d`.
    pub job_lifetime: Span,
    /// Images that hosts' mirrors may fetch through this seeder. An entry is a registry, or a registry and the
    /// beginning of its repositories, e.g. `registry.example:5000/lab`. Default: none.
    pub fetch_through: Vec<String>,
    /// File of credentials for registries, a docker-style `config.json` with `auths`, `credHelpers` and `credsStore`.
    /// Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_config: Option<PathBuf>,
    /// How long a pull repeats requests to a registry that does not answer, before the pull fails. The next pull
    /// continues with the bytes that arrived. Default `2m`.
    pub pull_patience: Span,
    /// How to reach registries that do not serve `https` at their own name, by the name in references, e.g.
    /// `registry.example:5000`.
    pub registries: BTreeMap<String, RegistrySettings>,
}

/// How to reach one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Address of the registry or of its mirror, e.g. `https://10.0.0.5:5000`. Default: the registry's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Connect without TLS. Default `false`. A registry on a loopback address that speaks no TLS needs no row.
    pub plain_http: bool,
    /// PEM file of authorities to trust for its certificate, besides the system's. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl Default for SeederConfig {
    fn default() -> Self {
        Self {
            node: NodeSettings::default(),
            dir: "/var/lib/shoal/seeder".into(),
            publisher_key: "/etc/shoal/publisher.key".into(),
            http: (Ipv4Addr::LOCALHOST, 7721).into(),
            http_access: HttpAccess::default(),
            admin_token: "/etc/shoal/admin.token".into(),
            push_roots: vec![DEFAULT_ROOT.into()],
            audit: AuditConfig::default(),
            data_shards: 16,
            parity_shards: 4,
            lanes: 64,
            job_lifetime: Span::seconds(7 * 86_400),
            fetch_through: Vec::new(),
            docker_config: None,
            pull_patience: Span::seconds(120),
            registries: BTreeMap::new(),
        }
    }
}

impl SeederConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Returns an error that names the first invalid key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.http_access.check(self.http)?;
        self.node.validate()?;
        check_folders(&[("dir", &self.dir)])?;
        self.push_roots().check().map_err(|error| ConfigError::invalid("push_roots", error))?;
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        check((1..=limits::STRIPE_DATA_MAX).contains(&self.data_shards), "data_shards", "must be between 1 and 64")?;
        check(self.parity_shards <= limits::STRIPE_PARITY_MAX, "parity_shards", "must be at most 32")?;
        check((1..=limits::LANES_MAX).contains(&self.lanes), "lanes", "must be between 1 and 64")?;
        let lifetime = 60..=limits::ANNOUNCEMENT_LIFETIME_MAX_S;
        check(lifetime.contains(&self.job_lifetime.0.as_secs()), "job_lifetime", "must be between 1m and 366d")?;
        check(self.pull_patience.0.as_secs() <= 86_400, "pull_patience", "must be at most 1d")?;
        self.audit.validate()?;
        for prefix in &self.fetch_through {
            let why = format!("`{prefix}` must be a registry, or a registry and the beginning of its repositories");
            check(is_repository_prefix(prefix), "fetch_through", &why)?;
        }
        for (name, settings) in &self.registries {
            let key = format!("registries.{name}");
            check(is_host(name), &key, "must be a registry as references name it, host or host:port")?;
            let Some(url) = &settings.url else { continue };
            let url = HttpUrl::parse(url).filter(|url| url.path == "/");
            let url = url.ok_or_else(|| ConfigError::invalid(&key, "`url` must be http(s)://host[:port]"))?;
            check(url.https || settings.plain_http, &key, "an http `url` needs `plain_http = true`")?;
        }
        Ok(())
    }

    /// Returns the folders of pushes. The folders of keys and state are private.
    pub(crate) fn push_roots(&self) -> PushRoots {
        let tls = self.http_access.tls.as_ref().map(|tls| &tls.key);
        let keys = [Some(&self.publisher_key), Some(&self.admin_token), Some(&self.node.key)];
        let keys = keys.into_iter().chain([tls, self.docker_config.as_ref()]).flatten().filter_map(|key| key.parent());
        let keys = keys.map(|path| PrivateFolder { path: path.into(), what: "which has keys of the seeder" });
        let state = PrivateFolder { path: self.dir.clone(), what: "which has the state of the seeder" };
        PushRoots { roots: self.push_roots.clone(), private: keys.chain([state]).collect() }
    }

    /// Returns how contents are cut and coded, with this average piece length or a computed one.
    pub(crate) fn ingest_options(&self, average: Option<u32>) -> IngestOptions {
        IngestOptions { average, data: self.data_shards, parity: self.parity_shards, lanes: self.lanes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_checked() {
        let with = |name: &str, url: Option<&str>, plain_http| {
            let settings = RegistrySettings { url: url.map(str::to_string), plain_http, ca: None };
            SeederConfig { registries: [(name.to_string(), settings)].into(), ..SeederConfig::default() }.validate()
        };
        let before = SeederConfig::default().validate().is_ok();
        for (name, url, plain) in [
            ("r.example:5000", None, true),
            ("docker.io", Some("https://m.example"), false),
            ("r", Some("http://x:1"), true),
        ] {
            assert_eq!(with(name, url, plain).is_ok(), before, "{name}");
        }
        for (name, url, plain) in [
            ("http://r", None, true),
            ("r", Some("http://x"), false),
            ("r", Some("https://x/path"), false),
            ("r", Some("x"), true),
        ] {
            assert!(with(name, url, plain).is_err(), "{name} {url:?}");
        }
    }
}
