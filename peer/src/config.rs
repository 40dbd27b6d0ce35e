//! A peer's configuration, one knob a field.
//!
//! Invariant: a configuration that passed [`PeerConfig::validate`] can be run.

use crate::activation::settings::{self, Activations};
use crate::mirror::MirrorConfig;
use crate::prewarm::ContainerdConfig;
use crate::rate_limits::RateLimitSettings;
use serde::{Deserialize, Serialize};
use shoal_proto::limits;
use shoal_proto::locality::{Labels, validate_labels};
use shoal_service::config::ConfigError;
use shoal_service::units::ByteSize;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// How to run a node: what peers and seeders have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSettings {
    /// Where bulk links are listened for. Default `[::]:7700` and `0.0.0.0:7700`.
    pub listen: Vec<SocketAddr>,
    /// Addresses other hosts are told. Default: none, and they are told the listening ports at the address the tracker
    /// sees this host from.
    pub advertise: Vec<SocketAddr>,
    /// Trackers' control planes, `host:port`, names or addresses; the first that answers is used. Names are looked up
    /// at each attempt.
    pub trackers: Vec<String>,
    /// The cluster's signed trust document. Default `/etc/shoal/trust`.
    pub trust: PathBuf,
    /// This node's key, mode 0600. Default `/etc/shoal/node.key`.
    pub key: PathBuf,
    /// This node's credential. Default `/etc/shoal/node.cred`.
    pub credential: PathBuf,
    /// What the operator calls this host, for selectors.
    pub labels: Labels,
    /// Share of the rack's relaying, relative to its mates. Default 100; 0 relays only when all mates are at 0.
    pub weight: u16,
    /// Rate of the rack's uplink (a seeder's own link), Mbit/s. Default 0: not declared. Racks declared at less than half
    /// of the others' relay for nobody.
    pub uplink_mbit: u32,
    /// Bytes contents may take. Default: all of the disk but `min_free`.
    pub quota: Option<ByteSize>,
    /// Bytes to leave free on the disk. Default 1 GiB.
    pub min_free: ByteSize,
    /// Memory for shards that arrived and are on the disk, until they are sent on. Default and at most: half of
    /// `receive_memory`.
    pub hot_cache: Option<ByteSize>,
    /// Memory for payload until it is on the disk; links are not read beyond it. Half of it may be verified and wait for a
    /// disk that stands still, and is sent on meanwhile. Default 96 MiB.
    pub receive_memory: ByteSize,
    /// What is received is written around the page cache, which stays the customers'. Default true; false for spinning
    /// disks, whose writes the cache puts in order.
    pub direct_io: bool,
    /// What its links keep to. Default: no limits.
    pub limits: RateLimitSettings,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            listen: vec![(Ipv6Addr::UNSPECIFIED, 7700).into(), (Ipv4Addr::UNSPECIFIED, 7700).into()],
            advertise: Vec::new(),
            trackers: Vec::new(),
            trust: "/etc/shoal/trust".into(),
            key: "/etc/shoal/node.key".into(),
            credential: "/etc/shoal/node.cred".into(),
            labels: Labels::new(),
            weight: 100,
            uplink_mbit: 0,
            quota: None,
            min_free: ByteSize(1 << 30),
            hot_cache: None,
            receive_memory: ByteSize(96 << 20),
            direct_io: true,
            limits: RateLimitSettings::default(),
        }
    }
}

impl NodeSettings {
    /// Memory for shards that are to be sent on, as set or by default.
    pub fn hot_cache(&self) -> ByteSize {
        self.hot_cache.unwrap_or(ByteSize(self.receive_memory.0 / 2))
    }

    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        check(!self.listen.is_empty(), "node.listen", "at least one address is needed")?;
        check(self.listen.len() <= limits::ADDRS_MAX, "node.listen", "too many addresses")?;
        check(self.advertise.len() <= limits::ADDRS_MAX, "node.advertise", "too many addresses")?;
        check(!self.trackers.is_empty(), "node.trackers", "at least one tracker is needed, as host:port")?;
        check(self.trackers.iter().all(|name| name.contains(':')), "node.trackers", "must be host:port")?;
        check(
            self.hot_cache().0 <= self.receive_memory.0 / 2,
            "node.hot_cache",
            "at most half of node.receive_memory",
        )?;
        check(self.receive_memory.0 >= 16 << 20, "node.receive_memory", "at least 16 MiB")?;
        self.limits.validate()?;
        validate_labels(&self.labels).map_err(|error| ConfigError::invalid("node.labels", error))
    }
}

/// How to run a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerConfig {
    /// What it shares with seeders.
    pub node: NodeSettings,
    /// Folder of the store. Default `/var/lib/shoal/peer`.
    pub dir: PathBuf,
    /// Folder where contents appear, as `NAME/VERSION` with a link `NAME/current`. On the same file system as `dir`, files
    /// are shared rather than copied where possible. Default `/var/lib/shoal/content`.
    pub content_dir: PathBuf,
    /// Versions of a name kept in the content folder, the current one included. Default 2.
    pub keep_versions: usize,
    /// Where `/healthz`, `/metrics` and `/v1` are served. Default `127.0.0.1:7701`.
    pub http: SocketAddr,
    /// The admin token, mode 0600, which requests that change something must show. Default: none, and nothing can be
    /// changed.
    pub admin_token: Option<PathBuf>,
    /// What is done around a switch, by name or `prefix/*`. Default: nothing.
    pub activation: Activations,
    /// The registry mirror.
    pub mirror: MirrorConfig,
    /// The containerd that images are unpacked in. Default: none, and images end at `held`.
    pub containerd: Option<ContainerdConfig>,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            node: NodeSettings::default(),
            dir: "/var/lib/shoal/peer".into(),
            content_dir: "/var/lib/shoal/content".into(),
            keep_versions: 2,
            http: (Ipv4Addr::LOCALHOST, 7701).into(),
            admin_token: None,
            activation: Activations::new(),
            mirror: MirrorConfig::default(),
            containerd: None,
        }
    }
}

impl PeerConfig {
    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.node.validate()?;
        self.mirror.validate()?;
        self.containerd.iter().try_for_each(ContainerdConfig::validate)?;
        if self.keep_versions == 0 {
            return Err(ConfigError::invalid("keep_versions", "at least 1"));
        }
        settings::validate(&self.activation)
    }
}
