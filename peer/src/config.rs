//! The configuration of a peer, and the part that peers and seeders share.
//!
//! Invariant: a configuration that passed [`PeerConfig::validate`] can be run.

use crate::activation::content_dir::ContentSettings;
use crate::activation::mode_mask::ModeMask;
use crate::activation::settings::{self, Activations};
use crate::mirror::MirrorConfig;
use crate::prewarm::ContainerdConfig;
use crate::rate_limits::RateLimitSettings;
use serde::{Deserialize, Serialize};
use shoal_net::links::RecordLayer;
use shoal_proto::limits;
use shoal_service::config::{ConfigError, check_folders};
use shoal_service::http_server::HttpAccess;
use shoal_service::machine::{check_disk, check_memory};
use shoal_service::units::ByteSize;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Versions of a name that can be kept.
const KEEP_VERSIONS_MAX: usize = 1000;

/// The configuration that peers and seeders share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSettings {
    /// The connections to other hosts.
    pub net: NetSettings,
    /// Addresses on which links are accepted. Default `[::]:7700` and `0.0.0.0:7700`.
    pub listen: Vec<SocketAddr>,
    /// Addresses that other hosts use. Default: the ports of `listen` at the address from which the tracker sees this
    /// host. The credential must cover them.
    pub advertise: Vec<SocketAddr>,
    /// Control addresses of the trackers, `host:port`. The host uses the first that answers. Names are looked up at
    /// each attempt.
    pub trackers: Vec<String>,
    /// File of the cluster's signed trust document. Default `/etc/shoal/trust`.
    pub trust: PathBuf,
    /// File of this node's key, mode 0600. Default `/etc/shoal/node.key`.
    pub key: PathBuf,
    /// File of this node's credential. Default `/etc/shoal/node.cred`.
    pub credential: PathBuf,
    /// Weight of this host among its rack peers when lane owners are chosen. Default 100. The credential states the
    /// greatest one. A host of weight 0 owns lanes only if all its rack peers have weight 0.
    pub weight: u16,
    /// Rate of the rack's uplink, or of a seeder's own link, in Mbit/s. Default 0, which means undeclared. A rack below
    /// half of the other racks' rate relays to no other rack.
    pub uplink_mbit: u32,
    /// Bytes that contents may take. Default: the whole disk except `min_free`.
    pub quota: Option<ByteSize>,
    /// Bytes that must stay free on the disk. Default 1 GiB.
    pub min_free: ByteSize,
    /// Memory of the shard cache: shards that are on disk and still to be sent on. Default and maximum: half of
    /// `receive_memory`.
    pub shard_cache: Option<ByteSize>,
    /// Memory for received payload until it is on disk. Links are not read while it is full. Half of it can hold
    /// verified payload while the disk stalls, and that payload is sent on meanwhile. Default 96 MiB.
    pub receive_memory: ByteSize,
    /// Whether received payload bypasses the page cache, so that the cache serves other programs. Default true. Use
    /// false for rotating disks, whose writes the cache sorts.
    pub direct_io: bool,
    /// Rate limits of the links. Default: none.
    pub limits: RateLimitSettings,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            net: NetSettings::default(),
            listen: vec![(Ipv6Addr::UNSPECIFIED, 7700).into(), (Ipv4Addr::UNSPECIFIED, 7700).into()],
            advertise: Vec::new(),
            trackers: Vec::new(),
            trust: "/etc/shoal/trust".into(),
            key: "/etc/shoal/node.key".into(),
            credential: "/etc/shoal/node.cred".into(),
            weight: 100,
            uplink_mbit: 0,
            quota: None,
            min_free: ByteSize(1 << 30),
            shard_cache: None,
            receive_memory: ByteSize(96 << 20),
            direct_io: true,
            limits: RateLimitSettings::default(),
        }
    }
}

impl NodeSettings {
    /// Returns the memory of the shard cache, as set or by default.
    pub fn shard_cache(&self) -> ByteSize {
        self.shard_cache.unwrap_or(ByteSize(self.receive_memory.0 / 2))
    }

