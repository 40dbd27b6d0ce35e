//! What the doctor needs of a configuration, whatever its role.
//!
//! Invariant: an address with port 0 is in no list, because nobody can know its port before the start.

use shoal_hub::HubConfig;
use shoal_peer::PeerConfig;
use shoal_peer::config::NodeSettings;
use shoal_seeder::SeederConfig;
use shoal_service::http_server::HttpAccess;
use shoal_tracker::TrackerConfig;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A port that the role listens on.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) key: &'static str,
    pub(crate) addr: SocketAddr,
}

/// What the doctor needs of a configuration.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) dir: PathBuf,
    pub(crate) content_dir: Option<PathBuf>,
    /// Space that must stay free on the disk of `dir`, bytes.
    pub(crate) min_free: u64,
    pub(crate) http: SocketAddr,
    pub(crate) access: HttpAccess,
    ports: Vec<Port>,
    /// Control addresses of trackers.
    pub(crate) trackers: Vec<String>,
    /// The hub of a tracker, and the file of its authority.
    pub(crate) hub: Option<(String, Option<PathBuf>)>,
    /// The mirror and the socket of containerd, on hosts that have them.
    pub(crate) mirror: Option<SocketAddr>,
    pub(crate) containerd: Option<PathBuf>,
}

impl Facts {
    /// Returns the ports that the role listens on.
    pub(crate) fn ports(&self) -> impl Iterator<Item = Port> {
        let http = Port { key: "http", addr: self.http };
        let mirror = self.mirror.map(|addr| Port { key: "mirror.listen", addr });
        self.ports.iter().cloned().chain([http]).chain(mirror).filter(|port| port.addr.port() != 0)
    }
}

/// A configuration that the doctor can examine.
pub(crate) trait Examined {
    fn facts(&self) -> Facts;
}

fn node(node: &NodeSettings, dir: &Path, http: SocketAddr, access: &HttpAccess) -> Facts {
    Facts {
        dir: dir.to_path_buf(),
        content_dir: None,
        min_free: node.min_free.0,
        http,
        access: access.clone(),
        ports: node.listen.iter().map(|addr| Port { key: "node.listen", addr: *addr }).collect(),
        trackers: node.trackers.clone(),
        hub: None,
        mirror: None,
        containerd: None,
    }
}

impl Examined for PeerConfig {
    fn facts(&self) -> Facts {
        Facts {
            content_dir: Some(self.content_dir.clone()),
            mirror: self.mirror.addr().ok().flatten(),
            containerd: self.containerd.as_ref().map(|containerd| containerd.socket.clone()),
            ..node(&self.node, &self.dir, self.http, &self.http_access)
        }
    }
}

impl Examined for SeederConfig {
    fn facts(&self) -> Facts {
        node(&self.node, &self.dir, self.http, &self.http_access)
    }
}

impl Examined for TrackerConfig {
    fn facts(&self) -> Facts {
        Facts {
            dir: self.dir.clone(),
            content_dir: None,
            min_free: 0,
            http: self.http,
            access: self.http_access.clone(),
            ports: self.listen.iter().map(|addr| Port { key: "listen", addr: *addr }).collect(),
            trackers: Vec::new(),
            hub: self.hub.clone().map(|hub| (hub, self.hub_ca.clone())),
            mirror: None,
            containerd: None,
        }
    }
}

impl Examined for HubConfig {
    fn facts(&self) -> Facts {
        Facts {
            dir: self.dir.clone(),
            content_dir: None,
            min_free: 0,
            http: self.http,
            access: self.http_access.clone(),
            ports: Vec::new(),
            trackers: Vec::new(),
            hub: None,
            mirror: None,
            containerd: None,
        }
    }
}