    /// Checks the bounds that types cannot express.
    ///
    /// # Errors
    /// Names the first key with an invalid value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        check(!self.listen.is_empty(), "node.listen", "add at least one address")?;
        check(self.listen.len() <= limits::ADDRS_MAX, "node.listen", "too many addresses")?;
        check(self.advertise.len() <= limits::ADDRS_MAX, "node.advertise", "too many addresses")?;
        check(!self.trackers.is_empty(), "node.trackers", "add at least one tracker as host:port")?;
        check(self.trackers.iter().all(|name| name.contains(':')), "node.trackers", "use host:port")?;
        check(
            self.shard_cache().0 <= self.receive_memory.0 / 2,
            "node.shard_cache",
            "use at most half of node.receive_memory",
        )?;
        check(self.receive_memory.0 >= 16 << 20, "node.receive_memory", "use at least 16 MiB")?;
        check(self.quota.is_none_or(|quota| quota.0 > 0), "node.quota", "use more than zero, or leave it out")?;
        self.limits.validate()
    }
}

impl NodeSettings {
    /// Checks sizes against this machine. `dir` is the folder of the store.
    ///
    /// # Errors
    /// Names the first key with a size that the machine does not have.
    pub fn check_machine(&self, dir: &Path) -> Result<(), ConfigError> {
        check_memory("node.receive_memory", self.receive_memory.0)?;
        self.quota.map_or(Ok(()), |quota| check_disk("node.quota", quota.0, dir))?;
        check_disk("node.min_free", self.min_free.0, dir)
    }
}

/// How a node connects to other hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetSettings {
    /// The implementation that seals and opens the TLS records of links. Default `own`.
    pub records: Records,
}

/// The implementations of TLS records. Hosts with different choices interoperate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Records {
    /// The crate `shoal-tls-records`: fewer copies, less processor time.
    #[default]
    Own,
    /// rustls itself.
    Rustls,
}

impl From<Records> for RecordLayer {
    fn from(records: Records) -> Self {
        match records {
            Records::Own => Self::Own,
            Records::Rustls => Self::Rustls,
        }
    }
}

/// The configuration of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerConfig {
    /// The part that peers and seeders share.
    pub node: NodeSettings,
    /// Folder of the store. Default `/var/lib/shoal/peer`.
    pub dir: PathBuf,
    /// Folder of activated contents, as `NAME/VERSION` with a link `NAME/current`. On the file system of `dir`, files
    /// are cloned instead of copied where possible. Default `/var/lib/shoal/content`.
    pub content_dir: PathBuf,
    /// Versions of a name that stay in the content folder, including the current one. Default 2.
    pub keep_versions: usize,
    /// Mode bits that files and folders of contents may have in the content folder. Default `"0755"`.
    pub mode_mask: ModeMask,
    /// Address of the HTTP API: `/healthz`, `/metrics`, `/feeds` and `/v1`. Default `127.0.0.1:7701`.
    pub http: SocketAddr,
    /// Names and TLS of the HTTP API. A port that other machines reach needs TLS. Default: no TLS.
    pub http_access: HttpAccess,
    /// File of the admin token, mode 0600. Requests that change something must show the token. Default: none, and all
    /// such requests are refused.
    pub admin_token: Option<PathBuf>,
    /// Hooks and probes of switches, by name or `prefix/*`. Default: none.
    pub activation: Activations,
    /// The registry mirror.
    pub mirror: MirrorConfig,
    /// The containerd that prewarms images. Default: none, and images end in the state `stored`.
    pub containerd: Option<ContainerdConfig>,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            node: NodeSettings::default(),
            dir: "/var/lib/shoal/peer".into(),
            content_dir: "/var/lib/shoal/content".into(),
            keep_versions: 2,
            mode_mask: ModeMask::default(),
            http: (Ipv4Addr::LOCALHOST, 7701).into(),
            http_access: HttpAccess::default(),
            admin_token: None,
            activation: Activations::new(),
            mirror: MirrorConfig::default(),
            containerd: None,
        }
    }
}

impl PeerConfig {
    /// Returns the settings of the content folder.
    pub(crate) fn content(&self) -> ContentSettings {
        ContentSettings { dir: self.content_dir.clone(), keep_versions: self.keep_versions, mode_mask: self.mode_mask }
    }

    /// Checks the bounds that types cannot express.
    ///
    /// # Errors
    /// Names the first key with an invalid value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.http_access.check(self.http)?;
        self.node.validate()?;
        self.mirror.validate()?;
        self.containerd.iter().try_for_each(ContainerdConfig::validate)?;
        if !(1..=KEEP_VERSIONS_MAX).contains(&self.keep_versions) {
            return Err(ConfigError::invalid("keep_versions", format!("use 1 to {KEEP_VERSIONS_MAX}")));
        }
        check_folders(&[("dir", &self.dir), ("content_dir", &self.content_dir)])?;
        settings::validate(&self.activation)
    }
}
